"""The frame of a page: one file, whose scripts are known by their hashes, and which may fetch nothing.

The policy lets run only the scripts that were there when the page was written; text from a run that became
an element by some mistake still could not act. Styles may be inline, for the figures set them so.
"""

import base64
import gzip
import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from analysis.report import formats

TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("figures.js", "ask.js", "tables.js", "page.js")
NO_FIGURES = ("tables.js", "page.js")


@dataclass(frozen=True)
class Library:
    """Where a page finds the library that draws: in itself (packed), or in a file (``link``) beside it."""

    link: str | None = None


CARRIED = Library()


def frame(library: Library | None = CARRIED) -> dict[str, Markup]:
    """What ``base.html.j2`` asks for. ``library`` None: a page without figures."""
    script = _script(SCRIPTS if library is not None else NO_FIGURES)
    allowed = [_source(script)]
    element = ""
    if library is not None and library.link is None:
        allowed.append(_source(plotly()))
        element = f'<script type="application/gzip" id="plotly">{_packed()}</script>'
    elif library is not None:
        allowed += ["'self'", "file:"]
        element = f'<script src="{library.link}"></script>'
    policy = (
        f"default-src 'none'; script-src {' '.join(allowed)}; style-src 'unsafe-inline'; "
        "base-uri 'none'; form-action 'none'"
    )
    return {
        "policy": Markup(policy),
        "css": Markup((TEMPLATES / "report.css").read_text()),
        "library": Markup(element),
        "script": Markup(script),
    }


def markdown(pages: Environment) -> Environment:
    """The environment of the pages, for text: nothing is HTML there, and a cell is one line."""
    made = pages.overlay(autoescape=False, trim_blocks=True, lstrip_blocks=True)
    made.filters = pages.filters | {"line": line}
    return made


def line(text: object) -> str:
    """On one line, in which neither a bar ends the cell nor a tag begins."""
    words = " ".join(str(formats.clipped(str(text))).split())
    return words.replace("&", "&amp;").replace("<", "&lt;").replace("|", "\\|")


@cache
def plotly() -> str:
    """As the browser will hash it: an element's text has no carriage returns."""
    return get_plotlyjs().replace("\r\n", "\n")


@cache
def _packed() -> str:
    """gzip in base64, the same bytes each time: 2 MB in the place of 4.8."""
    return base64.b64encode(gzip.compress(plotly().encode(), 9, mtime=0)).decode()


@cache
def _script(names: tuple[str, ...]) -> str:
    parts = [(TEMPLATES / name).read_text() for name in names]
    return '"use strict";\n' + "\n".join(parts)


def _source(script: str) -> str:
    """The script as a policy names it."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"

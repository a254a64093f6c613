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

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape

from analysis.report import formats

TEMPLATES = Path(__file__).parent / "templates"
LIBRARY = (  # of npm's plotly.js-basic-dist-min, as it is: all that figures of scatters and bars need
    Path(__file__).parent / "library" / "plotly-basic.min.js"
)
TEXT = (
    "tables.js",
    "page.js",
)  # the scripts of a page without figures, of one with them, of the report
FIGURES = ("figures.js", *TEXT)
REPORT = ("figures.js", "ask.js", *TEXT)


@dataclass(frozen=True)
class Library:
    """Where a page finds the library that draws: in itself (packed), or in a file (``link``) beside it."""

    link: str | None = None


CARRIED = Library()


def environment(*folders: Path) -> Environment:
    """Of the templates in ``folders``, which may extend ``base.html.j2``. A name that is not given is an
    error there, and nothing is HTML but what a filter made.
    """
    made = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=formats.clipped,
    )
    made.tests["none"] = is_none
    made.filters |= {
        "code": code,
        "answer": formats.answer,
        "breakable": breakable,
        "bare": bare,
    }
    made.globals["f"] = formats
    return made


def frame(library: Library | None, scripts: tuple[str, ...]) -> dict[str, Markup]:
    """What ``base.html.j2`` asks for. ``library`` None: a page without figures."""
    script = _script(scripts)
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
    return LIBRARY.read_text(encoding="utf-8")


@cache
def _packed() -> str:
    """gzip in base64, the same bytes each time: 0.5 MB in the place of 1.2."""
    return base64.b64encode(gzip.compress(plotly().encode(), 9, mtime=0)).decode()


@cache
def _script(names: tuple[str, ...]) -> str:
    parts = [(TEMPLATES / name).read_text() for name in names]
    return '"use strict";\n' + "\n".join(parts)


def _source(script: str) -> str:
    """The script as a policy names it."""
    digest = hashlib.sha256(script.encode()).digest()
    return f"'sha256-{base64.b64encode(digest).decode()}'"


def is_none(value: object) -> bool:
    """The test ``none`` of the templates, held to StrictUndefined too: a misspelt name is an error.

    Raises jinja2.UndefinedError.
    """
    str(value) if isinstance(value, StrictUndefined) else None
    return value is None


def code(text: str) -> Markup:
    """`word` in backticks becomes a code element, **words** strong; everything else is escaped."""
    parts = str(escape(formats.clipped(text))).split("`")
    joined = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
    strong = joined.split("**")
    return Markup("".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(strong)))


def bare(text: str) -> str:
    """A sentence where no element can stand, as in a title: without its marks."""
    return text.replace("`", "").replace("**", "")


def breakable(label: str) -> Markup:
    """A backend's label may break at its spaces, before its options and between them."""
    clipped = str(escape(formats.clipped(label)))
    return Markup(clipped.replace("(", "<wbr>(").replace(",", ",<wbr>"))

"""What a reader of a report finds: summary.json and the sentences above the tables. A black box from outside.

``read`` takes summary.json's content from the functions that the command calls, without a page beside it;
with options of the command, by its own ``main`` in this process; ``read_by_command`` starts it. Where there
is a page, its sentences must be those of summary.json.
"""

import contextlib
import html
import io
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
SETTLED = ("better", "worse")
FIGURE = re.compile(r"(\d[\d,]*\.?\d*)\s*×")


@dataclass(frozen=True)
class Claim:
    """A settled difference: ``winner`` is shown to be better than ``loser`` by ``objective``."""

    winner: str
    loser: str
    objective: str
    words: str


@dataclass(frozen=True)
class Reading:
    """``sentences`` without marks; ``bold``: what stands in bold among them."""

    summary: dict[str, Any] = field(repr=False)
    sentences: list[str]
    bold: list[str]

    @property
    def text(self) -> str:
        return "\n".join(self.sentences)

    @property
    def headline(self) -> str:
        """The first sentence: what to take."""
        return self.sentences[0] if self.sentences else ""

    def claims(self, *objectives: str) -> list[Claim]:
        """Settled differences, of all objectives or of those that are named."""
        return [
            claim
            for d in self.summary["differences"]
            if (claim := _claim(d)) is not None
            and (not objectives or claim.objective in objectives)
        ]

    def difference(self, objective: str, *names: str) -> list[dict[str, Any]]:
        """The difference objects of one objective between candidates whose labels begin with ``names``."""
        return [
            d
            for d in self.summary["differences"]
            if d["objective"] == objective
            and all(any(side.startswith(name) for side in sides(d)) for name in names)
        ]

    def winners(self, *objectives: str) -> list[str]:
        """Who wins a decision, of all objectives or of those that are named."""
        return [
            d["winner"]
            for d in self.summary["decisions"]
            if d["winner"] and (not objectives or d["objective"] in objectives)
        ]

    def decisions_at(self, context: int) -> list[dict[str, Any]]:
        return [d for d in self.summary["decisions"] if context in _values(d)]

    def recommended(self, name: str) -> bool:
        """Whether the sentences tell a reader to take ``name``: its name after "take", before a stop."""
        pattern = rf"\btake\b[^.;:]*(?<![\w-]){re.escape(name)}(?![\w-])"
        return any(re.search(pattern, s, re.I) for s in self.sentences)

    def said_of(self, *words: str) -> list[str]:
        """Sentences that hold every one of ``words``."""
        return [s for s in self.sentences if all(w.lower() in s.lower() for w in words)]

    def pooled(self, *groups: list[str]) -> bool:
        """Whether runs of two of the ``groups`` of run ids stand in one cell."""
        return any(
            sum(bool(set(cell["run_ids"]) & set(group)) for group in groups) > 1
            for cell in self.summary["cells"]
        )


def sides(difference: dict[str, Any]) -> tuple[str, str]:
    """The labels of the two that a difference compares."""
    return str(difference["a"]), str(difference["b"])


def _values(value: object) -> list[object]:
    """Every scalar of a JSON value, however deep."""
    if isinstance(value, dict):
        return [each for inner in value.values() for each in _values(inner)]
    if isinstance(value, list):
        return [each for inner in value for each in _values(inner)]
    return [value]


def _claim(difference: dict[str, Any]) -> Claim | None:
    verdict = difference["verdict"]
    if verdict not in SETTLED:
        return None
    a, b = sides(difference)
    winner, loser = (a, b) if verdict == "better" else (b, a)
    return Claim(winner, loser, difference["objective"], json.dumps(difference)[:600])


def read(root: Path, *options: str) -> Reading:
    """The report of everything below ``root``; ``options`` as on the command line."""
    if not options:
        return _reading(summarised(root))
    run_command("report", str(root), *options)
    return _files(root)


def run_command(*words: str) -> None:
    """``python -m analysis WORDS`` in this process; its complaint is the failure."""
    from analysis.__main__ import main

    argv = ["analysis", *words]
    said, complained = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", argv),
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(complained),
    ):
        try:
            code = main()
        except SystemExit as stop:
            code = stop.code
    assert not code, f"{words[0]} ended with {code}: {complained.getvalue()}"


def summarised(root: Path) -> dict[str, Any]:
    """What summary.json would hold."""
    from analysis.study import study
    from analysis.summary import summary

    return json.loads(json.dumps(summary(study(root))))


def read_by_command(root: Path, *options: str) -> Reading:
    """The same by ``python -m analysis report``."""
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "report", str(root), *options],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return _files(root)


def _files(root: Path) -> Reading:
    found = _reading(json.loads((root / "summary.json").read_text()))
    page = [_plain(item) for item in _items((root / "report.html").read_text())]
    assert page == found.sentences, "the page's sentences are not those of summary.json"
    return found


def _reading(summary: dict[str, Any]) -> Reading:
    marked = summary["sentences"]
    return Reading(
        summary=summary,
        sentences=[" ".join(s.replace("**", "").replace("`", "").split()) for s in marked],
        bold=[bold for s in marked for bold in re.findall(r"\*\*(.*?)\*\*", s)],
    )


def _items(page: str) -> Iterator[str]:
    """The list items of the page's first section: its sentences."""
    section = re.search(r"<section[^>]*>.*?<ul[^>]*>(.*?)</ul>", page, re.S)
    assert section, "the report has no list of sentences"
    yield from re.findall(r"<li>(.*?)</li>", section.group(1), re.S)


def _plain(marked: str) -> str:
    return " ".join(html.unescape(re.sub(r"<[^>]+>", "", marked)).split())


def figures(sentence: str) -> list[float]:
    """The factors (``1.3×``) of a sentence."""
    return [float(found.replace(",", "")) for found in FIGURE.findall(sentence)]

"""Tables of the pages that scripts write."""

from collections.abc import Iterable

from analysis.report.formats import DASH, significant


def table(head: str, lines: Iterable[Iterable[str]]) -> str:
    """Markdown. ``head`` has ``|`` between its columns, and ``>`` before those of numbers."""
    columns = [name.strip() for name in head.split("|")]
    names = [name.lstrip("> ") for name in columns]
    rule = ["--:" if name.startswith(">") else "---" for name in columns]
    return "".join(f"| {' | '.join(line)} |\n" for line in [names, rule, *lines])


def or_dash(value: float | None) -> str:
    return DASH if value is None else significant(value)

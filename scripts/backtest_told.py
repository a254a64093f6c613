"""A back-test's score in words: what scripts/backtest.py prints, and the H200 page's section of it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from analysis.report.formats import DASH, significant
from planning.back_test import FIGURES, Bar, Compared, Whose
from scripts.markdown_table import table

WHOSE: tuple[Whose, ...] = ("plan", "nearest", "line")
KNEE_MOST = "at most 10 %"
PREDICTED = {
    "requests/s": "throughput",
    "E2E p50, s": "e2e_p50_s",
    "TTFT p50, s": "ttft_p50_s",
    "mean waiting, s": "waiting_s",
    "W": "watts",
}  # the page's columns
Knees = Mapping[str, Sequence[float | None]]  # predicted, measured
Orders = Mapping[str, Sequence[list[str] | None]]


# -- both ---------------------------------------------------------------------------------------------------


def bar_rows(found: Iterable[Bar]) -> list[list[str]]:
    """Name, what is allowed, points, median errors by whose, whether it is met, whether it beats both."""
    return [
        [
            bar.name,
            f"{bar.most:.0%}",
            str(bar.points),
            *(_percent(bar.errors[whose]) for whose in WHOSE),
            _yes(bar.met),
            _yes(bar.beats),
        ]
        for bar in found
    ]


def beside(said: float | None, saw: float | None, number: Callable[[float], str]) -> str:
    """``predicted / measured (error)``."""
    both = " / ".join(DASH if value is None else number(value) for value in (said, saw))
    off = _off(said, saw)
    return both if off is None else f"{both} ({off})"


def _off(said: float | None, saw: float | None) -> str | None:
    return None if said is None or not saw else f"{said / saw - 1:+.1%}"


def _right(orders: Orders) -> str:
    right = sum(said == saw for said, saw in orders.values())
    return f"right at {right} of {len(orders)} loads"


def _percent(share: float | None) -> str:
    return DASH if share is None else f"{share:.1%}"


def _yes(value: bool | None) -> str:
    return DASH if value is None else "yes" if value else "no"


# -- the terminal -------------------------------------------------------------------------------------------


def points_told(compared: Iterable[Compared]) -> list[str]:
    lines = [
        [
            _named(one.key),
            "" if one.of_most is None else f"{one.of_most:.2f}",
            *(
                beside(None if plan is None else pick(plan), pick(one.saw), _short)
                for plan in [one.said["plan"]]
                for pick in FIGURES.values()
            ),
        ]
        for one in compared
    ]
    head = " | > ".join(["point", "of the most", *FIGURES])
    return ["predicted / measured (error)", "", *table(head, lines).splitlines()]


def bars_told(found: Iterable[Bar]) -> list[str]:
    head = "median absolute error | > at most | > points | > plan | > nearest | > line | met | beats both"
    return table(head, bar_rows(found)).splitlines()


def rest_told(
    knees: Knees, why: tuple[Mapping[str, str], Mapping[str, str]], orders: Orders
) -> list[str]:
    """``why``: of predicted and of measured rates that have no knee."""
    lines: list[str] = []
    for name, (said, saw) in knees.items():
        both = " / ".join(DASH if value is None else _short(value) for value in (said, saw))
        off = _off(said, saw)
        within = "" if off is None else f" ({off}; {KNEE_MOST})"
        lines.append(f"knee, {_named(name)}: {both} requests/s{within}")
        for whose, of in zip(("predicted", "measured"), why, strict=True):
            if name in of:
                lines.append(f"  none {whose}: {of[name]}")
    return [*lines, f"order of candidates: {_right(orders)}"]


def _named(key: str) -> str:
    candidate, context, *load = key.split(" | ")
    words = candidate.split(" ")
    chunk = next((w.split("=")[1] for w in words if w.startswith("max_num_batched_tokens")), "")
    return ", ".join([f"{words[1]} chunk {chunk}", f"{int(context):,}", *load])


def _short(value: float) -> str:
    return f"{value:.3g}"


# -- the page -----------------------------------------------------------------------------------------------


def section(frozen: Mapping[str, Any], scored: Mapping[str, Any]) -> str:
    """Of the files that ``freeze`` and ``score --json`` wrote."""
    predicted = {row["key"]: row for row in frozen["points"]}
    points = table(
        f"point, predicted / measured | > {' | > '.join(PREDICTED)}",
        (
            [
                _point_words(row),
                *(_on_page(row["plan"][n], one["saw"][n]) for n in PREDICTED.values()),
            ]
            for one in scored["points"]
            if (row := predicted[one["key"]])
        ),
    )
    bars = [Bar(bar["name"], bar["most"], bar["points"], bar["errors"]) for bar in scored["bars"]]
    head = (
        "median absolute error | > at most | > points | > plan | > nearest point | > straight line | met | "
        "beats both"
    )
    why = frozen.get("no_knee", {})
    knees = "".join(
        f"* Knee of {name.split()[1]} at {int(name.rpartition(' ')[2]):,} tokens: "
        f"{_knee_on_page(*both, why.get(name))}.\n"
        for name, both in scored["knees"].items()
    )
    return (
        f"{table(head, bar_rows(bars))}\n{knees}"
        f"* Order of the candidates: {_right(scored['orders'])} given to both.\n\n{points}"
    )


def _point_words(row: Mapping[str, Any]) -> str:
    return f"{row['candidate'].split()[1]}, {row['context_tokens']:,}, {row['load']}"


def _knee_on_page(said: float | None, saw: float | None, why: str | None) -> str:
    """``why``: none was predicted."""
    if said is not None and saw is not None:
        return f"{_on_page(said, saw)} requests/s; {KNEE_MOST} off"
    before, after = (
        "none" if each is None else f"{significant(each)} requests/s" for each in (said, saw)
    )
    reason = f" ({why})" if said is None and why else ""
    return f"{before} predicted{reason}, {after} measured"


def _on_page(said: Any, saw: Any) -> str:
    """Of an interval the middle; nothing where one of both is not there."""
    before, after = (fmean(value) if isinstance(value, list) else value for value in (said, saw))
    return DASH if before is None or after is None else beside(before, after, significant)

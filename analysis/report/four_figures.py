"""Four figures of one candidate against another at one scenario, with difference and A/A noise."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from analysis.compare.cells import Cell
from analysis.compare.differences import Difference, Pairs
from analysis.objectives import BY_NAME, SPEED, Objective
from analysis.point.point import Point
from analysis.report import formats
from analysis.report.choices import between_words, gap_words
from analysis.report.formats import count
from analysis.report.tables import Entry, entry_of
from analysis.runs.identity import Scenario


@dataclass(frozen=True)
class Bar:
    """A difference beside the noise of equal arms, in per cent of a scale whose middle is "equal".

    To the right the first candidate is better. ``noise``: half the width of the A/A band.
    """

    middle: float
    low: float | None
    high: float | None
    noise: float | None


@dataclass(frozen=True)
class Figure:
    """One figure of the first screen. ``entry`` is that of the numbers table, ``rival`` its value there."""

    title: str
    entry: Entry
    rival: str | None
    delta: str
    noise: str | None  # None where nothing was compared
    bar: Bar | None


@dataclass(frozen=True)
class PointLinks:
    """The points of one candidate: (words, element id)."""

    label: str
    links: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Pair:
    """Four figures of one candidate against another (None: it stands alone) at one scenario."""

    scenario: Scenario
    subject: str
    rival: str | None
    figures: tuple[Figure, ...]
    points: tuple[PointLinks, ...]


QUANTITIES = (SPEED, BY_NAME["ttft"], BY_NAME["energy_request"], BY_NAME["sequence"])
FITS = BY_NAME["sequence"]  # shown is how many sequences fit
TITLES = {SPEED: "Tokens/s", FITS: "Sequences that fit"}


def pair_of(
    key: tuple[Scenario, str, str | None],
    by_cell: Mapping[tuple[Scenario, str], Cell],
    differences: Pairs,
    links: Mapping[str, str],
) -> Pair:
    scenario, subject, rival = key
    own = by_cell[scenario, subject]
    other = None if rival is None else by_cell[scenario, rival]
    return Pair(
        scenario=scenario,
        subject=subject,
        rival=rival,
        figures=tuple(
            _figure(
                objective,
                own,
                other,
                None if rival is None else differences.get((scenario, objective, subject, rival)),
            )
            for objective in QUANTITIES
        ),
        points=tuple(
            PointLinks(cell.backend, start_links(cell.starts, links))
            for cell in (own, other)
            if cell is not None
        ),
    )


def start_links(starts: Sequence[Point], links: Mapping[str, str]) -> tuple[tuple[str, str], ...]:
    """(words, element id) of each start; with its sweep's folder where starts of two are called alike."""
    named = sorted(
        (Path(p.path).parent.name, f"start {p.repeat + 1}{_arm(p.arm)}", links[p.path])
        for p in starts
    )
    alike = len({words for _, words, _ in named}) < len(named)
    return tuple((f"{sweep} {words}" if alike else words, link) for sweep, words, link in named)


def _arm(arm: int) -> str:
    return "" if not arm else f" (copy {arm + 1})"


def _figure(
    objective: Objective, own: Cell, other: Cell | None, difference: Difference | None
) -> Figure:
    if objective is FITS:
        return _fitting(own, other)
    entry = _entry(objective, own)
    rival = None if other is None else _entry(objective, other).main
    noise, bar = None, None
    if difference is not None:
        noise = noise_words(difference)
        bar = _bar(difference)
    return Figure(
        title=TITLES.get(objective, objective.title),
        entry=entry,
        rival=rival,
        delta="" if entry.main is None else delta_words(other, difference),
        noise=noise,
        bar=bar,
    )


def noise_words(difference: Difference) -> str:
    """What equal arms differ by here, and that one pair of them is too few for a noise floor."""
    floor, arms = difference.floor_ratio, difference.arms_ratio
    if floor is not None:
        return f"equal arms differ by {formats.percent(floor - 1)} (A/A)"
    if arms is not None:
        apart = formats.percent(arms - 1)
        return f"one pair of equal arms differs by {apart} (A/A), too few for a noise floor"
    return "A/A noise not measured"


def _entry(objective: Objective, cell: Cell) -> Entry:
    found = entry_of(objective)(cell)
    if objective is BY_NAME["ttft"] and found.main is not None:
        return Entry(found.main, (*found.below, _slo(cell)), found.why, found.refused)
    return found


def _fitting(own: Cell, other: Cell | None) -> Figure:
    """How many sequences fit: counted, not measured, so there is neither an interval nor noise."""
    fits = _fit(own)
    against = None if other is None else _fit(other)
    entry = (
        Entry(None, why="the KV pool or what a token takes of it is not known")
        if fits is None
        else Entry(count(fits), (f"of {count(own.context_tokens)} tokens in the KV pool",))
    )
    delta = (
        "" if fits is None else ALONE if other is None else fit_words(fits, against, other.backend)
    )
    rival = None if against is None else count(against)
    return Figure(title=TITLES[FITS], entry=entry, rival=rival, delta=delta, noise=None, bar=None)


def _fit(cell: Cell) -> int | None:
    memory = cell.starts[0].memory
    return None if memory is None else memory.sequences_that_fit.get(cell.context_tokens)


def fit_words(own: int, other: int | None, label: str) -> str:
    """``2.03× as many as `b```, whatever the direction, and ``the same as `b``` where it is."""
    if other is None:
        return f"`{label}` has no value"
    if own == other:
        return f"the same as `{label}`"
    return f"{own / other:.2f}× as many as `{label}`" if other else f"none of `{label}`"


def _slo(cell: Cell) -> str:
    """``98 % met the SLO (TTFT 1.00 s)``; over the requests of all starts that were counted."""
    slo = cell.scenario.workload.slo
    bounds = [
        f"{name} {formats.seconds(bound)}"
        for name, bound in (("TTFT", slo.ttft_s), ("TPOT", slo.tpot_s), ("E2E", slo.e2e_s))
        if bound is not None
    ]
    if not bounds:
        return "no SLO was set"
    held = [point.goodput for point in cell.starts if point.goodput is not None]
    good, sent = sum(g.good or 0 for g in held), sum(g.sent or 0 for g in held)
    limit = f"SLO ({', '.join(bounds)})"
    return f"{formats.whole_percent(good / sent)} % met the {limit}" if sent else limit


STATES = {
    "no difference shown": "no difference shown: ",
    "equivalent": "equivalent: ",
    "indicative": "not tested: ",
}


def delta_words(other: Cell | None, difference: Difference | None) -> str:
    """The first candidate's difference from the other, with what may not be claimed of it."""
    if other is None:
        return ALONE
    if difference is None:
        return f"`{other.backend}` has no value"
    if difference.verdict == "not comparable":
        return f"not comparable with `{difference.b}`: {difference.reason}"
    if difference.verdict in ("no difference shown", "equivalent"):
        ratio = difference.ratio
        holds_one = ratio.low is None or ratio.high is None or ratio.low <= 1 <= ratio.high
        shown = difference.verdict == "equivalent" or holds_one
        why = "" if shown else f", {difference.reason}"  # an interval that looks as if it were
        return STATES[difference.verdict] + between_words(difference) + why
    return STATES.get(difference.verdict, "") + gap_words(difference)


ALONE = "no other candidate may win here"


def _bar(difference: Difference) -> Bar | None:
    """On a log scale that holds the interval and the A/A band."""
    gain, interval = difference.gain, difference.gain_interval
    if gain is None:
        return None
    ends = [math.log(each) for each in (interval or (gain, gain))]
    noise = None if difference.floor_ratio is None else math.log(difference.floor_ratio)
    reach = max(*(abs(end) for end in ends), abs(math.log(gain)), noise or 0.0, LEAST_REACH) * 1.1

    def at(value: float) -> float:
        return round(50 + 50 * value / reach, 2)

    low, high = (at(end) for end in ends)
    tested = interval is not None
    return Bar(
        middle=at(math.log(gain)),
        low=low if tested else None,
        high=high if tested else None,
        noise=None if noise is None else round(50 * noise / reach, 2),
    )


LEAST_REACH = math.log(1.05)  # so that a difference of nothing does not fill the scale

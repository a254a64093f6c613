"""Is candidate A different from candidate B, by how much, and how surely? One object a comparison.

The unit of replication is the server start. Starts are paired by block (a repeat of the sweep, in which
candidates run in shuffled order on one device), each pair gives one log-ratio, and the interval is over those
and the error of the window's edges, which all starts share. "Better" is claimed only when the p value
survives the correction over every comparison of the report, the effect is large enough to mean something,
and it exceeds the noise between two arms of one candidate (A/A) where the sweep has them.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal

import numpy as np

from analysis.objectives import FALLBACK, OBJECTIVES, Objective
from analysis.point.point import Point
from analysis.runs.identity import Block, Candidate, Scenario
from analysis.statistics import student_t as t
from analysis.statistics.ratios import (
    LEVEL,
    MIN_BLOCKS,
    Ratio,
    holm_adjusted,
    max_t_adjusted,
    paired_ratio,
    paired_zero,
    unpaired_ratio,
)

HEADLINE = 0.6  # of the error rate, for the objective that the person chose

Verdict = Literal[
    "better", "worse", "equivalent", "no difference shown", "indicative", "not comparable"
]
Values = dict[Block, float]  # one a block: two arms of one candidate in a block are averaged


@dataclass(frozen=True)
class Floor:
    """Noise between two arms of one candidate at one scenario: ``sd`` of A/A log-ratios about zero."""

    sd: float
    pairs: int

    def half_width(self, blocks: int, level: float = LEVEL) -> float:
        """Half-width of an A/A interval over so many blocks (1 at least), as a log-ratio."""
        return float(t.ppf((1 + level) / 2, self.pairs)) * self.sd / math.sqrt(blocks)


@dataclass(frozen=True)
class Difference:
    """``a`` against ``b`` at one scenario by one objective; ``verdict`` speaks of ``a``.

    ``a`` and ``b`` are labels, ``of`` their candidates. ``values``: geometric means over the blocks that were
    compared (arithmetic where one is 0). ``adjusted``: p after the correction over the whole report.
    """

    scenario: Scenario
    objective: Objective
    a: str
    b: str
    of: tuple[Candidate, Candidate]
    ratio: Ratio
    values: tuple[float, float]
    verdict: Verdict
    reason: str
    adjusted: float | None = None
    floor_ratio: float | None = None  # the smallest ratio that stands out of the A/A noise
    arms_ratio: float | None = None  # of the two equal arms (A/A) farthest apart; None without arms
    deviations: tuple[float, ...] = ()  # of each block's log-ratio from the mean
    blocks: tuple[Block, ...] = ()
    left_out: bool = (
        False  # whether one of the two has starts in other blocks, of which this says nothing
    )
    apart: float = (
        0.0  # log-ratio by which all starts of a lie above all of b; below 0: all lie below
    )

    @property
    def turned(self) -> "Difference":
        """The same, said of ``b``."""
        turned: dict[Verdict, Verdict] = {"better": "worse", "worse": "better"}
        return replace(
            self,
            a=self.b,
            b=self.a,
            of=(self.of[1], self.of[0]),
            ratio=self.ratio.inverse,
            values=(self.values[1], self.values[0]),
            verdict=turned.get(self.verdict, self.verdict),
            deviations=tuple(-d for d in self.deviations),
            apart=-self.apart,
        )

    @property
    def tested(self) -> bool:
        """Whether it rests on more than one pair of starts."""
        return self.verdict not in ("indicative", "not comparable")

    @property
    def ahead(self) -> bool:
        """Of starts too few to test: every one of ``a`` is better than every one of ``b``, by more than equal
        arms (A/A) differ and by more than would mean nothing.
        """
        better = self.apart if self.objective.higher_is_better else -self.apart
        return self.verdict == "indicative" and better > math.log1p(self.objective.margin)

    @property
    def gain(self) -> float | None:
        """How many times better ``a`` is, above 1 where it is better; None where one of the two is 0."""
        if self.ratio.ratio is None:
            return None
        higher = self.objective.higher_is_better
        return self.ratio.ratio if higher else 1 / self.ratio.ratio

    @property
    def gain_interval(self) -> tuple[float, float] | None:
        if self.ratio.low is None or self.ratio.high is None:
            return None
        if self.objective.higher_is_better:
            return self.ratio.low, self.ratio.high
        return 1 / self.ratio.high, 1 / self.ratio.low


Headlines = Mapping[Scenario, Objective]  # by family of scenarios


def headlines(points: Iterable[Point], chosen: Objective, asked: bool) -> Headlines:
    """What the headline goes by in each family of scenarios.

    ``chosen`` where a person asked for it or where some two candidates at one scenario have a value of it,
    else FALLBACK.
    """
    usable = [point for point in points if point.usable]
    holders: dict[Scenario, set[Candidate]] = {}
    for point in usable:
        if chosen.value(point) is not None:
            holders.setdefault(point.scenario, set()).add(point.candidate)
    compared = {scenario.family for scenario, candidates in holders.items() if len(candidates) > 1}
    return {
        family: chosen if asked or family in compared else FALLBACK
        for family in dict.fromkeys(point.scenario.family for point in usable)
    }


def differences(points: Sequence[Point], by: Headlines) -> list[Difference]:
    """Every pair of candidates at every scenario by every objective, in the order of OBJECTIVES.

    ``by``: the objectives of the headline; their comparisons have the larger part of the error rate.
    """
    made: list[Difference] = []
    by_scenario: dict[Scenario, list[Point]] = {}
    for point in points:
        if point.usable:
            by_scenario.setdefault(point.scenario, []).append(point)
    for objective in OBJECTIVES:
        for scenario, here in by_scenario.items():
            noise = noise_floor(here, objective), arm_spread(here, objective)
            sides = sorted(_sides(here, objective), key=lambda side: side.label)
            made += [_compare(scenario, objective, a, b, *noise) for a, b in combinations(sides, 2)]
    return _with_verdicts(made, by)


@dataclass(frozen=True)
class _Side:
    """One candidate at one scenario by one objective. ``starts``: a value each, ``values``: a value a block.
    ``edge``: what its starts share, a log-ratio.
    """

    candidate: Candidate
    label: str
    starts: list[float]
    values: Values
    edge: float


def _sides(points: Sequence[Point], objective: Objective) -> list[_Side]:
    names = {point.candidate: point.backend for point in points}
    edges = _edges(points, objective)
    return [
        _Side(
            candidate,
            names[candidate],
            [value for values in blocks.values() for value in values],
            # arms of one candidate in one block are averaged; they are the same thing
            {block: _middle(values) for block, values in blocks.items()},
            edges[candidate],
        )
        for candidate, blocks in _values(points, objective).items()
    ]


def _values(
    points: Iterable[Point], objective: Objective
) -> dict[Candidate, dict[Block, list[float]]]:
    """Of each candidate and block, a value a start."""
    raw: dict[Candidate, dict[Block, list[float]]] = {}
    for point in points:
        value = objective.value(point)
        if value is not None:
            raw.setdefault(point.candidate, {}).setdefault(point.block, []).append(value)
    return raw


def _middle(values: Sequence[float]) -> float:
    """Geometric mean; arithmetic where a value is 0."""
    if min(values) <= 0:
        return float(np.mean(values))
    return math.exp(float(np.mean(np.log(values))))


def _edges(points: Iterable[Point], objective: Objective) -> dict[Candidate, float]:
    """Of each candidate, the error of its windows' edges: root mean square over its starts."""
    squares: dict[Candidate, list[float]] = {}
    for point in points:
        edge = objective.measure(point).edge_error or 0.0
        squares.setdefault(point.candidate, []).append(edge**2)
    return {candidate: math.sqrt(float(np.mean(each))) for candidate, each in squares.items()}


def _compare(
    scenario: Scenario,
    objective: Objective,
    a: _Side,
    b: _Side,
    floor: Floor | None,
    spread: float | None,
) -> Difference:
    shared = sorted(a.values.keys() & b.values.keys())
    devices = {k.device for k in a.values} & {k.device for k in b.values}
    blocks_a, blocks_b = shared or list(a.values), shared or list(b.values)
    if not shared and devices:
        blocks_a, blocks_b = (
            [k for k in each if k.device in devices] for each in (blocks_a, blocks_b)
        )
    of_a, of_b = [a.values[k] for k in blocks_a], [b.values[k] for k in blocks_b]
    edge = math.hypot(a.edge, b.edge)
    gaps: np.ndarray | None = None  # what the paired test takes, a value a block
    if min(*of_a, *of_b) <= 0:
        gaps = np.subtract(of_a, of_b) if shared else None
        ratio = paired_zero(of_a, of_b) if shared else Ratio(None, 0)
    elif shared:
        gaps = np.log(of_a) - np.log(of_b)
        ratio = paired_ratio(gaps.tolist(), edge)
    elif not devices:
        ratio = Ratio(None, 0)
    else:
        ratio = unpaired_ratio(np.log(of_a).tolist(), np.log(of_b).tolist(), edge)
    verdict, reason = _untested(ratio, bool(shared), bool(devices))
    return Difference(
        scenario=scenario,
        objective=objective,
        a=a.label,
        b=b.label,
        of=(a.candidate, b.candidate),
        ratio=ratio,
        values=(_middle(of_a), _middle(of_b)),
        verdict=verdict,
        reason=reason,
        floor_ratio=math.exp(floor.half_width(ratio.blocks)) if floor and ratio.blocks else None,
        arms_ratio=None if spread is None else math.exp(spread),
        deviations=() if gaps is None else tuple(float(g) for g in gaps - gaps.mean()),
        blocks=tuple(shared),
        left_out=len(of_a) < len(a.values) or len(of_b) < len(b.values),
        apart=_apart(a.starts, b.starts, spread or 0.0),
    )


def _apart(a: Sequence[float], b: Sequence[float], spread: float) -> float:
    """Log-ratio of the two nearest starts where all of one lie beyond all of the other; 0 where they overlap
    or the gap is no more than ``spread``.
    """
    if min(a) <= max(b):
        return -_apart(b, a, spread) if min(b) > max(a) else 0.0
    gap = math.inf if max(b) <= 0 else math.log(min(a) / max(b))
    return gap if gap > spread else 0.0


def _untested(ratio: Ratio, paired: bool, one_device: bool) -> tuple[Verdict, str]:
    if ratio.p is not None:
        return "no difference shown", ""
    if not one_device:
        return "not comparable", "the two ran on different cards or hosts"
    if ratio.ratio is None and not paired:
        return "not comparable", "one of the two is 0 and they have no block of starts in common"
    if not paired:
        return "indicative", "no block of starts in common and too few starts: nothing is claimed"
    return "indicative", "one server start each: no interval, nothing is claimed"


def noise_floor(points: Iterable[Point], objective: Objective) -> Floor | None:
    """From two pairs or more of arms of one candidate in one block (A/A) at one scenario, else None.

    Successive starts are no such pair: they carry the drift between blocks, which pairing takes away.
    """
    arms: dict[tuple[Candidate, Block], dict[int, float]] = {}
    for point in points:
        value = objective.value(point)
        if value is not None and value > 0:
            arms.setdefault((point.candidate, point.block), {})[point.arm] = math.log(value)
    gaps = [
        each[second] - each[first]
        for each in arms.values()
        for first, second in zip(sorted(each)[::2], sorted(each)[1::2], strict=False)
    ]
    if len(gaps) < MIN_BLOCKS:
        return None
    return Floor(math.sqrt(float(np.mean(np.square(gaps)))), len(gaps))


def arm_spread(points: Iterable[Point], objective: Objective) -> float | None:
    """Largest log-ratio between arms of one candidate in one block (A/A); None where none has two."""
    values = [each for blocks in _values(points, objective).values() for each in blocks.values()]
    spreads = [math.log(max(v) / min(v)) for v in values if len(v) > 1 and min(v) > 0]
    return max(spreads, default=None)


def _with_verdicts(found: list[Difference], by: Headlines) -> list[Difference]:
    """Corrected over all comparisons of the report together: of 20 reports of equals one holds a false claim.

    The fallback procedure (Wiens 2003): HEADLINE of the 5 % goes to the headline's comparisons; the others
    have the rest, and all of it where every one of the headline's is claimed.
    """
    tested = [i for i, d in enumerate(found) if d.ratio.p is not None]
    first = [i for i in tested if found[i].objective is by[found[i].scenario.family]]
    others = sorted(set(tested) - set(first))
    adjusted: dict[int, float] = {}
    share = HEADLINE if others else 1.0
    for index, p in zip(first, _corrected([found[i] for i in first]), strict=True):
        adjusted[index] = p / share
    passed = all(p <= 1 - LEVEL for p in adjusted.values())
    share = 1.0 if passed else 1 - HEADLINE
    for index, p in zip(others, _corrected([found[i] for i in others]), strict=True):
        adjusted[index] = p / share
    return [
        _verdict(replace(d, adjusted=min(1.0, adjusted[i]))) if i in adjusted else d
        for i, d in enumerate(found)
    ]


def _corrected(group: Sequence[Difference]) -> list[float]:
    """Adjusted p. Those over the same blocks by their correlation (maxT); groups of different blocks share
    the error by their size.
    """
    by_blocks: dict[tuple[Block, ...], list[int]] = {}
    for index, each in enumerate(group):
        by_blocks.setdefault(each.blocks, []).append(index)
    out = [1.0] * len(group)
    for blocks, members in by_blocks.items():
        weight = len(group) / len(members)
        ps = _adjusted(blocks, [group[i] for i in members])
        for index, p in zip(members, ps, strict=True):
            out[index] = min(1.0, p * weight)
    return out


def _adjusted(blocks: tuple[Block, ...], group: Sequence[Difference]) -> list[float]:
    if not blocks:
        return holm_adjusted([d.ratio.p or 0.0 for d in group])
    statistics = [d.ratio.t or 0.0 for d in group]
    return max_t_adjusted(statistics, np.array([d.deviations for d in group]).T)


def _verdict(difference: Difference) -> Difference:
    """The conditions of a claim, the first that fails named."""
    objective, ratio = difference.objective, difference.ratio
    higher = difference.values[0] > difference.values[1]
    effect = math.inf if ratio.ratio is None else abs(math.log(ratio.ratio))
    if ratio.ratio is not None and _within(ratio, objective.margin):
        return replace(
            difference,
            verdict="equivalent",
            reason=f"a difference of {objective.margin:.0%} is ruled out (two one-sided tests)",
        )
    if difference.values[0] == difference.values[1]:
        return replace(difference, reason="both are the same")
    if ratio.low is not None and ratio.high is not None and ratio.low <= 1 <= ratio.high:
        return replace(difference, reason="the interval holds 1")
    if difference.adjusted is None or difference.adjusted > 1 - LEVEL:
        return replace(
            difference, reason="not kept by the correction over all comparisons of this report"
        )
    if effect <= math.log1p(objective.margin):
        return replace(
            difference, reason=f"smaller than the {objective.margin:.0%} that would mean something"
        )
    if difference.floor_ratio is not None and effect <= math.log(difference.floor_ratio):
        return replace(difference, reason="within the noise between equal arms (A/A)")
    verdict: Verdict = "better" if higher == objective.higher_is_better else "worse"
    return replace(
        difference,
        verdict=verdict,
        reason=f"beyond chance after correction over all comparisons ({ratio.method})",
    )


def _within(ratio: Ratio, margin: float) -> bool:
    """Two one-sided tests at 5 % (a 90 % interval) that the log-ratio is within ± the margin."""
    if ratio.error is None or ratio.ratio is None or ratio.blocks < MIN_BLOCKS:
        return False
    half = float(t.ppf(LEVEL, ratio.blocks - 1)) * ratio.error
    return abs(math.log(ratio.ratio)) + half < math.log1p(margin)


Pairs = Mapping[tuple[Scenario, Objective, str, str], Difference]


def by_pair(found: Iterable[Difference]) -> Pairs:
    """(scenario, objective, a, b) → the difference said of a; each pair stands both ways round."""
    out: dict[tuple[Scenario, Objective, str, str], Difference] = {}
    for each in found:
        out[each.scenario, each.objective, each.a, each.b] = each
        out[each.scenario, each.objective, each.b, each.a] = each.turned
    return out

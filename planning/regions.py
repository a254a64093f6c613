"""Which candidate is shown to be better than the best single one, and between which prompt lengths.

Nothing is decided here that the report would not say: differences are those of ``analysis.compare``,
corrected over all comparisons, and a length between two measured ones needs a crossover with an interval.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby, pairwise

from analysis.compare.crossovers import Crossing
from analysis.compare.differences import Difference
from analysis.runs.identity import Block, Candidate
from analysis.statistics.ratios import Ratio, paired_ratio
from greenbench.contract.policy import Gain
from planning.evidence import Evidence, Place

BEYOND = 2  # a rule reaches so many times beyond the measured lengths, and not further


@dataclass(frozen=True)
class Pick:
    """Who should serve a place. ``gain``: over the default, where one is shown; ``why`` where none can be."""

    place: Place
    candidate: Candidate
    gain: Gain | None = None
    why: str | None = None


@dataclass(frozen=True)
class Region:
    """Prompt tokens ``low`` ≤ n < ``high`` at one load and output length.

    ``picks``: the measured places that it rests on; where it keeps to the default between two others, its
    neighbours. ``edges``: intervals of the crossovers that end it.
    """

    load: float
    output_tokens: int
    low: int
    high: int
    candidate: Candidate
    picks: tuple[Pick, ...]
    edges: tuple[tuple[float, float], ...] = ()

    @property
    def own(self) -> tuple[Pick, ...]:
        """The places inside: a region between two others has none of its own."""
        return tuple(p for p in self.picks if self.low <= p.place.context < self.high)


def best_single(evidence: Evidence) -> Candidate | None:
    """The candidate that may serve at most places; of equal ones the one with the least mean log cost over
    the places where all of them may. None where nobody may serve anywhere.
    """
    able = {
        c: {place for place in evidence.places if evidence.able(c, place)}
        for c in evidence.candidates
    }
    most = max((len(places) for places in able.values()), default=0)
    if most == 0:
        return None
    rivals = [c for c in evidence.candidates if len(able[c]) == most]
    common = set.intersection(*(able[c] for c in rivals))

    def mean(candidate: Candidate) -> float:
        costs = [evidence.cost(candidate, place) or 0.0 for place in common]
        return statistics.fmean(costs) if costs else 0.0

    return min(rivals, key=mean)


def picks(evidence: Evidence, default: Candidate) -> list[Pick]:
    """One a place that somebody may serve."""
    found = [_pick(evidence, default, place) for place in evidence.places]
    return [pick for pick in found if pick is not None]


def _pick(evidence: Evidence, default: Candidate, place: Place) -> Pick | None:
    able = [c for c in evidence.candidates if evidence.able(c, place)]
    if not able:
        return None
    front = [c for c in able if not _worse_than_another(evidence, c, able, place)]
    if default not in able:
        best = min(front or able, key=lambda c: evidence.cost(c, place) or 0.0)
        why = evidence.standing(default, place) or evidence.misses_slo(default, place)
        return Pick(place, best, why=f"{evidence.labels[default]} may not serve there: {why}")
    better = [(c, gain) for c in front if (gain := _shown(evidence, c, default, place)) is not None]
    if not better:
        return Pick(place, default)
    candidate, gain = max(better, key=lambda each: each[1].ratio)
    return Pick(place, candidate, gain)


def _differences(
    evidence: Evidence, a: Candidate, b: Candidate, place: Place
) -> list[Difference | None]:
    names = evidence.labels[a], evidence.labels[b]
    return [evidence.pairs.get((s, evidence.objective, *names)) for s in place.scenarios]


def _worse_than_another(
    evidence: Evidence, candidate: Candidate, able: Sequence[Candidate], place: Place
) -> bool:
    return any(
        d is not None and d.verdict == "worse"
        for other in able
        if other != candidate
        for d in _differences(evidence, candidate, other, place)
    )


def _shown(evidence: Evidence, a: Candidate, b: Candidate, place: Place) -> Gain | None:
    """The gain of ``a`` over ``b`` where every task of the place shows it."""
    if a == b:
        return None
    found = _differences(evidence, a, b, place)
    if any(d is None or d.verdict != "better" for d in found):
        return None
    cost_a, cost_b = evidence.cost(a, place), evidence.cost(b, place)
    assert cost_a is not None and cost_b is not None, "both may serve here"
    spans = [d.gain_interval for d in found if d is not None]
    known = [span for span in spans if span is not None]
    whole = len(known) == len(spans)
    gains = [d.gain for d in found if d is not None and d.gain is not None]
    ratio = statistics.geometric_mean(gains) if gains else math.exp(cost_b - cost_a)
    return Gain(
        ratio=ratio,
        low=min(low for low, _ in known) if whole else None,
        high=max(high for _, high in known) if whole else None,
    )


def regions(evidence: Evidence, default: Candidate) -> list[Region]:
    """Of every load and output length, from the shortest prompt to the longest, without overlap, and with at
    most one measured place in each: between two of one candidate, they meet at the geometric mean.
    """
    found: list[Region] = []
    of_slices = groupby(
        picks(evidence, default), key=lambda p: (p.place.load, p.place.output_tokens)
    )
    for (load, output), members in of_slices:
        groups = [list(each) for _, each in groupby(list(members), key=lambda p: p.candidate)]
        for region in _slice(evidence, default, load, output, groups):
            found += _split(region)
    return found


def _split(region: Region) -> list[Region]:
    own = region.own
    if len(own) < 2:
        return [region]
    contexts = [pick.place.context for pick in own]
    inner = [round(math.sqrt(a * b)) for a, b in pairwise(contexts)]
    lows, highs = [region.low, *inner], [*inner, region.high]
    return [
        replace(region, low=low, high=high, picks=(pick,))
        for low, high, pick in zip(lows, highs, own, strict=True)
    ]


def _slice(
    evidence: Evidence,
    default: Candidate,
    load: float,
    output: int,
    groups: Sequence[Sequence[Pick]],
) -> list[Region]:
    found: list[Region] = []
    low = math.ceil(groups[0][0].place.context / BEYOND)
    before: tuple[tuple[float, float], ...] = ()
    for number, group in enumerate(groups):
        last = group[-1].place.context
        if number + 1 == len(groups):
            high, start, edge = last * BEYOND + 1, 0, None
        else:
            following = groups[number + 1]
            crossed = _crossing(evidence, group[-1], following[0])
            edge = _interval(crossed)
            high, start = _edges(group[-1], following[0], default, edge)
        edges = before + (() if edge is None else (edge,))
        one = group[0].candidate
        found.append(Region(load, output, low, high, one, tuple(group), edges))
        if number + 1 < len(groups) and start > high:
            beside = (group[-1], groups[number + 1][0])
            found.append(Region(load, output, high, start, default, beside))
        low, before = start, () if edge is None else (edge,)
    return found


def _edges(
    left: Pick, right: Pick, default: Candidate, edge: tuple[float, float] | None
) -> tuple[int, int]:
    """(first token that the left no longer has, first that the right has).

    The default has all that neither is shown to be better in: inside a crossover's interval, and without a
    crossover between the two measured lengths.
    """
    a, b = left.place.context, right.place.context
    low, high = (a, b) if edge is None else edge
    ends = min(max(math.floor(low), a) + 1, b)
    starts = max(min(math.ceil(high), b), a + 1)
    if left.candidate == default:
        return starts, starts
    return (ends, ends) if right.candidate == default else (ends, max(ends, starts))


def _crossing(evidence: Evidence, left: Pick, right: Pick) -> Crossing | None:
    """Of the two candidates by the objective, in a family of the place."""
    families = {scenario.family for scenario in left.place.scenarios}
    short, long = evidence.labels[left.candidate], evidence.labels[right.candidate]
    for each in evidence.crossings:
        mine = each.objective is evidence.objective and each.scenarios[0].family in families
        if mine and (each.found.short, each.found.long) == (short, long):
            return each
    return None


def _interval(crossed: Crossing | None) -> tuple[float, float] | None:
    if crossed is None or crossed.found.verdict != "crossover":
        return None
    low, high = crossed.found.low, crossed.found.high
    return None if low is None or high is None else (low, high)


def gain_over(evidence: Evidence, default: Candidate, chosen: Sequence[Pick]) -> Ratio | None:
    """How many times better the picks are than the default alone: geometric mean over the places that the
    default may serve, all weighing the same, paired by block. None without a block that has all of them.
    """
    gaps: list[dict[Block, float]] = []
    edges: list[float] = []
    for pick in chosen:
        of_default = evidence.costs(default, pick.place)
        of_pick = evidence.costs(pick.candidate, pick.place)
        if of_default is None or of_pick is None or not evidence.able(default, pick.place):
            continue
        shared = of_default.keys() & of_pick.keys()
        gaps.append({block: of_default[block] - of_pick[block] for block in shared})
        if pick.candidate != default:
            found = _differences(evidence, pick.candidate, default, pick.place)
            edges += [d.ratio.edge / len(found) for d in found if d is not None]
    blocks = sorted(set.intersection(*(set(each) for each in gaps))) if gaps else []
    if not blocks:
        return None
    edge = math.hypot(*edges) / len(gaps)  # of the mean: each place has its own windows
    return paired_ratio([statistics.fmean(each[b] for each in gaps) for b in blocks], edge)


@dataclass(frozen=True)
class Draft:
    """What rules are made of. ``refused``: why there is no policy all the same."""

    evidence: Evidence
    default: Candidate
    regions: tuple[Region, ...]
    gain: Ratio | None
    refused: str | None = None

    @property
    def needed(self) -> bool:
        """Whether it serves what the best single candidate may not."""
        return any(pick.why for region in self.regions for pick in region.picks)

    @property
    def decided(self) -> bool:
        """Whether it is shown to beat the best single candidate, or is needed."""
        switched = [r for r in self.regions if r.candidate != self.default]
        if self.refused is not None or self.needed:
            return self.refused is None
        low = None if self.gain is None else self.gain.low
        return bool(switched) and low is not None and low > 1


def draft(evidence: Evidence) -> Draft | None:
    """None where nobody may serve anywhere."""
    default = best_single(evidence)
    if default is None:
        return None
    found = regions(evidence, default)
    measured = [pick for region in found for pick in region.own]
    return Draft(evidence, default, tuple(found), gain_over(evidence, default, measured))

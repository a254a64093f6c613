"""Is backend A different from backend B, by how much, and how surely?

The unit of replication is the server start. Starts are paired by block (a repeat of the sweep, in which
the arms run in shuffled order), each pair gives one log-ratio, and the interval is over those. "Better"
is claimed only when the interval excludes 1, Holm's correction over the backend × context grid keeps
it, and the effect exceeds the noise that the same pipeline finds between two arms of one backend (A/A).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from scipy.stats import bootstrap, t

from analysis.points import Point

LEVEL = 0.95
# From here BCa. Simulated equal arms (docs/method.md): at 8 blocks a 95 % BCa interval excludes 1 in 11 % of
# cases, at 30 in 6 to 8 %, the t interval in 4 to 6 % at every n and for skewed and heavy-tailed noise.
MANY_BLOCKS = 50
RESAMPLES = 9_999
MIN_BLOCKS = 2  # fewer give no interval at all

Verdict = Literal["better", "worse", "tie", "untested"]


@dataclass(frozen=True)
class Objective:
    """Something to compare by. ``path`` leads to one value a start inside Point."""

    name: str
    title: str
    unit: str
    higher_is_better: bool
    path: tuple[str, ...]

    def value(self, point: Point) -> float | None:
        """The point's value, None where it has none or it may not be used."""
        found: object = getattr(point, self.path[0]) if point.usable else None
        for key in self.path[1:]:
            found = found.get(key) if isinstance(found, dict) else None
        return float(found) if isinstance(found, int | float) and found > 0 else None


OBJECTIVES: tuple[Objective, ...] = (
    Objective("output", "Output tokens/s", "tok/s", True, ("throughput", "output_tokens_per_s")),
    Objective("total", "Total tokens/s", "tok/s", True, ("throughput", "total_tokens_per_s")),
    Objective("goodput", "Goodput", "req/s", True, ("goodput", "per_s")),
    Objective("ttft", "TTFT p50", "s", False, ("latency", "ttft_s", "p50")),
    # a request's own mean: tokens that arrive in bursts give the median gap no meaning
    Objective("itl", "TPOT p50", "s", False, ("latency", "tpot_s", "p50")),
    Objective("e2e", "E2E p50", "s", False, ("latency", "e2e_s", "p50")),
    Objective(
        "energy", "J per output token", "J", False, ("energy", "gross", "j_per_output_token")
    ),
    Objective("memory", "Peak memory", "B", False, ("memory", "peak_bytes")),
)


@dataclass(frozen=True)
class Ratio:
    """``a / b`` as a geometric mean over blocks with its interval. ``p`` is two-sided, of ratio = 1."""

    ratio: float
    blocks: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = "none: one pair of server starts"


def paired_ratio(log_ratios: Sequence[float], level: float = LEVEL, seed: int = 7) -> Ratio:
    """Interval of the mean paired log-ratio, given back as a ratio.

    Below MANY_BLOCKS: t interval, mean ± t(n−1)·sd/√n. From there: bias-corrected accelerated bootstrap
    (BCa) over blocks. p is that of the paired t test at any n. No values raise ValueError.
    """
    values = np.asarray(log_ratios, dtype=float)
    n = len(values)
    if n == 0:
        raise ValueError("no blocks to compare")
    mean = float(np.mean(values))
    if n < MIN_BLOCKS:
        return Ratio(math.exp(mean), n)
    error = float(np.std(values, ddof=1)) / math.sqrt(n)
    if error <= abs(mean) * 1e-12:  # identical ratios: exact, nothing to resample
        p = 1.0 if mean == 0 else 0.0
        return Ratio(
            math.exp(mean), n, math.exp(mean), math.exp(mean), p, "exact: all blocks agree"
        )
    p = float(2 * t.sf(abs(mean) / error, n - 1))
    if n < MANY_BLOCKS:
        half = float(t.ppf((1 + level) / 2, n - 1)) * error
        return Ratio(
            math.exp(mean), n, math.exp(mean - half), math.exp(mean + half), p, f"t, {n} blocks"
        )
    found = bootstrap(
        (values,),
        np.mean,
        confidence_level=level,
        n_resamples=RESAMPLES,
        method="BCa",
        vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Ratio(
        math.exp(mean), n, math.exp(found.low), math.exp(found.high), p, f"BCa, {n} blocks"
    )


def holm(p_values: Sequence[float], alpha: float = 1 - LEVEL) -> list[bool]:
    """Holm's step-down: which hypotheses are rejected with family-wise error ``alpha``."""
    order = sorted(range(len(p_values)), key=lambda i: p_values[i])
    rejected = [False] * len(p_values)
    for rank, index in enumerate(order):
        if p_values[index] > alpha / (len(p_values) - rank):
            break
        rejected[index] = True
    return rejected


@dataclass(frozen=True)
class Floor:
    """Noise between two arms of one backend: ``sd`` of A/A log-ratios about zero, over ``pairs``."""

    sd: float
    pairs: int
    source: str

    def half_width(self, blocks: int, level: float = LEVEL) -> float:
        """Half-width of an A/A interval over so many blocks, as a log-ratio."""
        return float(t.ppf((1 + level) / 2, self.pairs)) * self.sd / math.sqrt(blocks)


def noise_floor(points: Iterable[Point], objective: Objective) -> Floor | None:
    """From A/A arms where the sweep has them, else from successive starts of one backend.

    Starts in different blocks also carry the drift between blocks, so the second floor errs high.
    """
    usable = [point for point in points if objective.value(point) is not None]
    by_arm: dict[tuple[object, ...], list[Point]] = {}
    by_repeat: dict[tuple[object, ...], list[Point]] = {}
    for point in usable:
        by_arm.setdefault((*point.place, point.backend, point.repeat), []).append(point)
        by_repeat.setdefault((*point.place, point.backend, point.arm), []).append(point)
    arms = _successive_ratios(by_arm.values(), objective)
    if arms:
        return _floor(arms, "two arms of one backend (A/A)")
    repeats = _successive_ratios(by_repeat.values(), objective)
    return _floor(repeats, "successive starts of one backend") if repeats else None


def _successive_ratios(groups: Iterable[list[Point]], objective: Objective) -> list[float]:
    ratios: list[float] = []
    for group in groups:
        values = [objective.value(p) for p in sorted(group, key=lambda p: (p.repeat, p.arm))]
        for i in range(
            0, len(values) - 1, 2
        ):  # disjoint pairs: successive ones would share a start
            first, second = values[i], values[i + 1]
            assert first is not None and second is not None
            ratios.append(math.log(second / first))
    return ratios


def _floor(log_ratios: list[float], source: str) -> Floor:
    return Floor(math.sqrt(float(np.mean(np.square(log_ratios)))), len(log_ratios), source)


@dataclass(frozen=True)
class Difference:
    """Backend ``a`` against ``b`` at one place by one objective. ``verdict`` speaks of ``a``."""

    model: str
    task: str
    context_tokens: int
    load: str
    objective: str
    a: str
    b: str
    ratio: Ratio
    verdict: Verdict
    reason: str
    floor_ratio: float | None = None  # the smallest ratio that stands out of the A/A noise
    blocks: list[int] = field(default_factory=list)


def differences(points: Sequence[Point]) -> list[Difference]:
    """Every pair of backends at every place by every objective.

    Holm's family is the grid of backend pairs × contexts of one model, task, load and objective.
    """
    found: list[Difference] = []
    floors = {objective.name: noise_floor(points, objective) for objective in OBJECTIVES}
    for objective in OBJECTIVES:
        for place, by_backend in _by_place(points, objective).items():
            names = sorted(by_backend)
            for i, a in enumerate(names):
                for b in names[i + 1 :]:
                    pair = _compare(place, objective, a, b, by_backend, floors[objective.name])
                    if pair is not None:
                        found.append(pair)
    return _with_verdicts(found)


def _with_verdicts(found: list[Difference]) -> list[Difference]:
    families: dict[tuple[str, str, str, str], list[Difference]] = {}
    for difference in found:
        if difference.ratio.p is not None:
            key = (difference.model, difference.task, difference.load, difference.objective)
            families.setdefault(key, []).append(difference)
    verdicts: dict[int, Difference] = {}
    for family in families.values():
        kept = holm([d.ratio.p for d in family if d.ratio.p is not None])
        verdicts |= {id(d): _verdict(d, keep) for d, keep in zip(family, kept, strict=True)}
    return [verdicts.get(id(d), d) for d in found]


Values = dict[int, float]  # block -> value


def _by_place(
    points: Iterable[Point], objective: Objective
) -> dict[tuple[str, str, int, str], dict[str, Values]]:
    """Arms of one backend in one block are averaged (geometrically); they are the same thing."""
    raw: dict[tuple[str, str, int, str], dict[str, dict[int, list[float]]]] = {}
    for point in points:
        value = objective.value(point)
        if value is not None:
            blocks = raw.setdefault(point.place, {}).setdefault(point.backend, {})
            blocks.setdefault(point.repeat, []).append(math.log(value))
    return {
        place: {
            backend: {block: math.exp(float(np.mean(logs))) for block, logs in blocks.items()}
            for backend, blocks in backends.items()
        }
        for place, backends in raw.items()
    }


def _compare(
    place: tuple[str, str, int, str],
    objective: Objective,
    a: str,
    b: str,
    by_backend: dict[str, Values],
    floor: Floor | None,
) -> Difference | None:
    shared = sorted(set(by_backend[a]) & set(by_backend[b]))
    if not shared:
        return None
    ratio = paired_ratio([math.log(by_backend[a][k] / by_backend[b][k]) for k in shared])
    model, task, context, load = place
    return Difference(
        model=model,
        task=task,
        context_tokens=context,
        load=load,
        objective=objective.name,
        a=a,
        b=b,
        ratio=ratio,
        verdict="untested",
        reason="one server start each: no interval, nothing is claimed",
        floor_ratio=math.exp(floor.half_width(len(shared))) if floor else None,
        blocks=shared,
    )


def _verdict(difference: Difference, holm_keeps: bool) -> Difference:
    """The three conditions of a claim, the first that fails named."""
    ratio = difference.ratio
    assert ratio.low is not None and ratio.high is not None
    effect = abs(math.log(ratio.ratio))
    if ratio.low <= 1 <= ratio.high:
        return replace(difference, verdict="tie", reason="the interval holds 1")
    if not holm_keeps:
        return replace(
            difference,
            verdict="tie",
            reason="not kept by Holm's correction over the backends × contexts",
        )
    if difference.floor_ratio is None:
        return replace(difference, verdict="tie", reason="no noise floor is known")
    if effect <= math.log(difference.floor_ratio):
        return replace(difference, verdict="tie", reason="within the noise between equal arms")
    higher = next(o for o in OBJECTIVES if o.name == difference.objective).higher_is_better
    verdict: Verdict = "better" if (ratio.ratio > 1) == higher else "worse"
    return replace(
        difference, verdict=verdict, reason=f"interval, Holm and noise floor agree ({ratio.method})"
    )

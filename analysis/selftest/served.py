"""Oracles G-8, G-9 and G-12: what a finished sweep on a served model says of its joules.

    python -m analysis.selftest.judge DIR --served RUNS [--published-j-per-token J]

RUNS is an ordinary sweep. One that lists a backend twice answers G-8, one with real and with random weights
of one shape G-9; for G-12 a person names a published figure of a near model. The unit is the server start.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from analysis.objectives import ENERGY
from analysis.point.point import Point, analyse_all
from analysis.runs.run import load_runs
from analysis.statistics.ratios import Ratio, paired_ratio
from greenbench.contract.counted import counted

BLOCKS = 5  # G-8 asks for as many
SAME_ORDER = 2.0  # G-12: a factor either way


class Missing(Exception):
    """What an oracle needs was not recorded; the text is the reason for its `not run`."""


Judged = tuple[str, str, bool | None]  # figure, bound, passed (None: published)


@dataclass(frozen=True)
class Served:
    """The points of a sweep whose joules were measured, and a published J per output token."""

    points: list[Point]
    published_j: float | None = None

    @classmethod
    def read(cls, root: Path, published_j: float | None = None) -> "Served":
        points = analyse_all(load_runs(root))
        return cls([point for point in points if ENERGY.value(point) is not None], published_j)


def _log_j(point: Point) -> float:
    joules = ENERGY.value(point)
    assert joules is not None  # Served.read keeps no other
    return math.log(joules)


def _block_ratio(
    first: Iterable[Point], second: Iterable[Point], place: Callable[[Point], tuple[object, ...]]
) -> Ratio | None:
    """Second over first by J per output token: per start, the mean over the conditions that both have."""
    left = {(p.repeat, place(p)): _log_j(p) for p in first}
    right = {(p.repeat, place(p)): _log_j(p) for p in second}
    blocks: dict[int, list[float]] = {}
    for key in (key for key in left if key in right):
        blocks.setdefault(key[0], []).append(right[key] - left[key])
    if not blocks:
        return None
    return paired_ratio([float(np.mean(blocks[block])) for block in sorted(blocks)])


def _told(ratio: Ratio) -> str:
    interval = "" if ratio.low is None else f" [{ratio.low:.4f}, {ratio.high:.4f}]"
    return f"{ratio.ratio:.4f}{interval} over {counted(ratio.blocks, 'start')} each"


def same_backend_twice(served: Served) -> Judged:
    """G-8: the interval of one backend over itself holds 1; its half-width is the noise floor."""
    replicates: dict[tuple[str, str], dict[int, list[Point]]] = {}
    for point in served.points:
        of_backend = replicates.setdefault((point.model, point.backend), {})
        of_backend.setdefault(point.arm, []).append(point)
    twice = {key: pair for key, pair in replicates.items() if len(pair) == 2}
    if not twice:
        raise Missing("no backend is listed twice in the sweep with measured joules")
    parts, passed = [], True
    for (_, backend), pair in twice.items():
        first, second = (pair[number] for number in sorted(pair))
        ratio = _block_ratio(first, second, lambda p: (p.scenario,))
        if ratio is None or ratio.low is None or ratio.high is None or ratio.blocks < BLOCKS:
            blocks = ratio.blocks if ratio else 0
            raise Missing(f"{backend}: {blocks} paired starts, {BLOCKS} are wanted")
        floor = math.sqrt(ratio.high / ratio.low) - 1
        parts.append(f"{backend} {_told(ratio)}, noise floor {floor * 100:.2f} %")
        passed = passed and ratio.low <= 1 <= ratio.high
    return "J per output token, " + "; ".join(parts), "the interval holds 1", passed


def real_over_random(served: Served) -> Judged:
    """G-9: J per token with real weights over those with random ones, on the same backend."""
    parts: list[str] = []
    for backend in sorted({point.backend for point in served.points}):
        of = [point for point in served.points if point.backend == backend]
        random = [point for point in of if point.weights == "random"]
        real = [point for point in of if point.weights in ("real", "trained")]
        ratio = _block_ratio(random, real, lambda p: (p.task, p.context_tokens, p.load, p.arm))
        if ratio is not None:
            parts.append(f"{_names(real)} over {_names(random)} on {backend} {_told(ratio)}")
    if not parts:
        raise Missing("the sweep holds no backend with both real and random weights")
    return "J per output token, " + "; ".join(parts), "published", None


def _names(points: Iterable[Point]) -> str:
    return ", ".join(sorted({point.model for point in points}))


def near_a_published_figure(served: Served) -> Judged:
    """G-12: the geometric mean of J per output token against a published one of a near model."""
    published_j = served.published_j
    if published_j is None:
        raise Missing("give a published figure of a near model: --published-j-per-token J")
    if not served.points:
        raise Missing("no point of the sweep has measured joules")
    ours = math.exp(float(np.mean([_log_j(point) for point in served.points])))
    over = counted(len(served.points), "point")
    figure = f"{ours:.3g} J per output token over {over}, {published_j:.3g} J published"
    near = 1 / SAME_ORDER <= ours / published_j <= SAME_ORDER
    return figure, f"within a factor of {SAME_ORDER:g}", near

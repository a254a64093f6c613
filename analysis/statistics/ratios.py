"""Intervals and multiplicity for comparisons of server starts. Pure functions of numbers.

The unit is the start: each block of starts gives one log-ratio of two candidates' values.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics import student_t

LEVEL = 0.95
# From here BCa. Simulated equal arms (docs/method.md): at 8 blocks a 95 % BCa interval excludes 1 in 11 % of
# cases, at 30 in 6 to 8 %, the t interval in 4 to 6 % at every n and for skewed and heavy-tailed noise.
MANY_BLOCKS = 50
RESAMPLES = 9_999
MIN_BLOCKS = 2  # fewer give no interval at all
MIN_CORRELATED = 3  # two deviations about a mean are always ±1 correlated
DRAWS = 10_000  # of the largest t value under no difference; its p values go down to 1 / DRAWS …
FEWEST_DRAWS, WORK = (
    2_000,
    4e10,
)  # … fewer for thousands of hypotheses: draws × blocks × hypotheses²
CHUNK = 4_000_000  # numbers a piece of those draws may hold
NOTHING = 1e-12  # a relative spread below it is rounding


@dataclass(frozen=True)
class Ratio:
    """``a / b`` as a geometric mean over blocks with its interval. ``p`` is two-sided, of ratio = 1.

    ``ratio`` is None where one of the two is 0 (its log-ratio is endless): then ``p`` stands for the
    difference of the values. ``error``: standard error of the log-ratio, ``edge`` the part of it that is the
    same in every start. ``t``: the statistic behind p.
    """

    ratio: float | None
    blocks: int
    low: float | None = None
    high: float | None = None
    p: float | None = None
    method: str = "one pair of server starts"
    error: float | None = None
    edge: float = 0.0
    t: float | None = None

    @property
    def inverse(self) -> "Ratio":
        """``b / a``."""
        return Ratio(
            ratio=None if self.ratio is None else 1 / self.ratio,
            blocks=self.blocks,
            low=None if self.high is None else 1 / self.high,
            high=None if self.low is None else 1 / self.low,
            p=self.p,
            method=self.method,
            error=self.error,
            edge=self.edge,
            t=None if self.t is None else -self.t,
        )


def paired_ratio(
    log_ratios: Sequence[float], edge: float = 0.0, level: float = LEVEL, seed: int = 7
) -> Ratio:
    """Interval of the mean paired log-ratio, given back as a ratio.

    mean ± t(n−1)·√(sd²/n + edge²): ``edge`` is an error that every block shares, so that more blocks do not
    make it smaller. From MANY_BLOCKS on: bias-corrected accelerated bootstrap (BCa) over blocks, widened by
    the same edge. No values raise ValueError.
    """
    values = np.asarray(log_ratios, dtype=float)
    n = len(values)
    if n == 0:
        raise ValueError("no blocks to compare")
    mean = float(np.mean(values))
    if n < MIN_BLOCKS:
        return Ratio(math.exp(mean), n, edge=edge)
    spread = float(np.std(values, ddof=1)) / math.sqrt(n)
    error = math.hypot(spread, edge)
    if error <= abs(mean) * NOTHING:  # identical ratios: exact, nothing to resample
        same = math.exp(mean)
        statistic = 0.0 if mean == 0 else math.copysign(math.inf, mean)
        p = 1.0 if mean == 0 else 0.0
        return Ratio(same, n, same, same, p, "exact: all blocks agree", 0.0, edge, statistic)
    p = float(2 * student_t.sf(abs(mean) / error, n - 1))
    half = float(student_t.ppf((1 + level) / 2, n - 1)) * error
    low, high, method = mean - half, mean + half, f"t, {n} blocks"
    if n >= MANY_BLOCKS:
        from scipy.stats import bootstrap  # slow to load, and few studies have so many starts

        limits = bootstrap(
            (values,),
            np.mean,
            confidence_level=level,
            n_resamples=RESAMPLES,
            method="BCa",
            vectorized=True,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        widen = error / spread if spread else 1.0
        low, high = mean - (mean - limits.low) * widen, mean + (limits.high - mean) * widen
        method = f"BCa, {n} blocks"
    return Ratio(
        math.exp(mean), n, math.exp(low), math.exp(high), p, method, error, edge, mean / error
    )


def paired_zero(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Two candidates of which one has values of 0: the paired t test of the differences, without a ratio."""
    difference = np.asarray(a, dtype=float) - np.asarray(b, dtype=float)
    n = len(difference)
    if n < MIN_BLOCKS:
        return Ratio(None, n)
    mean = float(np.mean(difference))
    error = float(np.std(difference, ddof=1)) / math.sqrt(n)
    if error <= abs(mean) * NOTHING:
        statistic = 0.0 if mean == 0 else math.copysign(math.inf, mean)
        return Ratio(None, n, p=float(mean == 0), method="exact: all blocks agree", t=statistic)
    return Ratio(
        None,
        n,
        p=float(2 * student_t.sf(abs(mean) / error, n - 1)),
        method=f"t of the differences, {n} blocks",
        t=mean / error,
    )


def unpaired_ratio(
    a_logs: Sequence[float], b_logs: Sequence[float], edge: float = 0.0, level: float = LEVEL
) -> Ratio:
    """Welch's interval of the log-ratio of two candidates that share no block; each needs MIN_BLOCKS."""
    a, b = np.asarray(a_logs, dtype=float), np.asarray(b_logs, dtype=float)
    mean = float(a.mean() - b.mean())
    if min(len(a), len(b)) < MIN_BLOCKS:
        return Ratio(math.exp(mean), min(len(a), len(b)), edge=edge)
    va, vb = float(a.var(ddof=1)) / len(a), float(b.var(ddof=1)) / len(b)
    error = math.sqrt(va + vb + edge**2)
    if error <= abs(mean) * NOTHING:
        error = NOTHING
    weight = va**2 / (len(a) - 1) + vb**2 / (len(b) - 1)
    freedom = (va + vb) ** 2 / weight if weight else min(len(a), len(b)) - 1
    p = float(2 * student_t.sf(abs(mean) / error, freedom))
    half = float(student_t.ppf((1 + level) / 2, freedom)) * error
    return Ratio(
        math.exp(mean),
        min(len(a), len(b)),
        math.exp(mean - half),
        math.exp(mean + half),
        p,
        f"Welch's t, {len(a)} and {len(b)} starts without a common block",
        error,
        edge,
        mean / error,
    )


def holm_adjusted(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down (1979) as adjusted p values: rejected at alpha where at most alpha."""
    order = np.argsort(p_values, kind="stable")
    adjusted, highest = [0.0] * len(order), 0.0
    for rank, index in enumerate(order):
        highest = max(highest, min(1.0, p_values[index] * (len(order) - rank)))
        adjusted[int(index)] = highest
    return adjusted


def max_t_adjusted(
    statistics: Sequence[float], deviations: np.ndarray, seed: int = 7, draws: int = DRAWS
) -> list[float]:
    """Westfall and Young's step-down maxT (1993) with normal redraws: adjusted p of each hypothesis.

    ``deviations``: blocks × hypotheses, each column's log-ratios less their mean. Experiments of as many
    blocks are redrawn from a normal distribution with the columns' ``correlation``: each column's t value has
    its t distribution with n − 1 degrees of freedom exactly, and columns that are one quantity told three
    ways (output, total, request rate) count once, where Holm counts three. Two blocks show no correlation:
    Holm there.
    """
    observed = np.abs(np.asarray(statistics, dtype=float))
    n, count = deviations.shape
    if n < MIN_CORRELATED:
        return holm_adjusted([float(p) for p in 2 * student_t.sf(observed, n - 1)])
    told = deviations / np.maximum(np.abs(deviations).max(axis=0), NOTHING)
    told = np.round(told * np.where(told[0] < 0, -1, 1), 9)
    # one quantity told several ways is drawn once
    _, first, again = np.unique(told, axis=1, return_index=True, return_inverse=True)
    again = again.reshape(-1)
    weights, vectors = np.linalg.eigh(correlation(deviations[:, first]))
    keep = weights > weights[-1] * NOTHING
    root = vectors[:, keep] * np.sqrt(weights[keep])
    root /= np.linalg.norm(root, axis=1, keepdims=True)  # unit variance, also after a cut
    order = np.argsort(-observed, kind="stable")
    exceeded = np.zeros(count)
    rng = np.random.default_rng(seed)
    draws = round(min(draws, max(FEWEST_DRAWS, WORK / (n * len(first) ** 2))))
    done = 0
    while done < draws:
        size = max(1, min(draws - done, CHUNK // (n * count)))
        data = rng.standard_normal((size, n, root.shape[1])) @ root.T
        drawn = np.abs(data.mean(axis=1)) / (data.std(axis=1, ddof=1) / math.sqrt(n))
        largest = np.maximum.accumulate(drawn[:, again[order[::-1]]], axis=1)[:, ::-1]
        exceeded += (largest >= observed[order] * (1 - 1e-9)).sum(axis=0)
        done += size
    shares = np.where(np.isinf(observed[order]), 0.0, (exceeded + 1) / (draws + 1))
    out = np.empty(count)
    out[order] = np.maximum.accumulate(np.minimum(shares, 1.0))
    return [float(p) for p in out]


def correlation(deviations: np.ndarray) -> np.ndarray:
    """Correlation of the columns, each pair's shrunk by what so few blocks let chance make of it.

    r·(1 − min(1, (1 − r²)² / ((n − 2)·r²))): a sample correlation's variance over its square, as in Schäfer
    and Strimmer (2005), but pair by pair: figures that agree to the letter stay one, those that chance has
    put together part. A column without spread is correlated with nothing.
    """
    n = len(deviations)
    deviation = deviations.std(axis=0, ddof=1)
    unit = np.divide(
        deviations, deviation, out=np.zeros_like(deviations), where=deviation > NOTHING
    )
    r = unit.T @ unit / (n - 1)
    squared = np.clip(r**2, NOTHING, 1.0)
    shrunk = r * (1 - np.minimum(1.0, (1 - squared) ** 2 / ((n - 2) * squared)))
    np.fill_diagonal(shrunk, 1.0)
    return shrunk

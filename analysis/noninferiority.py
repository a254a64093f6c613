"""Is a candidate's loss below the margin? Tests of pairs: one prompt, two answers. Pure.

A candidate is innocent only where its loss is *shown* to be below the margin (non-inferiority, 95 %, one
side: the gate guards against one error only, letting a worse one pass). No test here is corrected for how
many are made: a correction would let more through.
"""

from functools import lru_cache
from math import ceil, log, sqrt
from typing import Literal

import numpy as np
from scipy.optimize import brentq
from scipy.special import bdtr
from scipy.stats import binom, t

MARGIN = 0.10  # share of prompts that may be lost
LEVEL = 0.05  # of each one-sided test
NUISANCE_GRID = 200
FEWEST_PAIRS = ceil(log(LEVEL) / log(1 - MARGIN))  # that show it, when all answers agree: 29

Verdict = Literal["no worse", "worse", "undecided"]


def loss_p(lost: int, gained: int) -> float:
    """p of "no loss": McNemar's exact test, one-sided, P(Binomial(lost + gained, ½) ≥ lost)."""
    return float(binom.sf(lost - 1, lost + gained, 0.5)) if lost else 1.0


def beyond_p(lost: int, gained: int, n: int, margin: float = MARGIN) -> float:
    """p of "the share lost, less that gained, is the margin or more": exact, unconditional.

    Outcomes are ordered by Tango's score (Statistics in Medicine 17, 1998, 891); p is the probability of
    an outcome as favourable as this, at its largest over all shares gained (Hsueh, Liu and Chen, Biometrics
    57, 2001, 478).
    """
    scores = _scores(n, margin)
    return _largest_probability(scores <= scores[gained, lost] + 1e-9, n, margin)


@lru_cache(maxsize=64)
def _scores(n: int, margin: float) -> np.ndarray:
    """``[gained, lost]``: (lost − gained − n·margin) over its standard error where the margin is the truth.

    There P(lost) = q + margin and P(gained) = q; q is the most likely one, the root of Tango's quadratic.
    """
    gained, lost = np.indices((n + 1, n + 1), dtype=float)
    b = (2 * n - lost + gained) * margin - lost - gained
    c = -gained * margin * (1 - margin)
    q = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    q = np.clip(q, 0, (1 - margin) / 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = (lost - gained - n * margin) / np.sqrt(n * (2 * q + margin * (1 - margin)))
    found[lost + gained > n] = np.inf
    return found


def _largest_probability(inside: np.ndarray, n: int, margin: float) -> float:
    """Of the outcomes ``inside[gained, lost]``, over P(gained) where P(lost) is larger by the margin.

    Gained is binomial, and lost is binomial among the rest. For each number gained all numbers lost up to
    the largest inside count, and no fewer than for a smaller number gained.
    """
    gained = np.arange(n + 1)
    most = np.where(inside.any(axis=1), n - np.argmax(inside[:, ::-1], axis=1), -1)
    most = np.minimum(np.maximum.accumulate(most), n - gained)
    q = (1 - margin) / 2 * np.linspace(0, 1, NUISANCE_GRID)[:, None] ** 2
    up_to = bdtr(
        np.maximum(most, 0).astype(float), n - gained, np.minimum((q + margin) / (1 - q), 1)
    )
    each = np.where(most < 0, 0.0, binom.pmf(gained, n, q) * up_to)
    return float(each.sum(axis=1).max())


@lru_cache(maxsize=4096)
def most_lost(lost: int, gained: int, n: int) -> float:
    """95 % upper limit of the share lost, less that gained, not below 0: where ``beyond_p`` is 5 %."""

    def above(margin: float) -> float:
        return beyond_p(lost, gained, n, margin) - LEVEL

    low, high = max((lost - gained) / n, 0.0) + 1e-6, 1 - 1e-6
    if above(low) <= 0:
        return 0.0
    return float(brentq(above, low, high, xtol=1e-5)) if above(high) < 0 else 1.0  # type: ignore[arg-type]


def judge(lost: int, gained: int, n: int) -> Verdict:
    """ "no worse": shown to lose less than the margin. "worse": shown to lose, and not that."""
    if beyond_p(lost, gained, n) <= LEVEL:
        return "no worse"
    return "worse" if loss_p(lost, gained) <= LEVEL else "undecided"


def power(n: int, lost: float, gained: float) -> tuple[float, float]:
    """P("no worse") and P("worse") of ``judge`` where these shares of prompts are truly lost and gained.

    Exact: the multinomial probabilities of all outcomes.
    """
    many_gained, many_lost = np.indices((n + 1, n + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = binom.pmf(many_gained, n, gained) * binom.pmf(
            many_lost, n - many_gained, lost / (1 - gained)
        )
    chance = np.nan_to_num(chance)
    proven = _scores(n, MARGIN) <= _critical_score(n)
    shown = binom.sf(many_lost - 1, many_lost + many_gained, 0.5) <= LEVEL
    worse = shown & (many_lost > 0) & ~proven
    return float(chance[proven].sum()), float(chance[worse].sum())


@lru_cache(maxsize=256)
def _critical_score(n: int) -> float:
    """The largest score whose ``beyond_p`` is at most LEVEL; p grows with the score."""
    scores = _scores(n, MARGIN)
    ranked = np.unique(scores[np.isfinite(scores)])
    low, high = -1, len(ranked) - 1  # ranked[low] passes, ranked[high] does not
    while high - low > 1:
        middle = (low + high) // 2
        if _largest_probability(scores <= ranked[middle] + 1e-9, n, MARGIN) <= LEVEL:
            low = middle
        else:
            high = middle
    return float(ranked[low]) + 1e-9 if low >= 0 else -np.inf


def mean_limits(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, mean ± t(n − 1)·sd/√n, of two values or more."""
    n = len(values)
    half = float(t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / sqrt(n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half

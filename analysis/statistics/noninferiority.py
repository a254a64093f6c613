"""Is a candidate's loss below the margin? Tests of pairs: one prompt, two answers. Pure.

A candidate is innocent only where its loss is *shown* to be below the margin (non-inferiority, 95 %, one
side: the gate guards against one error only, letting a worse one pass). No test here is corrected for how
many are made: a correction would let more through.
"""

from functools import lru_cache
from math import ceil, log, sqrt
from typing import Literal

import numpy as np
from scipy.special import bdtr, betainc, gammaln, xlog1py, xlogy

from analysis.statistics import student_t

MARGIN = 0.10  # share of prompts that may be lost
LEVEL = 0.05  # of each one-sided test
NUISANCE_GRID = 200  # p is off by 2e-5 at most, against 3,000
LIMIT_STEP = 1e-4  # to which a limit is worked out
FEWEST_PAIRS = ceil(log(LEVEL) / log(1 - MARGIN))  # that show it, when all answers agree: 29

Verdict = Literal["no worse", "worse", "undecided"]


def loss_p(lost: int, gained: int) -> float:
    """p of "no loss": McNemar's exact test, one-sided, P(Binomial(lost + gained, ½) ≥ lost).

    That is the regularised incomplete beta function I½(lost, gained + 1).
    """
    return float(betainc(lost, gained + 1, 0.5)) if lost else 1.0


def beyond_p(lost: int, gained: int, n: int, margin: float = MARGIN) -> float:
    """p of "the share lost, less that gained, is the margin or more": exact, unconditional.

    Outcomes are ordered by Tango's score (Statistics in Medicine 17, 1998, 891); p is the probability of
    an outcome as favourable as this, at its largest over all shares gained (Hsueh, Liu and Chen, Biometrics
    57, 2001, 478).
    """
    observed = float(_score(np.array(lost), np.array(gained), n, margin))
    return _largest_probability(_most_lost_within(observed + 1e-9, n, margin), n, margin)


def _score(lost: np.ndarray, gained: np.ndarray, n: int, margin: float) -> np.ndarray:
    """(lost − gained − n·margin) over its standard error where the margin is the truth.

    There P(lost) = q + margin and P(gained) = q; q is the most likely one, the root of Tango's quadratic.
    """
    b = (2 * n - lost + gained) * margin - lost - gained
    c = -gained * margin * (1 - margin)
    q = (np.sqrt(np.maximum(b * b - 8 * n * c, 0)) - b) / (4 * n)
    q = np.clip(q, 0, (1 - margin) / 2)
    return (lost - gained - n * margin) / np.sqrt(n * (2 * q + margin * (1 - margin)))


def _most_lost_within(score: float, n: int, margin: float) -> np.ndarray:
    """By the number gained, 0 to n: the largest number lost whose score is at most this; −1 for none.

    The score grows with the number lost.
    """
    gained = np.arange(n + 1)
    low, high = np.full(n + 1, -1), n - gained + 1  # low is within, high is not
    while (high - low > 1).any():
        middle = (low + high) // 2
        within = (_score(np.maximum(middle, 0), gained, n, margin) <= score) | (middle < 0)
        low, high = np.where(within, middle, low), np.where(within, high, middle)
    return low


def _largest_probability(most: np.ndarray, n: int, margin: float) -> float:
    """P(lost ≤ ``most[gained]``), at its largest over P(gained), where P(lost) is larger by the margin.

    Gained is binomial, and lost is binomial among the rest. Where fewer lost were within for more gained,
    they are taken as within too, so that the largest p lies where the loss is just the margin.
    """
    gained = np.arange(n + 1)
    most = np.minimum(np.maximum.accumulate(most), n - gained)
    q = (1 - margin) / 2 * np.linspace(0, 1, NUISANCE_GRID)[:, None] ** 2
    chance = np.exp(_log_choices(n) + xlogy(gained, q) + xlog1py(n - gained, -q))
    share = np.minimum((q + margin) / (1 - q), 1)
    up_to = bdtr(np.maximum(most, 0).astype(float), n - gained, share)
    return float((chance * np.where(most < 0, 0.0, up_to)).sum(axis=1).max())


@lru_cache(maxsize=256)
def _log_choices(n: int) -> np.ndarray:
    chosen = np.arange(n + 1)
    return gammaln(n + 1) - gammaln(chosen + 1) - gammaln(n - chosen + 1)


@lru_cache(maxsize=4096)
def most_lost(lost: int, gained: int, n: int) -> float:
    """95 % upper limit of the share lost, less that gained, not below 0: where ``beyond_p`` is 5 %."""
    low, high = max((lost - gained) / n, 0.0), 1.0
    if low == high:  # every prompt is lost, and no share lies beyond all of them
        return high
    if beyond_p(lost, gained, n, low + LIMIT_STEP) <= LEVEL:
        return 0.0
    while high - low > LIMIT_STEP:
        middle = (low + high) / 2
        if beyond_p(lost, gained, n, middle) <= LEVEL:
            high = middle
        else:
            low = middle
    return high


def judge(lost: int, gained: int, n: int) -> Verdict:
    """ "no worse": shown to lose less than the margin. "worse": shown to lose, and not that."""
    if beyond_p(lost, gained, n) <= LEVEL:
        return "no worse"
    return "worse" if loss_p(lost, gained) <= LEVEL else "undecided"


def power(n: int, lost: float, gained: float) -> tuple[float, float]:
    """P("no worse") and P("worse") of ``judge`` where these shares of prompts are truly lost and gained.

    Exact: the multinomial probabilities of all outcomes.
    """
    from scipy.stats import binom  # slow to load, and no report needs it

    many_gained, many_lost = np.indices((n + 1, n + 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        chance = binom.pmf(many_gained, n, gained) * binom.pmf(
            many_lost, n - many_gained, lost / (1 - gained)
        )
    chance = np.nan_to_num(chance)
    proven = many_lost <= _most_that_pass(n)[:, None]
    shown = binom.sf(many_lost - 1, many_lost + many_gained, 0.5) <= LEVEL
    worse = shown & (many_lost > 0) & ~proven
    return float(chance[proven].sum()), float(chance[worse].sum())


@lru_cache(maxsize=256)
def _most_that_pass(n: int) -> np.ndarray:
    """By the number gained: the largest number lost of which ``judge`` says "no worse"; −1 for none."""
    low, high = -sqrt(n) / MARGIN, 0.0  # scores; p grows with the score
    for _ in range(50):
        middle = (low + high) / 2
        within = _most_lost_within(middle, n, MARGIN)
        if _largest_probability(within, n, MARGIN) <= LEVEL:
            low = middle
        else:
            high = middle
    return _most_lost_within(low, n, MARGIN)


def mean_limits(values: np.ndarray) -> tuple[float, float]:
    """95 % interval of the mean, mean ± t(n − 1)·sd/√n, of two values or more."""
    n = len(values)
    half = float(student_t.ppf(0.975, n - 1)) * float(np.std(values, ddof=1)) / sqrt(n)
    return float(np.mean(values)) - half, float(np.mean(values)) + half

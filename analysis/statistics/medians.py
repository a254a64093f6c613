"""What a median of requests hides: two kinds of requests, and how far it hangs on where the window ends."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from analysis.statistics.rates import Cycles, Flags, Floats, Ints, ratio

LEAST_SHARE = 0.2  # of the smaller kind
LEAST_APART = 1.5  # medians of the two kinds
SEPARATION = 7.0  # Ashman's D; a normal distribution cut in two has 2.7, an even one 3.5
FEWEST = 12  # with fewer, chance parts an even distribution as clearly in 5 % of draws
ROUNDS = 8  # places at which a round of cycles is left out


@dataclass(frozen=True)
class Modes:
    """Two kinds of requests: their medians (seconds), and the share of the higher."""

    low: float
    high: float
    share_high: float

    @property
    def words(self) -> str:
        """``50 % of the requests near 7 ms, 50 % near 35 ms``."""
        low, high = (f"{1e3 * middle:.3g} ms" for middle in (self.low, self.high))
        return f"{1 - self.share_high:.0%} of the requests near {low}, {self.share_high:.0%} near {high}"


def modes(values: Floats) -> Modes | None:
    """Two modes, where the best cut in two (Otsu 1979: the largest variance between) parts them clearly.

    Clearly: Ashman's D = √2·|m₁ − m₂| / √(s₁² + s₂²) above SEPARATION (Ashman et al. 1994 ask 2 of two
    fitted normals; a cut in two makes any distribution look parted, hence more), medians LEAST_APART
    times apart, and a fifth of the values in each.
    """
    ordered = np.sort(values[~np.isnan(values)])
    n = len(ordered)
    if n < FEWEST or ordered[0] <= 0:
        return None
    below = np.arange(1, n)
    sums = np.cumsum(ordered)
    low, high = sums[:-1] / below, (sums[-1] - sums[:-1]) / (n - below)
    cut = int(np.argmax(below * (n - below) * (high - low) ** 2)) + 1
    parts = ordered[:cut], ordered[cut:]
    share = len(parts[1]) / n
    spread = math.sqrt(float(np.var(parts[0]) + np.var(parts[1])))
    apart = math.sqrt(2) * float(np.mean(parts[1]) - np.mean(parts[0]))
    middles = float(np.median(parts[0])), float(np.median(parts[1]))
    clear = apart > SEPARATION * spread and middles[1] > LEAST_APART * middles[0]
    return Modes(*middles, share) if clear and LEAST_SHARE <= share <= 1 - LEAST_SHARE else None


SampleStatistic = Callable[[Floats], float]


def median(values: Floats) -> float:
    return float(np.median(values))


def cycles_edge(
    values: Floats, usable: Flags, cycles: Cycles, statistic: SampleStatistic = median
) -> float | None:
    """Relative edge error of a statistic of a closed loop's requests: root mean square of what leaving out
    one round of cycles changes, and half of a trend. ``values`` and ``usable`` by request row.
    """
    kept = usable[cycles.request] & ~np.isnan(values[cycles.request])
    some, round_of = values[cycles.request][kept], cycles.number[kept]
    whole = statistic(some) if len(some) else 0.0
    if whole <= 0:
        return None
    last = int(round_of.max())
    if last < 1:
        return None
    rounds = np.unique(np.linspace(0, last, min(last + 1, ROUNDS)).round().astype(int))
    changes = [_change(some[round_of != number], whole, statistic) for number in rounds]
    edge = math.sqrt(float(np.mean(np.square(changes))))
    found = ratio(cycles.only(kept), some, np.ones(len(some)))
    return edge if found.trend is None else math.hypot(edge, found.trend.log_change / 2)


def open_edge(
    values: Floats,
    base_ns: Ints,
    span_ns: tuple[int, int],
    reach_ns: float,
    statistic: SampleStatistic = median,
) -> float | None:
    """The same in open loop: what moving either edge inwards by up to ``reach_ns`` changes."""
    whole = statistic(values) if len(values) else 0.0
    if whole <= 0:
        return None
    moves = reach_ns * np.arange(1, ROUNDS + 1) / ROUNDS
    kept = [base_ns >= span_ns[0] + by for by in moves] + [
        base_ns < span_ns[1] - by for by in moves
    ]
    changes = [_change(values[which], whole, statistic) for which in kept]
    return math.sqrt(float(np.mean(np.square(changes))))


def _change(values: Floats, whole: float, statistic: SampleStatistic) -> float:
    return math.log(statistic(values) / whole) if len(values) else 0.0

"""When requests are due: seeded schedules, as offsets in seconds from the first send.

One schedule stands for a whole run. Several processes that send it together each take every n-th
arrival (`shard`), so that their union is exactly the schedule, whatever their number.
"""

import itertools
import random
from collections.abc import Callable, Iterator

from greenbench.config import LoadConfig

Gaps = Callable[
    [random.Random, float, float], float
]  # (rng, mean gap in s, burstiness) -> gap in s

GAPS: dict[str, Gaps] = {
    "constant": lambda rng, mean_s, burstiness: mean_s,
    "poisson": lambda rng, mean_s, burstiness: rng.expovariate(1 / mean_s),
    # shape k, scale mean/k: mean stays, variance is mean²/k
    "gamma": lambda rng, mean_s, burstiness: rng.gammavariate(burstiness, mean_s / burstiness),
}


def arrivals(load: LoadConfig, seed: int) -> Iterator[float]:
    """Endless, rising offsets in s. Same load and seed, same offsets on every host."""
    assert load.rate_per_s is not None, "arrivals are those of an open load"
    rng = random.Random(f"{seed}/arrivals")
    gap, mean_s = GAPS[load.arrivals], 1 / load.rate_per_s
    offset = 0.0
    while True:
        offset += gap(rng, mean_s, load.burstiness)
        yield offset


def shard(offsets: Iterator[float], index: int, count: int) -> Iterator[float]:
    """Every ``count``-th arrival, from number ``index`` (0-based) on."""
    return itertools.islice(offsets, index, None, count)

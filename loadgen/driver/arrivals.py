"""When requests are due: seeded schedules, as offsets in seconds from the first moment of the run.

One schedule stands for a whole run. Several processes that send it together each take every n-th
arrival (`shard`), so that their union is exactly the schedule, whatever their number.
"""

import itertools
import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from greenbench.contract.config import LoadConfig

Gaps = Callable[[random.Random, float], float]  # (rng, burstiness) -> gap of a process of rate 1

GAPS: dict[str, Gaps] = {
    "constant": lambda rng, burstiness: 1.0,
    "poisson": lambda rng, burstiness: rng.expovariate(1.0),
    # shape k, scale 1/k: mean 1, variance 1/k
    "gamma": lambda rng, burstiness: rng.gammavariate(burstiness, 1 / burstiness),
}


@dataclass(frozen=True, slots=True)
class Arrival:
    """One request: due ``offset_s`` after the start; lengths where a trace gives them."""

    offset_s: float
    context_tokens: int | None = None
    output_tokens: int | None = None


def arrivals(load: LoadConfig, seed: int) -> Iterator[Arrival]:
    """Endless, with rising offsets. Same load and seed, same arrivals on every host."""
    assert load.rate_per_s is not None, "a trace is read by loadgen.driver.traces"
    rng = random.Random(f"{seed}/arrivals")
    gap, due = GAPS[load.arrivals], 0.0  # due: how many requests should have come by now
    while True:
        due += gap(rng, load.burstiness)
        yield Arrival(moment_of(due, load))


def moment_of(due: float, load: LoadConfig) -> float:
    """The second by which ``due`` requests are expected: the rate's integral, turned round.

    While the rate goes from r0 to r1 in T seconds, r0·t + (r1 - r0)·t²/(2T) requests come by t.
    """
    start, end, ramp_s = load.rate_per_s, load.ramp_to_per_s, load.ramp_s
    assert start is not None
    if end is None or ramp_s is None or end == start:
        return due / start
    within = (start + end) / 2 * ramp_s
    if due >= within:
        return ramp_s + (due - within) / end
    slope = (end - start) / ramp_s
    return (math.sqrt(start * start + 2 * slope * due) - start) / slope


def shard(schedule: Iterator[Arrival], index: int, count: int) -> Iterator[Arrival]:
    """Every ``count``-th arrival, from number ``index`` (0-based) on."""
    return itertools.islice(schedule, index, None, count)

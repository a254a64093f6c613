"""What can be measured here, and how fast each sensor refreshes. Found at start, stored in sources.json."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from telemetry.sensors.gpu import GpuReading, Reader

POLL_S = 0.005
WATCH_S = 3.0
FEWEST_CHANGES = 3  # fewer changes than this in the time watched say nothing about a period

REFRESHING: dict[str, Callable[[GpuReading], float | int | None]] = {
    "counter": lambda reading: reading.energy_mj,
    "average": lambda reading: reading.power_avg_w,
    "instant": lambda reading: reading.power_w,
    "memory_scope": lambda reading: reading.power_mem_w,
}


@dataclass(frozen=True, slots=True)
class Refresh:
    """Seconds between changes of each source (None: too few changes to tell), and the cost of a read."""

    period_s: dict[str, float | None]
    read_s: float  # median time of one read of one card

    @property
    def counter_s(self) -> float | None:
        return self.period_s.get("counter") or self.period_s.get("average")


def change_period_s(stamps_ns: list[int], values: list[float | int | None]) -> float | None:
    """Time between changes of a polled value: the mean of the gaps that are near their median.

    A sensor that gives the same value twice makes a gap of two periods, which the mean leaves out; polling
    makes each gap a whole number of polls, which the mean, unlike the median, evens out.
    """
    seen = [(at, value) for at, value in zip(stamps_ns, values, strict=True) if value is not None]
    changes = [at for (_, before), (at, value) in pairwise(seen) if value != before]
    gaps = sorted(b - a for a, b in pairwise(changes))
    if len(changes) < FEWEST_CHANGES:
        return None
    median = gaps[len(gaps) // 2]
    near = [gap for gap in gaps if median / 1.5 < gap < median * 1.5]
    return sum(near) / len(near) / 1e9


def measure_refresh(
    reader: Reader,
    index: int,
    watch_s: float = WATCH_S,
    poll_s: float = POLL_S,
    clock: Callable[[], int] = time.monotonic_ns,
    sleep: Callable[[float], None] = time.sleep,
) -> Refresh:
    """Poll one card as fast as is sensible and time the changes of each of its sensors."""
    stamps: list[int] = []
    costs: list[int] = []
    readings: list[GpuReading] = []
    end_ns = clock() + round(watch_s * 1e9)
    while (before := clock()) < end_ns or not costs:
        reading = reader.read(index)
        stamps.append(before)
        costs.append(clock() - before)
        readings.append(reading)
        sleep(poll_s)
    periods = {
        source: change_period_s(stamps, [value(r) for r in readings])
        for source, value in REFRESHING.items()
    }
    return Refresh(periods, sorted(costs)[len(costs) // 2] / 1e9)

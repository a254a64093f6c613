"""When to sample: absolute deadlines on the monotonic clock, and the period that a sampler can afford."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

SHORTEST_PERIOD_S = 0.05  # faster polling made NVML return zeros (zeus warns of it below 50 ms)
LARGEST_DUTY = 0.25  # a read may take at most this share of its period


def sample_period_s(asked_s: float | None, refresh_s: float | None, cost_s: float) -> float:
    """Seconds between samples: what was asked, or half the sensor's refresh; never less than the read allows.

    ``cost_s`` is what one sample of all GPUs takes. One read of the energy counter took 4 ms on an
    H200, so eight GPUs at 50 ms would spend most of the time reading.
    """
    wanted_s = asked_s if asked_s is not None else (refresh_s or 2 * SHORTEST_PERIOD_S) / 2
    return max(wanted_s, SHORTEST_PERIOD_S, cost_s / LARGEST_DUTY)


@dataclass
class Tally:
    """Durations in ns, kept as count, sum, maximum and a bounded list of the first values."""

    count: int = 0
    sum_ns: int = 0
    max_ns: int = 0
    kept_ns: list[int] = field(default_factory=list[int])
    keep: int = 20_000

    def add(self, ns: int) -> None:
        self.count += 1
        self.sum_ns += ns
        self.max_ns = max(self.max_ns, ns)
        if len(self.kept_ns) < self.keep:
            self.kept_ns.append(ns)

    def summary(self) -> dict[str, float | int | None]:
        """Milliseconds: mean, median, p99, max; None when nothing was counted."""
        if not self.count:
            return {"count": 0, "mean_ms": None, "p50_ms": None, "p99_ms": None, "max_ms": None}
        ordered = sorted(self.kept_ns)
        at = [ordered[min(int(len(ordered) * q), len(ordered) - 1)] / 1e6 for q in (0.5, 0.99)]
        return {
            "count": self.count,
            "mean_ms": self.sum_ns / self.count / 1e6,
            "p50_ms": at[0],
            "p99_ms": at[1],
            "max_ms": self.max_ns / 1e6,
        }


class Ticker:
    """Waits for start + n × period. A tick that comes late does not move the ones after it.

    Deadlines that passed while a sample was taken are skipped and counted in ``missed``: catching up
    would bunch samples, and a bunch says nothing new about a sensor that refreshes every 100 ms.
    ``clock`` reads monotonic nanoseconds; ``stop.wait`` is what sleeps.
    """

    def __init__(
        self,
        period_s: float,
        stop: threading.Event,
        clock: Callable[[], int] = time.monotonic_ns,
    ) -> None:
        self.stop = stop
        self._clock = clock
        self.lateness = Tally()
        self.missed = 0
        self.observe: Callable[[float], object] = lambda late_s: None
        self._set(period_s, clock())

    def _set(self, period_s: float, deadline_ns: int) -> None:
        self.period_s = period_s
        self._period_ns = round(period_s * 1e9)
        self._deadline_ns = deadline_ns

    def slow_to(self, period_s: float) -> None:
        """Take a longer period from the next deadline on."""
        self._set(period_s, self._deadline_ns)

    def wait(self) -> bool:
        """Sleep until the next deadline; False when it is time to stop."""
        stopped = self.stop.wait(max(0, self._deadline_ns - self._clock()) / 1e9)
        if stopped:
            return False
        late_ns = max(0, self._clock() - self._deadline_ns)
        self.lateness.add(late_ns)
        self.observe(late_ns / 1e9)
        skipped = late_ns // self._period_ns
        self.missed += skipped
        self._deadline_ns += (skipped + 1) * self._period_ns
        return True

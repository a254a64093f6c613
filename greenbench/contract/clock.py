"""The only place where wall-clock and monotonic time meet.

Durations are differences of ``time.monotonic_ns()`` (CLOCK_MONOTONIC, one clock for every process of
a Linux host, so the sampler's and the client's stamps can be compared). ``time.perf_counter_ns()``
reads the same clock on Linux. Wall time is read once per anchor and never subtracted.
"""

import time
from dataclasses import dataclass

NS_PER_S = 1_000_000_000
APART_NS = 5_000  # three clock reads take well under a microsecond
ATTEMPTS = 5


@dataclass(frozen=True, slots=True)
class Anchor:
    """One moment read on both clocks. Units: nanoseconds since the epoch, and monotonic ns."""

    unix_ns: int
    mono_ns: int

    @classmethod
    def now(cls) -> "Anchor":
        """Read both clocks; the wall read stands between two monotonic reads and takes their middle.

        They are read anew when the host took the core away in between.
        """
        before, unix_ns, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        for _ in range(ATTEMPTS - 1):
            if after - before < APART_NS:
                break
            before, unix_ns, after = time.monotonic_ns(), time.time_ns(), time.monotonic_ns()
        return cls(unix_ns, (before + after) // 2)

    def to_unix_ns(self, mono_ns: int) -> int:
        return self.unix_ns + (mono_ns - self.mono_ns)

    def to_mono_ns(self, unix_ns: int) -> int:
        return self.mono_ns + (unix_ns - self.unix_ns)

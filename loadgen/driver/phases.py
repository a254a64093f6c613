"""Warm-up, measure, drain: which phase a moment belongs to, and when sending ends. Times are handed in.

The marks are those of docs/contract.md: `measure_start` comes ``warmup_s`` after the first send; from
`measure_end` on nothing is sent. With a limit of requests, `measure_end` is the moment at which one
more than the limit would have been sent; of `measure: auto` that at which SIGUSR1 says that it is enough.
"""

from greenbench.contract.config import PhaseConfig
from greenbench.contract.schema import Phase


class PhaseClock:
    """Moments in ns of one monotonic clock; None before the first send."""

    def __init__(self, config: PhaseConfig) -> None:
        self._warmup_ns = round(config.warmup_s * 1e9)
        self._measure_ns = round(config.longest_s * 1e9)
        self._drain_ns = round(config.drain_s * 1e9)
        self._limit = config.requests
        self._measured = 0
        self.warmup_start: int | None = None
        self.measure_start: int | None = None
        self.measure_end: int | None = None

    def begin(self, now_ns: int) -> None:
        """The first send is due now (or at an agreed moment soon)."""
        self.warmup_start = now_ns
        self.measure_start = now_ns + self._warmup_ns
        self.measure_end = self.measure_start + self._measure_ns

    def admit(self, moment_ns: int) -> bool:
        """Whether a request may be sent at (open loop: was scheduled for) this moment; counts it."""
        if self.measure_start is None or self.measure_end is None:
            self.begin(moment_ns)
        assert self.measure_start is not None and self.measure_end is not None
        if moment_ns >= self.measure_end:
            return False
        if moment_ns >= self.measure_start:
            if self._limit is not None and self._measured >= self._limit:
                self.measure_end = moment_ns
                return False
            self._measured += 1
        return True

    def stop(self, now_ns: int) -> None:
        """End measuring now, because a person or a signal says so. Also before the first send."""
        if self.warmup_start is None:
            self.begin(now_ns)
        assert self.measure_start is not None and self.measure_end is not None
        self.measure_start = min(self.measure_start, now_ns)
        self.measure_end = min(self.measure_end, now_ns)

    def phase_of(self, moment_ns: int) -> Phase:
        if self.measure_start is None or moment_ns < self.measure_start:
            return "warmup"
        assert self.measure_end is not None
        return "measure" if moment_ns < self.measure_end else "drain"

    @property
    def drain_deadline(self) -> int | None:
        return None if self.measure_end is None else self.measure_end + self._drain_ns

"""What the client says of itself: how far its own lateness could have moved the numbers.

Figures go into client_audit/<client>.json with the budget they are held to. A run over budget is
invalid (`client_bound`): its load generator, not its server, was measured.
"""

import math
import time
from dataclasses import asdict, dataclass
from typing import Any, Final

from loadgen.exchange import Exchange, Outgoing

HISTOGRAM_BASE: Final = 1.05  # neighbouring buckets differ by 5 %


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds. Milliseconds, shares 0..1."""

    schedule_lag_p99_ms: float = 5.0  # open loop: sent late against the schedule
    loop_lag_p99_ms: float = 50.0  # the event loop served its clock tick late
    user_time_delay_p99_ms: float = 5.0  # only where chunks carry no kernel time
    cpu_share: float = 0.95  # of one core, over the measured window
    shared_read_share: float = 0.10  # chunks that share the read, so the time, of an earlier one
    not_sent_share: float = 0.0
    server_gap_p50_ms: float = 50.0  # client's TTFT over the server's own, median


class Histogram:
    """Percentiles of durations in bounded memory: buckets 5 % wide, exact maximum and mean."""

    def __init__(self) -> None:
        self.count = 0
        self.total = 0.0
        self.maximum = 0
        self._buckets: dict[int, int] = {}

    def add(self, value_ns: int) -> None:
        value = max(value_ns, 1)
        bucket = int(math.log(value) / _LOG_BASE)
        self._buckets[bucket] = self._buckets.get(bucket, 0) + 1
        self.count += 1
        self.total += value
        self.maximum = max(self.maximum, value)

    def quantile_ms(self, share: float) -> float | None:
        """Upper edge of the bucket that holds the ``share`` quantile, ms; None without values."""
        if not self.count:
            return None
        wanted = math.ceil(share * self.count)
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return min(HISTOGRAM_BASE ** (bucket + 1), self.maximum) / 1e6
        raise AssertionError("counts and buckets disagree")

    def figures(self) -> dict[str, float | int | None]:
        return {
            "n": self.count,
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
            "max_ms": self.maximum / 1e6 if self.count else None,
        }


_LOG_BASE = math.log(HISTOGRAM_BASE)


class Audit:
    """Gathers figures of one client process while it drives."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.schedule_lag = Histogram()
        self.loop_lag = Histogram()
        self.kernel_delay = Histogram()
        self.server_gap = Histogram()
        self.requests = 0
        self.not_sent = 0
        self.chunks = 0
        self.tokens = 0
        self.shared_reads = 0
        self.send_waits = 0
        self.length_mismatches = 0
        self.user_timed = 0
        self.clock_steps = 0
        self._cpu_start_s = time.process_time()
        self._wall_start_s = time.monotonic()
        self._cpu_share: float | None = None

    def window_starts(self) -> None:
        """The measured window begins: CPU counts from here."""
        self._cpu_start_s, self._wall_start_s = time.process_time(), time.monotonic()

    def window_ends(self) -> None:
        wall = time.monotonic() - self._wall_start_s
        if wall > 0:
            self._cpu_share = (time.process_time() - self._cpu_start_s) / wall

    def add(self, outgoing: Outgoing, exchange: Exchange) -> None:
        facts = exchange.facts
        self.requests += 1
        self.not_sent += facts.error_type == "not_sent"
        self.length_mismatches += facts.error_type == "length_mismatch"
        self.clock_steps += exchange.clock_stepped
        self.send_waits += exchange.send_waits
        if outgoing.scheduled_mono_ns is not None and exchange.sent_mono_ns is not None:
            self.schedule_lag.add(exchange.sent_mono_ns - outgoing.scheduled_mono_ns)
        if exchange.chunk_ns:
            self.chunks += len(exchange.chunk_ns)
            self.tokens += facts.output_tokens or 0
            self.shared_reads += exchange.shared_reads
            self.user_timed += not exchange.kernel_times
            for delay in exchange.delays_ns:
                self.kernel_delay.add(delay)
            server_ttft_ms = (facts.server_metrics or {}).get("time_to_first_token_ms")
            if server_ttft_ms is not None:
                self.server_gap.add(exchange.chunk_ns[0] - round(server_ttft_ms * 1e6))

    def report(self) -> dict[str, Any]:
        """The content of client_audit/<client>.json."""
        over = self._breaches()
        return {
            "over_budget": bool(over),
            "reasons": over,
            "clock_stepped": self.clock_steps > 0,
            "budget": asdict(self.budget),
            "figures": {
                "requests": self.requests,
                "not_sent": self.not_sent,
                "chunks": self.chunks,
                "tokens_per_chunk": self.tokens / self.chunks if self.chunks else None,
                "shared_read_share": self._shared_share(),
                "user_timed_requests": self.user_timed,
                "length_mismatches": self.length_mismatches,
                "send_buffer_waits": self.send_waits,
                "clock_steps": self.clock_steps,
                "cpu_share": self._cpu_share,
                "schedule_lag": self.schedule_lag.figures(),
                "loop_lag": self.loop_lag.figures(),
                "kernel_to_user_delay": self.kernel_delay.figures(),
                "ttft_over_server": self.server_gap.figures(),
            },
        }

    def _shared_share(self) -> float | None:
        return self.shared_reads / self.chunks if self.chunks else None

    def _breaches(self) -> list[str]:
        """One sentence for each figure over its bound."""
        budget = self.budget
        not_sent_share = self.not_sent / self.requests if self.requests else 0.0
        figures: list[tuple[str, float | None, float, str]] = [
            (
                "schedule lag p99",
                self.schedule_lag.quantile_ms(0.99),
                budget.schedule_lag_p99_ms,
                "ms",
            ),
            ("event-loop lag p99", self.loop_lag.quantile_ms(0.99), budget.loop_lag_p99_ms, "ms"),
            ("CPU of one core", self._cpu_share, budget.cpu_share, ""),
            ("chunks sharing a read", self._shared_share(), budget.shared_read_share, ""),
            ("requests not sent", not_sent_share, budget.not_sent_share, ""),
            (
                "TTFT over the server's own p50",
                self.server_gap.quantile_ms(0.5),
                budget.server_gap_p50_ms,
                "ms",
            ),
        ]
        if self.user_timed:
            lag = self.loop_lag.quantile_ms(0.99)
            figures.append(
                ("event-loop lag p99 with user times", lag, budget.user_time_delay_p99_ms, "ms")
            )
        return [
            f"{name} is {value:.3g} {unit}".rstrip() + f", the budget is {bound:g} {unit}".rstrip()
            for name, value, bound, unit in figures
            if value is not None and value > bound
        ]

"""Load-generator self-check: how far the client's own lateness could have changed the figures.

Figures go into client_audit/<client>.json with the budget they are held to. A run over budget is
invalid (`client_bound`): its load generator, not its server, was measured.
"""

import math
import os
import time
from bisect import bisect_left
from dataclasses import asdict, dataclass
from typing import Any, Final

from greenbench.contract.counted import counted
from greenbench.contract.manifest import GAP_FLOOR_MS, GAP_OVER_SERVER, AuditFigures, Delays
from loadgen.wire.response import Request, Response

HISTOGRAM_BASE: Final = 1.05  # neighbouring buckets differ by 5 %
WAITING: Final = 4096  # values counted at once: 0.1 µs each


@dataclass(frozen=True, slots=True)
class Budget:
    """Upper bounds, as shares of what is measured: a fast server needs a more punctual client.

    The absolute floors (ms) keep a bound from falling below what a busy host does to any program.
    """

    cpu_share: float = 0.95  # of one core, over the measured window
    not_sent_share: float = 0.0
    schedule_lag_floor_ms: float = 5.0  # open loop, p99: sent late against the schedule …
    schedule_lag_of_ttft: float = 0.05  # … or this share of the median TTFT
    user_time_lag_of_ttft: float = 0.10  # event-loop lag p99, where chunks carry no kernel time
    server_gap_floor_ms: float = GAP_FLOOR_MS  # client's TTFT over the server's own, median …
    server_gap_of_ttft: float = 0.50  # … not ours: the kernel stamps the times
    user_time_gap_of_ttft: float = 0.20  # … maybe ours, where the program does
    shared_time_of_ttft: float = 0.10  # p90 over all chunks of the uncertainty from shared reads


@dataclass(frozen=True, slots=True)
class Expected:
    """Beyond these the run is valid with a warning: something delayed the client. ms, shares."""

    loop_lag_p99_ms: float = 50.0
    schedule_lag_p99_ms: float = 5.0
    shared_read_share: float = 0.10
    server_gap_of_ttft: float = 0.20  # beyond it the server's front end, or the network, is slow
    shared_time_of_gap: float = 0.20  # p99 of that uncertainty; beyond it ITL is in doubt
    cpu_share: float = 0.70


class Histogram:
    """Percentiles of durations in bounded memory: buckets 5 % wide, exact maximum.

    Values wait and are counted `WAITING` at a time: adding is between two sends.
    """

    def __init__(self) -> None:
        self._waiting: list[int] = []
        self._counted = 0
        self._maximum = 0
        self._buckets: dict[int, int] = {}

    def add(self, value_ns: int) -> None:
        self._waiting.append(value_ns)
        if len(self._waiting) >= WAITING:
            self._count_waiting()

    def extend(self, values_ns: list[int]) -> None:
        self._waiting += values_ns
        if len(self._waiting) >= WAITING:
            self._count_waiting()

    @property
    def count(self) -> int:
        return self._counted + len(self._waiting)

    def _count_waiting(self) -> None:
        values = sorted(self._waiting)
        self._waiting.clear()
        self._counted += len(values)
        self._maximum = max(self._maximum, values[-1])
        at = 0
        while at < len(values):  # one step a bucket that holds any
            bucket = int(math.log(max(values[at], 1)) / _LOG_BASE)
            above = max(bisect_left(values, HISTOGRAM_BASE ** (bucket + 1), at), at + 1)
            self._buckets[bucket] = self._buckets.get(bucket, 0) + above - at
            at = above

    def quantile_ms(self, share: float) -> float | None:
        """Upper edge of the bucket that holds the ``share`` quantile, ms; None without values."""
        if self._waiting:
            self._count_waiting()
        wanted = math.ceil(share * self.count)
        for bucket in sorted(self._buckets):
            wanted -= self._buckets[bucket]
            if wanted <= 0:
                return min(HISTOGRAM_BASE ** (bucket + 1), self._maximum) / 1e6
        return None

    def figures(self) -> dict[str, float | int | None]:
        return {
            "n": self.count,
            "p50_ms": self.quantile_ms(0.5),
            "p99_ms": self.quantile_ms(0.99),
            "max_ms": self._maximum / 1e6 if self.count else None,
        }


_LOG_BASE = math.log(HISTOGRAM_BASE)


def priority() -> str:
    """How this process is scheduled: real-time, or its niceness."""
    if os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK == os.SCHED_RR:
        return "real-time"
    return f"nice {os.getpriority(os.PRIO_PROCESS, 0)}"


Bound = tuple[str, float | None, float, str]  # (what, found, most, unit)


class Audit:
    """Collects the self-check figures of one client process while it sends."""

    def __init__(self, budget: Budget | None = None) -> None:
        self.budget = budget or Budget()
        self.expected = Expected()
        self.schedule_lag = Histogram()
        self.loop_lag = Histogram()
        self.kernel_delay = Histogram()
        self.server_gap = Histogram()
        self.ttft = Histogram()
        self.gap = Histogram()  # mean gap between chunks, one value a request
        self.shared_time = Histogram()  # uncertainty of the chunks that share a read
        self.requests = 0
        self.not_sent = 0
        self.chunks = 0
        self.tokens = 0
        self.send_waits = 0
        self.sent_again = 0
        self.unsized = 0  # requests whose chunks have no running count
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

    def add(self, request: Request, response: Response) -> None:
        facts = response.facts
        self.requests += 1
        self.not_sent += facts.error_type == "not_sent"
        self.length_mismatches += facts.error_type == "length_mismatch"
        self.clock_steps += response.clock_stepped
        self.send_waits += response.send_waits
        self.sent_again += response.sent_again
        if request.scheduled_mono_ns is not None and response.sent is not None:
            self.schedule_lag.add(response.sent.mono_ns - request.scheduled_mono_ns)
        if response.chunk_ns:
            self._add_chunks(response, response.chunk_ns)
        elif facts.error_type is None and response.headers_ns is not None:
            self.ttft.add(response.headers_ns)  # not streamed: the answer is what one waits for

    def _add_chunks(self, response: Response, chunk_ns: list[int]) -> None:
        self.chunks += len(chunk_ns)
        self.tokens += response.facts.output_tokens or 0
        self.user_timed += not response.kernel_times
        self.unsized += response.facts.chunk_tokens is None
        self.ttft.add(chunk_ns[0])
        if len(chunk_ns) > 1:
            self.gap.add((chunk_ns[-1] - chunk_ns[0]) // (len(chunk_ns) - 1))
        self.shared_time.extend(response.shared_bounds_ns)
        self.kernel_delay.extend(response.delays_ns)
        server_ms = _server_ttft_ms(response.facts.server_metrics or {})
        if server_ms is not None:
            self.server_gap.add(chunk_ns[0] - round(server_ms * 1e6))

    def report(self) -> dict[str, Any]:
        """The content of client_audit/<client>.json."""
        over = _exceeded(self._bounds())
        return {
            "over_budget": bool(over),
            "reasons": over,
            "warnings": [*_exceeded(self._expectations()), *self._degraded()],
            "event_loop_late": _exceeded([self._loop_lag()]),
            "clock_stepped": self.clock_steps > 0,
            "itl_tail_in_doubt": bool(_exceeded([self._itl_uncertainty(0.99)])),
            "itl_in_doubt": bool(_exceeded([self._itl_uncertainty(0.90)])),
            "budget": asdict(self.budget),
            "figures": {
                "requests": self.requests,
                "not_sent": self.not_sent,
                "chunks": self.chunks,
                "tokens_per_chunk": self.tokens / self.chunks if self.chunks else None,
                "shared_read_share": self._shared_share(),
                "shared_time_p90_ms": self._shared_time_ms(0.90),
                "shared_time_p99_ms": self._shared_time_ms(0.99),
                "user_timed_requests": self.user_timed,
                "length_mismatches": self.length_mismatches,
                "send_buffer_waits": self.send_waits,
                "sent_again": self.sent_again,  # a standing connection had been closed meanwhile
                "clock_steps": self.clock_steps,
                "cpu_share": self._cpu_share,
                "priority": priority(),
                "ttft": self.ttft.figures(),
                "chunk_gap": self.gap.figures(),
                "schedule_lag": self.schedule_lag.figures(),
                "loop_lag": self.loop_lag.figures(),
                "kernel_to_user_delay": self.kernel_delay.figures(),
                "ttft_over_server": self.server_gap.figures(),
            },
        }

    def _degraded(self) -> list[str]:
        if not self.unsized:
            return []
        return [
            f"chunks of unknown size in {counted(self.unsized, 'request')}: "
            "the server sends no running token count"
        ]

    def _shared_share(self) -> float | None:
        return self.shared_time.count / self.chunks if self.chunks else None

    def _shared_time_ms(self, quantile: float) -> float | None:
        """Over all chunks, how much too late their time may be; most have a read of their own."""
        if not self.chunks:
            return None
        beyond = (1 - quantile) * self.chunks  # chunks above the quantile
        if self.shared_time.count <= beyond:
            return 0.0
        return self.shared_time.quantile_ms(1 - beyond / self.shared_time.count)

    def _bounds(self) -> list[Bound]:
        budget = self.budget
        ttft_ms = self.ttft.quantile_ms(0.5) or 0.0
        lag_ms = max(budget.schedule_lag_floor_ms, budget.schedule_lag_of_ttft * ttft_ms)
        of_ttft = budget.user_time_gap_of_ttft if self.user_timed else budget.server_gap_of_ttft
        bounds: list[Bound] = [
            ("CPU of one core", self._cpu_share, budget.cpu_share, ""),
            ("requests not sent", self._not_sent_share(), budget.not_sent_share, ""),
            ("schedule lag p99", self.schedule_lag.quantile_ms(0.99), lag_ms, "ms"),
            self._own_gap_over_server(of_ttft),
        ]
        if self.user_timed:
            most = budget.user_time_lag_of_ttft * ttft_ms
            value = self.loop_lag.quantile_ms(0.99)
            bounds.append(("event-loop lag p99, with times of the program", value, most, "ms"))
        if ttft_ms:
            most = budget.shared_time_of_ttft * ttft_ms
            bounds.append(
                ("uncertainty of chunk times p90", self._shared_time_ms(0.90), most, "ms")
            )
        return bounds

    def _gap_over_server(self, share: float) -> Bound:
        most = max(self.budget.server_gap_floor_ms, share * (self.ttft.quantile_ms(0.5) or 0.0))
        return (GAP_OVER_SERVER, self.server_gap.quantile_ms(0.5), most, "ms")

    def _own_gap_over_server(self, share: float) -> Bound:
        """No more of it than the client's own clocks can explain: the rest is of the server's front end
        or the network's, as when many long prompts come at once.
        """
        what, gap_ms, most, unit = self._gap_over_server(share)
        own_ms = AuditFigures(
            user_timed_requests=self.user_timed,
            loop_lag=Delays(p99_ms=self.loop_lag.quantile_ms(0.99)),
            kernel_to_user_delay=Delays(p99_ms=self.kernel_delay.quantile_ms(0.99)),
        ).own_delay_ms
        if gap_ms is not None and own_ms is not None:
            gap_ms = min(gap_ms, own_ms)
        return (what, gap_ms, most, unit)

    def _itl_uncertainty(self, quantile: float) -> Bound:
        """Two chunks that share a read make one gap too long and one too short; sums stay right."""
        most = self.expected.shared_time_of_gap * (self.gap.quantile_ms(0.5) or math.inf)
        return (
            f"uncertainty of chunk times p{quantile:.0%}"[:-1],
            self._shared_time_ms(quantile),
            most,
            "ms",
        )

    def _expectations(self) -> list[Bound]:
        expected = self.expected
        return [
            ("CPU of one core", self._cpu_share, expected.cpu_share, ""),
            self._loop_lag(),
            (
                "schedule lag p99",
                self.schedule_lag.quantile_ms(0.99),
                expected.schedule_lag_p99_ms,
                "ms",
            ),
            ("chunks sharing a read", self._shared_share(), expected.shared_read_share, ""),
            self._gap_over_server(expected.server_gap_of_ttft),
            self._itl_uncertainty(0.99),
        ]

    def _loop_lag(self) -> Bound:
        most = self.expected.loop_lag_p99_ms
        return ("event-loop lag p99", self.loop_lag.quantile_ms(0.99), most, "ms")

    def _not_sent_share(self) -> float:
        return self.not_sent / self.requests if self.requests else 0.0


def _server_ttft_ms(metrics: dict[str, float]) -> float | None:
    """The server's own TTFT, ms. vLLM 0.32 counts it from scheduling and the waiting before apart."""
    first, queued = metrics.get("time_to_first_token_ms"), metrics.get("queue_time_ms")
    return None if first is None or queued is None else first + queued


def _exceeded(bounds: list[Bound]) -> list[str]:
    """One sentence for each figure above its bound."""
    return [
        f"{what} is {value:.3g} {unit}".rstrip()
        + f", at most {most:.3g} {unit}".rstrip()
        + " was allowed"
        for what, value, most, unit in bounds
        if value is not None and value > most
    ]

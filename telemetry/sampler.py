"""The sampling loops: one thread each for the GPUs, the host and the server's /metrics.

Each loop keeps its own absolute deadlines, so a slow /metrics page never moves a power sample. The loops
know nothing of files: they hand rows to a sink, which writes them (recorder) or keeps the last (exporter).
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from greenbench.contract.access import Access
from greenbench.contract.clock import Anchor
from greenbench.contract.schema import GpuSample, HostSample, ServerMetric
from telemetry.sensors import prometheus
from telemetry.sensors.gpu import GpuIdentity, GpuReading, Reader
from telemetry.sensors.host import HostReader
from telemetry.sensors.refresh_rate import Refresh
from telemetry.ticker import Tally, Ticker, sample_period_s

logger = logging.getLogger(__name__)

HOST_PERIOD_S = 0.5
ADAPT_AFTER = 10  # samples whose cost is looked at before the period is set anew
OWNERS_EVERY_S = 5.0  # how often the processes on each card are listed


def gpu_sample(
    gpu: GpuIdentity, reading: GpuReading, anchor: Anchor, mono_ns: int, read_ns: int, host: str
) -> GpuSample:
    """One reading as a row of telemetry/gpu.jsonl."""
    return GpuSample(
        unix_ns=anchor.to_unix_ns(mono_ns),
        mono_ns=mono_ns,
        read_ns=read_ns,
        host=host,
        gpu_index=gpu.index,
        gpu_uuid=gpu.uuid,
        power_w=reading.power_w,
        power_avg_w=reading.power_avg_w,
        power_mem_w=reading.power_mem_w,
        energy_mj=reading.energy_mj,
        sm_clock_mhz=reading.sm_clock_mhz,
        mem_clock_mhz=reading.mem_clock_mhz,
        temp_c=reading.temp_c,
        mem_used_bytes=reading.mem_used_bytes,
        util_pct=reading.util_pct,
        throttle_reasons=reading.throttle_reasons,
        error=reading.error,
    )


@dataclass
class GpuLoop:
    """Reads every card once a tick, and lengthens the period when a sample costs too much of it."""

    reader: Reader
    anchor: Anchor
    asked_period_s: float | None
    refreshes: dict[str, Refresh]  # from the probe, by UUID
    sink: Callable[[list[GpuSample]], None]  # all cards of one tick
    stop: threading.Event
    gpus: list[GpuIdentity] = field(init=False)
    cost: Tally = field(default_factory=Tally)
    skew: Tally = field(default_factory=Tally)  # start of the first card's read to that of the last
    errors: dict[str, int] = field(default_factory=dict[str, int])
    ticker: Ticker = field(init=False)

    def __post_init__(self) -> None:
        self.gpus = self.reader.gpus()
        self._host = socket.gethostname()
        read_s = max((refresh.read_s for refresh in self.refreshes.values()), default=0.0)
        self.ticker = Ticker(self._period_s(read_s * len(self.gpus)), self.stop)

    def _period_s(self, cost_s: float) -> float:
        known = [refresh.counter_s for refresh in self.refreshes.values() if refresh.counter_s]
        return sample_period_s(self.asked_period_s, max(known, default=None), cost_s)

    def run(self) -> None:
        while self.ticker.wait():
            self.tick()

    def tick(self) -> None:
        started_ns = time.monotonic_ns()
        last_ns = started_ns
        samples: list[GpuSample] = []
        for gpu in self.gpus:
            last_ns = time.monotonic_ns()
            reading = self.reader.read(gpu.index)
            read_ns = time.monotonic_ns() - last_ns
            samples.append(gpu_sample(gpu, reading, self.anchor, last_ns, read_ns, self._host))
            for word in (reading.error or "").split():
                self.errors[word] = self.errors.get(word, 0) + 1
        self.sink(samples)
        self.cost.add(time.monotonic_ns() - started_ns)
        self.skew.add(last_ns - started_ns)
        if self.cost.count % ADAPT_AFTER == 0:
            recent = sorted(self.cost.kept_ns[-ADAPT_AFTER:])
            period_s = self._period_s(recent[len(recent) // 2] / 1e9)
            if period_s > self.ticker.period_s * 1.1:
                logger.warning(
                    "a sample takes %.1f ms: period goes from %.0f to %.0f ms",
                    recent[len(recent) // 2] / 1e6,
                    self.ticker.period_s * 1e3,
                    period_s * 1e3,
                )
                self.ticker.slow_to(period_s)


@dataclass
class OwnerWatch:
    """Which processes hold a context on each card, so that a foreign one spoils the energy of the run.

    ``known`` gives the server's own processes. NVML lists pids of the host; inside a container they may mean
    nothing, so a pid that no process here has is kept apart as ``unknown``.
    """

    reader: Reader
    known: Callable[[], set[int]]
    alive: Callable[[int], bool]
    own: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    foreign: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    unknown: dict[str, set[int]] = field(default_factory=dict[str, set[int]])
    listed: dict[str, bool] = field(default_factory=dict[str, bool])

    def look(self) -> None:
        ours = self.known()
        for gpu in self.reader.gpus():
            pids = self.reader.pids(gpu.index)
            self.listed[gpu.uuid] = pids is not None
            for pid in pids or []:
                stranger = self.foreign if self.alive(pid) else self.unknown
                kind = self.own if pid in ours else stranger
                kind.setdefault(gpu.uuid, set()).add(pid)


@dataclass
class HostLoop:
    reader: HostReader
    sink: Callable[[HostSample], None]
    stop: threading.Event
    period_s: float = HOST_PERIOD_S
    cost: Tally = field(default_factory=Tally)

    def run(self) -> None:
        ticker = Ticker(self.period_s, self.stop)
        while ticker.wait():
            sample = self.reader.sample()
            self.cost.add(sample.read_ns)
            self.sink(sample)


@dataclass
class ScrapeLoop:
    """Scrapes one server. A failed scrape is a row ``up`` 0; the reason of the last one is kept."""

    server: Access | str
    anchor: Anchor
    period_s: float
    sink: Callable[[ServerMetric], None]
    stop: threading.Event
    good: int = 0
    failed: int = 0
    last_error: str | None = None
    vllm_seen: bool = False  # whether any page had a metric of vLLM's
    cost: Tally = field(default_factory=Tally)
    _info_seen: bool = False

    def run(self) -> None:
        ticker = Ticker(self.period_s, self.stop)
        while ticker.wait():
            self.scrape()

    def scrape(self) -> None:
        mono_ns = time.monotonic_ns()
        unix_ns = self.anchor.to_unix_ns(mono_ns)
        rows: list[ServerMetric] = []
        try:
            rows = prometheus.parse(prometheus.fetch(self.server), unix_ns, mono_ns)
            self.good += 1
            self.vllm_seen = self.vllm_seen or any(map(prometheus.is_vllms, rows))
            up = 1.0
        except (OSError, ValueError) as error:
            self.failed += 1
            self.last_error = f"{type(error).__name__}: {error}"
            up = 0.0
        self.cost.add(time.monotonic_ns() - mono_ns)
        self.sink(ServerMetric(unix_ns, mono_ns, prometheus.UP, {}, up))
        for row in rows:
            if row.metric != prometheus.INFO or not self._info_seen:
                self.sink(row)
        self._info_seen = self._info_seen or any(row.metric == prometheus.INFO for row in rows)

"""`python -m telemetry serve`: the sampler's latest readings as Prometheus metrics, base units, own registry.

A view, not the source: `rate()` and `increase()` extrapolate to the edges of their range, so energy is
worked out from the recorder's files. What cannot be read has no sample here; it is never 0.
"""

import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from greenbench import __version__
from greenbench.contract.schema import GpuSample, HostSample
from telemetry.sensors.capability import Capability
from telemetry.sensors.gpu import GpuIdentity
from telemetry.sensors.nvml import CLOCK_EVENTS

LATENESS_BUCKETS_S = (0.0001, 0.0005, 0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0)


@dataclass
class Monotone:
    """A counter that never falls. After a reset it goes on from where it was, less what nobody saw.

    ``span`` is where the raw counter wraps to 0 (RAPL); None: a fall is a reset.
    """

    span: int | None = None
    total: int | None = None
    resets: int = 0
    _raw: int | None = None

    def add(self, raw: int) -> None:
        before, self._raw = self._raw, raw
        if before is None or self.total is None:
            self.total = raw
        elif raw >= before:
            self.total += raw - before
        elif self.span is not None:
            self.total += raw + self.span - before
        else:
            self.resets += 1


@dataclass
class Latest:
    """The sink of the sampling loops: the last row of each card and of the host, and the running totals."""

    zone_spans: dict[str, int | None] = field(default_factory=dict[str, int | None])
    gpu: dict[str, GpuSample] = field(default_factory=dict[str, GpuSample])
    host: HostSample | None = None
    gpu_energy_mj: dict[str, Monotone] = field(default_factory=dict[str, Monotone])
    cpu_energy_uj: dict[str, Monotone] = field(default_factory=dict[str, Monotone])
    lock: threading.Lock = field(default_factory=threading.Lock)

    def take_gpu(self, samples: list[GpuSample]) -> None:
        with self.lock:
            for sample in samples:
                self.gpu[sample.gpu_uuid] = sample
                if sample.energy_mj is not None:
                    self.gpu_energy_mj.setdefault(sample.gpu_uuid, Monotone()).add(sample.energy_mj)

    def take_host(self, sample: HostSample) -> None:
        with self.lock:
            self.host = sample
            for zone, raw_uj in (sample.cpu_energy_uj or {}).items():
                span = self.zone_spans.get(zone)
                self.cpu_energy_uj.setdefault(zone, Monotone(span)).add(raw_uj)


# metric name, help, unit factor, labels beside uuid, column of GpuSample
GPU_GAUGES: tuple[tuple[str, str, float, dict[str, str], str], ...] = (
    ("power_watts", "Power", 1, {"scope": "", "window": "average"}, "power_avg_w"),
    ("power_watts", "Power", 1, {"scope": "", "window": "instant"}, "power_w"),
    ("power_watts", "Power", 1, {"scope": "memory", "window": "average"}, "power_mem_w"),
    ("memory_used_bytes", "Memory in use", 1, {}, "mem_used_bytes"),
    ("sm_clock_hertz", "Clock of the multiprocessors", 1e6, {}, "sm_clock_mhz"),
    ("memory_clock_hertz", "Clock of the memory", 1e6, {}, "mem_clock_mhz"),
    ("temperature_celsius", "Temperature of the GPU", 1, {}, "temp_c"),
    ("utilization_ratio", "Share of time in which any kernel ran", 0.01, {}, "util_pct"),
)


@dataclass(eq=False)
class GreenbenchCollector(Collector):
    """Everything under greenbench_*. Reads only what the sampler left; a scrape costs no NVML call."""

    latest: Latest
    gpus: list[GpuIdentity]
    sources: dict[str, Capability]
    errors: dict[str, int]  # "source:code" -> count, filled by the sampler
    energy_source: str = "nvml_counter"

    def describe(self) -> Iterable[Metric]:
        return []  # so that registering it does not collect

    def collect(self) -> Iterator[Metric]:
        with self.latest.lock:
            yield from self._gpu()
            yield from self._host()
        yield from self._sampler()

    def _gpu(self) -> Iterator[Metric]:
        scope = {gpu.uuid: gpu.scope for gpu in self.gpus}
        energy = CounterMetricFamily(
            "greenbench_gpu_energy_joules",
            "Energy of the GPU board since the driver was loaded; goes on over counter resets.",
            labels=["uuid", "scope", "source"],
        )
        resets = CounterMetricFamily(
            "greenbench_gpu_energy_resets",
            "Times that the energy counter fell.",
            labels=["uuid"],
        )
        for uuid, counter in self.latest.gpu_energy_mj.items():
            if counter.total is not None:
                energy.add_metric([uuid, scope[uuid], self.energy_source], counter.total / 1e3)
            resets.add_metric([uuid], counter.resets)
        yield energy
        yield resets
        yield from self._gpu_gauges(scope)
        events = GaugeMetricFamily(
            "greenbench_gpu_clock_event",
            "1 while NVML names this reason for holding the clocks down.",
            labels=["uuid", "reason"],
        )
        for uuid, sample in self.latest.gpu.items():
            bits = sample.throttle_reasons
            if bits is not None:
                for reason, bit in CLOCK_EVENTS.items():
                    events.add_metric([uuid, reason], float(bool(bits & bit)))
        yield events
        info = GaugeMetricFamily(
            "greenbench_gpu_memory_total_bytes", "Memory of the card.", labels=["uuid", "name"]
        )
        for gpu in self.gpus:
            if gpu.memory_bytes is not None:
                info.add_metric([gpu.uuid, gpu.name], gpu.memory_bytes)
        yield info

    def _gpu_gauges(self, scope: dict[str, str]) -> Iterator[Metric]:
        families: dict[str, GaugeMetricFamily] = {}
        for name, text, factor, labels, column in GPU_GAUGES:
            family = families.setdefault(
                name,
                GaugeMetricFamily(f"greenbench_gpu_{name}", f"{text}.", labels=["uuid", *labels]),
            )
            for uuid, sample in self.latest.gpu.items():
                value = getattr(sample, column)
                if value is not None:
                    filled = [word or scope[uuid] for word in labels.values()]
                    family.add_metric([uuid, *filled], value * factor)
        age = GaugeMetricFamily(
            "greenbench_gpu_sample_age_seconds", "Age of the last sample.", labels=["uuid"]
        )
        for uuid, sample in self.latest.gpu.items():
            age.add_metric([uuid], (time.monotonic_ns() - sample.mono_ns) / 1e9)
        yield from families.values()
        yield age

    def _host(self) -> Iterator[Metric]:
        host = self.latest.host
        gauges = (
            ("host_cpu_busy_ratio", "Share of all cores that was busy.", "cpu_busy_share"),
            ("host_memory_used_bytes", "Memory of the host in use.", "mem_used_bytes"),
            (
                "server_resident_memory_bytes",
                "Memory of the server's processes.",
                "server_rss_bytes",
            ),
            ("server_processes", "Processes of the server.", "server_processes"),
        )
        for name, text, column in gauges:
            family = GaugeMetricFamily(f"greenbench_{name}", text)
            value = getattr(host, column) if host else None
            if value is not None:
                family.add_metric([], value)
            yield family
        cpu = CounterMetricFamily(
            "greenbench_server_cpu_seconds", "CPU time of the server's processes."
        )
        if host and host.server_cpu_s is not None:
            cpu.add_metric([], host.server_cpu_s)
        yield cpu
        energy = CounterMetricFamily(
            "greenbench_cpu_energy_joules", "Energy of a CPU zone.", labels=["zone", "source"]
        )
        for zone, counter in self.latest.cpu_energy_uj.items():
            if counter.total is not None:
                energy.add_metric([zone, "rapl"], counter.total / 1e6)
        yield energy

    def _sampler(self) -> Iterator[Metric]:
        errors = CounterMetricFamily(
            "greenbench_sampler_errors", "Reads that failed.", labels=["source", "code"]
        )
        for word, count in list(self.errors.items()):
            source, _, code = word.partition(":")
            errors.add_metric([source, code], count)
        yield errors
        sources = GaugeMetricFamily(
            "greenbench_source_available", "1 where this source can be read.", labels=["source"]
        )
        for name, capability in self.sources.items():
            sources.add_metric([name], float(capability.ok))
        yield sources
        yield InfoMetricFamily(
            "greenbench_build", "Version of the program.", value={"version": __version__}
        )


def lateness_histogram(registry: CollectorRegistry) -> Histogram:
    return Histogram(
        "greenbench_sampler_lateness_seconds",
        "How late after its deadline a GPU sample began.",
        buckets=LATENESS_BUCKETS_S,
        registry=registry,
    )

"""GPUs that play known truths. Power is a function of time, energy its integral, and both are known exactly.

``FakeReader`` is a telemetry Reader on a clock of its own. ``record`` plays a whole recording in no time.
``FakeNvml`` stands in for the pynvml module, to test the adapter's own handling of codes and zeros.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

from greenbench.contract.schema import GpuSample
from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import GpuIdentity, GpuReading

SECOND = 1_000_000_000


@dataclass(frozen=True)
class Truth:
    """Watts at a moment and joules since 0, both in closed form. Seconds in."""

    power_w: Callable[[float], float]
    energy_j: Callable[[float], float]

    def between(self, start_s: float, end_s: float) -> float:
        return self.energy_j(end_s) - self.energy_j(start_s)


def constant(watts: float) -> Truth:
    return Truth(lambda t: watts, lambda t: watts * t)


def burst(base_w: float, high_w: float, start_s: float, end_s: float) -> Truth:
    """``base_w`` with one rectangle of ``high_w``; a step when ``end_s`` is infinite."""

    def energy(t: float) -> float:
        return base_w * t + (high_w - base_w) * max(0.0, min(t, end_s) - start_s)

    return Truth(lambda t: high_w if start_s <= t < end_s else base_w, energy)


def step(low_w: float, high_w: float, at_s: float) -> Truth:
    return burst(low_w, high_w, at_s, math.inf)


def ramp(start_w: float, slope_w_per_s: float) -> Truth:
    return Truth(
        lambda t: start_w + slope_w_per_s * t,
        lambda t: start_w * t + slope_w_per_s * t * t / 2,
    )


def sine(mean_w: float, amplitude_w: float, period_s: float) -> Truth:
    omega = 2 * math.pi / period_s
    return Truth(
        lambda t: mean_w + amplitude_w * math.sin(omega * t),
        lambda t: mean_w * t + amplitude_w * (1 - math.cos(omega * t)) / omega,
    )


def square(low_w: float, high_w: float, period_s: float) -> Truth:
    """High in the first half of each period."""

    def energy(t: float) -> float:
        whole, part = divmod(t, period_s)
        high_s = whole * period_s / 2 + min(part, period_s / 2)
        return low_w * t + (high_w - low_w) * high_s

    return Truth(lambda t: high_w if t % period_s < period_s / 2 else low_w, energy)


@dataclass
class FakeGpu:
    """One card. Times in seconds of the fake clock; a callable decides by time."""

    truth: Truth
    index: int = 0
    uuid: str = "GPU-00000000"
    name: str = "Fake H200"
    refresh_s: float = 0.1  # counter and powers change at phase + n × refresh
    phase_s: float = 0.0
    boxcar_s: float = 1.0  # window of the average power
    instant_boxcar_s: float = 0.025
    counter_start_mj: int = 5_000_000
    reset_at_s: float | None = None  # the driver is reloaded: the counter starts again from 0
    lacks: tuple[str, ...] = ()  # sources that NVML says are not supported
    average_gain: float = 1.0  # error of the power sensor against the counter
    error_at: Callable[[float], str | None] = lambda t: (
        None
    )  # a failed read gives nulls and this code
    sm_clock_mhz: Callable[[float], int] = lambda t: 1980
    throttle: Callable[[float], int] = lambda t: 0
    mig: bool = False
    pids: list[int] = field(default_factory=list)

    def _tick(self, t: float) -> float:
        return (
            math.floor((t - self.phase_s) / self.refresh_s + 1e-9) * self.refresh_s + self.phase_s
        )

    def counter_mj(self, t: float) -> int:
        tick = self._tick(t)
        if self.reset_at_s is not None and tick >= self.reset_at_s:
            return round(self.truth.between(self.reset_at_s, tick) * 1e3)
        return self.counter_start_mj + round(self.truth.energy_j(tick) * 1e3)

    def average_w(self, t: float) -> float:
        tick = self._tick(t)
        return self.truth.between(tick - self.boxcar_s, tick) / self.boxcar_s * self.average_gain

    def instant_w(self, t: float) -> float:
        tick = self._tick(t)
        return self.truth.between(tick - self.instant_boxcar_s, tick) / self.instant_boxcar_s

    def identity(self) -> GpuIdentity:
        return GpuIdentity(
            self.index, self.uuid, self.name, 141 * 2**30, power_limit_w=700.0, mig=self.mig
        )

    def read(self, t: float) -> GpuReading:
        code = self.error_at(t)
        if code is not None:
            return GpuReading(error=code)
        whole = GpuReading(
            power_w=self.instant_w(t),
            power_avg_w=self.average_w(t),
            power_mem_w=47.9,
            energy_mj=self.counter_mj(t),
            sm_clock_mhz=self.sm_clock_mhz(t),
            mem_clock_mhz=3201,
            temp_c=45,
            mem_used_bytes=100 * 2**30,
            util_pct=99,
            throttle_reasons=self.throttle(t),
        )
        columns = {
            "counter": "energy_mj",
            "average": "power_avg_w",
            "instant": "power_w",
            "memory_scope": "power_mem_w",
        }
        return replace(
            whole, **{columns[source]: None for source in self.lacks if source in columns}
        )


@dataclass
class FakeReader:
    """A telemetry Reader over fake cards. Each read takes ``read_ns`` of their clock."""

    cards: list[FakeGpu]
    clock_ns: Callable[[], int]
    spend_ns: Callable[[int], None] = lambda ns: None
    read_ns: int = 0
    name: str = "fake"
    masked: bool = False
    host: str | None = None
    closed: bool = False
    lost: dict[int, str] = field(default_factory=dict[int, str])

    def gpus(self) -> list[GpuIdentity]:
        return [card.identity() for card in self.cards]

    def unread(self) -> dict[int, str]:
        return self.lost

    def capabilities(self, index: int) -> dict[str, Capability]:
        sources = ("counter", "average", "instant", "memory_scope", "gpm")
        lacks = self._card(index).lacks
        return {s: unavailable("NotSupported") if s in lacks else available() for s in sources}

    def _card(self, index: int) -> FakeGpu:
        return next(card for card in self.cards if card.index == index)

    def read(self, index: int) -> GpuReading:
        reading = self._card(index).read(self.clock_ns() / SECOND)
        self.spend_ns(self.read_ns)
        return reading

    def pids(self, index: int) -> list[int] | None:
        return self._card(index).pids

    def close(self) -> None:
        self.closed = True


@dataclass
class FakeClock:
    """Nanoseconds that pass only when someone sleeps or spends them."""

    ns: int = 0

    def now(self) -> int:
        return self.ns

    def spend(self, ns: int) -> None:
        self.ns += ns

    def sleep(self, seconds: float) -> None:
        self.ns += round(seconds * SECOND)


def record(
    cards: list[FakeGpu],
    start_s: float,
    end_s: float,
    period_s: float = 0.1,
    jitter_s: float = 0.0,
    seed: int = 1,
    unix_ns: Callable[[int], int] = lambda mono_ns: mono_ns + 1_700_000_000 * SECOND,
) -> list[GpuSample]:
    """Rows as a recorder would have written them: every card at each tick, with jittered ticks if asked."""
    rng = random.Random(seed)
    rows: list[GpuSample] = []
    for n in range(math.floor((end_s - start_s) / period_s) + 1):
        t = start_s + n * period_s + rng.uniform(0, jitter_s)
        mono_ns = round(t * SECOND)
        for card in cards:
            reading = card.read(t)
            columns = {name: getattr(reading, name) for name in reading.__slots__}
            rows.append(
                GpuSample(
                    unix_ns=unix_ns(mono_ns),
                    mono_ns=mono_ns,
                    read_ns=4_000_000,
                    host="fake",
                    gpu_index=card.index,
                    gpu_uuid=card.uuid,
                    **columns,
                )
            )
    return rows


class FakeNvmlError(Exception):
    """Stands for pynvml.NVMLError, whose constructor also gives the class that belongs to the code."""

    def __new__(cls, value: int) -> "FakeNvmlError":
        return super().__new__(NVMLError_NotSupported if value == NOT_SUPPORTED else cls, value)

    def __init__(self, value: int) -> None:
        super().__init__(f"code {value}")
        self.value = value


class NVMLError_NotSupported(FakeNvmlError):
    pass


NOT_SUPPORTED = 3


@dataclass
class FakeNvml:
    """As much of the pynvml module as the adapter uses, over one card.

    ``fields`` maps (field id, scope) to milliwatts or millijoules, or to an exception that the field returns
    while the call itself succeeds, as NVML does.
    """

    fields: dict[tuple[int, int], int | FakeNvmlError]
    usage_mw: int | FakeNvmlError = 300_000
    compute_capability: tuple[int, int] = (9, 0)
    count: int = 1
    shut_down: bool = False
    lost: dict[int, int] = field(default_factory=dict[int, int])  # index → the code it answers with
    older: dict[str, int] = field(default_factory=dict[str, int])  # answers of calls by their name

    NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION = 83
    NVML_FI_DEV_POWER_AVERAGE = 185
    NVML_FI_DEV_POWER_INSTANT = 186
    NVML_SUCCESS = 0
    NVML_CLOCK_SM = 1
    NVML_CLOCK_MEM = 2
    NVML_TEMPERATURE_GPU = 0
    NVML_GPU_VIRTUALIZATION_MODE_VGPU = 2

    NVMLError = FakeNvmlError

    def __getattr__(self, name: str) -> Any:
        """Any other call of NVML: not supported on this card."""
        if not name.startswith("nvml"):
            raise AttributeError(name)
        if name in self.older:
            return lambda *_: self.older[name]

        def refuse(*_: object) -> None:
            raise FakeNvmlError(NOT_SUPPORTED)

        return refuse

    def nvmlInit(self) -> None: ...

    def nvmlShutdown(self) -> None:
        self.shut_down = True

    def nvmlDeviceGetCount(self) -> int:
        return self.count

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:
        if index in self.lost:
            raise FakeNvmlError(self.lost[index])
        return index

    def nvmlDeviceGetUUID(self, handle: int) -> str:
        return f"GPU-{handle}"

    def nvmlDeviceGetName(self, handle: int) -> bytes:
        return b"Fake H200"

    def nvmlDeviceGetCudaComputeCapability(self, handle: int) -> tuple[int, int]:
        return self.compute_capability

    def nvmlDeviceGetPowerUsage(self, handle: int) -> int:
        if isinstance(self.usage_mw, FakeNvmlError):
            raise self.usage_mw
        return self.usage_mw

    def nvmlDeviceGetFieldValues(self, handle: int, wanted: list[tuple[int, int]]) -> list[Any]:
        return [self._field(field_and_scope) for field_and_scope in wanted]

    def _field(self, field_and_scope: tuple[int, int]) -> Any:
        found = self.fields.get(field_and_scope, FakeNvmlError(NOT_SUPPORTED))
        failed = isinstance(found, FakeNvmlError)
        return SimpleNamespace(
            nvmlReturn=found.value if failed else 0,
            valueType=3,
            value=SimpleNamespace(ullVal=0 if failed else found),
        )

"""GPU sensors behind one protocol. The only file that imports pynvml.

A source that the card does not have is found once, by the probe, and then left out; a source that fails
later leaves ``None`` and an error code. Nothing here ever turns a failure into 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import GpuIdentity, GpuReading, NoGpu, PowerScope

SCOPE_ID: dict[PowerScope, int] = {"gpu": 0, "module": 1, "memory": 2}

# NVML's clocks-event bits
CLOCK_EVENTS: dict[str, int] = {
    "gpu_idle": 0x01,
    "applications_clocks_setting": 0x02,
    "sw_power_cap": 0x04,
    "hw_slowdown": 0x08,
    "sync_boost": 0x10,
    "sw_thermal_slowdown": 0x20,
    "hw_thermal_slowdown": 0x40,
    "hw_power_brake_slowdown": 0x80,
    "display_clock_setting": 0x100,
}


# NVML's ids of fields, for bindings that do not name them yet
ENERGY_FIELD, AVERAGE_FIELD, INSTANT_FIELD = 83, 185, 186


@dataclass(slots=True)
class _Card:
    handle: Any
    identity: GpuIdentity
    probed: dict[str, Capability]
    fields: list[tuple[str, tuple[int, int]]]  # (source, (field id, scope id)) read in one call
    older: dict[
        str, Callable[[], int | None]
    ]  # source → a call of its own, where no field gives it
    clock_events: Callable[[], int]


class NvmlReader:
    """Reads NVML through nvidia-ml-py. ``nvml`` is the module, so a test can hand in another one."""

    name = "nvml"
    masked = False
    host = None

    def __init__(self, nvml: Any = None) -> None:
        if nvml is None:
            try:
                import pynvml as nvml
            except ImportError as error:
                raise NoGpu(
                    "nvidia-ml-py is not installed; install the 'telemetry' extra"
                ) from error
        self._nvml = nvml
        try:
            nvml.nvmlInit()
        except nvml.NVMLError as error:
            raise NoGpu(f"NVML does not start: {error}") from error
        # AttributeError and TypeError: an older binding lacks the call, or takes other arguments
        self._faults: tuple[type[Exception], ...] = (
            nvml.NVMLError,
            AttributeError,
            TypeError,
            ValueError,
        )
        self._cards: dict[int, _Card] = {}
        self._unread: dict[int, str] = {}
        count, code = self._call(nvml.nvmlDeviceGetCount)
        if not count:
            raise NoGpu(
                f"NVML does not count the GPUs: {code}" if code else "NVML runs but lists no GPU"
            )
        for index in range(count):
            try:
                self._cards[index] = self._open(index)
            except self._faults as error:
                self._unread[index] = _code(error)
        if not self._cards:
            said = ", ".join(f"GPU {index}: {code}" for index, code in self._unread.items())
            raise NoGpu(f"NVML cannot read any GPU ({said})")

    def _open(self, index: int) -> _Card:
        """One card and what it gives. Raises what NVML says of one that cannot be read at all."""
        nvml = self._nvml
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        identity = self._identify(index, handle)
        card = _Card(handle, identity, {}, [], {}, self._clock_events(handle))
        energy_id = getattr(nvml, "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION", ENERGY_FIELD)
        average_id = getattr(nvml, "NVML_FI_DEV_POWER_AVERAGE", AVERAGE_FIELD)
        instant_id = getattr(nvml, "NVML_FI_DEV_POWER_INSTANT", INSTANT_FIELD)
        fields = {
            "counter": (energy_id, 0),
            "average": (average_id, SCOPE_ID["gpu"]),
            "instant": (instant_id, SCOPE_ID["gpu"]),
            "memory_scope": (average_id, SCOPE_ID["memory"]),
        }
        values = self._read_fields(handle, list(fields.items()))
        if values.get("average", (None, ""))[0] is None:
            # Grace-Hopper: the GPU scope fails and the module (CPU + GPU) answers
            module = {"average": (average_id, SCOPE_ID["module"])}
            found = self._read_fields(handle, list(module.items()))
            if found["average"][0] is not None:
                fields |= module
                values |= found
                card.identity = replace(card.identity, scope="module")
        for source, (value, code) in values.items():
            card.probed[source] = (
                available() if value is not None else unavailable(code or "no value")
            )
        card.fields = [(s, f) for s, f in fields.items() if values[s][0] is not None]
        for source, (name, read) in self._older_calls(handle).items():
            if not card.probed[source].ok and self._call(read)[0]:
                card.probed[source] = available(call=name)
                card.older[source] = read
        card.probed["gpm"] = self._probe_gpm(handle)
        return card

    def _older_calls(self, handle: Any) -> dict[str, tuple[str, Callable[[], int | None]]]:
        """source → name and call that gave the same reading before there were fields."""
        nvml = self._nvml
        calls = {"counter": "nvmlDeviceGetTotalEnergyConsumption"}
        power = self._power_usage_is(handle)
        if power is not None:
            calls[power] = "nvmlDeviceGetPowerUsage"
        return {
            source: (name, lambda name=name: _positive(getattr(nvml, name)(handle)))
            for source, name in calls.items()
        }

    def _clock_events(self, handle: Any) -> Callable[[], int]:
        """The call under its name of today, or under the one before driver 535."""
        names = (
            "nvmlDeviceGetCurrentClocksEventReasons",
            "nvmlDeviceGetCurrentClocksThrottleReasons",
        )
        calls = [lambda name=name: int(getattr(self._nvml, name)(handle)) for name in names]
        return next((call for call in calls if not self._call(call)[1]), calls[0])

    def _power_usage_is(self, handle: Any) -> str | None:
        """nvmlDeviceGetPowerUsage is the 1 s average from Ampere on, but instantaneous on GA100 and older."""
        value, _ = self._call(lambda: self._nvml.nvmlDeviceGetCudaComputeCapability(handle))
        if value is None:
            return None
        return "average" if tuple(value) > (8, 0) else "instant"

    def _probe_gpm(self, handle: Any) -> Capability:
        value, code = self._call(
            lambda: self._nvml.nvmlGpmQueryDeviceSupport(handle).isSupportedDevice
        )
        return available() if value else unavailable(code or "the card has no GPM counters")

    def _identify(self, index: int, handle: Any) -> GpuIdentity:
        nvml = self._nvml

        def ask(read: Callable[[], Any]) -> Any:
            return self._call(read)[0]

        capability = ask(lambda: nvml.nvmlDeviceGetCudaComputeCapability(handle))
        limit_mw = ask(lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle))
        virtual = ask(lambda: nvml.nvmlDeviceGetVirtualizationMode(handle))
        mig = ask(lambda: bool(nvml.nvmlDeviceGetMigMode(handle)[0]))
        return GpuIdentity(
            index=index,
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            name=ask(lambda: _text(nvml.nvmlDeviceGetName(handle))) or "unknown",
            memory_bytes=ask(lambda: int(nvml.nvmlDeviceGetMemoryInfo(handle).total)),
            driver=ask(lambda: _text(nvml.nvmlSystemGetDriverVersion())),
            nvml=ask(lambda: _text(nvml.nvmlSystemGetNVMLVersion())),
            vbios=ask(lambda: _text(nvml.nvmlDeviceGetVbiosVersion(handle))),
            compute_capability=None if capability is None else ".".join(map(str, capability)),
            power_limit_w=None if limit_mw is None else limit_mw / 1e3,
            max_sm_clock_mhz=ask(
                lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_SM)
            ),
            ecc=ask(lambda: bool(nvml.nvmlDeviceGetEccMode(handle)[0])),
            mig=mig,
            mig_uuids=ask(lambda: self._mig_uuids(handle)) if mig else None,
            persistence=ask(lambda: bool(nvml.nvmlDeviceGetPersistenceMode(handle))),
            virtual=None if virtual is None else virtual == nvml.NVML_GPU_VIRTUALIZATION_MODE_VGPU,
            pcie_generation=ask(lambda: nvml.nvmlDeviceGetCurrPcieLinkGeneration(handle)),
        )

    def _mig_uuids(self, handle: Any) -> tuple[str, ...]:
        nvml = self._nvml
        parts = [
            self._call(lambda i=i: nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, i))[0]
            for i in range(nvml.nvmlDeviceGetMaxMigDeviceCount(handle))
        ]
        return tuple(_text(nvml.nvmlDeviceGetUUID(part)) for part in parts if part is not None)

    def _call(self, read: Callable[[], Any]) -> tuple[Any, str]:
        """(value, "") or (None, the NVML code as a word)."""
        try:
            return read(), ""
        except self._faults as error:
            return None, _code(error)

    def _read_fields(
        self, handle: Any, fields: list[tuple[str, tuple[int, int]]]
    ) -> dict[str, tuple[float | None, str]]:
        """source → (raw value, code). The call can succeed while one of its fields failed."""
        values, code = self._call(
            lambda: self._nvml.nvmlDeviceGetFieldValues(handle, [field for _, field in fields])
        )
        if values is None:
            return {source: (None, code) for source, _ in fields}
        return {source: self._field(v) for (source, _), v in zip(fields, values, strict=True)}

    def _field(self, value: Any) -> tuple[float | None, str]:
        if value.nvmlReturn != self._nvml.NVML_SUCCESS:
            return None, _code(self._nvml.NVMLError(value.nvmlReturn))
        by_type = ("dVal", "uiVal", "ulVal", "ullVal", "sllVal", "siVal", "usVal")
        raw = getattr(value.value, by_type[value.valueType])
        return (raw, "") if raw > 0 else (None, "zero")

    def gpus(self) -> list[GpuIdentity]:
        return [card.identity for card in self._cards.values()]

    def unread(self) -> dict[int, str]:
        return self._unread

    def capabilities(self, index: int) -> dict[str, Capability]:
        return self._cards[index].probed

    def read(self, index: int) -> GpuReading:
        nvml, card = self._nvml, self._cards[index]
        handle = card.handle
        errors: list[str] = []
        # first the counter and the powers, in one call: their stamp is the start of the read
        fields = self._read_fields(handle, card.fields) if card.fields else {}
        errors += [f"{source}:{code}" for source, (_, code) in fields.items() if code]
        raw = {source: value for source, (value, _) in fields.items()}

        def ask(source: str, read: Callable[[], Any]) -> Any:
            value, code = self._call(read)
            if code and code != "NotSupported":  # not having a sensor is no fault of this read
                errors.append(f"{source}:{code}")
            return value

        for source, read in card.older.items():
            value, code = self._call(read)
            raw[source] = value
            errors += [] if value else [f"{source}:{code or 'zero'}"]
        memory = ask("memory", lambda: nvml.nvmlDeviceGetMemoryInfo(handle))
        util = ask("util", lambda: nvml.nvmlDeviceGetUtilizationRates(handle))
        counter_mj = raw.get("counter")
        return GpuReading(
            power_w=_watts(raw.get("instant")),
            power_avg_w=_watts(raw.get("average")),
            power_mem_w=_watts(raw.get("memory_scope")),
            energy_mj=None if counter_mj is None else int(counter_mj),
            sm_clock_mhz=ask(
                "sm_clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)
            ),
            mem_clock_mhz=ask(
                "mem_clock", lambda: nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_MEM)
            ),
            temp_c=ask(
                "temp", lambda: nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU)
            ),
            mem_used_bytes=None if memory is None else int(memory.used),
            util_pct=None if util is None else int(util.gpu),
            throttle_reasons=ask("clock_events", card.clock_events),
            error=" ".join(errors) or None,
        )

    def pids(self, index: int) -> list[int] | None:
        handle = self._cards[index].handle
        nvml = self._nvml
        found, code = self._call(lambda: nvml.nvmlDeviceGetComputeRunningProcesses(handle))
        if code == "FunctionNotFound":  # a driver older than the binding
            found, _ = self._call(lambda: nvml.nvmlDeviceGetComputeRunningProcesses_v2(handle))
        return None if found is None else [int(process.pid) for process in found]

    def gpm_sample(self, index: int) -> Any:
        """A snapshot of the hardware counters, for ``gpm_dram_share``; None without GPM."""
        if not self._cards[index].probed["gpm"].ok:
            return None
        handle = self._cards[index].handle
        return self._call(
            lambda: self._nvml.nvmlGpmSampleGet(handle, self._nvml.nvmlGpmSampleAlloc())
        )[0]

    def gpm_dram_share(self, first: Any, second: Any) -> float | None:
        """Share (0..1) of the memory's peak bandwidth that was used between two snapshots."""
        if first is None or second is None:
            return None
        nvml = self._nvml
        wanted = nvml.c_nvmlGpmMetricsGet_t()
        wanted.version = nvml.NVML_GPM_METRICS_GET_VERSION
        wanted.numMetrics = 1
        wanted.sample1, wanted.sample2 = first, second
        wanted.metrics[0].metricId = nvml.NVML_GPM_METRIC_DRAM_BW_UTIL
        found = self._call(lambda: nvml.nvmlGpmMetricsGet(wanted))[0]
        if found is None or found.metrics[0].nvmlReturn != nvml.NVML_SUCCESS:
            return None
        return float(found.metrics[0].value) / 100

    def peak_memory_bytes_per_s(self, index: int) -> float | None:
        """Highest memory clock times bus width, two transfers a clock."""
        nvml, handle = self._nvml, self._cards[index].handle
        clock_mhz = self._call(lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, nvml.NVML_CLOCK_MEM))[
            0
        ]
        width_bits = self._call(lambda: nvml.nvmlDeviceGetMemoryBusWidth(handle))[0]
        return clock_mhz * 1e6 * 2 * width_bits / 8 if clock_mhz and width_bits else None

    def close(self) -> None:
        self._call(self._nvml.nvmlShutdown)


def _positive(value: int) -> int | None:
    return value if value > 0 else None


def _watts(milliwatts: float | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3


def _text(value: str | bytes) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else value


def _code(error: Exception) -> str:
    """NVMLError_NotSupported → NotSupported; a code without a class of its own → its number.

    What the binding itself lacks or refuses → NotInBinding.
    """
    if isinstance(error, AttributeError | TypeError | ValueError):
        return "NotInBinding"
    kind, _, name = type(error).__name__.partition("_")
    return name if kind == "NVMLError" and name else f"code{getattr(error, 'value', '?')}"

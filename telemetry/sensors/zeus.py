"""GPU readings through zeus (optional extra), which also knows AMD cards. Used as a cross-check of our own.

zeus names cards by an index only, so their UUIDs are made up from it and mean nothing outside the recording.
"""

from collections.abc import Callable
from typing import Any

from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import GpuIdentity, GpuReading, NoGpu

CALLS = {
    "counter": "get_total_energy_consumption",  # mJ
    "average": "get_average_power_usage",  # mW
    "instant": "get_instant_power_usage",
    "memory_scope": "get_average_memory_power_usage",
}


class ZeusReader:
    """A telemetry Reader over zeus' GPU objects. ``gpus`` stands for zeus.device.get_gpus() in tests."""

    name = "zeus"
    masked = True  # it leaves out the cards that CUDA_VISIBLE_DEVICES hides, counting as NVML does
    host = None

    def __init__(self, gpus: Any = None, base_error: type[Exception] | None = None) -> None:
        if gpus is None:
            try:
                from zeus.device import get_gpus  # type: ignore[import-not-found]
                from zeus.device.exception import ZeusBaseGPUError  # type: ignore[import-not-found]
            except ImportError as error:
                raise NoGpu("zeus is not installed; install it to read through it") from error
            base_error = ZeusBaseGPUError
            try:
                gpus = get_gpus()
            except (ZeusBaseGPUError, ValueError) as error:  # it reads UUIDs as numbers
                raise NoGpu(f"zeus finds no GPU: {error}") from error
        self._gpus = gpus
        self._base_error = base_error or Exception
        self._probed = {
            index: {source: self._probe(index, call) for source, call in CALLS.items()}
            | {"gpm": unavailable("zeus does not read it")}
            for index in range(len(gpus))
        }

    def _ask(self, read: Callable[[], Any]) -> tuple[Any, str]:
        try:
            return read(), ""
        except self._base_error as error:
            return None, type(error).__name__.removeprefix("ZeusGPU").removesuffix("Error")

    def _call(self, index: int, call: str) -> tuple[int | None, str]:
        value, code = self._ask(lambda: getattr(self._gpus, call)(index))
        return (value, code) if value is None or value > 0 else (None, "zero")

    def _probe(self, index: int, call: str) -> Capability:
        value, code = self._call(index, call)
        return available() if value is not None else unavailable(code)

    def gpus(self) -> list[GpuIdentity]:
        return [
            GpuIdentity(i, f"zeus:{i}", str(self._ask(lambda i=i: self._gpus.get_name(i))[0]))
            for i in range(len(self._gpus))
        ]

    def unread(self) -> dict[int, str]:
        return {}

    def capabilities(self, index: int) -> dict[str, Capability]:
        return self._probed[index]

    def read(self, index: int) -> GpuReading:
        found = {
            s: self._call(index, call) for s, call in CALLS.items() if self._probed[index][s].ok
        }
        value = {source: number for source, (number, _) in found.items()}
        temperature, _ = self._ask(lambda: self._gpus.get_gpu_temperature(index))
        errors = [f"{source}:{code}" for source, (_, code) in found.items() if code]
        return GpuReading(
            power_w=_watts(value.get("instant")),
            power_avg_w=_watts(value.get("average")),
            power_mem_w=_watts(value.get("memory_scope")),
            energy_mj=value.get("counter"),
            temp_c=temperature,
            error=" ".join(errors) or None,
        )

    def pids(self, index: int) -> list[int] | None:
        return None

    def close(self) -> None: ...


def _watts(milliwatts: int | None) -> float | None:
    return None if milliwatts is None else milliwatts / 1e3

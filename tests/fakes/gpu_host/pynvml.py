"""As much of pynvml as the project uses, over the timeline that the fake torch beside this file writes.

Idle 124 W; energy is the exact integral, seen every 100 ms; average power is a 1 s boxcar, instant 25 ms.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION = 83
NVML_FI_DEV_POWER_AVERAGE = 185
NVML_FI_DEV_POWER_INSTANT = 186
NVML_SUCCESS = 0
NVML_CLOCK_SM = 1
NVML_CLOCK_MEM = 2
NVML_TEMPERATURE_GPU = 0
NVML_GPU_VIRTUALIZATION_MODE_VGPU = 2
NVML_GPM_METRICS_GET_VERSION = 1
NVML_GPM_METRIC_DRAM_BW_UTIL = 10
IDLE_W, REFRESH_NS, START_NS = 124.0, 100_000_000, time.monotonic_ns() - 10_000_000_000
PEAK_BYTES_PER_S = 3201e6 * 2 * 6144 / 8
COPY_BYTES_PER_S = 4.23e12


class NVMLError(Exception):
    value = 999


class NVMLError_NotSupported(NVMLError):
    value = 3


class _Timeline:
    """Work so far, read on as it grows, with joules above idle summed up to each stretch's start."""

    def __init__(self) -> None:
        path = Path(os.environ["FAKE_GPU_TIMELINE"])
        path.touch()
        self._file = path.open()
        self._rest = ""
        self.stretches: list[tuple[int, int, float]] = []
        self.done_j: list[float] = [0.0]

    def read_on(self) -> None:
        text = self._rest + self._file.read()
        lines = text.split("\n")
        self._rest = lines.pop()
        for line in lines:
            start, end, watts = line.split()
            stretch = (int(start), int(end), float(watts) - IDLE_W)
            self.stretches.append(stretch)
            self.done_j.append(self.done_j[-1] + stretch[2] * (stretch[1] - stretch[0]) / 1e9)

    def joules(self, at_ns: int) -> float:
        low, high = 0, len(self.stretches)
        while low < high:  # first stretch that ends after the moment
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self.stretches[middle][1] <= at_ns else (low, middle)
        above_j = self.done_j[low]
        if low < len(self.stretches) and self.stretches[low][0] < at_ns:
            above_j += self.stretches[low][2] * (at_ns - self.stretches[low][0]) / 1e9
        return 1_000.0 + IDLE_W * (at_ns - START_NS) / 1e9 + above_j


_timeline = _Timeline()


def nvmlDeviceGetFieldValues(handle: int, wanted: list[tuple[int, int]]) -> list[Any]:
    _timeline.read_on()
    # launches are written when the host waits for them, up to 20 ms after they began
    tick_ns = (time.monotonic_ns() - 30_000_000) // REFRESH_NS * REFRESH_NS

    def value(field: int, scope: int) -> float:
        if scope == 2:
            return 47_900 + tick_ns // REFRESH_NS % 2
        if field == NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION:
            return _timeline.joules(tick_ns) * 1e3
        window_ns = 1_000_000_000 if field == NVML_FI_DEV_POWER_AVERAGE else 25_000_000
        spent_j = _timeline.joules(tick_ns) - _timeline.joules(tick_ns - window_ns)
        return spent_j / (window_ns / 1e9) * 1e3

    return [
        SimpleNamespace(
            nvmlReturn=0, valueType=3, value=SimpleNamespace(ullVal=round(value(field, scope)))
        )
        for field, scope in wanted
    ]


class c_nvmlGpmMetricsGet_t:
    def __init__(self) -> None:
        self.metrics = [SimpleNamespace(metricId=0, nvmlReturn=0, value=0.0)]
        self.sample1 = self.sample2 = None
        self.version = self.numMetrics = 0


def nvmlGpmMetricsGet(wanted: c_nvmlGpmMetricsGet_t) -> c_nvmlGpmMetricsGet_t:
    assert wanted.sample1 is not None and wanted.sample2 is not None
    wanted.metrics[0].value = COPY_BYTES_PER_S / PEAK_BYTES_PER_S * 100
    return wanted


def __getattr__(name: str) -> Any:
    """Everything else is a constant answer or not supported."""
    answers: dict[str, Any] = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": 1,
        "nvmlDeviceGetHandleByIndex": 0,
        "nvmlDeviceGetUUID": "GPU-0000-fake",
        "nvmlDeviceGetName": "Fake H200",
        "nvmlDeviceGetCudaComputeCapability": (9, 0),
        "nvmlDeviceGetEnforcedPowerLimit": 700_000,
        "nvmlDeviceGetMemoryInfo": SimpleNamespace(total=141 * 2**30, used=2**30),
        "nvmlDeviceGetClockInfo": 1980,
        "nvmlDeviceGetMaxClockInfo": 3201,
        "nvmlDeviceGetMemoryBusWidth": 6144,
        "nvmlDeviceGetComputeRunningProcesses": [],
        "nvmlGpmQueryDeviceSupport": SimpleNamespace(isSupportedDevice=1),
        "nvmlGpmSampleAlloc": object(),
        "nvmlGpmSampleGet": object(),
    }
    if not name.startswith("nvml"):
        raise AttributeError(name)

    def call(*_: object) -> Any:
        if name not in answers:
            raise NVMLError_NotSupported
        return answers[name]

    return call

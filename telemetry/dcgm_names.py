"""The same readings under the names, labels and units of NVIDIA's dcgm-exporter, for its dashboards."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from telemetry.exporter import Latest
from telemetry.nvml import GpuIdentity

MIB = 2**20

# DCGM name, help, column of GpuSample, what one unit of the column is in DCGM's unit
FIELDS: tuple[tuple[str, str, str, float], ...] = (
    ("DCGM_FI_DEV_SM_CLOCK", "SM clock frequency (in MHz).", "sm_clock_mhz", 1),
    ("DCGM_FI_DEV_MEM_CLOCK", "Memory clock frequency (in MHz).", "mem_clock_mhz", 1),
    ("DCGM_FI_DEV_GPU_TEMP", "GPU temperature (in C).", "temp_c", 1),
    ("DCGM_FI_DEV_POWER_USAGE", "Power draw (in W).", "power_avg_w", 1),
    (
        "DCGM_FI_DEV_TOTAL_ENERGY_CONSUMPTION",
        "Energy since the driver was loaded (in mJ).",
        "energy_mj",
        1,
    ),
    ("DCGM_FI_DEV_GPU_UTIL", "GPU utilization (in %).", "util_pct", 1),
    ("DCGM_FI_DEV_FB_USED", "Framebuffer memory used (in MiB).", "mem_used_bytes", 1 / MIB),
    ("DCGM_FI_DEV_CLOCK_THROTTLE_REASONS", "Clock event bit mask.", "throttle_reasons", 1),
)


@dataclass(eq=False)
class DcgmCollector(Collector):
    """DCGM_FI_DEV_* families. Untyped: dcgm-exporter's counters have no ``_total``, which a counter needs."""

    latest: Latest
    gpus: list[GpuIdentity]

    def describe(self) -> Iterable[Metric]:
        return []

    def collect(self) -> Iterator[Metric]:
        host = socket.gethostname()
        with self.latest.lock:
            for name, text, column, factor in FIELDS:
                family = Metric(name, text, "unknown")
                for gpu in self.gpus:
                    sample = self.latest.gpu.get(gpu.uuid)
                    value = getattr(sample, column) if sample else None
                    if column == "energy_mj" and gpu.uuid in self.latest.gpu_energy_mj:
                        value = self.latest.gpu_energy_mj[gpu.uuid].total
                    if value is not None:
                        family.add_sample(name, _labels(gpu, host), value * factor)
                yield family


def _labels(gpu: GpuIdentity, host: str) -> dict[str, str]:
    return {
        "gpu": str(gpu.index),
        "UUID": gpu.uuid,
        "device": f"nvidia{gpu.index}",
        "modelName": gpu.name,
        "Hostname": host,
    }

"""The same readings under the names, labels and units of NVIDIA's dcgm-exporter, for its dashboards."""

import socket
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from prometheus_client.core import Metric
from prometheus_client.registry import Collector

from telemetry.exporter.collectors import Latest
from telemetry.sensors.dcgm_fields import FIELDS
from telemetry.sensors.gpu import GpuIdentity


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

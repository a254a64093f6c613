"""GPU readings from a running dcgm-exporter. Its interval is the refresh here: 30 s unless set shorter."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from telemetry.sensors import prometheus
from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.dcgm_fields import FIELDS
from telemetry.sensors.gpu import GpuIdentity, GpuReading, NoGpu

PAGE_AGE_NS = 20_000_000  # the cards of one tick share one page
COLUMN = {name: (column, factor) for name, _, column, factor in FIELDS}
COUNTED = ("power_avg_w", "energy_mj")
# DCGM writes "not supported", "not found" and the like as numbers: from 2^47 in a float field and
# 0x7ffffffffffffff0 in an integer one (dcgm_structs.h). No reading reaches the smaller: 2^47 mJ are 39 MWh.
BLANK = 2.0**47
WHOLE = {
    "energy_mj",
    "sm_clock_mhz",
    "mem_clock_mhz",
    "temp_c",
    "mem_used_bytes",
    "util_pct",
    "throttle_reasons",
}


@dataclass
class DcgmReader:
    """A telemetry Reader over one exporter's page. Cards that the page stops naming read as an error."""

    base_url: str
    fetch: Callable[[str], str] = prometheus.fetch
    name: str = "dcgm"
    masked: bool = False
    _cards: dict[int, GpuIdentity] = field(default_factory=dict[int, GpuIdentity])
    _readings: dict[str, GpuReading] = field(default_factory=dict[str, GpuReading])
    _read_ns: int = -PAGE_AGE_NS
    _error: str | None = None

    @property
    def host(self) -> str | None:
        return urlsplit(self.base_url).hostname

    def __post_init__(self) -> None:
        self._refresh()
        if not self._cards:
            raise NoGpu(f"{self.base_url}: {self._error or 'no DCGM_FI_DEV_* metric'}")

    def _refresh(self) -> None:
        now_ns = time.monotonic_ns()
        if now_ns - self._read_ns < PAGE_AGE_NS:
            return
        self._read_ns, self._error, self._readings = now_ns, None, {}
        try:
            self._parse(self.fetch(self.base_url))
        except (OSError, ValueError) as error:
            self._error = type(error).__name__

    def _parse(self, text: str) -> None:
        values: dict[str, dict[str, float | int]] = {}
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                labels = sample.labels
                uuid, index = labels.get("UUID"), labels.get("gpu", "")
                if sample.name not in COLUMN or not uuid or not index.isdigit():
                    continue
                mig = bool(
                    labels.get("GPU_I_ID")
                )  # one line a MIG device, all with the card's UUID
                self._know(int(index), uuid, labels.get("modelName", "unknown"), mig)
                column, factor = COLUMN[sample.name]
                value = sample.value / factor
                if not 0 <= sample.value < BLANK or (column in COUNTED and not value > 0):
                    continue  # 0 joules or watts, NaN and DCGM's blanks are no reading
                values.setdefault(uuid, {})[column] = round(value) if column in WHOLE else value
        self._readings = {uuid: GpuReading(**columns) for uuid, columns in values.items()}  # type: ignore[arg-type]

    def _know(self, index: int, uuid: str, name: str, mig: bool) -> None:
        card = self._cards.setdefault(index, GpuIdentity(index, uuid, name, mig=mig))
        if mig and not card.mig:
            self._cards[index] = replace(card, mig=True)

    def unread(self) -> dict[int, str]:
        return {}

    def gpus(self) -> list[GpuIdentity]:
        return [self._cards[index] for index in sorted(self._cards)]

    def capabilities(self, index: int) -> dict[str, Capability]:
        reading = self._readings.get(self._cards[index].uuid, GpuReading())
        has = {"counter": reading.energy_mj, "average": reading.power_avg_w}
        missing = {name: unavailable("the exporter does not serve it") for name in has}
        served = {name: available() for name, value in has.items() if value is not None}
        # its profiling fields would be the GPM, but they cost the card power while they run
        others = ("instant", "memory_scope", "gpm")
        return {
            **missing,
            **served,
            **{name: unavailable("not in DCGM's default fields") for name in others},
        }

    def read(self, index: int) -> GpuReading:
        self._refresh()
        absent = GpuReading(error=f"page:{self._error or 'absent'}")
        return self._readings.get(self._cards[index].uuid, absent)

    def pids(self, index: int) -> list[int] | None:
        return None

    def close(self) -> None: ...

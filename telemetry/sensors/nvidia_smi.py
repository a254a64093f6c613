"""Recordings that others made with `nvidia-smi --query-gpu=… --format=csv -lms 100`, as rows of gpu.jsonl.

    python -m telemetry import-smi FILE --run-dir RUN

nvidia-smi has no energy counter, so such a recording gives power and its integrals, never counted energy.
Its stamps are local wall time; the zone is the reader's unless it is given.
"""

import csv
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from greenbench.contract.clock import Anchor
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.run_dir import EVENTS, read_jsonl, write_atomic
from greenbench.contract.schema import GpuSample
from greenbench.contract.segments import SegmentedJsonlWriter
from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import GpuIdentity, GpuReading
from telemetry.sensors.sources import merge_capabilities

MIB = 2**20
# nvidia-smi's column -> GpuReading's, and what one unit of it is in the latter's
COLUMNS: dict[str, tuple[str, float]] = {
    "power.draw.instant": ("power_w", 1),
    "power.draw.average": ("power_avg_w", 1),
    "power.draw": ("power_avg_w", 1),  # the 1 s average from Ampere on, but not on A100
    "clocks.current.sm": ("sm_clock_mhz", 1),
    "clocks.sm": ("sm_clock_mhz", 1),
    "clocks.current.memory": ("mem_clock_mhz", 1),
    "clocks.mem": ("mem_clock_mhz", 1),
    "temperature.gpu": ("temp_c", 1),
    "memory.used": ("mem_used_bytes", MIB),
    "utilization.gpu": ("util_pct", 1),
    "clocks_event_reasons.active": ("throttle_reasons", 1),
    "clocks_throttle_reasons.active": ("throttle_reasons", 1),
}
POWERS = ("power_w", "power_avg_w")
INSTANT_ONLY = ("A100", "V100", "T4", "P100", "A30")  # cards whose power.draw is no 1 s average


@dataclass(frozen=True, slots=True)
class SmiRow:
    unix_ns: int
    gpu: GpuIdentity
    reading: GpuReading


class SmiReader:
    """A telemetry Reader that plays a recording: each ``read`` of a card gives its next row."""

    name = "nvidia-smi"

    def __init__(self, path: Path, zone: tzinfo | None = None) -> None:
        self.rows = list(read_smi(path, zone))
        cards = {row.gpu.uuid: row.gpu for row in self.rows}
        self._cards = {gpu.index: gpu for gpu in cards.values()}
        self._next = {index: self._of(index) for index in self._cards}

    def _of(self, index: int) -> Iterator[SmiRow]:
        return (row for row in self.rows if row.gpu.index == index)

    def gpus(self) -> list[GpuIdentity]:
        return [self._cards[index] for index in sorted(self._cards)]

    def capabilities(self, index: int) -> dict[str, Capability]:
        readings = [row.reading for row in self._of(index)]
        lacks = unavailable("nvidia-smi does not report it")
        found = {
            "average": any(reading.power_avg_w is not None for reading in readings),
            "instant": any(reading.power_w is not None for reading in readings),
        }
        told = {
            name: available() if has else unavailable("not in this file")
            for name, has in found.items()
        }
        return {"counter": lacks, "memory_scope": lacks, "gpm": lacks, **told}

    def read(self, index: int) -> GpuReading:
        row = next(self._next[index], None)
        return row.reading if row else GpuReading(error="file:end")

    def pids(self, index: int) -> list[int] | None:
        return None

    def close(self) -> None: ...

    def samples(self, anchor: Anchor, host: str) -> Iterator[GpuSample]:
        """Rows of gpu.jsonl. Monotonic stamps follow from ``anchor``, a moment read on both clocks."""
        columns = [name for name in GpuReading.__slots__ if name != "error"]
        for row in self.rows:
            yield GpuSample(
                unix_ns=row.unix_ns,
                mono_ns=anchor.to_mono_ns(row.unix_ns),
                read_ns=0,
                host=host,
                gpu_index=row.gpu.index,
                gpu_uuid=row.gpu.uuid,
                **{name: getattr(row.reading, name) for name in columns},
                error=row.reading.error,
            )


def import_smi(path: Path, run_dir: Path, zone: tzinfo | None = None) -> int:
    """Write a recording into RUN/telemetry as the recorder would have; returns the rows written.

    The run's events give the clock; without any, monotonic time is taken to be wall time. A run that has
    GPU samples already is left as it is.
    """
    target = run_dir / "telemetry" / "gpu.jsonl"
    if not run_dir.is_dir() or target.exists():
        fault = "has GPU samples already" if target.exists() else "no such folder"
        raise UserError(
            f"--run-dir {run_dir}: {fault}; give a run directory without telemetry/gpu.jsonl"
        )
    reader = SmiReader(path, zone)
    events = run_dir / EVENTS
    first = next(read_jsonl(events), None) if events.is_file() else None
    anchor = Anchor(first["unix_ns"], first["mono_ns"]) if first else Anchor(0, 0)
    with SegmentedJsonlWriter(target) as writer:
        for sample in reader.samples(anchor, "imported"):
            writer.write(sample)
    sources = {name: cap.as_dict() for name, cap in merge_capabilities(reader, {}).items()}
    facts = {"gpus": [asdict(gpu) for gpu in reader.gpus()], "cpu": None, "sampler": None}
    write_atomic(
        target.with_name("sources.json"), json.dumps({**sources, "facts": facts}, indent=1) + "\n"
    )
    return writer.rows


def read_smi(path: Path, zone: tzinfo | None = None) -> Iterator[SmiRow]:
    """Rows of a CSV file. Needs the columns timestamp and uuid; raises UserError naming what is missing."""
    try:
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.reader(file, skipinitialspace=True)
            # "power.draw.average [W]": the unit stands in the header, and again in each cell
            header = [re.sub(r" \[.*\]$", "", name.strip()) for name in next(table, [])]
            for needed in ("timestamp", "uuid"):
                if needed not in header:
                    raise UserError(
                        f"{path}: no column '{needed}'; record with --query-gpu=timestamp,index,uuid,name,"
                        f"power.draw.average,power.draw.instant. {nearest(needed, header)}"
                    )
            seen: list[str] = []
            for number, cells in enumerate(table, start=2):
                if len(cells) == len(header):  # the last line may be cut off
                    yield _row(
                        dict(zip(header, cells, strict=True)), seen, zone, f"{path}:{number}"
                    )
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give nvidia-smi's CSV file"
        ) from error


def _row(cells: dict[str, str], seen: list[str], zone: tzinfo | None, where: str) -> SmiRow:
    uuid, name = cells["uuid"], cells.get("name", "unknown")
    if uuid not in seen:
        seen.append(uuid)
    index = int(cells["index"]) if "index" in cells else seen.index(uuid)
    values: dict[str, float | int] = {}
    errors: list[str] = []
    for column, (target, factor) in COLUMNS.items():
        if column not in cells or target in values:
            continue
        if column == "power.draw" and any(card in name for card in INSTANT_ONLY):
            target = "power_w"
        number = _number(cells[column])
        if number is None or (target in POWERS and number <= 0):
            errors.append(f"{target}:{'zero' if number is not None else 'unreadable'}")
            continue
        scaled = number * factor
        values[target] = scaled if target in POWERS else round(scaled)
    return SmiRow(
        _unix_ns(cells["timestamp"], zone, where),
        GpuIdentity(index, uuid, name),
        GpuReading(**values, error=" ".join(errors) or None),  # type: ignore[arg-type]
    )


def _number(cell: str) -> float | None:
    """'691.20 W' → 691.2, '0x0000000000000004' → 4, '[N/A]' and 'ERR!' → None."""
    if cell.startswith("0x"):
        return float(int(cell, 16))
    found = re.match(r"-?\d+(\.\d+)?", cell)
    return float(found[0]) if found else None


def _unix_ns(cell: str, zone: tzinfo | None, where: str) -> int:
    """'2026/11/23 19:48:01.123', local time, to nanoseconds since the epoch."""
    try:
        moment = datetime.strptime(cell, "%Y/%m/%d %H:%M:%S.%f")
    except ValueError as error:
        raise UserError(
            f"{where}: timestamp {cell!r} is not like 2026/11/23 19:48:01.123"
        ) from error
    aware = moment.replace(tzinfo=zone) if zone else moment.astimezone()
    return round(aware.timestamp() * 1e3) * 1_000_000  # stamps have milliseconds

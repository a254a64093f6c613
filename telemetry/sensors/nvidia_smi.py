"""Recordings that others made with `nvidia-smi --query-gpu=… --format=csv -lms 100`, as rows of gpu.jsonl.

    python -m telemetry import-smi FILE --run-dir RUN

nvidia-smi has no energy counter, so such a recording gives power and its integrals, never counted energy.
Its stamps are local wall time; the zone is the reader's unless it is given. A cell that holds no value is
missing, a line that names no card or no time is left out and said, and a recording may start again (>>).
"""

import codecs
import csv
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import datetime, tzinfo
from pathlib import Path

from greenbench.contract.clock import Anchor
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.nvidia_smi import MIB, value
from greenbench.contract.nvidia_smi import number as number_of
from greenbench.contract.run_dir import EVENTS, read_jsonl, write_atomic
from greenbench.contract.schema import GpuSample
from greenbench.contract.segments import SegmentedJsonlWriter
from telemetry.sensors.capability import Capability, available, unavailable
from telemetry.sensors.gpu import GpuIdentity, GpuReading
from telemetry.sensors.sources import merge_capabilities

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
NEEDED = ("timestamp", "uuid")
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
    masked = False
    host = None

    def __init__(self, path: Path, zone: tzinfo | None = None) -> None:
        self.rows, self.left_out = read_smi(path, zone)
        cards = {row.gpu.uuid: row.gpu for row in self.rows}
        self._cards = {gpu.index: gpu for gpu in cards.values()}
        self._next = {index: self._of(index) for index in self._cards}

    def _of(self, index: int) -> Iterator[SmiRow]:
        return (row for row in self.rows if row.gpu.index == index)

    def gpus(self) -> list[GpuIdentity]:
        return [self._cards[index] for index in sorted(self._cards)]

    def unread(self) -> dict[int, str]:
        return {}

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


def import_smi(
    path: Path,
    run_dir: Path,
    zone: tzinfo | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> int:
    """Write a recording into RUN/telemetry as the recorder would have; returns the rows written.

    ``say`` gets a sentence for each line that was left out; sources.json keeps them too. The run's events
    give the clock; without any, monotonic time is taken to be wall time. A run that has GPU samples
    already is left as it is.
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
    gpus = [asdict(gpu) for gpu in reader.gpus()]
    facts = {"gpus": gpus, "cpu": None, "sampler": None, "unread": reader.left_out}
    write_atomic(
        target.with_name("sources.json"), json.dumps({**sources, "facts": facts}, indent=1) + "\n"
    )
    for left_out in reader.left_out:
        say(left_out)
    return writer.rows


def read_smi(path: Path, zone: tzinfo | None = None) -> tuple[list[SmiRow], list[str]]:
    """Rows of a CSV file, and a sentence for each line that is none.

    Needs the columns timestamp and uuid. Raises UserError: what is missing, or why no line can be read.
    """
    lines = _text(path).splitlines()
    header = _header(lines[0]) if lines else []
    for needed in NEEDED:
        if needed not in header:
            raise UserError(
                f"{path}: no column '{needed}'; record with --query-gpu=timestamp,index,uuid,name,"
                f"power.draw.average,power.draw.instant. {nearest(needed, header)}"
            )
    rows: list[SmiRow] = []
    left_out: list[str] = []
    seen: list[str] = []
    for number, line in enumerate(lines[1:], start=2):
        if NEEDED[0] in line and set(NEEDED) <= set(_header(line)):
            header = _header(line)  # started again with >>, maybe with other columns
            continue
        cells = _cells(line, len(header))
        if len(cells) != len(header):
            if number < len(lines) and line.strip():  # the last line may be cut off
                left_out.append(f"{path}:{number}: {len(cells)} cells, {len(header)} are wanted")
            continue
        try:
            rows.append(_row(dict(zip(header, cells, strict=True)), seen, zone))
        except ValueError as fault:
            left_out.append(f"{path}:{number}: {fault}")
    if not rows and left_out:
        raise UserError(f"{left_out[0]}; no line of the file can be read")
    return rows, left_out


def _text(path: Path) -> str:
    """The file's text; PowerShell's > writes UTF-16."""
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give nvidia-smi's CSV file"
        ) from error
    wide = raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return raw.decode("utf-16" if wide else "utf-8-sig", errors="replace")


def _header(line: str) -> list[str]:
    """ "power.draw.average [W]": the unit stands in the header, and again in each cell."""
    return [re.sub(r" \[.*\]$", "", name) for name in _cells(line, 0)]


def _cells(line: str, wanted: int) -> list[str]:
    """Cells of a line; where a decimal comma made two of one (400,10 W), they are joined."""
    cells = next(csv.reader([line], skipinitialspace=True), [])
    if len(cells) > wanted > 0:
        joined = re.sub(r"(?<=\d),(?=\d\d )", ".", line)
        cells = next(csv.reader([joined], skipinitialspace=True), [])
    return [cell.strip() for cell in cells]


def _row(cells: dict[str, str], seen: list[str], zone: tzinfo | None) -> SmiRow:
    """Raises ValueError, its text a clause, where the line names no card or no time."""
    uuid, name = value(cells["uuid"]), value(cells.get("name")) or "unknown"
    if uuid is None:
        raise ValueError(f"no card is named (uuid {cells['uuid']!r})")
    at_ns = _unix_ns(cells["timestamp"], zone)
    if uuid not in seen:
        seen.append(uuid)
    index = cells.get("index", "")
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
        at_ns,
        GpuIdentity(int(index) if index.isdigit() else seen.index(uuid), uuid, name),
        GpuReading(**values, error=" ".join(errors) or None),  # type: ignore[arg-type]
    )


def _number(cell: str) -> float | None:
    """'691.20 W' → 691.2, '0x0000000000000004' → 4, '[N/A]' and 'ERR!' → None."""
    if re.fullmatch(r"0x[0-9a-fA-F]+", cell):
        return float(int(cell, 16))
    return number_of(cell)


def _unix_ns(cell: str, zone: tzinfo | None) -> int:
    """'2026/11/23 19:48:01.123', local time, to nanoseconds since the epoch."""
    try:
        moment = datetime.strptime(cell, "%Y/%m/%d %H:%M:%S.%f")
    except ValueError as error:
        raise ValueError(f"timestamp {cell!r} is not like 2026/11/23 19:48:01.123") from error
    aware = moment.replace(tzinfo=zone) if zone else moment.astimezone()
    return round(aware.timestamp() * 1e3) * 1_000_000  # stamps have milliseconds

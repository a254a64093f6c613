"""Run directories as frames: one ``Run`` a point, each table read when first asked for.

Reads only; the sole thing written is the Parquet cache in ``derived/``. Nothing is computed here but the
times of engine steps, which take the requests beside the log.

A file that cannot be read costs its point, not the report: its table is empty, and ``Run.unreadable`` names
file and line. A run directory without a readable manifest or config is no ``Run`` but an ``Unreadable``.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import pyarrow as pa

from analysis.runs.boundary import OF_THE_DATA, Read, read, sentence
from analysis.runs.engine_steps import read_steps
from analysis.runs.gpu_rows import read_gpu_rows
from analysis.runs.identity import Identity, identity_of
from analysis.runs.parquet import (
    SOURCES,
    empty_table,
    first_fault,
    parquet_file,
    read_table,
    required_columns,
    table_sources,
)
from analysis.runs.plain_numbers import odd_column, refuse_odd
from greenbench.contract.archive import Archive, read_archive
from greenbench.contract.config import (
    LivePoint,
    PointConfig,
    SloConfig,
    load_live_point,
    load_yaml,
)
from greenbench.contract.errors import UserError
from greenbench.contract.forms import Sources, form_faults, line_faults
from greenbench.contract.manifest import Manifest
from greenbench.contract.newer import is_newer, unknown_keys
from greenbench.contract.run_dir import SERVERS_DIR, RunDir, read_json, read_jsonl, runs_to_read
from greenbench.contract.schema import Event

CHUNK_COLUMNS = ("chunk_ns", "chunk_tokens")
BATCH_ROWS = 32_768
FEW_BYTES = 1 << 18  # of a run's request rows, chunks and all: a thousand such runs are 256 MB
WITH_NULLS = {pa.int64(): pd.Int64Dtype()}
Value = TypeVar("Value")


@dataclass(frozen=True)
class Unreadable:
    """A run directory whose manifest or config cannot be read."""

    path: Path
    why: str


@dataclass(frozen=True)
class Ordered:
    """Rows in an order of their own: row i lay ``order[i]``-th in its files."""

    rows: pd.DataFrame
    order: np.ndarray


@dataclass(frozen=True)
class ChunkBatch:
    """Some requests with their chunks laid flat: chunks of row i are ``offsets[i]:offsets[i + 1]``.

    ``ns`` are offsets from sending; ``tokens`` are cumulative, or -1 where the server gave no count.
    """

    rows: pd.DataFrame
    offsets: np.ndarray
    ns: np.ndarray
    tokens: np.ndarray


@dataclass(frozen=True)
class Run:
    """One run directory. Frames have the columns of the schema, empty when not recorded."""

    dir: RunDir
    manifest: Manifest
    live: LivePoint

    @property
    def path(self) -> Path:
        return self.dir.path

    @property
    def point(self) -> PointConfig:
        return self.live.point

    def with_slo(self, slo: SloConfig) -> "Run":
        """The same requests, judged by another SLO."""
        point = self.point.model_copy(update={"slo": slo})
        return replace(self, live=self.live.model_copy(update={"point": point}))

    @property
    def label(self) -> str:
        """The backend as the report names it, with its options."""
        return self.point.backend.label

    @cached_property
    def identity(self) -> Identity:
        return identity_of(self)

    @property
    def unreadable(self) -> list[str]:
        """A sentence for each file that cannot be read, by its path in the run directory."""
        tables = (self._requests, self._outputs, self._gpu, self._host, self._server)
        faults = [read.fault for read in (self._events, self._sources, self._archive, *tables)]
        return [fault for fault in faults if fault is not None]

    @property
    def events(self) -> list[Event]:
        return self._events.value

    @property
    def sources(self) -> Sources:
        """telemetry/sources.json: which source was available, and why not; without it, nothing of any."""
        return self._sources.value

    @property
    def archive(self) -> Archive | None:
        """What became of each raw file of an archived run; None where the raw files are there."""
        return self._archive.value

    @property
    def requests(self) -> pd.DataFrame:
        """Every request row without its chunks, in order of sending."""
        return self._requests.value.rows

    @property
    def file_order(self) -> np.ndarray:
        """Row i of ``requests`` is the ``file_order[i]``-th row of the chunk batches."""
        return self._requests.value.order

    @property
    def outputs(self) -> pd.DataFrame:
        return self._outputs.value.rows

    @property
    def gpu(self) -> pd.DataFrame:
        return self._gpu.value.rows

    @property
    def host(self) -> pd.DataFrame:
        return self._host.value.rows

    @property
    def server(self) -> pd.DataFrame:
        """Samples of /metrics; ``labels``: text that tells the series of one metric apart."""
        return self._server.value.rows

    @cached_property
    def steps(self) -> pd.DataFrame:
        """Engine steps of the server's log, columns of ``analysis.runs.engine_steps.COLUMNS``."""
        log = self.dir.logs_dir / "server.log"
        return read_steps(log, self.manifest.server.async_scheduling, self.requests)

    def passed_over(self) -> list[str]:
        """Keys that a newer minor version added to manifest and config, and that are not read here."""
        if not is_newer(self.manifest.schema_version):
            return []
        files = (
            (Manifest, self.dir.manifest_path, read_json(self.dir.manifest_path)),
            (LivePoint, self.dir.config_path, load_yaml(self.dir.config_path)),
        )
        return [
            f"{path.name}: {'.'.join(map(str, key))}"
            for form, path, data in files
            for key in unknown_keys(form, data)
        ]

    def idle(self, name: str) -> Read[pd.DataFrame]:
        """GPU rows of the loaded server without requests: ``idle_before`` or ``idle_after``."""
        folder = self.path.parent / SERVERS_DIR / self.manifest.server.server_id / name
        return self._read(lambda: read_gpu_rows(folder), pd.DataFrame)

    @cached_property
    def _events(self) -> Read[list[Event]]:
        return self._read(lambda: read_events(self.dir.events_path), list[Event])

    @cached_property
    def _sources(self) -> Read[Sources]:
        path = self.dir.telemetry_dir / "sources.json"
        return self._read(lambda: read_sources(path), Sources)

    @cached_property
    def _archive(self) -> Read[Archive | None]:
        return self._read(lambda: read_archive(self.path), lambda: None)

    @cached_property
    def _requests(self) -> Read[Ordered]:
        return self._table("requests", "sent_unix_ns", CHUNK_COLUMNS)

    @cached_property
    def _outputs(self) -> Read[Ordered]:
        return self._table("outputs", None)

    @cached_property
    def _gpu(self) -> Read[Ordered]:
        return self._table("gpu", "mono_ns")

    @cached_property
    def _host(self) -> Read[Ordered]:
        return self._table("host", "mono_ns")

    @cached_property
    def _server(self) -> Read[Ordered]:
        return self._table("server", "mono_ns")

    def _table(self, name: str, by: str | None, without: tuple[str, ...] = ()) -> Read[Ordered]:
        return self._read(
            lambda: _ordered(_frame(self.path, name, without), by),
            lambda: _ordered(_no_rows(name, without), by),
        )

    def _read(self, load: Callable[[], Value], nothing: Callable[[], Value]) -> Read[Value]:
        return read(self.path, load, nothing)

    def chunk_batches(self) -> Iterator[ChunkBatch]:
        """The requests with their chunks, some tens of thousands at a time."""
        if self._few_chunks is not None:
            yield from self._few_chunks
            return
        for batch in parquet_file(self.path, "requests").iter_batches(BATCH_ROWS):
            yield _chunk_batch(batch)

    @cached_property
    def _few_chunks(self) -> list[ChunkBatch] | None:
        """The batches of a run so small that they may stay in memory: they are asked for several times."""
        file = parquet_file(self.path, "requests")
        groups = range(file.metadata.num_row_groups)
        if sum(file.metadata.row_group(group).total_byte_size for group in groups) > FEW_BYTES:
            return None
        return [_chunk_batch(batch) for batch in file.iter_batches(BATCH_ROWS)]


def read_events(path: Path) -> list[Event]:
    """The events of a run; none where there is no file. A line that is no event raises UserError."""
    if not path.is_file():
        return []
    with path.open("rb") as lines:
        for number, clause in line_faults(Event, lines, unknown_keys=False):
            raise UserError(f"{path}:{number}: {clause}")
    rows = list(read_jsonl(path))
    for number, row in enumerate(rows, start=1):
        refuse_odd(row, f"{path}:{number}")
    return [Event.from_dict(row) for row in rows]


def read_sources(path: Path) -> Sources:
    """telemetry/sources.json; empty where there is none. Another form of it raises UserError."""
    if not path.is_file():
        return Sources()
    text = path.read_bytes()
    for fault in form_faults(Sources, text):
        raise UserError(f"{path}: {fault.clause}")
    told = json.loads(text)
    refuse_odd(told, str(path))
    return Sources.model_validate(told)


def _ordered(frame: pd.DataFrame, by: str | None) -> Ordered:
    """Rows in the order of a column, equal ones as they lay; None: as they lay."""
    if by is None or frame[by].is_monotonic_increasing:
        return Ordered(frame, np.arange(len(frame)))
    moved = frame.sort_values(by, kind="stable")
    order = moved.index.to_numpy()
    moved.index = pd.RangeIndex(len(moved))
    return Ordered(moved, order)


def _frame(path: Path, table: str, without: tuple[str, ...] = ()) -> pd.DataFrame:
    row, pattern = SOURCES[table]
    sources = table_sources(path, table)
    if not sources:
        return _no_rows(table, without)
    rows = read_table(path, table, without)
    holes = [name for name in required_columns(row) if rows.column(name).null_count]
    if holes:
        said = f"{path / pattern}: {', '.join(holes)} may not be null"
        raise UserError(first_fault(row, sources) or said)
    odd = odd_column(rows.flatten())
    if odd is not None:
        raise UserError(f"{path / pattern}: {odd}")
    return _complete(_to_pandas(rows), table, without)


def _no_rows(table: str, without: tuple[str, ...]) -> pd.DataFrame:
    empty = empty_table(table)
    kept = empty.select([name for name in empty.column_names if name not in without])
    return _complete(_to_pandas(kept), table, without)


def _complete(frame: pd.DataFrame, table: str, without: tuple[str, ...]) -> pd.DataFrame:
    """With a column for each that the schema has: those of no row at all are null."""
    for column in fields(SOURCES[table][0]):  # type: ignore[arg-type]
        held = column.name in frame.columns or column.name in without
        if not held and not any(str(c).startswith(f"{column.name}.") for c in frame.columns):
            frame[column.name] = None
    return frame


def _to_pandas(table: pa.Table) -> pd.DataFrame:
    """Struct columns become ``name.key``; integers with nulls become floats, wall times stay exact.

    A float holds the nanoseconds of this century only to 256 ns, enough to make the end of one request
    seem later than the start of the next.
    """
    flat = table.flatten()
    frame = flat.to_pandas()
    for name in flat.column_names:
        if name.endswith("unix_ns") and flat.column(name).null_count:
            frame[name] = flat.column(name).to_pandas(types_mapper=WITH_NULLS.get)
    return frame


def _chunk_batch(batch: pa.RecordBatch) -> ChunkBatch:
    ns, counts = batch.column("chunk_ns"), batch.column("chunk_tokens")
    lengths = _lengths(ns)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    flat_ns = ns.flatten().to_numpy(zero_copy_only=False).astype(np.int64, copy=False)
    count_lengths = _lengths(counts)
    if np.array_equal(lengths, count_lengths):
        flat_tokens = counts.flatten().to_numpy(zero_copy_only=False)
    else:  # some rows came without token counts
        flat_tokens = np.full(len(flat_ns), -1, dtype=np.int32)
        known = np.repeat(lengths == count_lengths, lengths)
        kept = counts.filter(pa.array(lengths == count_lengths))
        flat_tokens[known] = kept.flatten().to_numpy(zero_copy_only=False)
    scalar = [name for name in batch.schema.names if name not in CHUNK_COLUMNS]
    rows = _to_pandas(pa.Table.from_batches([batch]).select(scalar))
    return ChunkBatch(rows, offsets, flat_ns, flat_tokens)


def _lengths(lists: pa.ListArray) -> np.ndarray:
    lengths = lists.value_lengths()
    return np.nan_to_num(lengths.to_numpy(zero_copy_only=False), nan=0).astype(np.int64)


def load_run(path: Path) -> Run:
    """One run directory; another major schema version or a broken file raises UserError."""
    folder = RunDir(path)
    manifest = folder.manifest()
    live = load_live_point(path, is_newer(manifest.schema_version))
    refuse_odd(manifest.model_dump(), str(folder.manifest_path))
    refuse_odd(live.model_dump(), str(folder.config_path))
    return Run(folder, manifest, live)


def find_runs(root: Path) -> list[RunDir]:
    """The run directories at or below ``root``, oldest first, unread; none at all is a UserError."""
    if not root.exists():
        raise UserError(f"{root}: no such directory; give a run, a sweep or a folder of sweeps")
    runs = runs_to_read(root)
    if not runs:
        raise UserError(
            f"{root}: no run directories (manifest.json) at or below it; "
            "give the folder that `greenbench run` wrote"
        )
    return runs


def read_runs(root: Path) -> tuple[list[Run], list[Unreadable]]:
    """Every run at or below ``root``, oldest first, and the run directories that cannot be read."""
    runs: list[Run] = []
    unreadable: list[Unreadable] = []
    for folder in find_runs(root):
        try:
            run = load_run(folder.path)
            _ = (
                run.identity
            )  # of manifest, config and sources: what nobody can tell apart is no run
            runs.append(run)
        except OF_THE_DATA as error:
            unreadable.append(Unreadable(folder.path, sentence(error, folder.path)))
    return runs, unreadable


def load_runs(root: Path) -> list[Run]:
    """Every readable run at or below ``root``, oldest first; none at all is a UserError."""
    return some_readable(root, *read_runs(root))


def some_readable(root: Path, runs: list[Run], unreadable: list[Unreadable]) -> list[Run]:
    """The runs; where none of those below ``root`` can be read, a UserError."""
    if not runs:
        first = unreadable[0]
        raise UserError(
            f"{root}: none of {len(unreadable)} run directories can be read; "
            f"{first.path.name}: {first.why}"
        )
    return runs

"""Run directories as frames: one ``Run`` a point, each table read when first asked for.

Reads only; the sole thing written is the Parquet cache in ``derived/``. Nothing is computed here but the
times of engine steps, which take the requests beside the log.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from analysis.steps import read_steps
from analysis.tables import SOURCES, parquet_path
from greenbench.config import LivePoint, PointConfig, load_live_point
from greenbench.errors import UserError
from greenbench.manifest import Manifest
from greenbench.rundir import RunDir, list_runs, read_jsonl
from greenbench.schema import Event

CHUNK_COLUMNS = ("chunk_ns", "chunk_tokens")
BATCH_ROWS = 32_768


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
    """One run directory. Frames have the columns of ``greenbench.schema``, empty when not recorded."""

    dir: RunDir
    manifest: Manifest
    live: LivePoint

    @property
    def path(self) -> Path:
        return self.dir.path

    @property
    def point(self) -> PointConfig:
        return self.live.point

    @property
    def label(self) -> str:
        """The backend as the report names it, with its options."""
        return self.point.backend.label

    @cached_property
    def events(self) -> list[Event]:
        path = self.dir.events_path
        return [Event.from_dict(row) for row in read_jsonl(path)] if path.is_file() else []

    @cached_property
    def sources(self) -> dict[str, Any]:
        """telemetry/sources.json: which source was available, and why not."""
        path = self.dir.telemetry_dir / "sources.json"
        return json.loads(path.read_text()) if path.is_file() else {}

    @cached_property
    def requests(self) -> pd.DataFrame:
        """Every request row without its chunks, in order of sending."""
        frame = _frame(self.path, "requests", without=CHUNK_COLUMNS)
        return frame.sort_values("sent_unix_ns", kind="stable", ignore_index=True)

    @cached_property
    def file_order(self) -> np.ndarray:
        """Row i of ``requests`` is the ``file_order[i]``-th row of the chunk batches."""
        sent = _to_pandas(
            pq.read_table(parquet_path(self.path, "requests"), columns=["sent_unix_ns"])
        )
        return sent.sort_values("sent_unix_ns", kind="stable").index.to_numpy()

    @cached_property
    def outputs(self) -> pd.DataFrame:
        return _frame(self.path, "outputs")

    @cached_property
    def gpu(self) -> pd.DataFrame:
        return _by_time(_frame(self.path, "gpu"))

    @cached_property
    def host(self) -> pd.DataFrame:
        return _by_time(_frame(self.path, "host"))

    @cached_property
    def server(self) -> pd.DataFrame:
        """Samples of /metrics; labels are columns ``labels.<name>``."""
        return _by_time(_frame(self.path, "server"))

    @cached_property
    def steps(self) -> pd.DataFrame:
        """Engine steps of the server's log, columns of ``analysis.steps.COLUMNS``."""
        log = self.dir.logs_dir / "server.log"
        return read_steps(log, self.manifest.server.async_scheduling, self.requests)

    def chunk_batches(self) -> Iterator[ChunkBatch]:
        """The requests with their chunks, some tens of thousands at a time."""
        file = pq.ParquetFile(parquet_path(self.path, "requests"))
        for batch in file.iter_batches(BATCH_ROWS):
            yield _chunk_batch(batch)


def _frame(path: Path, table: str, without: tuple[str, ...] = ()) -> pd.DataFrame:
    file = pq.ParquetFile(parquet_path(path, table))
    names = [name for name in file.schema_arrow.names if name not in without]
    frame = _to_pandas(file.read(columns=names))
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
    frame = table.flatten().to_pandas(types_mapper={pa.int64(): pd.Int64Dtype()}.get)
    for name in frame.columns[frame.dtypes == pd.Int64Dtype()]:
        if not frame[name].hasnans:
            frame[name] = frame[name].astype("int64")
        elif not name.endswith("unix_ns"):
            frame[name] = frame[name].astype("float64")
    return frame


def _by_time(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.sort_values("mono_ns", kind="stable", ignore_index=True)


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
    run = RunDir(path)
    return Run(run, run.manifest(), load_live_point(path))


def find_runs(root: Path) -> list[RunDir]:
    """The run directories at or below ``root``, oldest first, unread; none at all is a UserError."""
    if not root.exists():
        raise UserError(f"{root}: no such directory; give a run, a sweep or a folder of sweeps")
    found = list_runs(root)
    if not found:
        raise UserError(
            f"{root}: no run directories (manifest.json) at or below it; "
            "give the folder that `greenbench run` wrote"
        )
    return found


def load_runs(root: Path) -> list[Run]:
    """Every run at or below ``root``, oldest first; none at all is a UserError."""
    return [load_run(run.path) for run in find_runs(root)]

"""JSONL files of a run directory as Arrow tables, kept as Parquet under ``derived/``.

Column types come from the dataclasses in ``greenbench.contract.schema``. A torn last line (kill -9) is left
out; a line elsewhere that is broken, or lacks what may not be missing, is a UserError that names it.
``derived/`` may be deleted at any time. Of a run that cannot be written (an archive, another's folder) the
tables lie in the cache (``greenbench.contract.installation``).
"""

import gzip
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import MISSING, fields
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.json as pajson
import pyarrow.parquet as pq

from analysis.runs.chunk_marks import chunk_marks
from greenbench import SCHEMA_VERSION
from greenbench.contract.errors import UserError
from greenbench.contract.forms import line_faults
from greenbench.contract.installation import cache
from greenbench.contract.schema import (
    GpuSample,
    HostSample,
    OutputRecord,
    RequestRecord,
    Row,
    ServerMetric,
)
from greenbench.contract.segments import segments

CACHE_FORMAT = "4"  # raise when the way of reading changes, so that old caches are rebuilt
SLICE_BYTES = 32 << 20
HEAD_BYTES = 1 << 20  # dicts with open keys become structs of the keys found in so much of a file
NEWLINE = 10
MARKS = "chunk_marks"  # a column of our own beside the rows' (analysis.runs.chunk_marks)
ARROW_TYPES: dict[type, pa.DataType] = {
    int: pa.int64(),
    float: pa.float64(),
    str: pa.string(),
    bool: pa.bool_(),
}
SPECIAL_TYPES: dict[str, pa.DataType] = {
    "server_metrics": pa.struct(
        [
            (name, pa.float64())
            for name in (
                "time_to_first_token_ms",
                "generation_time_ms",
                "queue_time_ms",
                "mean_itl_ms",
                "tokens_per_second",
            )
        ]
    ),
    "nll_buckets": pa.list_(
        pa.struct([(name, pa.float64()) for name in ("start", "end", "nll_sum", "tokens")])
    ),
    "chunk_tokens": pa.list_(pa.int32()),
    # a grade differs by task; the rest of it is read from the JSONL when shown
    "grade": pa.struct([("depth", pa.float64())]),
}
SOURCES: dict[str, tuple[type[Row], str]] = {
    "requests": (RequestRecord, "requests/*.jsonl"),
    "outputs": (OutputRecord, "outputs/*.jsonl"),
    "gpu": (GpuSample, "telemetry/gpu.jsonl"),
    "host": (HostSample, "telemetry/host.jsonl"),
    "server": (ServerMetric, "telemetry/server.jsonl"),
}


def arrow_schema(row: type[Row]) -> pa.Schema:
    """The columns of a row class whose types are known beforehand; open dicts are left to inference."""
    hints = get_type_hints(row)
    known: list[pa.Field] = []
    for column in fields(row):  # type: ignore[arg-type]
        kind = SPECIAL_TYPES.get(column.name) or _arrow_type(hints[column.name])
        if kind is not None:
            known.append(pa.field(column.name, kind))
    return pa.schema(known)


def _arrow_type(hint: Any) -> pa.DataType | None:
    arms = [arm for arm in get_args(hint) if arm is not NoneType]
    if len(arms) == 1 and NoneType in get_args(hint):
        return _arrow_type(arms[0])
    if hint in ARROW_TYPES:
        return ARROW_TYPES[hint]
    origin = get_origin(hint)
    if origin is list:
        inner = _arrow_type(get_args(hint)[0])
        return None if inner is None else pa.list_(inner)
    if origin is dict:
        return None
    return pa.string()  # Literal of strings


def parquet_path(run_path: Path, table: str) -> Path:
    """The Parquet file of one table of a run, built from the JSONL when absent or out of date."""
    row = SOURCES[table][0]
    sources = table_sources(run_path, table)
    stamp = _stamp(sources)
    folders = (run_path / "derived", *folders_beside(run_path))
    for folder in folders:
        target = folder / f"{table}.parquet"
        if not folder.is_symlink() and target.is_file() and _stored_stamp(target) == stamp:
            return target
    for folder in folders:
        if _can_hold(folder):
            target = folder / f"{table}.parquet"
            _convert(row, sources, target, stamp)
            return target
    raise UserError(
        f"{run_path}: neither derived/ nor {folders[1]} can be written; set GREENBENCH_CACHE to a folder "
        "that can"
    )


def folders_beside(run_path: Path) -> tuple[Path, Path]:
    """Where the tables of a run go whose own folder cannot be written: the cache, else the system's."""
    name = hashlib.sha256(str(run_path.resolve()).encode()).hexdigest()[:16]
    own = f"greenbench-{os.getuid()}"
    return cache() / "derived" / name, Path(tempfile.gettempdir()) / own / "derived" / name


def _can_hold(folder: Path) -> bool:
    """Whether files can be made there. A link is not followed: it would lead out of the run."""
    try:
        if folder.is_symlink():
            return False
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError:
        return False


def _stamp(sources: list[Path]) -> bytes:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    return json.dumps([CACHE_FORMAT, SCHEMA_VERSION, facts]).encode()


def _stored_stamp(target: Path) -> bytes | None:
    try:
        metadata = pq.read_schema(target).metadata or {}
    except (pa.ArrowInvalid, OSError):
        return None  # a cache cut off while it was written
    return metadata.get(b"greenbench_sources")


def _convert(row: type[Row], sources: list[Path], target: Path, stamp: bytes) -> None:
    """Stream the JSONL into Parquet, some slices at a time, so memory does not grow with the run.

    The parser lets go of Python's lock, so slices are parsed side by side on all cores.
    """
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    schema = _full_schema(row, sources).with_metadata({b"greenbench_sources": stamp})
    plain = [field.name for field in schema if pa.types.is_string(field.type)]
    workers = os.cpu_count() or 1
    try:
        with (
            ThreadPoolExecutor(workers) as pool,
            pq.ParquetWriter(
                scratch,
                schema,
                compression="lz4",
                use_dictionary=plain,  # type: ignore[arg-type]
                write_statistics=False,
            ) as writer,
        ):
            for path in sources:
                slices = _slices(_whole_lines(_content(path)))
                while group := list(islice(slices, workers)):
                    for table in pool.map(lambda part, p=path: _part(part, schema, row, p), group):
                        writer.write_table(table.select(schema.names).cast(schema))
        scratch.replace(target)
    finally:
        scratch.unlink(missing_ok=True)


def _part(part: pa.Buffer, schema: pa.Schema, row: type[Row], path: Path) -> pa.Table:
    """Some lines as a table, with what is found of their lists beside them."""
    if MARKS not in schema.names:
        return _parse(part, schema, row, path)
    table = _parse(part, schema.remove(schema.get_field_index(MARKS)), row, path)
    return table.append_column(MARKS, pa.array(chunk_marks(table)))


def _full_schema(row: type[Row], sources: list[Path]) -> pa.Schema:
    """Known columns, and open dicts (labels, zones, grades) as the structs their first block shows."""
    schema = arrow_schema(row)
    open_names = [f.name for f in fields(row) if f.name not in schema.names]  # type: ignore[arg-type]
    found: dict[str, pa.DataType] = {}
    for path in sources:
        head = next(_slices(_whole_lines(_content(path)), HEAD_BYTES), None)
        if head is None or not open_names:
            continue
        shown = _parse(head, schema, row, path, infer=True).schema
        for name in set(open_names) & set(shown.names) - set(found):
            kind = shown.field(name).type
            # Parquet has no struct without a field: a column of nothing but {} is left out
            if not pa.types.is_null(kind) and not (pa.types.is_struct(kind) and not len(kind)):
                found[name] = kind
    more = {MARKS: pa.int64()} if row is RequestRecord else {}
    return pa.schema(
        [*schema, *(pa.field(name, kind) for name, kind in sorted((found | more).items()))]
    )


def _content(path: Path) -> pa.Buffer:
    """The file's bytes: mapped where they lie plain, unpacked where a long recording was compressed."""
    if path.suffix == ".gz":
        return pa.py_buffer(gzip.decompress(path.read_bytes()))
    return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")


def _slices(body: pa.Buffer, size: int = SLICE_BYTES) -> Iterator[pa.Buffer]:
    """Parts of whole lines, each a little over ``size`` bytes."""
    view, start = memoryview(body), 0
    while start < len(view):
        end = min(start + size, len(view))
        while end < len(view) and view[end - 1] != NEWLINE:
            at = bytes(view[end : end + 65_536]).find(b"\n")
            end = min(end + 65_536, len(view)) if at < 0 else end + at + 1
        yield body.slice(start, end - start)
        start = end


def _parse(
    part: pa.Buffer, schema: pa.Schema, row: type[Row], path: Path, infer: bool = False
) -> pa.Table:
    parse = pajson.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if infer else "ignore"
    )
    read = pajson.ReadOptions(block_size=part.size + 1, use_threads=False)
    try:
        return pajson.read_json(pa.BufferReader(part), read_options=read, parse_options=parse)
    except pa.ArrowException as error:
        raise UserError(first_fault(row, [path]) or f"{path}: cannot be read ({error})") from error


def first_fault(row: type[Row], sources: list[Path]) -> str | None:
    """``file:line: what is wrong`` of the first line that is no row of this class; slow, for the sentence."""
    for path in sources:
        lines = bytes(memoryview(_content(path))).splitlines(keepends=True)
        for number, clause in line_faults(row, lines, unknown_keys=False):
            return f"{path}:{number}: {clause}"
    return None


def required_columns(row: type[Row]) -> list[str]:
    """Columns that may not be null, but for dicts, which are read key by key."""
    hints = get_type_hints(row)
    return [
        column.name
        for column in fields(row)  # type: ignore[arg-type]
        if column.default is MISSING
        and column.default_factory is MISSING
        and _arrow_type(hints[column.name]) is not None
    ]


def table_sources(run_path: Path, table: str) -> list[Path]:
    """The files of one table, in the order they are read."""
    pattern = SOURCES[table][1]
    if pattern.startswith("telemetry/"):
        return segments(run_path / pattern)
    return sorted(run_path.glob(pattern))


def _whole_lines(buffer: pa.Buffer) -> pa.Buffer:
    """The buffer up to its last newline; a torn last line is what a kill leaves behind."""
    view = memoryview(buffer)
    end = len(view)
    step = 1 << 16
    while end > 0:
        start = max(0, end - step)
        at = bytes(view[start:end]).rfind(b"\n")
        if at >= 0:
            return buffer.slice(0, start + at + 1)
        end = start
    return buffer.slice(0, 0)


def row_count(path: Path) -> int:
    """Complete lines of a JSONL file."""
    count = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return count

"""JSONL files of a run directory as Arrow tables, kept as Parquet under ``derived/``.

Of an archived run the files that stand in their place (``analysis.runs.archived``).

Column types come from the dataclasses in ``greenbench.contract.schema``. A torn last line (kill -9) is left
out; a line elsewhere that is broken, or lacks what may not be missing, is a UserError that names it.
``derived/`` may be deleted at any time.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import MISSING, fields
from functools import cache, partial
from itertools import islice
from pathlib import Path
from types import NoneType
from typing import Any, get_args, get_origin, get_type_hints

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.json as pajson
import pyarrow.parquet as pq

from analysis.runs.archived import GRADE_TEXT, SUFFIX, grades, opened, read_archived
from analysis.runs.chunk_marks import chunk_marks
from analysis.runs.derived import places
from greenbench import SCHEMA_VERSION
from greenbench.contract.errors import UserError
from greenbench.contract.forms import line_faults
from greenbench.contract.schema import (
    GpuSample,
    HostSample,
    OutputRecord,
    RequestRecord,
    Row,
    ServerMetric,
)
from greenbench.contract.segments import segments
from greenbench.contract.unpack import gunzip

CACHE_FORMAT = "6"  # raise when the way of reading changes, so that old caches are rebuilt
SLICE_BYTES = 32 << 20
HEAD_BYTES = 1 << 20  # dicts with open keys become structs of the keys found in so much of a file
NEWLINE = 10
_OBJECT_OR_NOTHING = re.compile(rb"(?:\xef\xbb\xbf)?\s*(?:\{|\Z)")  # of a first null Arrow 26 dies
STAMP = b"greenbench_sources"  # what a cache was built from, in its metadata
MARKS = "chunk_marks"  # a column of our own beside the rows' (analysis.runs.chunk_marks)
LABELS = "labels"  # of a scraped series: dozens of names, of which a series has two or three
LABEL_SEPARATOR = "\x1f"  # ASCII's unit separator, which no label holds
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


@cache
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


def parquet_file(run_path: Path, table: str) -> pq.ParquetFile:
    """One table of a run as Parquet, open; built from the JSONL when absent or out of date."""
    row = SOURCES[table][0]
    sources = table_sources(run_path, table)
    stamp = _stamp(sources)
    targets = [place / f"{table}.parquet" for place in places(run_path)]
    for target in targets:
        kept = _kept(target, stamp, {*empty_table(table).column_names})
        if kept is not None:
            return kept
    for target in targets[:-1]:
        try:
            return _made(row, sources, target, stamp)
        except OSError:
            continue  # read-only or full; the last place's reason is said
    return _made(row, sources, targets[-1], stamp)


def read_table(run_path: Path, table: str, without: Sequence[str] = ()) -> pa.Table:
    """The columns of one table; a cache that is damaged inside is built again."""
    try:
        return _columns(parquet_file(run_path, table), without)
    except (pa.ArrowException, OSError):
        for place in places(run_path):
            with suppress(OSError):
                (place / f"{table}.parquet").unlink()
    return _columns(parquet_file(run_path, table), without)


def _columns(file: pq.ParquetFile, without: Sequence[str]) -> pa.Table:
    return file.read(columns=[name for name in file.schema_arrow.names if name not in without])


def _made(row: type[Row], sources: list[Path], target: Path, stamp: bytes) -> pq.ParquetFile:
    target.parent.mkdir(exist_ok=True, parents=target.parent.name != "derived")
    _convert(row, sources, target, stamp)
    return opened(target)


def _stamp(sources: list[Path]) -> bytes:
    facts = [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
    return json.dumps([CACHE_FORMAT, SCHEMA_VERSION, facts]).encode()


def _kept(target: Path, stamp: bytes, columns: set[str]) -> pq.ParquetFile | None:
    """The cache, when it was built from these very sources and has these columns."""
    try:
        file = opened(target)
        names = {*file.schema_arrow.names}
    except (pa.ArrowException, OSError, UnicodeDecodeError):
        return None  # there is none, or one cut off while it was written, or damaged
    if (file.schema_arrow.metadata or {}).get(STAMP) == stamp and names >= columns:
        return file
    file.close()
    return None


def _convert(row: type[Row], sources: list[Path], target: Path, stamp: bytes) -> None:
    """Stream the JSONL into Parquet, some slices at a time, so memory does not grow with the run."""
    scratch = target.with_suffix(f".{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)  # of an archive from elsewhere it may be a link to anywhere
    schema, whole = _full_schema(row, sources)
    kept = _finished(row, schema.empty_table()).schema
    plain = [field.name for field in kept if pa.types.is_string(field.type)]
    try:
        with pq.ParquetWriter(
            scratch,
            kept.with_metadata({STAMP: stamp}),
            compression="lz4",
            use_dictionary=plain,  # type: ignore[arg-type]
            write_statistics=False,
            write_page_checksum=True,
        ) as writer:
            for path in sources:
                if path in whole:
                    read = [_finished(row, whole[path].select(schema.names))]
                else:
                    read = _tables(path, partial(_part, schema, row))
                for table in read:
                    writer.write_table(table.cast(kept))
        scratch.replace(target)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise


def _tables(path: Path, parse: Callable[[Path, pa.Buffer], pa.Table]) -> Iterator[pa.Table]:
    """A file, slice by slice. The parser lets go of Python's lock, so slices are parsed on all cores."""
    slices, workers = _slices(_whole_lines(_content(path)), SLICE_BYTES), os.cpu_count() or 1
    with ThreadPoolExecutor(workers) as pool:
        while group := list(islice(slices, workers)):
            spread = pool.map if len(group) > 1 else map
            yield from spread(partial(parse, path), group)


def _part(schema: pa.Schema, row: type[Row], path: Path, part: pa.Buffer) -> pa.Table:
    return _finished(row, _parse(schema, row, path, part).select(schema.names))


def _finished(row: type[Row], table: pa.Table) -> pa.Table:
    """The table as it is kept: chunks with their marks, labels as one text."""
    if row is RequestRecord:
        return table.append_column(MARKS, pa.array(chunk_marks(table), pa.int64()))
    if row is ServerMetric and LABELS in table.column_names:
        place = table.column_names.index(LABELS)
        return table.set_column(place, LABELS, _label_text(table.column(LABELS)))
    return table


def _label_text(labels: pa.ChunkedArray) -> pa.ChunkedArray:
    """``name=value`` of each label that a row has, a separator before each."""
    columns = pa.table({LABELS: labels}).flatten()
    named = [
        pc.binary_join_element_wise(name.partition(".")[2], values.cast(pa.string()), "=")  # type: ignore[attr-defined]
        for name, values in zip(columns.column_names, columns.columns, strict=True)
    ]
    # "" first: of a row in which all is null the function makes no row at all
    return pc.binary_join_element_wise("", *named, LABEL_SEPARATOR, null_handling="skip")  # type: ignore[attr-defined]


def _full_schema(row: type[Row], sources: list[Path]) -> tuple[pa.Schema, dict[Path, pa.Table]]:
    """Known columns, and open dicts (labels, zones) as the structs their first block shows.

    With it the files whose first block was all of them, as read to see that; an archived one is read whole.
    """
    schema = arrow_schema(row)
    open_names = {f.name for f in fields(row)} - {*schema.names}  # type: ignore[arg-type]
    kinds: dict[str, pa.DataType] = {}
    whole: dict[Path, pa.Table] = {}
    for path in sources:
        if path.suffix == SUFFIX:
            whole[path] = read_archived(path)
            kinds = _struct_kinds(whole[path].schema, open_names) | kinds
            continue
        if not open_names:
            continue
        body = _whole_lines(_content(path))
        head = next(_slices(body, HEAD_BYTES), None)
        if head is None:
            continue
        shown = _parse(schema, row, path, head, infer=True)
        kinds = _struct_kinds(shown.schema, open_names) | kinds
        if head.size == body.size:
            whole[path] = shown
    full = pa.schema([*schema, *(pa.field(name, kinds[name]) for name in sorted(kinds))])
    return full, {
        path: _conformed(table, full) if path.suffix == SUFFIX else table
        for path, table in whole.items()
        if path.suffix == SUFFIX or _holds(table.schema, full)
    }


def _conformed(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """The columns of a schema, null where an older archive has none."""
    return pa.table(
        [
            table.column(field.name).cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in schema
        ],
        schema=schema,
    )


def raw_table(row: type[Row], sources: list[Path]) -> pa.Table:
    """All rows of JSONL files as they are read, with GRADE_TEXT of each grade: what an archive keeps."""
    schema, _ = _full_schema(row, sources)
    parse = partial(_parse, schema, row)
    parts = [part.select(schema.names) for path in sources for part in _tables(path, parse)]
    table = pa.concat_tables([schema.empty_table(), *parts])
    if row is not OutputRecord:
        return table
    told = islice(grades(sources), table.num_rows)  # a torn last line is no row
    texts = [json.dumps(grade) for _, grade in told]
    return table.append_column(GRADE_TEXT, pa.array(texts, pa.string()))


def _struct_kinds(shown: pa.Schema, names: set[str]) -> dict[str, pa.DataType]:
    """Types of the open dicts; Parquet has no struct without a field, so one of {} alone is left out."""
    kinds = {name: shown.field(name).type for name in names & {*shown.names}}
    return {
        name: kind
        for name, kind in kinds.items()
        if not pa.types.is_null(kind) and not (pa.types.is_struct(kind) and not len(kind))
    }


def _holds(shown: pa.Schema, wanted: pa.Schema) -> bool:
    return all(c.name in shown.names and shown.field(c.name).type == c.type for c in wanted)


@cache
def empty_table(table: str) -> pa.Table:
    """A table of which nothing was recorded, with its columns."""
    row = SOURCES[table][0]
    return _finished(row, arrow_schema(row).empty_table())


def read_rows(row: type[Row], sources: list[Path], columns: pa.Schema) -> pa.Table:
    """Some columns of some files of rows, past any cache: for recordings that lie in no run directory."""
    parse = partial(_parse, columns, row)
    parts = [
        table
        for path in sources
        for table in ([read_archived(path)] if path.suffix == SUFFIX else _tables(path, parse))
    ]
    return pa.concat_tables(
        [columns.empty_table(), *(each.select(columns.names) for each in parts)]
    )


def _content(path: Path) -> pa.Buffer:
    """The file's bytes: mapped where they lie plain, unpacked where a long recording was compressed."""
    if path.suffix == ".gz":
        return pa.py_buffer(gunzip(path))
    return pa.memory_map(str(path)).read_buffer() if path.stat().st_size else pa.py_buffer(b"")


def _slices(body: pa.Buffer, size: int) -> Iterator[pa.Buffer]:
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
    schema: pa.Schema, row: type[Row], path: Path, part: pa.Buffer, infer: bool = False
) -> pa.Table:
    parse = pajson.ParseOptions(
        explicit_schema=schema, unexpected_field_behavior="infer" if infer else "ignore"
    )
    read = pajson.ReadOptions(block_size=part.size + 1, use_threads=False)
    try:
        if not _OBJECT_OR_NOTHING.match(memoryview(part)):
            raise pa.ArrowInvalid("its first line is no JSON object")
        table = pajson.read_json(pa.BufferReader(part), read_options=read, parse_options=parse)
        table.validate(full=True)  # Arrow's parser lets through what is no UTF-8
        return table
    except pa.ArrowException as error:
        raise UserError(first_fault(row, [path]) or f"{path}: cannot be read ({error})") from error


def first_fault(row: type[Row], sources: list[Path]) -> str | None:
    """``file:line: what is wrong`` of the first line that is no row of this class; slow, for the sentence."""
    for path in (path for path in sources if path.suffix != SUFFIX):
        lines = bytes(memoryview(_content(path))).splitlines(keepends=True)
        for number, clause in line_faults(row, lines, unknown_keys=False):
            return f"{path}:{number}: {clause}"
    return None


@cache
def required_columns(row: type[Row]) -> tuple[str, ...]:
    """Columns that may not be null, but for dicts, which are read key by key."""
    hints = get_type_hints(row)
    return tuple(
        column.name
        for column in fields(row)  # type: ignore[arg-type]
        if column.default is MISSING
        and column.default_factory is MISSING
        and _arrow_type(hints[column.name]) is not None
    )


def table_sources(run_path: Path, table: str) -> list[Path]:
    """The files of one table, in the order they are read."""
    return row_files(run_path, SOURCES[table][1])


def row_files(folder: Path, pattern: str) -> list[Path]:
    """The files of one pattern of ``forms.ROWS``, in the order they are read; telemetry may have parts.

    Of an archive the Parquet files in their place.
    """
    in_telemetry = pattern.startswith("telemetry/")
    raw = segments(folder / pattern) if in_telemetry else sorted(folder.glob(pattern))
    return raw or sorted(folder.glob(pattern.replace(".jsonl", SUFFIX)))


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
    """Complete lines of a JSONL file; rows of an archived one."""
    if path.suffix == SUFFIX:
        return pq.read_metadata(path).num_rows
    count = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            count += block.count(b"\n")
    return count

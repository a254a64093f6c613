"""Tables of an archived run: the same rows as its JSONL had, as small Parquet files.

Times of chunks are most of a run. Between a request's first and last chunk they are rounded to a unit; the
first and the last are ``first_token_ns`` and ``last_token_ns`` themselves. So TTFT, TPOT and E2E are what
they were, and an ITL moves by a unit at most. vLLM's own times of a request are kept to 1 µs. All else is
exact.

Requests of one batch get their chunks at nearly the same times. So the chunks of all requests are kept in the
order in which they came, each as the time since the one before, and of each request the places of its own.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from analysis.runs.packed import packed, unpacked, with_column
from greenbench.contract.run_dir import read_jsonl

SUFFIX = ".parquet"
UNIT = b"greenbench_unit_ns"  # in the file's metadata
OLDER_UNIT = b"greenbench_chunk_unit_ns"  # the same where no column is packed
GRADE_TEXT = (
    "grade_text"  # a grade's keys differ by task: its JSON, beside the part that is a column
)
CHUNKS, TOKENS = "chunk_ns", "chunk_tokens"  # lists: kept by arrival, and as differences
PLACES = (
    "chunk_places"  # a column of its own: where each chunk is among those of all, as differences
)
CLOCKS = (
    ("unix_ns", "mono_ns"),
    ("sent_unix_ns", "sent_mono_ns"),
)  # the first kept less the second
METRICS = "server_metrics"
PER_THOUSAND = 1000  # vLLM's own times: ms → whole µs
TEXT, TEXT_SHA256, TEXT_CHARS = "text", "text_sha256", "text_chars"  # columns of outputs
# the same answer to the same prompt, the same series in each scrape: a dictionary of a column pays
REPEATED = (TEXT, TEXT_SHA256, "metric", "labels")
VALUE_BYTES = 8
MEMORY_BYTES = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
LEVEL = 19  # zstd: slow to write, as fast to read as any
Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


def write_archived(table: pa.Table, path: Path, unit_ns: int) -> str:
    """Rows as the JSONL reader gives them (with GRADE_TEXT where there are grades); the file's sha256."""
    return _write(_encoded(table, unit_ns), path, unit_ns)


def _write(table: pa.Table, path: Path, unit_ns: int | None) -> str:
    """As small as it gets, the same bytes for the same rows; its sha256."""
    path.parent.mkdir(parents=True, exist_ok=True)
    table = packed(table)
    whole = [leaf for leaf, kind in _leaves(table.schema) if pa.types.is_integer(kind)]
    with pq.ParquetWriter(
        path,
        table.schema,
        compression="zstd",
        compression_level=LEVEL,
        use_dictionary=[name for name in REPEATED if name in table.column_names],  # type: ignore[arg-type]
        column_encoding=dict.fromkeys(whole, "BYTE_STREAM_SPLIT"),
        write_statistics=False,
        store_schema=False,  # Arrow's own copy of it: kilobytes, in which our metadata would be too
    ) as file:
        file.write_table(table)
        unit = {} if unit_ns is None else {UNIT: str(unit_ns)}
        file.add_key_value_metadata((table.schema.metadata or {}) | unit)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def opened(path: Path) -> pq.ParquetFile:
    """A damaged page raises when it is read. ArrowInvalid where its rows would fill half the memory.

    By the number of rows alone: asked for a column of a damaged footer, the library ends the process.
    """
    file = pq.ParquetFile(path, page_checksum_verification=True)
    values = file.metadata.num_rows * file.metadata.num_columns
    if values * VALUE_BYTES > MEMORY_BYTES / 2:
        raise pa.ArrowInvalid(f"{path}: its {values:,} values take more than half of this memory")
    return file


def read_archived(path: Path) -> pa.Table:
    """The rows as the JSONL reader would give them, and GRADE_TEXT where it is kept."""
    table = opened(path).read()
    unit_ns = _unit_ns(table)
    if unit_ns is None:
        raise pa.ArrowInvalid(
            f"{path}: no table of an archived run (it names no unit of its times)"
        )
    return _decoded(unpacked(table), unit_ns).replace_schema_metadata(None)


def without_texts(table: pa.Table) -> pa.Table:
    """Rows of outputs with the sha256 and the length of each text in its place; what is left out stays so."""
    texts = table.column(TEXT).combine_chunks()
    hashes = [
        None if text is None else hashlib.sha256(text.encode()).hexdigest()
        for text in texts.to_pylist()
    ]
    facts = {
        TEXT_SHA256: pa.array(hashes, pa.string()),
        TEXT_CHARS: pc.utf8_length(texts).cast(pa.int64()),  # type: ignore[attr-defined]
    }
    for name, told in facts.items():
        if name in table.column_names:
            table = with_column(table, name, pc.coalesce(told, table.column(name)))  # type: ignore[attr-defined]
        else:
            table = table.append_column(name, told)
    return with_column(table, TEXT, pa.nulls(table.num_rows, pa.string()))


def texts_left_out(path: Path) -> int:
    """Answers of an archived file of outputs of which a sha256 stands for the text."""
    file = opened(path)
    if TEXT_SHA256 not in file.schema_arrow.names:
        return 0
    column = file.read(columns=[TEXT_SHA256]).column(TEXT_SHA256)
    return len(column) - column.null_count


def grades(files: list[Path]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(request id, grade) of each graded answer, of JSONL or archived files of outputs."""
    for path in files:
        if path.suffix != SUFFIX:
            yield from ((row["request_id"], row.get("grade") or {}) for row in read_jsonl(path))
            continue
        rows = opened(path).read(columns=["request_id", GRADE_TEXT])
        ids, texts = (rows.column(name).to_pylist() for name in rows.column_names)
        yield from ((name, json.loads(text)) for name, text in zip(ids, texts, strict=True))


def archived_lines(path: Path) -> Iterator[bytes]:
    """The rows as JSON lines again; keys that an object has only in other rows are left out."""
    for row in read_archived(path).to_pylist():
        text = row.pop(GRADE_TEXT, None)
        told = {name: _object(value) for name, value in row.items()}
        whole = told if text is None else told | {"grade": json.loads(text)}
        yield json.dumps(whole).encode() + b"\n"


def _object(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    return {key: each for key, each in value.items() if each is not None}


def write_steps(steps: pd.DataFrame, path: Path) -> str:
    """The steps as the log tells them; the file's sha256."""
    table = pa.Table.from_pandas(steps, preserve_index=False)
    ends = steps["unix_ns"]
    unit = None
    if len(ends) and not ends.isna().any():
        values = ends.to_numpy(dtype=np.int64)
        unit = 1000 if not (values % 1000).any() else 1  # vLLM writes microseconds
        told = pa.array(np.diff(values // unit, prepend=0), pa.int64())
        table = table.set_column(0, "unix_ns", told)
    return _write(table, path, unit)


def read_archived_steps(path: Path) -> pd.DataFrame:
    """Columns of ``analysis.runs.engine_steps.COLUMNS``, still to be cast to their types."""
    table = pq.read_table(path)
    unit_ns = _unit_ns(table)
    if unit_ns is not None:
        ends = np.cumsum(table.column("unix_ns").to_numpy()) * unit_ns
        table = table.set_column(0, "unix_ns", pa.array(ends, pa.int64()))
    return unpacked(table).replace_schema_metadata(None).to_pandas()


def _unit_ns(table: pa.Table) -> int | None:
    told = table.schema.metadata or {}
    unit = told.get(UNIT, told.get(OLDER_UNIT))
    return None if unit is None else int(unit)


def _encoded(table: pa.Table, unit_ns: int) -> pa.Table:
    for wall, mono in _clocks(table):
        less = pc.subtract(table.column(wall), table.column(mono).fill_null(0))  # type: ignore[attr-defined]
        table = with_column(table, wall, less)
    if TOKENS in table.column_names:
        lists = table.column(TOKENS).combine_chunks()
        table = with_column(
            table, TOKENS, _relisted(lists, _differences(_flat(lists), _starts(lists)))
        )
    if CHUNKS in table.column_names:
        table = _by_arrival(table, unit_ns)
    if METRICS in table.column_names:
        table = _each_metric(table, lambda ms: np.rint(ms * PER_THOUSAND), pa.int64())
    return table


def _decoded(table: pa.Table, unit_ns: int) -> pa.Table:
    for wall, mono in _clocks(table):
        whole = pc.add(table.column(wall), table.column(mono).fill_null(0))  # type: ignore[attr-defined]
        table = with_column(table, wall, whole)
    if TOKENS in table.column_names:
        lists = table.column(TOKENS).combine_chunks()
        table = with_column(table, TOKENS, _relisted(lists, _sums(_flat(lists), _starts(lists))))
    if CHUNKS in table.column_names:
        lists = table.column(CHUNKS).combine_chunks()
        values = _chunk_units(table, lists, unit_ns) * unit_ns
        values = _between_edges(values, lists, table, unit_ns)
        table = with_column(table, CHUNKS, _relisted(lists, values))
    table = table.drop([PLACES]) if PLACES in table.column_names else table
    if METRICS in table.column_names:
        table = _each_metric(table, lambda whole: whole / PER_THOUSAND, pa.float64())
    return table


def _by_arrival(table: pa.Table, unit_ns: int) -> pa.Table:
    """CHUNKS in units from one chunk of all requests to the next, and the column PLACES."""
    lists = table.column(CHUNKS).combine_chunks()
    own = np.rint(_flat(lists) / unit_ns).astype(np.int64)
    times = own + np.repeat(_sent_units(table, unit_ns), _lengths(lists))
    order = np.argsort(times, kind="stable")
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    table = with_column(table, CHUNKS, _relisted(lists, np.diff(times[order], prepend=0)))
    return table.append_column(PLACES, _relisted(lists, _differences(places, _starts(lists))))


def _chunk_units(table: pa.Table, lists: pa.ListArray, unit_ns: int) -> Ints:
    """Units from a request's start to each of its chunks; without PLACES kept as in an older archive."""
    if PLACES not in table.column_names:
        return _sums(_flat(lists), _starts(lists))
    places = _sums(_flat(table.column(PLACES).combine_chunks()), _starts(lists))
    return np.cumsum(_flat(lists))[places] - np.repeat(_sent_units(table, unit_ns), _lengths(lists))


def _sent_units(table: pa.Table, unit_ns: int) -> Ints:
    """When each request was sent, in units; 0 where the monotonic clock was not kept."""
    return table.column("sent_mono_ns").fill_null(0).to_numpy() // unit_ns


def _clocks(table: pa.Table) -> list[tuple[str, str]]:
    """The columns that hold one moment by both clocks."""
    names = {*table.column_names}
    return [(wall, mono) for wall, mono in CLOCKS if {wall, mono} <= names]


def _between_edges(values: Ints, lists: pa.ListArray, table: pa.Table, unit_ns: int) -> Ints:
    """Rounding carries no chunk before the first token or past the last: these two are known exactly."""
    lengths, starts, places = _lengths(lists), _starts(lists), np.arange(len(values))
    own = (
        ("first_token_ns", np.less, np.repeat(starts[:-1], lengths)),
        ("last_token_ns", np.greater, np.repeat(starts[1:] - 1, lengths)),
    )
    for name, beyond, end in own:
        edge = np.repeat(table.column(name).to_numpy().astype(float), lengths)
        near = np.abs(values - edge) <= unit_ns  # false of NaN, what is not known
        moved = near & ((places == end) | beyond(values, edge))
        values = np.where(moved, np.nan_to_num(edge).astype(np.int64), values)
    return values


def _differences(values: Ints, starts: Ints) -> Ints:
    """Of each list from one value to the next; the first of a list stays itself."""
    steps = np.diff(values, prepend=0)
    firsts = starts[:-1][np.diff(starts) > 0]
    steps[firsts] = values[firsts]
    return steps


def _sums(steps: Ints, starts: Ints) -> Ints:
    """The values again, of each list anew."""
    summed = np.concatenate(([0], np.cumsum(steps)))
    return summed[1:] - np.repeat(summed[starts[:-1]], np.diff(starts))


def _flat(lists: pa.ListArray) -> Ints:
    return lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)


def _lengths(lists: pa.ListArray) -> Ints:
    return np.nan_to_num(lists.value_lengths().to_numpy(zero_copy_only=False)).astype(np.int64)


def _starts(lists: pa.ListArray) -> Ints:
    """Where each list starts among the flat values, and the end of the last."""
    return np.concatenate(([0], np.cumsum(_lengths(lists))))


def _relisted(lists: pa.ListArray, values: Ints) -> pa.Array:
    """Other values in the same lists; a list that is null stays null."""
    inner = pa.array(values, pa.int64()).cast(lists.type.value_type)
    offsets = pa.array(_starts(lists), pa.int32())
    return pa.ListArray.from_arrays(offsets, inner, type=lists.type, mask=lists.is_null())


def _each_metric(
    table: pa.Table, change: Callable[[Floats], Floats], kind: pa.DataType
) -> pa.Table:
    metrics = table.column(METRICS).combine_chunks()
    names = [field.name for field in metrics.type]
    known = [metrics.field(name).to_numpy(zero_copy_only=False).astype(float) for name in names]
    columns = [pa.array(change(values), from_pandas=True).cast(kind) for values in known]
    return with_column(
        table, METRICS, pa.StructArray.from_arrays(columns, names, mask=metrics.is_null())
    )


def _leaves(schema: pa.Schema) -> Iterator[tuple[str, pa.DataType]]:
    """(path, type) of every column that Parquet stores."""

    def below(path: str, kind: pa.DataType) -> Iterator[tuple[str, pa.DataType]]:
        if pa.types.is_struct(kind):
            for field in kind:
                yield from below(f"{path}.{field.name}", field.type)
        elif pa.types.is_list(kind):
            yield from below(f"{path}.list.element", kind.value_type)
        else:
            yield path, kind

    for field in schema:
        yield from below(field.name, field.type)

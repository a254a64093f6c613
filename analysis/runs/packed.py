"""A table in forms that compress better, each of which is undone exactly.

The metadata lists what was done, as (form, column, how). Rows of one series (a card, a scraped metric) lie
together; labels are one text; a float that is a decimal of few places is a whole number, a scraped value the
whole number of its bits; of what grows, the differences are kept.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

FORMS = b"greenbench_forms"  # in the table's metadata
LABELS = "labels"
SERIES = (("host", "gpu_index"), ("metric", LABELS))  # columns that tell series apart
ROW = "row"  # a column of its own: the place that a row had
SCRAPED = "value"
GROWING = ("mono_ns", "sent_mono_ns", "energy_mj", "index", ROW, SCRAPED)
# a decimal is a whole number divided by these, one after the other, as whoever wrote it did
DIVISORS = ((1,), (100,), (1000,), (10_000,), (10, 100), (100, 1000))
WHOLE = 2**53  # floats hold every whole number below
Values = npt.NDArray[Any]
Form = tuple[str, str, list[int]]


def packed(table: pa.Table) -> pa.Table:
    """The table that ``unpacked`` takes; metadata of its own is not kept."""
    done: list[Form] = []
    if LABELS in table.column_names and _are_texts(table.column(LABELS)):
        table = with_column(table, LABELS, _texts(table.column(LABELS)))
        done.append(("text", LABELS, []))
    for series in SERIES:
        if {*series} <= {*table.column_names}:
            plain = [key for key in series if not pa.types.is_nested(table.schema.field(key).type)]
            order = pc.sort_indices(table, sort_keys=[(key, "ascending") for key in plain])  # type: ignore[attr-defined]
            table = table.take(order).append_column(ROW, order.cast(pa.int64()))
            done.append(("series", ROW, []))
    for name, values in _known(table, pa.types.is_floating):
        if name == SCRAPED:
            table = with_column(table, name, _put(table, name, values.view(np.int64)))
            done.append(("bits", name, []))
        elif divisors := _divisors(values):
            table = with_column(table, name, _put(table, name, _numerators(values, divisors)))
            done.append(("decimal", name, [*divisors]))
    for name, values in _known(table, pa.types.is_integer):
        if name in GROWING:
            table = with_column(table, name, _put(table, name, np.diff(values, prepend=0)))
            done.append(("growing", name, []))
    return table.replace_schema_metadata({FORMS: json.dumps(done)})


def unpacked(table: pa.Table) -> pa.Table:
    """The rows as they were. A table that names no forms, as in older archives, is as it is."""
    done: list[Form] = json.loads((table.schema.metadata or {}).get(FORMS, b"[]"))
    for form, name, how in reversed(done):
        if form == "series":
            table = table.take(np.argsort(table.column(name).to_numpy())).drop([name])
        elif form == "text":
            table = with_column(table, name, _structs(table.column(name)))
        else:
            values = _undone(form, table.column(name).drop_null().to_numpy(), how)
            table = with_column(table, name, _put(table, name, values))
    return table


def _undone(form: str, values: Values, how: Sequence[int]) -> Values:
    if form == "growing":
        return np.cumsum(values)
    if form == "bits":
        return values.view(np.float64)
    if form == "decimal":
        return _quotients(values, how)
    raise pa.ArrowInvalid(
        f"a table has the form '{form}', which this version does not know; read it with a newer one"
    )


def _divisors(values: Values) -> Sequence[int]:
    """By what whole numbers give these floats, to the last bit; none where they do not."""
    for divisors in DIVISORS:
        with np.errstate(over="ignore"):
            small = np.abs(values * float(np.prod(divisors))) < WHOLE  # false of NaN
        if small.all():
            again = _quotients(_numerators(values, divisors), divisors)
            if np.array_equal(again.view(np.int64), values.view(np.int64)):  # -0.0 is not 0.0
                return divisors
    return ()


def _numerators(values: Values, divisors: Sequence[int]) -> Values:
    return np.rint(values * float(np.prod(divisors))).astype(np.int64)


def _quotients(values: Values, divisors: Sequence[int]) -> Values:
    found = values.astype(np.float64)
    for divisor in divisors:
        found = found / divisor
    return found


def _known(table: pa.Table, kind: Any) -> Iterator[tuple[str, Values]]:
    """(name, values that are not null) of the columns of a kind."""
    for field in table.schema:
        if kind(field.type) and field.type.bit_width == 64:
            yield field.name, table.column(field.name).drop_null().to_numpy()


def _put(table: pa.Table, name: str, values: Values) -> pa.Array:
    """Other values where the column has any; what is null stays null."""
    there = table.column(name).is_valid().to_numpy()
    whole = np.zeros(len(there), values.dtype)
    whole[there] = values
    return pa.array(whole, mask=~there)


def _are_texts(column: pa.ChunkedArray) -> bool:
    """Structs of texts alone, of which there is one: a text says what fields they have."""
    kind = column.type
    return (
        pa.types.is_struct(kind)
        and all(pa.types.is_string(field.type) for field in kind)
        and column.null_count < len(column)
    )


def _texts(column: pa.ChunkedArray) -> pa.Array:
    rows = column.to_pylist()
    return pa.array([None if row is None else json.dumps(row) for row in rows], pa.string())


def _structs(column: pa.ChunkedArray) -> pa.Array:
    coded = column.combine_chunks().dictionary_encode()
    rows = [json.loads(text) for text in coded.dictionary.to_pylist()]
    kind = pa.struct([(name, pa.string()) for name in rows[0]])
    return pa.array(rows, kind).take(coded.indices)


def with_column(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    """The table with another column of that name, in its place; a name it lacks raises ValueError."""
    return table.set_column(table.column_names.index(name), name, column)

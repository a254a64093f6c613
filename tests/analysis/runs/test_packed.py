"""Packed tables are unpacked to the last bit; what older archives hold is read as it was written."""

import math
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from analysis.runs.archived import read_archived, read_archived_steps
from analysis.runs.packed import packed, unpacked

WHOLE = st.none() | st.integers(-(2**63), 2**63 - 1)
# as they are read off a sensor, and any
FLOATS = (
    st.none()
    | st.integers(-(10**6), 10**6).map(lambda milli: milli / 1000)
    | st.integers(0, 10**4).map(lambda hundredths: hundredths / 100 / 1000)
    | st.floats()
)
NAMES = st.none() | st.sampled_from(["", "a", "b", "\x1f"])
LABELS = st.none() | st.fixed_dictionaries({"engine": NAMES, "le": NAMES})
CARDS = st.fixed_dictionaries(
    {"mono_ns": WHOLE, "host": NAMES, "gpu_index": WHOLE, "power_w": FLOATS, "energy_mj": WHOLE}
)
SCRAPES = st.fixed_dictionaries(
    {"mono_ns": WHOLE, "metric": NAMES, "value": FLOATS, "labels": LABELS}
)
CARD = pa.schema(
    [
        ("mono_ns", pa.int64()),
        ("host", pa.string()),
        ("gpu_index", pa.int64()),
        ("power_w", pa.float64()),
        ("energy_mj", pa.int64()),
    ]
)
SCRAPE = pa.schema(
    [
        ("mono_ns", pa.int64()),
        ("metric", pa.string()),
        ("value", pa.float64()),
        ("labels", pa.struct([("engine", pa.string()), ("le", pa.string())])),
    ]
)


def bits(value: Any) -> Any:
    """-0.0 is not 0.0, and NaN is itself."""
    return struct.pack("d", value) if isinstance(value, float) else value


def rows(table: pa.Table) -> list[dict[str, Any]]:
    return [{name: bits(value) for name, value in row.items()} for row in table.to_pylist()]


@given(
    st.one_of(
        st.tuples(st.just(CARD), st.lists(CARDS)), st.tuples(st.just(SCRAPE), st.lists(SCRAPES))
    )
)
def test_what_is_packed_is_unpacked_to_the_last_bit(
    drawn: tuple[pa.Schema, list[dict[str, Any]]],
) -> None:
    schema, told = drawn
    table = pa.Table.from_pylist(told, schema=schema)
    again = unpacked(packed(table))
    assert again.schema.equals(schema)
    assert rows(again) == rows(table)


def test_series_lie_together_decimals_are_whole_and_counters_differences() -> None:
    table = pa.Table.from_pylist(
        [
            {"mono_ns": 7, "host": "h", "gpu_index": 1, "power_w": 0.5, "energy_mj": 100},
            {"mono_ns": 8, "host": "h", "gpu_index": 0, "power_w": 81.204, "energy_mj": 40},
            {"mono_ns": 9, "host": "h", "gpu_index": 1, "power_w": None, "energy_mj": 130},
        ],
        schema=CARD,
    )
    found = packed(table).to_pydict()
    assert found["gpu_index"] == [0, 1, 1]
    assert found["row"] == [1, -1, 2]  # rows 1, 0, 2
    assert found["mono_ns"] == [8, -1, 2]
    assert found["energy_mj"] == [40, 60, 30]
    assert found["power_w"] == [81204, 500, None]


@pytest.mark.parametrize("value", [math.pi, math.nan, math.inf, -0.0, 2.0**60, 1e300])
def test_a_float_that_is_no_short_decimal_stays_one(value: float) -> None:
    row = {"mono_ns": 0, "host": "h", "gpu_index": 0, "power_w": value, "energy_mj": 0}
    (found,) = packed(pa.Table.from_pylist([row], schema=CARD)).column("power_w").to_pylist()
    assert isinstance(found, float) and bits(found) == bits(value)


def test_a_form_of_a_newer_version_is_refused() -> None:
    told = {"greenbench_forms": '[["folded", "energy_mj", []]]'}
    with pytest.raises(pa.ArrowInvalid, match="form 'folded', which this version does not know"):
        unpacked(pa.table({"energy_mj": [1]}).replace_schema_metadata(told))


def test_an_older_archive_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Times of chunks as differences within their row, in units of 10 µs; steps as differences."""
    requests = pa.table(
        {
            "sent_unix_ns": [1_000],
            "sent_mono_ns": [5],
            "first_token_ns": [24_999],
            "last_token_ns": [68_000],
            "chunk_ns": [[2, 3, 2]],
            "chunk_tokens": pa.array([[1, 0, 1]], pa.list_(pa.int32())),
        }
    ).replace_schema_metadata({"greenbench_chunk_unit_ns": "10000"})
    pq.write_table(requests, tmp_path / "requests.parquet")
    (row,) = read_archived(tmp_path / "requests.parquet").to_pylist()
    assert row["sent_unix_ns"] == 1_005
    assert row["chunk_ns"] == [24_999, 50_000, 68_000]
    assert row["chunk_tokens"] == [1, 1, 2]
    steps = pa.table({"unix_ns": [900, 7, 3], "elapsed_s": [0.25, 0.5, 0.125]})
    told = steps.replace_schema_metadata({"greenbench_chunk_unit_ns": "1000"})
    pq.write_table(told, tmp_path / "steps.parquet")
    found = read_archived_steps(tmp_path / "steps.parquet")
    assert found["unix_ns"].tolist() == [900_000, 907_000, 910_000]
    assert found["elapsed_s"].tolist() == [0.25, 0.5, 0.125]

"""Recorded traffic: what is odd in a row is named with the row, the field and what was wanted."""

import json
from pathlib import Path

import pytest

from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError
from loadgen.driver.traces import read_trace

GOOD = {"timestamp": 0, "input_length": 675, "output_length": 52}


def load(path: Path, form: str = "mooncake") -> LoadConfig:
    return LoadConfig.model_validate({"kind": "open", "trace": str(path), "trace_format": form})


def refusal(path: Path, form: str = "mooncake") -> str:
    with pytest.raises(UserError) as raised:
        read_trace(load(path, form), 1024)
    said = str(raised.value)
    assert "\n" not in said and len(said) < 400
    return said.removeprefix(f"{path}: ")


TIME, TOKENS = "where a time in milliseconds is wanted", "where a number of tokens is wanted"


@pytest.mark.parametrize(
    ("field", "value", "shown"),
    [
        ("timestamp", "NaN", f"nan, {TIME}"),
        ("timestamp", "1e400", f"inf, {TIME}"),
        ("timestamp", "1e300", f"1e+300, {TIME}"),
        ("timestamp", "null", f"null, {TIME}"),
        ("timestamp", "true", f"True, {TIME}"),
        ("timestamp", "[1]", f"[1], {TIME}"),
        ("output_length", "null", f"null, {TOKENS}"),
        ("input_length", "6.5", f"6.5, {TOKENS}"),
        ("input_length", "-6", f"-6, {TOKENS}"),
        ("input_length", "1e400", f"inf, {TOKENS}"),
        ("input_length", str(2**70), f"{2**70}, {TOKENS}"),
        ("input_length", '"many"', f"'many', {TOKENS}"),
    ],
)
def test_a_row_that_cannot_be_is_named_with_its_field(
    tmp_path: Path, field: str, value: str, shown: str
) -> None:
    row = json.dumps({**GOOD, field: "HERE"}).replace('"HERE"', value)
    path = tmp_path / "t.jsonl"
    path.write_text(f"{json.dumps(GOOD)}\n{row}\n")
    assert refusal(path) == (
        f"row 2: '{field}' is {shown}; a row of the mooncake format has 'timestamp', 'input_length', "
        "'output_length'; leave such rows out, or mend them"
    )


def test_a_field_that_a_row_lacks_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"session_id": "a", "input_length": 675, "output_length": 52}\n')
    assert refusal(path).startswith(
        "row 1: 'timestamp' is missing; a row of the mooncake format has"
    )


def test_whole_numbers_in_another_form_are_taken(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    rows = [GOOD, {"timestamp": "500", "input_length": 675.0, "output_length": "52"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    first, second = read_trace(load(path), 1024)
    assert (first.offset_s, second.offset_s) == (0.0, 0.5)
    assert (second.context_tokens, second.output_tokens) == (675, 52)


def test_the_format_whose_fields_a_file_has_is_named(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("Timestamp,Request tokens,Response tokens\n0,5,6\n")
    said = refusal(path, "azure")
    assert said == "row 1: 'TIMESTAMP' is missing; its fields are those of trace_format: burstgpt"
    assert len(read_trace(load(path, "burstgpt"), 1024)) == 1


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff\xff", "not UTF-8 text"),
        (b"{\n", "line 1 is not JSON"),
        (b"TIMESTAMP,ContextTokens\n", "of a CSV trace say trace_format: burstgpt or azure"),
        (b"[1]\n", "line 1 is not a JSON object"),
        (b'{"a": ' * 100_000, "line 1 is not JSON"),
        (b"", "the file is empty; give a trace with requests"),
        (b'{"timestamp": 0, "input_length": 5, "output_length": 0}\n', "has no request with input"),
    ],
)
def test_a_file_that_is_no_trace_is_one_sentence(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(content)
    assert said in refusal(path)


@pytest.mark.parametrize("time", ["2026-11-29 10:00:00.1234567", "not a date", "", "inf"])
def test_a_date_that_is_none_is_named(tmp_path: Path, time: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"TIMESTAMP,ContextTokens,GeneratedTokens\n{time},5,6\n")
    if time.startswith("2026"):
        assert len(read_trace(load(path, "azure"), 1024)) == 1
    else:
        assert "'TIMESTAMP' is " in refusal(path, "azure")

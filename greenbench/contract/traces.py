"""Recorded traffic as others publish it: arrival times and lengths, no text.

Formats, by their publishers' files:
- mooncake: JSON lines with ``timestamp`` (ms), ``input_length``, ``output_length``, and ``hash_ids`` of the
  prompt's blocks, each equal only where all before it are too
- burstgpt: CSV with ``Timestamp`` (s), ``Request tokens``, ``Response tokens``
- azure: CSV with ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens``

A row without output (a request that failed when it was recorded) is left out.
"""

import csv
import json
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, cast

from greenbench.contract.errors import UserError

Row = dict[str, Any]
NO_ROW: Row = {}
Lengths = tuple[float, int, int]  # seconds, input tokens, output tokens
Blocks = tuple[int | str, ...]  # of a prompt, by their ids; none where the trace has none
MOONCAKE_BLOCK = 512  # tokens, github.com/kvcache-ai/Mooncake, the traces' notes
MOST_TOKENS = 100_000_000  # of one request; the longest windows of today hold ten million
MOST_SECONDS = 1e12  # of a time; as seconds since 1970 some 30,000 years


def _azure_seconds(value: object) -> float:
    # seven digits of a second, where Python reads six
    head, _, fraction = str(value).partition(".")
    return datetime.fromisoformat(head).timestamp() + float(f"0.{fraction or 0}")


def _milliseconds(value: object) -> float:
    return _seconds(value) / 1000


def _seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise ValueError
    return float(value)


def _tokens(value: object) -> int:
    """A whole number, also where a tool wrote it with a point (675.0)."""
    number = _seconds(value)
    if not number.is_integer() or not 0 <= number <= MOST_TOKENS:
        raise ValueError
    return int(number)


def _objects(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    """One JSON object a line; empty lines are left out."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except (ValueError, RecursionError) as error:
            other = "; of a CSV trace say trace_format: burstgpt or azure" if number == 1 else ""
            raise UserError(f"{path}: line {number} is not JSON ({error}){other}") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        yield value


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    return csv.DictReader(lines)


@dataclass(frozen=True)
class Format:
    """How a publisher's file is split into rows, and the names of a row's fields: time, input, output."""

    rows: Callable[[Path, Iterable[str]], Iterator[Row]]
    names: tuple[str, str, str]
    seconds: Callable[[object], float]
    time_wanted: str

    def read(self, row: Row) -> Lengths:
        """(seconds, input tokens, output tokens). ValueError with a clause that names the field."""
        time, given, made = self.names
        at_s = _field(row, time, self.seconds, self.time_wanted)
        if not math.isfinite(at_s) or abs(at_s) > MOST_SECONDS:
            raise ValueError(f"'{time}' is {_shown(row[time])}, where {self.time_wanted} is wanted")
        tokens = (_field(row, name, _tokens, "a number of tokens") for name in (given, made))
        return at_s, *tokens


def _field(row: Row, name: str, read: Callable[[object], Any], wanted: str) -> Any:
    if name not in row:
        raise ValueError(f"'{name}' is missing")
    try:
        return read(row[name])
    except (ValueError, OverflowError):
        raise ValueError(f"'{name}' is {_shown(row[name])}, where {wanted} is wanted") from None


def _shown(value: object) -> str:
    return "null" if value is None else reprlib.repr(value)


FORMATS: dict[str, Format] = {
    "mooncake": Format(
        _objects,
        ("timestamp", "input_length", "output_length"),
        _milliseconds,
        "a time in milliseconds",
    ),
    "burstgpt": Format(
        _csv_rows,
        ("Timestamp", "Request tokens", "Response tokens"),
        _seconds,
        "a time in seconds",
    ),
    "azure": Format(
        _csv_rows,
        ("TIMESTAMP", "ContextTokens", "GeneratedTokens"),
        _azure_seconds,
        "a date and time",
    ),
}


def format_of(path: Path) -> str:
    """The format whose fields the first row has. UserError where none fits or nothing can be read."""
    for name, form in FORMATS.items():
        try:
            with path.open(newline="", encoding="utf-8-sig") as file:
                row = next(iter(form.rows(path, file)), NO_ROW)
        except OSError as error:
            raise UserError(f"{path}: cannot be read ({error.strerror}); give a trace") from error
        except (UserError, UnicodeDecodeError, csv.Error):
            continue
        if set(form.names) <= set(row):
            return name
    _refuse_empty(path)
    _refuse_a_header_alone(path)
    wanted = "; ".join(f"{name}: {', '.join(form.names)}" for name, form in FORMATS.items())
    raise UserError(f"{path}: the fields of no known trace format ({wanted}); give such a file")


def _refuse_a_header_alone(path: Path) -> None:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        lines = [line.strip() for line in file if line.strip()][:2]
    if len(lines) == 1 and any(set(f.names) <= set(lines[0].split(",")) for f in FORMATS.values()):
        raise UserError(f"{path}: has a header and no request; give a trace with requests")


def _refuse_empty(path: Path) -> None:
    with path.open(encoding="utf-8-sig", errors="replace") as file:
        if not any(line.strip() for line in file):
            raise UserError(f"{path}: the file is empty; give a trace with requests")


def read_lengths(path: Path, name: str) -> list[Lengths]:
    """The requests of a trace in order of time; at least one. What is wrong: UserError."""
    return [lengths for lengths, _ in read_requests(path, name)]


def read_requests(path: Path, name: str) -> list[tuple[Lengths, Blocks]]:
    """``read_lengths``, and of each request its prompt's blocks."""
    try:
        _refuse_empty(path)
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = _requests(path, name, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a trace file") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text ({error.reason}); save it as UTF-8") from error
    except csv.Error as error:
        raise UserError(f"{path}: cannot be read as CSV ({error}); give a trace file") from error
    kept = [(lengths, blocks) for lengths, blocks in rows if lengths[1] > 0 and lengths[2] > 0]
    rows = sorted(kept, key=lambda row: row[0])
    if not rows:
        raise UserError(f"{path}: has no request with input and output; give another trace")
    return rows


def repeated_tokens(requests: Sequence[tuple[Lengths, Blocks]]) -> list[int]:
    """Of each request the tokens with which an earlier prompt began too, as a prefix cache that forgets
    nothing would hold them. All but a prompt's last block are full.
    """
    size = _block_tokens(requests)
    known: dict[tuple[int, int | str], int] = {}  # (the block before, an id) -> number of a block
    found: list[int] = []
    for (_, tokens, _), blocks in requests:
        before = held = 0
        for block in blocks:
            fresh = len(known) + 1
            own = known.setdefault((before, block), fresh)
            held += own != fresh
            before = own
        found.append(min(tokens, held * size))
    return found


def _block_tokens(requests: Iterable[tuple[Lengths, Blocks]]) -> int:
    """Mooncake's, where every prompt has as many blocks as that makes; else the least that holds them all."""
    counted = [(tokens, len(blocks)) for (_, tokens, _), blocks in requests if blocks]
    if all(n == -(-tokens // MOONCAKE_BLOCK) for tokens, n in counted):
        return MOONCAKE_BLOCK
    return max(-(-tokens // n) for tokens, n in counted)


def _requests(path: Path, name: str, lines: Iterable[str]) -> list[tuple[Lengths, Blocks]]:
    """(seconds, input tokens, output tokens) of each row, and its prompt's blocks."""
    trace_format = FORMATS[name]
    requests: list[tuple[Lengths, Blocks]] = []
    for number, row in enumerate(trace_format.rows(path, lines), start=1):
        try:
            requests.append((trace_format.read(row), _blocks(row)))
        except ValueError as error:
            raise UserError(f"{path}: row {number}: {error}; {_other_format(name, row)}") from error
    return requests


def _blocks(row: Row) -> Blocks:
    ids = row.get("hash_ids")
    if not isinstance(ids, list):
        return ()
    return tuple(each if isinstance(each, int) else str(each) for each in cast(list[object], ids))


def _other_format(name: str, row: Row) -> str:
    """What to do: the format whose fields the row has, else what this one's are."""
    fits = [other for other, form in FORMATS.items() if other != name and set(form.names) <= {*row}]
    if fits:
        return f"its fields are those of trace_format: {fits[0]}"
    wanted = ", ".join(f"'{field}'" for field in FORMATS[name].names)
    return f"a row of the {name} format has {wanted}; leave such rows out, or mend them"

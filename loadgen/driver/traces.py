"""Recorded traffic as a schedule: arrival times and lengths, no text.

Formats, by their publishers' files:
- mooncake: JSON lines with ``timestamp`` (ms), ``input_length``, ``output_length``
- burstgpt: CSV with ``Timestamp`` (s), ``Request tokens``, ``Response tokens``
- azure: CSV with ``TIMESTAMP`` (date and time), ``ContextTokens``, ``GeneratedTokens``

Prompts are the point's own, cut to the recorded length. A row without output (a request that failed
when it was recorded) is left out.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError
from loadgen.driver.arrivals import Arrival

Row = dict[str, Any]
Read = Callable[[Row], tuple[float, int, int]]  # -> (seconds, input tokens, output tokens)


def _azure_seconds(text: str) -> float:
    # seven digits of a second, where Python reads six
    head, _, fraction = text.partition(".")
    return datetime.fromisoformat(head).timestamp() + float(f"0.{fraction or 0}")


def _objects(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    """One JSON object a line; empty lines are left out."""
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
        except ValueError as error:
            raise UserError(f"{path}: line {number} is not JSON ({error})") from error
        if not isinstance(value, dict):
            raise UserError(f"{path}: line {number} is not a JSON object")
        yield value


def _csv_rows(path: Path, lines: Iterable[str]) -> Iterator[Row]:
    return csv.DictReader(lines)


@dataclass(frozen=True)
class Format:
    """How a publisher's file is split into rows, and how a row is read."""

    rows: Callable[[Path, Iterable[str]], Iterator[Row]]
    read: Read


FORMATS: dict[str, Format] = {
    "mooncake": Format(
        _objects,
        lambda row: (
            float(row["timestamp"]) / 1000,
            int(row["input_length"]),
            int(row["output_length"]),
        ),
    ),
    "burstgpt": Format(
        _csv_rows,
        lambda row: (
            float(row["Timestamp"]),
            int(row["Request tokens"]),
            int(row["Response tokens"]),
        ),
    ),
    "azure": Format(
        _csv_rows,
        lambda row: (
            _azure_seconds(row["TIMESTAMP"]),
            int(row["ContextTokens"]),
            int(row["GeneratedTokens"]),
        ),
    ),
}


def read_trace(load: LoadConfig, context_tokens: int) -> list[Arrival]:
    """The arrivals of ``load.trace`` in order of time, the first at 0. What is wrong: UserError.

    Prompts longer than ``context_tokens`` are refused, or cut to it with ``trace_clip``.
    """
    assert load.trace is not None
    path = Path(load.trace)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = _lengths(path, load.trace_format, file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a trace file") from error
    rows = sorted(row for row in rows if row[1] > 0 and row[2] > 0)
    if not rows:
        raise UserError(f"{path}: has no request with input and output; give another trace")
    longest = max(tokens for _, tokens, _ in rows)
    if longest > context_tokens and not load.trace_clip:
        raise UserError(
            f"{path}: its longest prompt is {longest} tokens, the point's context is {context_tokens}; "
            "raise the context, or set trace_clip: true to cut longer ones"
        )
    first_s = rows[0][0]
    return [
        Arrival((at_s - first_s) / load.trace_speed, min(tokens, context_tokens), output)
        for at_s, tokens, output in rows
    ]


def _lengths(path: Path, name: str, lines: Iterable[str]) -> list[tuple[float, int, int]]:
    """(seconds, input tokens, output tokens) of each row."""
    trace_format = FORMATS[name]
    lengths: list[tuple[float, int, int]] = []
    for number, row in enumerate(trace_format.rows(path, lines), start=1):
        try:
            lengths.append(trace_format.read(row))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: row {number} is not of the {name} format ({error!r}); "
                f"give trace_format one of {', '.join(FORMATS)}"
            ) from error
    return lengths

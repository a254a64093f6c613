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
from collections.abc import Callable, Iterator
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


READERS: dict[str, Read] = {
    "mooncake": lambda row: (
        float(row["timestamp"]) / 1000,
        int(row["input_length"]),
        int(row["output_length"]),
    ),
    "burstgpt": lambda row: (
        float(row["Timestamp"]),
        int(row["Request tokens"]),
        int(row["Response tokens"]),
    ),
    "azure": lambda row: (
        _azure_seconds(row["TIMESTAMP"]),
        int(row["ContextTokens"]),
        int(row["GeneratedTokens"]),
    ),
}


def read_trace(load: LoadConfig, context_tokens: int) -> list[Arrival]:
    """The arrivals of ``load.trace`` in order of time, the first at 0. What is wrong: UserError.

    Prompts longer than ``context_tokens`` are refused, or cut to it with ``trace_clip``.
    """
    assert load.trace is not None
    path, read = Path(load.trace), READERS[load.trace_format]
    rows: list[tuple[float, int, int]] = []
    for number, row in enumerate(_rows(path, load.trace_format), start=1):
        try:
            rows.append(read(row))
        except (KeyError, ValueError, TypeError) as error:
            raise UserError(
                f"{path}: row {number} is not of the {load.trace_format} format ({error!r}); "
                f"give trace_format one of {', '.join(READERS)}"
            ) from error
    rows = sorted(row for row in rows if row[1] > 0 and row[2] > 0)
    if not rows:
        raise UserError(f"{path}: holds no request with input and output; give another trace")
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


def _rows(path: Path, kind: str) -> Iterator[Row]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            if kind == "mooncake":
                for number, line in enumerate(file, start=1):
                    if line.strip():
                        yield _object(path, number, line)
            else:
                yield from csv.DictReader(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a trace file") from error


def _object(path: Path, number: int, line: str) -> Row:
    try:
        found = json.loads(line)
    except ValueError as error:
        raise UserError(f"{path}: line {number} is no JSON ({error})") from error
    if not isinstance(found, dict):
        raise UserError(f"{path}: line {number} is no JSON object")
    return found

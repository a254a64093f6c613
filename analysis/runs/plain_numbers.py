"""Numbers that no measurement gives: not finite, or so large that sums and products of them leave 64 bits.

JSON, YAML and Arrow take them all. Whoever computes with one gets an overflow, or a figure that is wrong.
"""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import pyarrow as pa
import pyarrow.compute as pc

from greenbench.contract.errors import UserError
from greenbench.contract.explain import shown

MOST_NS = 2**62  # a nanosecond of the year 2116; twice so much still has 64 bits
MOST_COUNT = 2**53  # up to here a float holds each whole number
MOST = 1e18  # of any measured value: a card's microjoules of 30 years
NOT_COMPUTED_WITH = ("seed", "sha256", "pid_created_s")
NOT_FINITE = "a finite number was wanted"
TOO_LARGE = "larger than any measurement"


def refuse_odd(value: object, source: str) -> None:
    """UserError for the first odd number in a parsed file, with its key."""
    for where, number in _numbers(value, ""):
        clause = _clause(where, number)
        if clause is not None:
            raise UserError(f"{source}: {where}: {clause}, found {shown(number)}")


def _holds_nan(column: pa.ChunkedArray) -> bool:
    return bool(pc.call_function("any", [pc.call_function("is_nan", [column])]).as_py())


def odd_column(rows: pa.Table) -> str | None:
    """The first flat column of a table that holds an odd number, and what is wrong; None: none does."""
    for name, column in zip(rows.column_names, rows.columns, strict=True):
        floating = pa.types.is_floating(column.type)
        if not floating and not pa.types.is_integer(column.type):
            continue
        if floating and _holds_nan(column):
            return f"{name}: {NOT_FINITE}, found nan"
        for number in pc.call_function("min_max", [column]).as_py().values():
            clause = None if number is None else _clause(name, number)
            if clause is not None:
                return f"{name}: {clause}, found {shown(number)}"
    return None


def _clause(name: str, number: float) -> str | None:
    if not math.isfinite(number):
        return NOT_FINITE
    whole = isinstance(number, int)
    parts = name.split(".")
    if parts[-1] in NOT_COMPUTED_WITH:
        return None
    in_ns = any(part.endswith("_ns") or part == "phases" for part in parts)
    most = MOST_NS if in_ns else MOST_COUNT if whole else MOST
    return TOO_LARGE if abs(number) > most else None


def _numbers(value: object, where: str) -> Iterator[tuple[str, float]]:
    """(key, number) of a tree, level by level: depth is no danger."""
    level: list[tuple[str, object]] = [(where, value)]
    while level:
        below: list[tuple[str, object]] = []
        for name, part in level:
            if isinstance(part, dict):
                keyed = cast(dict[object, object], part).items()
                below += [(f"{name}.{key}" if name else str(key), each) for key, each in keyed]
            elif isinstance(part, list | tuple):
                items = enumerate(cast(Sequence[object], part))
                below += [(f"{name}.{n}", each) for n, each in items]
            elif isinstance(part, int | float) and not isinstance(part, bool):
                yield name, part
        level = below

"""Values of another tool's file, each with its place, so that what does not fit is named: ``ttfts[1]``.

A tool's next version leaves keys out, writes null, or another type: where a figure needs the value the
sentence says which one; where none does, it is None.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SHOWN_CHARS = 40  # of a wrong value
LARGEST = 1e15  # of any count, second or millisecond in such a file; nanoseconds have a function of their own
LARGEST_NS = 2**62
TRUE_UNITS = {"ns": 1e-9, "us": 1e-6, "ms": 1e-3, "s": 1.0, "sec": 1.0}  # to seconds


class Unfit(ValueError):
    """A value that the figures need is missing or of another kind. Its text: place, wanted, found."""


@dataclass(frozen=True)
class Field:
    """A parsed value and its place in the file; a missing key and null are both None."""

    value: Any
    place: str = ""

    def __getitem__(self, key: str | int) -> "Field":
        """The value below a key or an index; of None it is None, of anything else that has no keys Unfit."""
        if isinstance(key, int):
            items = self.items_of_list()
            return Field(items[key] if key < len(items) else None, f"{self.place}[{key}]")
        if self.value is None:
            return Field(None, self._below(key))
        return Field(self.object().get(key), self._below(key))

    def first(self, *keys: str) -> "Field":
        """The first of some names of one thing that has a value, else the last one's None."""
        found = [self[key] for key in keys]
        return next((each for each in found if each.known), found[-1])

    @property
    def known(self) -> bool:
        return self.value is not None

    def object(self) -> dict[str, Any]:
        if not isinstance(self.value, dict):
            raise self.unfit("an object")
        return self.value

    def items_of_list(self) -> list[Any]:
        if not isinstance(self.value, list):
            raise self.unfit("a list")
        return self.value

    def each(self) -> Iterator["Field"]:
        """What a list holds; nothing where there is none."""
        items = self.items_of_list() if self.known else []
        return (Field(item, f"{self.place}[{i}]") for i, item in enumerate(items))

    def number(self) -> float:
        """A finite number, also where it is written as text; no truth value is one."""
        if isinstance(self.value, bool) or not isinstance(self.value, int | float | str):
            raise self.unfit("a number")
        try:
            found = float(self.value)
        except (ValueError, OverflowError):
            raise self.unfit("a number") from None
        if not math.isfinite(found) or abs(found) > LARGEST:
            raise self.unfit("a finite number")
        return found

    def number_or_none(self) -> float | None:
        return self.number() if self.known else None

    def count(self) -> int:
        """A whole number from 0 on; ``12.0`` is one."""
        found = self.number()
        if found < 0 or found != int(found):
            raise self.unfit("a whole number from 0 on")
        return int(found)

    def count_or_none(self) -> int | None:
        return self.count() if self.known else None

    def nanoseconds(self) -> int:
        """Whole nanoseconds since 1970: a float would not hold them."""
        if isinstance(self.value, bool) or not isinstance(self.value, int):
            raise self.unfit("whole nanoseconds")
        if not 0 < self.value < LARGEST_NS:
            raise self.unfit("nanoseconds since 1970")
        return self.value

    def text(self) -> str:
        if not isinstance(self.value, str) or not self.value.strip():
            raise self.unfit("a text")
        return printable(self.value)

    def unfit(self, wanted: str) -> Unfit:
        if self.value is None:
            return Unfit(f"{self.place}: {wanted} was wanted, and it is missing or null")
        shown = repr(self.value)
        shown = shown if len(shown) <= SHOWN_CHARS else shown[:SHOWN_CHARS] + "…"
        return Unfit(f"{self.place}: {wanted} was wanted, found {shown}")

    def _below(self, key: str) -> str:
        return f"{self.place}.{key}" if self.place else key


def printable(text: str) -> str:
    """The text with a mark in place of what no terminal and no UTF-8 file can hold."""
    return "".join(c if c.isprintable() else "�" for c in text)


def seconds(measured: Field) -> list[float] | float | None:
    """``{"value": …, "unit": "ms"}`` in seconds: a number, or a list of them; None where it is not there."""
    if not measured.known or not measured["value"].known:
        return None
    unit = measured["unit"].text().lower() if measured["unit"].known else "ms"
    if unit not in TRUE_UNITS:
        raise measured["unit"].unfit(f"one of {', '.join(TRUE_UNITS)}")
    value = measured["value"]
    if isinstance(value.value, list):
        return [each.number() * TRUE_UNITS[unit] for each in value.each()]
    return value.number() * TRUE_UNITS[unit]

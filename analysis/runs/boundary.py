"""The one place where whatever a run directory holds wrong becomes that run's fault, in a sentence.

Files are written by other versions, other programs and half-dead processes; the loaders say what they can
say well. What none of them foresaw ends here, so that it costs this run and not the report of the others.
"""

import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import pyarrow as pa

from greenbench.contract.errors import UserError

LONGEST = 600  # characters of a sentence
Value = TypeVar("Value")
# raised where data is not of the form that was read; a full memory or a person's Ctrl-C is no run's fault
OF_THE_DATA = (
    UserError, OSError, EOFError, zlib.error, pa.ArrowException,
    ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError,
)  # fmt: skip


@dataclass(frozen=True)
class Read(Generic[Value]):
    """What a file holds; where it cannot be read, nothing of it, and a sentence that names file and line."""

    value: Value
    fault: str | None = None


def read(folder: Path, load: Callable[[], Value], nothing: Callable[[], Value]) -> Read[Value]:
    """A file of ``folder``, or nothing and why."""
    try:
        return Read(load())
    except OF_THE_DATA as error:
        return Read(nothing(), sentence(error, folder))


def of_one_run(folder: Path, work: Callable[[], Value], instead: Callable[[str], Value]) -> Value:
    """The work on one run; where what it holds breaks the work, what stands instead, given the reason."""
    try:
        return work()
    except OF_THE_DATA as error:
        return instead(sentence(error, folder))


def sentence(error: Exception, folder: Path) -> str:
    """One line, paths as from ``folder``; an error that nobody worded says that it is none of the known."""
    said = words(str(error).replace(f"{folder}/", ""))
    if isinstance(error, UserError | OSError | pa.ArrowException) and said:
        return said
    return f"what the run holds cannot be analysed ({type(error).__name__}: {said or 'no words'})"


def words(text: str) -> str:
    """Text of a file or library for a sentence: one line, printable, and not endless."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= LONGEST else f"{line[:LONGEST]}…"

"""What is wrong with a request's chunk lists, a bit each: found once, while the lists are at hand.

Reading them again takes as long as the rest of the analysis together. ``analysis.runs.invariants`` words it.
"""

from dataclasses import dataclass
from enum import IntFlag

import numpy as np
import numpy.typing as npt
import pyarrow as pa

Bools = npt.NDArray[np.bool_]
Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
ROUNDING_NS = 1_000_000  # between times that one program took of one event by two clocks
CLOSING_TOKENS = 1  # that can come in the last usage alone, without a chunk


class ChunkMark(IntFlag):
    TIME_FALLS = 1
    OTHER_EDGES = 2  # first and last chunk are not the first and last token
    OTHER_LENGTH = 4  # not as many counts as times
    COUNT_FALLS = 8
    TOO_MANY = 16  # more tokens than were made, or asked for
    TOO_FEW = 32  # of a success


def chunk_marks(rows: pa.Table) -> Ints:
    """The marks of each row of ``requests``, of which the table holds the columns."""
    ns, counts = _lists(rows, "chunk_ns"), _lists(rows, "chunk_tokens")
    success = rows.column("error_type").is_null().to_numpy()
    made, asked = _floats(rows, "output_tokens"), _floats(rows, "max_output_tokens")
    most = np.where(np.isnan(made), asked, made)  # a request that was cut has no total
    told = counts.last()
    both = (ns.lengths > 0) & (counts.lengths > 0)
    with np.errstate(invalid="ignore"):  # comparisons with NaN, what is not known, are false
        edges = np.abs(ns.first() - _floats(rows, "first_token_ns")) > ROUNDING_NS
        edges |= np.abs(ns.last() - _floats(rows, "last_token_ns")) > ROUNDING_NS
        hits = {
            ChunkMark.TIME_FALLS: ns.falls(),
            ChunkMark.OTHER_EDGES: edges,
            ChunkMark.OTHER_LENGTH: both & (ns.lengths != counts.lengths),
            ChunkMark.COUNT_FALLS: counts.falls(),
            ChunkMark.TOO_MANY: told > most,
            ChunkMark.TOO_FEW: success & (told < made - CLOSING_TOKENS),
        }
    marks = np.zeros(rows.num_rows, dtype=np.int64)
    for mark, hit in hits.items():
        marks[hit] |= mark
    return marks


@dataclass(frozen=True)
class _Lists:
    """Lists of numbers laid flat: those of row i are ``values[starts[i]:starts[i] + lengths[i]]``."""

    values: Ints
    starts: Ints
    lengths: Ints

    def falls(self) -> Bools:
        """Rows in which a value is below the one before, or the first below 0."""
        hit = np.zeros(len(self.lengths), dtype=bool)
        if not len(self.values):
            return hit
        filled = self.lengths > 0
        firsts = self.starts[filled]
        down = self.values[1:] < self.values[:-1]
        down[firsts[1:] - 1] = False  # from one row to the next
        at = np.flatnonzero(down) + 1
        hit[np.searchsorted(self.starts + self.lengths, at, side="right")] = True
        hit[filled] |= self.values[firsts] < 0
        return hit

    def first(self) -> Floats:
        return self._at(self.starts)

    def last(self) -> Floats:
        return self._at(self.starts + self.lengths - 1)

    def _at(self, places: Ints) -> Floats:
        values = np.full(len(self.lengths), np.nan)
        filled = self.lengths > 0
        values[filled] = self.values[places[filled]]
        return values


def _lists(rows: pa.Table, name: str) -> _Lists:
    column = rows.column(name).combine_chunks()
    lengths = np.nan_to_num(column.value_lengths().to_numpy(zero_copy_only=False)).astype(np.int64)
    values = column.flatten().to_numpy(zero_copy_only=False)
    return _Lists(values, np.cumsum(lengths) - lengths, lengths)


def _floats(rows: pa.Table, name: str) -> Floats:
    return rows.column(name).to_numpy().astype(float)

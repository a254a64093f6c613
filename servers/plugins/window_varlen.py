"""``sink_window`` on CUDA without copies: PyTorch's varlen attention reads the pages in place.

Two calls a layer: one under a sliding window, which skips pages that nobody sees, and one on the first
tokens for the queries whose window has left them behind. Their outputs are joined by their log-sum-exps,
as exactly as they are stored: no key is in both.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple, Self

import torch

from servers.plugins.cache import split_kv
from servers.plugins.plan import Heads, Plan, Tensors
from servers.plugins.step import Batch
from servers.plugins.varlen_call import Kernel, Sequences, tokens_before_heads, varlen_kernel
from servers.plugins.visibility import Visibility


class Left(NamedTuple):
    """Neighbouring queries of one request whose window has left the same first tokens behind."""

    request: int
    rows: range  # of the query tensor
    keys: int  # of the first tokens that they see by the second call


def left_behind(batch: Batch, window: int, sink: int) -> Iterator[Left]:
    """In order. A query at position p >= window has the first tokens up to p - window behind its window.

    So of each request up to ``sink - 1`` queries stand alone, and all later ones see all of them.
    """
    for request, (row, stop_row) in enumerate(pairwise(batch.query_starts)):
        position = batch.lengths[request] - (stop_row - row)  # of the first query
        row += max(0, window - position)
        while row < stop_row:
            keys = min(sink, batch.lengths[request] - (stop_row - row) - window + 1)
            stop = stop_row if keys == sink else row + 1
            yield Left(request, range(row, stop), keys)
            row = stop


@dataclass(frozen=True, slots=True)
class Sinks:
    """The second call."""

    rows: slice | torch.Tensor  # of the query tensor
    sequences: Sequences

    @classmethod
    def of(cls, kernel: Kernel, batch: Batch, left: list[Left]) -> Self:
        def there(values: list[int]) -> torch.Tensor:
            return torch.tensor(values, dtype=torch.int32).to(batch.table.device, non_blocking=True)

        counts = [len(each.rows) for each in left]
        most = max(each.keys for each in left)
        starts = torch.tensor([0, *counts]).cumsum(0).tolist()
        pages = -(-most // batch.block_size)
        sequences = Sequences.of(
            kernel,
            query_starts=there(starts),
            lengths=there([each.keys for each in left]),
            table=batch.table[:, :pages].index_select(0, there([each.request for each in left])),
            longest_query=max(counts),
            longest=most,
            window=(-1, -1),
        )
        first, last = left[0].rows.start, left[-1].rows.stop
        if last - first == starts[-1]:  # neighbours: a view costs nothing
            return cls(slice(first, last), sequences)
        rows = torch.cat([torch.arange(each.rows.start, each.rows.stop) for each in left])
        return cls(rows.to(batch.table.device, non_blocking=True), sequences)


@dataclass(frozen=True, slots=True)
class WindowAndSinks:
    """The whole step."""

    window: Sequences
    sinks: Sinks | None

    def __call__(self, heads: Heads, at: Tensors) -> None:
        keys, values = split_kv(at.cache)
        sums = self.window.attend(heads.scale, at.output, at.query, keys, values)
        if self.sinks is None:
            return
        rows = self.sinks.rows
        query, recent = at.query[rows], at.output[rows]
        oldest = torch.empty_like(query)
        oldest_sums = self.sinks.sequences.attend(heads.scale, oldest, query, keys, values)
        # softmax over all keys: each part counts by its share of the sum of exponentials
        share = torch.sigmoid(oldest_sums - sums[:, rows]).T.unsqueeze(-1)
        at.output[rows] = torch.lerp(recent.float(), oldest.float(), share).to(recent.dtype)


def plan_window(batch: Batch, visibility: Visibility, device: torch.device) -> Plan:
    """The whole step on CUDA; ``visibility`` has a window."""
    assert visibility.window is not None, "sink_window always has one"
    kernel = varlen_kernel()
    window = Sequences.of(
        kernel,
        query_starts=batch.starts_on_device,
        lengths=batch.lengths_on_device,
        table=batch.table,
        longest_query=max(batch.query_lens),
        longest=max(batch.lengths),
        window=(visibility.window - 1, 0),  # counts tokens before the query's own
    )
    left = list(left_behind(batch, visibility.window, visibility.sink)) if visibility.sink else []
    sinks = Sinks.of(kernel, batch, left) if left else None
    return Plan([WindowAndSinks(window, sinks)], view=tokens_before_heads)

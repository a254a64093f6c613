"""``sdpa`` on CUDA: one call of PyTorch's varlen attention for a step's decodes, one for all the rest."""

from dataclasses import dataclass

import torch

from greenbench.contract.errors import UserError
from servers.plugins.cache import split_kv
from servers.plugins.pieces import Pieces, cut, joining_works
from servers.plugins.plan import Call, Heads, Plan, Tensors
from servers.plugins.step import Batch
from servers.plugins.varlen_call import (
    Kernel,
    Sequences,
    by_group,
    tokens_before_heads,
    varlen_kernel,
)
from servers.plugins.visibility import Visibility


def plan_varlen(batch: Batch, visibility: Visibility, device: torch.device) -> Plan:
    """The whole step on CUDA: one call for the decodes that stand first, one for all the rest."""
    if visibility.sink:
        raise UserError(
            "PyTorch's varlen attention has no attention to first tokens beside a window"
        )
    kernel = varlen_kernel()
    requests = len(batch.lengths)
    decodes = 0
    if (
        visibility.window is None
    ):  # queries of a group stand at one position; a window would count them
        decodes = next((i for i, n in enumerate(batch.query_lens) if n > 1), requests)
    calls: list[Call] = []
    if decodes:
        found = cut(batch.lengths[:decodes], batch.block_size)
        if found is not None and joining_works(kernel, device):
            calls.append(Pieces.of(kernel, found, batch.table[:decodes], batch.block_size))
        else:
            calls.append(Part.of(kernel, batch, 0, decodes, window=(-1, -1), grouped=True))
    if decodes < requests:
        # the left bound counts tokens before the query's own
        left = -1 if visibility.window is None else visibility.window - 1
        calls.append(Part.of(kernel, batch, decodes, requests, window=(left, 0), grouped=False))

    return Plan(calls, view=tokens_before_heads)


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive requests, in one call of the kernel."""

    rows: slice  # of the query tensor
    sequences: Sequences
    grouped: bool

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        batch: Batch,
        first: int,
        stop: int,
        window: tuple[int, int],
        grouped: bool,
    ) -> "Part":
        starts = batch.starts_on_device[first : stop + 1]
        sequences = Sequences.of(
            kernel,
            query_starts=starts - starts[0] if first else starts,
            lengths=batch.lengths_on_device[first:stop],
            table=batch.table[first:stop],
            longest_query=max(batch.query_lens[first:stop]),
            longest=max(batch.lengths[first:stop]),
            window=window,
        )
        return cls(slice(batch.query_starts[first], batch.query_starts[stop]), sequences, grouped)

    def __call__(self, heads: Heads, at: Tensors) -> None:
        query, output = at.query[self.rows], at.output[self.rows]
        keys, values = split_kv(at.cache)
        if not self.grouped or heads.group == 1:
            self.sequences.attend(heads.scale, output, query, keys, values)
            return
        as_queries = by_group(query, heads).flatten(0, 1)
        result = torch.empty_like(as_queries)
        self.sequences.attend(heads.scale, result, as_queries, keys, values, heads.group)
        by_group(output, heads).copy_(result.unflatten(0, (-1, heads.group)))

"""``sdpa`` on CUDA: one call of PyTorch's varlen attention for a step's decodes, one for all the rest."""

from dataclasses import dataclass
from typing import Any

import torch

from greenbench.contract.errors import UserError
from servers.plugins.cache import split_kv
from servers.plugins.pieces import Pieces, cut, joining_works
from servers.plugins.step import Attend, Batch, StepImpl
from servers.plugins.varlen_call import Sequences, by_group, varlen_kernel
from servers.plugins.visibility import Visibility


def plan_varlen(batch: Batch, visibility: Visibility, device: torch.device) -> Attend:
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
    parts: list[Part | Pieces] = []
    if decodes:
        found = cut(batch.lengths[:decodes], batch.block_size)
        if found is not None and joining_works(kernel, device):
            parts.append(Pieces.of(found, batch.table[:decodes], batch.block_size))
        else:
            parts.append(Part.of(batch, 0, decodes, window=(-1, -1), grouped=True))
    if decodes < requests:
        # the left bound counts tokens before the query's own
        left = -1 if visibility.window is None else visibility.window - 1
        parts.append(Part.of(batch, decodes, requests, window=(left, 0), grouped=False))

    def attend(
        impl: StepImpl,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        keys, values = split_kv(cache.transpose(1, 2))  # [blocks, block, kv_heads, D]
        for part in parts:
            part(kernel, impl, query, keys, values, output)

    return attend


@dataclass(frozen=True, slots=True)
class Part:
    """Consecutive requests, in one call of the kernel."""

    rows: slice  # of the query tensor
    sequences: Sequences
    grouped: bool

    @classmethod
    def of(
        cls, batch: Batch, first: int, stop: int, window: tuple[int, int], grouped: bool
    ) -> "Part":
        starts = batch.starts_on_device[first : stop + 1]
        sequences = Sequences.of(
            query_starts=starts - starts[0] if first else starts,
            lengths=batch.lengths_on_device[first:stop],
            table=batch.table[first:stop],
            longest_query=max(batch.query_lens[first:stop]),
            longest=max(batch.lengths[first:stop]),
            window=window,
        )
        return cls(slice(batch.query_starts[first], batch.query_starts[stop]), sequences, grouped)

    def __call__(
        self,
        kernel: Any,
        impl: StepImpl,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        query, output = query[self.rows], output[self.rows]
        if not self.grouped or impl.group == 1:
            self.sequences.attend(kernel, impl.scale, output, query, keys, values)
            return
        heads, group = impl.num_kv_heads, impl.group
        as_queries = by_group(query, heads, group).flatten(0, 1)
        result = torch.empty_like(as_queries)
        self.sequences.attend(kernel, impl.scale, result, as_queries, keys, values, group)
        by_group(output, heads, group).copy_(result.unflatten(0, (-1, group)))

"""PyTorch's variable-length attention over the paged cache on CUDA: no gather, one call a layer.

The operation is ``torch.nn.attention.varlen.varlen_attn_out`` with a block table. That function is a
Python custom op around one ATen operator and costs more host time a call than all else a layer does, so
the operator is called here. Its kernel (the FlashAttention inside PyTorch) reads pages of a multiple of
256 tokens, in half precision.

Left to itself the operator splits long keys over more of the GPU, and over pages it then writes the output
of the first sequence only (PyTorch 2.13, github.com/pytorch/pytorch/issues/194167): under concurrent
requests a served model answered 2 of 50 right. So it may split a call of one sequence, and no other.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from greenbench.errors import UserError
from servers.plugins.cache import split_kv
from servers.plugins.step import Attend, Batch, StepImpl
from servers.plugins.visibility import Visibility

OPERATOR = "aten::_flash_attention_forward_no_dropout_inplace over the block table"
PAGE_MULTIPLE = 256
MAX_HEAD_SIZE = 256
WANTED = {"block_table", "num_splits"}  # arguments of the operator


def varlen_kernel() -> Callable[..., torch.Tensor]:
    """The ATen operator; a PyTorch without it, or whose version takes no block table, raises."""
    packet = getattr(torch.ops.aten, "_flash_attention_forward_no_dropout_inplace", None)
    kernel = packet.default if packet else None
    if kernel is None or not {a.name for a in kernel._schema.arguments} >= WANTED:
        raise UserError(
            f"sdpa on CUDA needs PyTorch's varlen attention with a block table and a choice of splits, which "
            f"PyTorch {torch.__version__} lacks; take sdpa_gather"
        )
    return kernel


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
    parts: list[Part] = []
    if decodes:
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
    query_starts: torch.Tensor  # int32 [requests + 1], counted from the first row
    lengths: torch.Tensor
    key_starts: torch.Tensor  # lengths summed up; the kernel wants it, pages or not
    table: torch.Tensor
    longest_query: int
    longest: int
    window: tuple[int, int]
    grouped: bool
    splits: int | None  # of the keys; None: as many as the operator likes

    @classmethod
    def of(
        cls, batch: Batch, first: int, stop: int, window: tuple[int, int], grouped: bool
    ) -> "Part":
        starts = batch.starts_on_device[first : stop + 1]
        lengths = batch.lengths_on_device[first:stop]
        return cls(
            rows=slice(batch.query_starts[first], batch.query_starts[stop]),
            query_starts=starts - starts[0] if first else starts,
            lengths=lengths,
            key_starts=torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0)),
            table=batch.table[first:stop],
            longest_query=max(batch.query_lens[first:stop]),
            longest=max(batch.lengths[first:stop]),
            window=window,
            grouped=grouped,
            splits=None if stop - first == 1 else 1,
        )

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
            self.run(kernel, impl, output, query, keys, values, self.query_starts, 1)
            return
        # The kernel reads the keys once a query head. A decode's heads of one group all see the same
        # keys, so they go in as that many queries of one head, and the keys are read once a group.
        count, group = len(query), impl.group
        as_queries = query.unflatten(1, (impl.num_kv_heads, group)).transpose(1, 2).flatten(0, 1)
        result = torch.empty_like(as_queries)
        self.run(kernel, impl, result, as_queries, keys, values, self.query_starts * group, group)
        back = result.unflatten(0, (count, group)).transpose(1, 2)
        output.unflatten(1, (impl.num_kv_heads, group)).copy_(back)

    def run(
        self,
        kernel: Any,
        impl: StepImpl,
        output: torch.Tensor,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        query_starts: torch.Tensor,
        queries_a_row: int,
    ) -> None:
        kernel(
            output,
            query,
            keys,
            values,
            query_starts,
            self.key_starts,
            self.longest_query * queries_a_row,
            self.longest,
            0.0,  # dropout
            self.window == (-1, 0),  # causal, aligned at the bottom right
            False,  # no debug mask
            scale=impl.scale,
            window_size_left=self.window[0],
            window_size_right=self.window[1],
            seqused_k=self.lengths,
            block_table=self.table,
            num_splits=self.splits,
        )

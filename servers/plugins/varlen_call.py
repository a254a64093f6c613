"""One call of PyTorch's variable-length attention over pages of the cache, on CUDA.

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

import torch

from greenbench.contract.errors import UserError
from servers.plugins.plan import Heads

OPERATOR = "aten::_flash_attention_forward_no_dropout_inplace over the block table"
WANTED = {"block_table", "num_splits"}  # arguments of the operator
PAGE_MULTIPLE = 256
MAX_HEAD_SIZE = 256

Kernel = Callable[..., torch.Tensor]  # the operator's own arguments; returns log-sum-exps


def varlen_kernel() -> Kernel:
    """The ATen operator; a PyTorch without it, or whose version takes no block table, raises."""
    packet = getattr(torch.ops.aten, "_flash_attention_forward_no_dropout_inplace", None)
    kernel = packet.default if packet else None
    if kernel is None or not {a.name for a in kernel._schema.arguments} >= WANTED:
        raise UserError(
            f"sdpa on CUDA needs PyTorch's varlen attention with a block table and a choice of splits, "
            f"which PyTorch {torch.__version__} lacks; take sdpa_gather"
        )
    return kernel


def tokens_before_heads(cache: torch.Tensor) -> torch.Tensor:
    """The cache [blocks, kv_heads, block, 2 D] viewed as [blocks, block, kv_heads, 2 D], for the kernel."""
    return cache.transpose(1, 2)


def by_group(query: torch.Tensor, heads: Heads) -> torch.Tensor:
    """[rows, heads, D] viewed as [rows, group, kv_heads, D]: a row's heads as so many queries of one head.

    The kernel reads the keys once a query head. A decode's heads of one group all see the same keys, so
    they go in this way, and the keys are read once a group.
    """
    return query.unflatten(1, (heads.num_kv_heads, heads.group)).transpose(1, 2)


@dataclass(frozen=True, slots=True)
class Sequences:
    """What one call computes: queries of some sequences on the keys in their pages."""

    kernel: Kernel
    # by queries a row, made when first asked for: int32 [sequences + 1], from the call's first row
    starts_of: dict[int, torch.Tensor]
    lengths: torch.Tensor  # int32 [sequences], keys of each
    key_starts: torch.Tensor  # lengths summed up; the kernel wants it, pages or not
    table: torch.Tensor  # int32 [sequences, pages]
    longest_query: int
    longest: int
    window: tuple[int, int]  # keys seen before and after a query's own; −1: no bound

    @classmethod
    def of(
        cls,
        kernel: Kernel,
        query_starts: torch.Tensor,
        lengths: torch.Tensor,
        table: torch.Tensor,
        longest_query: int,
        longest: int,
        window: tuple[int, int],
    ) -> "Sequences":
        key_starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
        starts_of = {1: query_starts}
        return cls(kernel, starts_of, lengths, key_starts, table, longest_query, longest, window)

    def attend(
        self,
        scale: float,
        output: torch.Tensor,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        queries_a_row: int = 1,
    ) -> torch.Tensor:
        """Write ``output`` [rows, heads, D]; returns the log-sum-exps [heads, rows], float32.

        query like output; keys, values [blocks, block, kv_heads, D]. With ``queries_a_row`` each row
        that ``of``'s ``query_starts`` counts stands for so many.
        """
        if queries_a_row not in self.starts_of:
            self.starts_of[queries_a_row] = self.starts_of[1] * queries_a_row
        return self.kernel(
            output,
            query,
            keys,
            values,
            self.starts_of[queries_a_row],
            self.key_starts,
            self.longest_query * queries_a_row,
            self.longest,
            0.0,  # dropout
            self.window == (-1, 0),  # causal, aligned at the bottom right
            False,  # no debug mask
            scale=scale,
            window_size_left=self.window[0],
            window_size_right=self.window[1],
            seqused_k=self.lengths,
            block_table=self.table,
            num_splits=None if len(self.lengths) == 1 else 1,
        )

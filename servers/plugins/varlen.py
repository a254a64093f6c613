"""PyTorch's variable-length attention over the paged cache on CUDA: no gather, one call a layer.

``torch.nn.attention.varlen.varlen_attn_out`` runs the FlashAttention kernel inside PyTorch with a block
table. That kernel reads pages of a multiple of 256 tokens, in half precision.
"""

from typing import Any

import torch

from greenbench.errors import UserError
from servers.plugins.cache import split_kv
from servers.plugins.step import Attend, Batch, StepImpl
from servers.plugins.visibility import Visibility

OPERATOR = "torch.nn.attention.varlen.varlen_attn_out over the block table"
PAGE_MULTIPLE = 256
MAX_HEAD_SIZE = 256


def varlen_kernel() -> Any:
    """PyTorch's function; a PyTorch without it, or whose version takes no block table, raises."""
    try:
        from torch.nn.attention.varlen import varlen_attn_out
    except ImportError:
        varlen_attn_out = None
    if varlen_attn_out is None or "block_table" not in varlen_attn_out.__kwdefaults__:
        raise UserError(
            f"sdpa on CUDA needs PyTorch's varlen_attn_out with a block table, which PyTorch "
            f"{torch.__version__} lacks; take sdpa_gather"
        )
    return varlen_attn_out


def plan_varlen(batch: Batch, visibility: Visibility, device: torch.device) -> Attend:
    """The whole step on CUDA: prefill, chunks and decodes in the same call."""
    if visibility.sink:
        raise UserError(
            "PyTorch's varlen attention has no attention to first tokens beside a window"
        )
    kernel = varlen_kernel()
    # the left bound counts tokens before the query's own
    window = (-1 if visibility.window is None else visibility.window - 1, 0)
    lengths = batch.lengths_on_device
    key_starts = torch.nn.functional.pad(lengths.cumsum(0, dtype=torch.int32), (1, 0))
    longest_query, longest = max(batch.query_lens), max(batch.lengths)

    def attend(
        impl: StepImpl,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        keys, values = split_kv(cache.transpose(1, 2))  # [blocks, block, kv_heads, D]
        kernel(
            output,
            query,
            keys,
            values,
            batch.starts_on_device,
            key_starts,
            longest_query,
            longest,
            scale=impl.scale,
            window_size=window,
            enable_gqa=impl.group > 1,
            seqused_k=lengths,
            block_table=batch.table,
        )

    return attend

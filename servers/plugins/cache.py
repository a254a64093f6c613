"""Reading and writing vLLM's paged KV cache: ``[blocks, kv_heads, block, 2 D]``, keys in the first D.

The strides depend on the layout vLLM chose; nothing here assumes one.
"""

from dataclasses import dataclass

import torch


def cache_write(slots: torch.Tensor, block_size: int) -> "ScatterWrite | KernelWrite":
    """How to store a step's tokens, from vLLM's slot mapping [tokens]; -1 marks padding to leave out."""
    if slots.is_cuda:
        return KernelWrite(slots, torch.ones((), device=slots.device))
    slots = slots.long()
    rows = None
    if (slots < 0).any():
        rows = (slots >= 0).nonzero().squeeze(1)
        slots = slots[rows]
    return ScatterWrite(slots // block_size, slots % block_size, rows)


@dataclass(frozen=True, slots=True)
class ScatterWrite:
    """Where a step's tokens go, worked out once for all layers."""

    blocks: torch.Tensor  # int64 [written tokens]
    offsets: torch.Tensor  # int64 [written tokens]
    rows: torch.Tensor | None  # of the key tensor, when some of its rows are padding

    def __call__(self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor) -> None:
        """Store key and value [tokens, kv_heads, D] into ``cache``."""
        fresh = torch.cat((key, value), dim=-1)
        if self.rows is not None:
            fresh = fresh[self.rows]
        cache[self.blocks, :, self.offsets] = fresh


@dataclass(frozen=True, slots=True)
class KernelWrite:
    """vLLM's own CUDA kernel, which leaves padding out without the host knowing how much there is."""

    slots: torch.Tensor
    unit_scale: torch.Tensor  # the kernel wants scales; an unquantised cache does not use them

    def __call__(self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor) -> None:
        from vllm._custom_ops import reshape_and_cache_flash

        keys, values = split_kv(cache.transpose(1, 2))
        reshape_and_cache_flash(
            key, value, keys, values, self.slots, "auto", self.unit_scale, self.unit_scale
        )


def split_kv(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [..., D] as views of ``pages`` [..., 2 D]."""
    keys, values = pages.chunk(2, dim=-1)
    return keys, values


def gather_pages(cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Copy whole pages into [kv_heads, blocks x block, 2 D]; ``blocks`` is int [n]."""
    if cache.is_cuda:
        return cache.transpose(0, 1).index_select(1, blocks).flatten(1, 2)
    # along any dimension but the first, PyTorch's index_select on a CPU copies its whole input: the pool
    return cache.index_select(0, blocks).transpose(0, 1).flatten(1, 2)

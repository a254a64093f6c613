"""Reading and writing vLLM's paged KV cache: ``[blocks, kv_heads, block, 2 D]``, keys in the first D.

The strides depend on the layout vLLM chose; nothing here assumes one.
"""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class CacheWrite:
    """Where a step's tokens go, worked out once for all layers."""

    blocks: torch.Tensor  # int64 [written tokens]
    offsets: torch.Tensor  # int64 [written tokens]
    rows: torch.Tensor | None  # of the key tensor, when some of its rows are padding

    @classmethod
    def of(cls, slots: torch.Tensor, block_size: int) -> "CacheWrite":
        """From vLLM's slot mapping [tokens], in which -1 marks padding that must not be written."""
        slots = slots.long()
        rows = None
        if slots.device.type == "cpu":
            if (slots < 0).any():
                rows = (slots >= 0).nonzero().squeeze(1)
                slots = slots[rows]
        else:
            # How many are padding is not known on the host. Each padding row repeats the step's first
            # write; where all are padding (a dummy run) that is a finite token in vLLM's null block.
            first = torch.zeros_like(slots)
            first += (slots >= 0).int().argmax()
            rows = torch.where(slots >= 0, torch.arange(len(slots), device=slots.device), first)
            slots = slots[rows].clamp_(min=0)
        return cls(
            blocks=torch.div(slots, block_size, rounding_mode="floor"),
            offsets=slots % block_size,
            rows=rows,
        )

    def __call__(self, key: torch.Tensor, value: torch.Tensor, cache: torch.Tensor) -> None:
        """Store key and value [tokens, kv_heads, D] into ``cache``."""
        fresh = torch.cat((key, value), dim=-1)
        if self.rows is not None:
            fresh = fresh[self.rows]
        cache[self.blocks, :, self.offsets] = fresh


def split_kv(pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Keys and values [..., D] as views of ``pages`` [..., 2 D]."""
    keys, values = pages.chunk(2, dim=-1)
    return keys, values


def gather_pages(cache: torch.Tensor, blocks: torch.Tensor) -> torch.Tensor:
    """Copy whole pages into [kv_heads, blocks x block, 2 D]; ``blocks`` is int [n]."""
    return cache.transpose(0, 1).index_select(1, blocks).flatten(1, 2)

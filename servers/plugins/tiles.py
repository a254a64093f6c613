"""Attention over gathered pages: the portable path, which needs nothing but PyTorch's public SDPA.

Single-token queries of all requests go into one padded call; longer ones go tile by tile with a mask.
"""

import math
from contextlib import nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from servers.plugins.cache import gather_pages, split_kv
from servers.plugins.plan import Call, Heads, Plan, Tensors
from servers.plugins.step import Batch
from servers.plugins.visibility import Visibility

TILE_ROWS = 512  # queries a tile: bounds the mask to 512 x keys
QUERY_BLOCK = 32  # of PyTorch's memory-efficient CUDA kernels, or a divisor of it


def page_numbers(spans: list[tuple[int, int]], block_size: int) -> list[int]:
    """Pages of a sequence, in order, that hold any position of ``spans``."""
    numbers: list[int] = []
    for start, stop in spans:
        first = start // block_size
        first += bool(numbers) and first == numbers[-1]  # two spans may meet in one page
        numbers += range(first, -(-stop // block_size))
    return numbers


def positions_in(pages: torch.Tensor, size: int) -> torch.Tensor:
    """Positions [..., pages x size] of all tokens of ``pages`` [..., pages], by their numbers."""
    return (pages.unsqueeze(-1) * size + torch.arange(size, device=pages.device)).flatten(-2)


def masked_attention(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    mask: torch.Tensor,
    scale: float,
) -> torch.Tensor:
    """PyTorch's SDPA under a mask, for ``query`` [..., queries, D] and ``mask`` [..., queries, keys].

    Its memory-efficient CUDA kernel takes queries in blocks of 64, beyond a head size of 128 of 32, and gives
    a wrong answer to one that is alone in the last block where heads share their keys by a stride of 0
    (pytorch issue 191937). That one goes by itself. In float32, where it is what other kernels are held to,
    the definition is computed on CUDA and no fused kernel.
    """
    if query.shape[-2] % QUERY_BLOCK == 1 and query.shape[-2] > 1:
        most, last = (
            masked_attention(query[..., rows, :], keys, values, mask[..., rows, :], scale)
            for rows in (slice(-1), slice(-1, None))
        )
        return torch.cat((most, last), dim=-2)
    exact = query.is_cuda and query.dtype == torch.float32
    with sdpa_kernel(SDPBackend.MATH) if exact else nullcontext():
        return F.scaled_dot_product_attention(query, keys, values, attn_mask=mask, scale=scale)


@dataclass(frozen=True, slots=True)
class Tile:
    """Some consecutive queries of one request, and the pages whose keys they may see."""

    row: int
    stop_row: int
    blocks: torch.Tensor  # [pages]
    num_keys: int  # what lies beyond in the last page is not this request's, or not yet written
    mask: torch.Tensor  # bool [queries, pages x block], False beyond num_keys

    def __call__(self, heads: Heads, at: Tensors) -> None:
        pages = gather_pages(at.cache, self.blocks)
        pages[:, self.num_keys :] = 0  # may be NaN, and 0 x NaN is NaN
        keys, values = split_kv(pages)
        result = masked_attention(
            by_kv_head(at.query[self.row : self.stop_row], heads),
            per_query_head(keys, heads),
            per_query_head(values, heads),
            self.mask,
            heads.scale,
        )
        at.output[self.row : self.stop_row] = tokens_first(result)


def grouped(query: torch.Tensor, heads: Heads) -> torch.Tensor:
    """[tokens, heads, D] viewed as [tokens, kv_heads, group, D]."""
    return query.unflatten(1, (heads.num_kv_heads, heads.group))


def by_kv_head(query: torch.Tensor, heads: Heads) -> torch.Tensor:
    """[tokens, heads, D] viewed as [kv_heads, group, tokens, D]."""
    return grouped(query, heads).permute(1, 2, 0, 3)


def per_query_head(keys: torch.Tensor, heads: Heads) -> torch.Tensor:
    """[kv_heads, keys, D] viewed as [kv_heads, group, keys, D]; the group shares memory."""
    return keys.unsqueeze(1).expand(-1, heads.group, -1, -1)


def tokens_first(result: torch.Tensor) -> torch.Tensor:
    """[kv_heads, group, tokens, D] as [tokens, heads, D]."""
    return result.permute(2, 0, 1, 3).flatten(1, 2)


def plan_tiles(
    batch: Batch, request: int, visibility: Visibility, device: torch.device
) -> list[Tile]:
    """Tiles for all queries of one request of ``batch``."""
    row, stop_row = batch.query_starts[request : request + 2]
    length, size = batch.lengths[request], batch.block_size
    shift = length - stop_row  # position of a query = its row + shift
    tiles: list[Tile] = []
    for first in range(row, stop_row, TILE_ROWS):
        stop = min(first + TILE_ROWS, stop_row)
        pages = page_numbers(visibility.spans(first + shift, stop + shift), size)
        page_index = torch.tensor(pages, device=device)
        positions = positions_in(page_index, size)
        num_keys = len(pages) * size - ((pages[-1] + 1) * size - (stop + shift))
        tiles.append(
            Tile(
                row=first,
                stop_row=stop,
                blocks=batch.table[request].index_select(0, page_index),
                num_keys=num_keys,
                mask=visibility.mask(
                    torch.arange(first + shift, stop + shift, device=device), positions
                ),
            )
        )
    return tiles


@dataclass(frozen=True, slots=True)
class PaddedDecode:
    """All single-token queries of a step in one call, keys padded to the most pages any of them sees."""

    rows: slice | torch.Tensor  # [requests] of the query tensor
    blocks: torch.Tensor  # [requests x pages]
    mask: torch.Tensor  # bool [requests, pages x block]

    def __call__(self, heads: Heads, at: Tensors) -> None:
        pages = gather_pages(at.cache, self.blocks).unflatten(1, (len(self.mask), -1))
        # what a query does not see may be stale, even NaN, and 0 x NaN is NaN
        pages.masked_fill_(~self.mask[:, :, None], 0)
        keys, values = split_kv(pages.transpose(0, 1))
        result = masked_attention(
            grouped(at.query[self.rows], heads),
            keys,
            values,
            self.mask[:, None, None, :],
            heads.scale,
        )
        at.output[self.rows] = result.flatten(1, 2)


def plan_padded_decode(
    batch: Batch, requests: list[int], visibility: Visibility, device: torch.device
) -> PaddedDecode:
    """One padded call for ``requests``, each of which has one query."""
    size = batch.block_size
    last = [batch.lengths[request] - 1 for request in requests]
    own_page = [at // size for at in last]
    sinks, first_page = 0, [0] * len(requests)
    if visibility.window is not None:
        sinks = math.ceil(visibility.sink / size)
        starts = [max(0, at - visibility.window + 1) for at in last]
        first_page = [max(sinks, start // size) for start in starts]
    widest = max(own - first for own, first in zip(own_page, first_page, strict=True)) + 1

    def there(values: list[int]) -> torch.Tensor:
        return torch.tensor(values).unsqueeze(1).to(device, non_blocking=True)

    oldest = torch.arange(sinks, device=device).expand(len(requests), -1)
    newest = there(first_page) + torch.arange(max(0, widest), device=device)
    numbers = torch.cat((oldest, newest), dim=1)
    # a page after the query's own is read as that one, at positions that the query cannot see
    source = numbers.minimum(there(own_page))
    tables = batch.table[torch.tensor(requests, device=device)]
    return PaddedDecode(
        rows=batch.rows(requests),
        blocks=tables.gather(1, source).flatten(),
        mask=visibility.mask(there(last), positions_in(numbers, size)).squeeze(1),
    )


def plan_gather(batch: Batch, visibility: Visibility, device: torch.device) -> Plan:
    """The whole step over gathered pages."""
    single, longer = batch.by_length()
    calls: list[Call] = []
    for request in longer:
        calls += plan_tiles(batch, request, visibility, device)
    if single:
        calls.append(plan_padded_decode(batch, single, visibility, device))
    return Plan(calls)

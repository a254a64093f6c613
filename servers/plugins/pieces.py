"""Decodes of several long contexts, cut into pieces so that the whole GPU has work.

The kernel gives each sequence one unit of the GPU a key head: two requests of 8 key heads use 16 units of
132. It splits keys itself for one sequence only (varlen_call.py). So pages of a request go in as several
shorter sequences, and what these give is joined by their log-sum-exps, as exactly as the parts are stored.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from vllm.logger import init_logger

from servers.plugins.varlen_call import PAGE_MULTIPLE, Sequences

logger = init_logger("vllm.plugins.greenbench")

WANTED_PIECES = 32  # of a step: with 8 key heads two of them for each unit of an H100
PIECE_TOKENS = 4096  # below it joining costs more than more units give
TOLERANCE = 0.02  # of the check, in bfloat16


@dataclass(frozen=True, slots=True)
class Cut:
    """Pieces in the order of their requests."""

    owners: list[int]  # the request of each piece
    first_pages: list[int]  # of the request's own
    lengths: list[int]  # tokens


def cut(lengths: list[int], page: int, piece_tokens: int = PIECE_TOKENS) -> Cut | None:
    """Even pieces of whole pages; None where one a request is enough, and for one request."""
    span = max(piece_tokens, math.ceil(sum(lengths) / WANTED_PIECES))
    span = math.ceil(span / page) * page
    if len(lengths) < 2 or max(lengths) <= span:
        return None
    pieces = [
        (owner, start // page, min(span, length - start))
        for owner, length in enumerate(lengths)
        for start in range(0, length, span)
    ]
    return Cut(*(list(column) for column in zip(*pieces, strict=True)))


@dataclass(frozen=True, slots=True)
class Pieces:
    """The first requests of a step, one query each, in one call on pieces of their contexts."""

    count: int  # requests
    owners: torch.Tensor  # int64 [pieces]
    sequences: Sequences
    slots: torch.Tensor  # int64 [requests, most pieces of one]: which piece; any where hidden
    hidden: torch.Tensor  # bool, like slots

    @classmethod
    def of(cls, found: Cut, table: torch.Tensor, page: int) -> "Pieces":
        """``table`` int32 [requests, pages] on the device; entries past a length are never read."""
        device = table.device

        def there(values: list[Any], dtype: torch.dtype = torch.int64) -> torch.Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        owners = there(found.owners)
        pages = math.ceil(max(found.lengths) / page)
        columns = there(found.first_pages)[:, None] + torch.arange(pages, device=device)
        own = table[owners[:, None], columns.clamp(max=table.shape[1] - 1)]
        requests = len(table)
        each = [found.owners.count(owner) for owner in range(requests)]
        starts = [sum(each[:owner]) for owner in range(requests)]
        most = max(each)
        slots = [
            [start + min(at, n - 1) for at in range(most)]
            for start, n in zip(starts, each, strict=True)
        ]
        sequences = Sequences.of(
            query_starts=torch.arange(len(found.owners) + 1, dtype=torch.int32, device=device),
            lengths=there(found.lengths, torch.int32),
            table=own.contiguous(),
            longest_query=1,
            longest=max(found.lengths),
            window=(-1, -1),
        )
        hidden = there([[at >= n for at in range(most)] for n in each], torch.bool)
        return cls(requests, owners, sequences, there(slots), hidden)

    def __call__(
        self,
        kernel: Callable[..., torch.Tensor],
        impl: Any,
        query: torch.Tensor,
        keys: torch.Tensor,
        values: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        heads, group, pieces = impl.num_kv_heads, impl.group, len(self.owners)
        query, output = query[: self.count], output[: self.count]
        # the heads of a group see the same keys: they go in as that many queries of one head
        rows = query.unflatten(1, (heads, group))[self.owners].transpose(1, 2).flatten(0, 1)
        parts = torch.empty_like(rows)
        lse = self.sequences.attend(kernel, impl.scale, parts, rows, keys, values, group)
        lse = lse.view(heads, pieces, group).permute(1, 2, 0)[self.slots]
        weights = lse.masked_fill(self.hidden[:, :, None, None], -torch.inf).softmax(1)
        parts = parts.unflatten(0, (pieces, group))[self.slots]  # [requests, most, group, heads, D]
        joined = (parts * weights.unsqueeze(-1)).sum(1).transpose(1, 2)
        output.unflatten(1, (heads, group)).copy_(joined)


@cache
def joining_works(kernel: Callable[..., torch.Tensor], device: torch.device) -> bool:
    """Whether pieces give what whole sequences give, by this very operator. Asked once a process.

    The form of its log-sum-exps is documented for one PyTorch; another may return them otherwise.
    """
    lengths, impl = [700, 300], SimpleNamespace(num_kv_heads=2, group=2, scale=0.125)
    shape = (4, PAGE_MULTIPLE, impl.num_kv_heads, 64)
    made = torch.Generator().manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=made).to(device, torch.bfloat16)

    # sharp queries: pieces then differ in weight, and a wrong weight shows
    query, keys, values = 3 * random(2, 4, 64), random(*shape), random(*shape)
    table = torch.tensor([[0, 1, 2], [3, 0, 0]], dtype=torch.int32, device=device)
    results = []
    for found in (Cut([0, 1], [0, 0], lengths), cut(lengths, PAGE_MULTIPLE, PAGE_MULTIPLE)):
        output = torch.full_like(query, torch.nan)
        try:
            Pieces.of(found, table, PAGE_MULTIPLE)(kernel, impl, query, keys, values, output)
        except RuntimeError:  # log-sum-exps of another shape
            break
        results.append(output.float())
    works = len(results) == 2 and bool((results[0] - results[1]).abs().max() < TOLERANCE)
    if not works:
        logger.warning_once(
            "greenbench: PyTorch %s returns log-sum-exps that pieces cannot be joined by; decodes of "
            "several long contexts are computed whole, and slowly",
            torch.__version__,
        )
    return works

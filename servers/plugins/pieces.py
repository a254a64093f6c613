"""Decodes of several long contexts, cut into pieces so that the whole GPU has work.

The kernel gives each sequence one unit of the GPU a key head: two requests of 8 key heads use 16 units of
132. It splits keys itself for one sequence only (varlen_call.py). So pages of a request go in as several
shorter sequences, and what these give is joined by their log-sum-exps, as exactly as the parts are stored.
"""

import math
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import torch
from vllm.logger import init_logger

from servers.plugins.cache import split_kv
from servers.plugins.plan import Heads, Tensors
from servers.plugins.varlen_call import PAGE_MULTIPLE, Kernel, Sequences, by_group

logger = init_logger("vllm.plugins.greenbench")

WANTED_PIECES = 32  # of a step: with 8 key heads two of them for each unit of an H100
PIECE_TOKENS = 512  # the least of one
WORTH_TOKENS = 1536  # where no context is longer, joining costs more than it saves
TOLERANCE = 0.02  # of the check, in bfloat16


@dataclass(frozen=True, slots=True)
class Cut:
    """Every request in ``most`` pieces of ``span`` tokens, its last shorter and those past it empty."""

    span: int  # tokens, whole pages
    most: int
    lengths: list[int]  # tokens of each piece, request by request


def cut(
    lengths: list[int],
    page: int,
    piece_tokens: int = PIECE_TOKENS,
    worth_tokens: int = WORTH_TOKENS,
) -> Cut | None:
    """None for one request, where one piece a request is enough, and where more would not pay."""
    span = max(piece_tokens, math.ceil(sum(lengths) / WANTED_PIECES))
    span = math.ceil(span / page) * page
    if len(lengths) < 2 or max(lengths) <= max(span, worth_tokens):
        return None
    most = math.ceil(max(lengths) / span)
    ends = [min(span, max(0, n - at * span)) for n in lengths for at in range(most)]
    return Cut(span, most, ends)


@dataclass(frozen=True, slots=True)
class Pieces:
    """The first requests of a step, one query each, in one call on pieces of their contexts."""

    count: int  # requests
    most: int  # pieces of one
    sequences: Sequences
    empty: torch.Tensor | None  # bool [requests, most, 1, 1]; None where no piece is

    @classmethod
    def of(cls, kernel: Kernel, found: Cut, table: torch.Tensor, page: int) -> "Pieces":
        """``table`` int32 [requests, pages] on the device; entries past a length are never read."""
        device, requests, pages = table.device, len(table), found.span // page
        lengths = torch.tensor(found.lengths, dtype=torch.int32).to(device, non_blocking=True)
        columns = torch.arange(found.most * pages, device=device).clamp(max=table.shape[1] - 1)
        sequences = Sequences.of(
            kernel,
            query_starts=torch.arange(len(found.lengths) + 1, dtype=torch.int32, device=device),
            lengths=lengths,
            table=table.index_select(1, columns).view(requests * found.most, pages),
            longest_query=1,
            longest=max(found.lengths),
            window=(-1, -1),
        )
        empty = None
        if min(found.lengths) == 0:
            empty = (lengths == 0).view(requests, found.most, 1, 1)
        return cls(requests, found.most, sequences, empty)

    def __call__(self, heads: Heads, at: Tensors) -> None:
        count, most, group = self.count, self.most, heads.group
        keys, values = split_kv(at.cache)
        query = by_group(at.query[:count], heads).unsqueeze(1)
        rows = query.expand(-1, most, -1, -1, -1).flatten(0, 2)
        # what an empty piece leaves there has no weight, and must be a number
        parts = torch.empty_like(rows) if self.empty is None else torch.zeros_like(rows)
        lse = self.sequences.attend(heads.scale, parts, rows, keys, values, group)
        lse = lse.view(heads.num_kv_heads, count, most, group).permute(1, 2, 3, 0)
        if self.empty is not None:
            lse = lse.masked_fill(self.empty, -torch.inf)
        parts = parts.view(count, most, group, heads.num_kv_heads, -1)
        joined = (parts * lse.softmax(1).unsqueeze(-1)).sum(1)
        by_group(at.output[:count], heads).copy_(joined)


class Sample(NamedTuple):
    """The heads that ``joining_works`` tries."""

    num_kv_heads: int = 2
    group: int = 2
    scale: float = 0.125


@cache
def joining_works(kernel: Kernel, device: torch.device) -> bool:
    """Whether pieces give what whole sequences give, by this very operator. Asked once a process.

    The form of its log-sum-exps is documented for one PyTorch; another may return them otherwise.
    """
    page, heads = PAGE_MULTIPLE, Sample()
    whole = Cut(span=3 * page, most=1, lengths=[700, 300])
    pieces = cut(whole.lengths, page, page, worth_tokens=0)
    assert pieces is not None, "700 tokens are more than a page"
    made = torch.Generator().manual_seed(1)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=made).to(device, torch.bfloat16)

    # sharp queries: pieces then differ in weight, and a wrong weight shows
    query = 3 * random(2, heads.num_kv_heads * heads.group, 64)
    pages = random(4, page, heads.num_kv_heads, 2 * 64)
    table = torch.tensor([[0, 1, 2], [3, 0, 0]], dtype=torch.int32, device=device)
    results = []
    for found in (whole, pieces):
        at = Tensors(query, query, query, pages, torch.full_like(query, torch.nan))
        try:
            Pieces.of(kernel, found, table, page)(heads, at)
        except RuntimeError:  # log-sum-exps of another shape
            break
        results.append(at.output.float())
    works = len(results) == 2 and bool((results[0] - results[1]).abs().max() < TOLERANCE)
    if not works:
        logger.warning_once(
            "greenbench: PyTorch %s returns log-sum-exps that pieces cannot be joined by; decodes of "
            "several long contexts are computed whole, and slowly",
            torch.__version__,
        )
    return works

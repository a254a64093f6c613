"""Random paged caches and a dense float64 reference, for the tests of our attention classes."""

from dataclasses import dataclass, replace

import torch
from vllm.v1.attention.backend import CommonAttentionMetadata

from servers.plugins.cache import cache_write
from servers.plugins.step import Batch, StepImpl, StepMetadata
from servers.plugins.visibility import Visibility

NAN = float("nan")

torch.set_num_threads(
    1
)  # the cases are tiny: threads waiting for each other cost more than they do


@dataclass
class Case:
    """Requests as (cached tokens, new tokens), and everything vLLM would hand to a layer for them."""

    requests: list[tuple[int, int]]
    query: torch.Tensor
    key: torch.Tensor  # this step's, [tokens + padding, kv_heads, D]
    value: torch.Tensor
    cache: torch.Tensor  # holds the cached tokens, NaN everywhere else
    common: CommonAttentionMetadata
    history: list[
        tuple[torch.Tensor, torch.Tensor]
    ]  # per request: all keys, values [length, kv_heads, D]
    scale: float

    @property
    def tokens(self) -> int:
        return sum(new for _, new in self.requests)


def make_case(
    requests: list[tuple[int, int]],
    *,
    seed: int,
    dtype: torch.dtype,
    kv_heads: int = 2,
    group: int = 2,
    head_size: int = 32,
    block_size: int = 16,
    layout: str = "HND",
    padding: int = 0,
    contiguous: bool = False,
    shared_blocks: int = 0,
) -> Case:
    """A cache whose live slots alone are finite. Block 0 is vLLM's null block and is never used.

    ``contiguous``: block numbers ascend without gaps, as a fresh server gives them. ``shared_blocks``:
    so many first blocks are the same for all requests that have them full before this step (a prefix
    cache hit).
    """
    rng = torch.Generator().manual_seed(seed)
    needed = [-(-(past + new) // block_size) for past, new in requests]
    num_blocks = 1 + sum(needed) + 5
    order = (
        torch.arange(num_blocks - 1)
        if contiguous
        else torch.randperm(num_blocks - 1, generator=rng)
    )
    free = iter((order + 1).tolist())
    width = max(needed) + 2
    table = torch.full((len(requests), width), -1, dtype=torch.int32)
    for row, count in enumerate(needed):
        table[row, :count] = torch.tensor([next(free) for _ in range(count)])
    shape = (num_blocks, kv_heads, block_size, 2 * head_size)
    if layout == "HND":
        cache = torch.full(shape, NAN, dtype=dtype)
    else:
        nhd = (num_blocks, block_size, kv_heads, 2 * head_size)
        cache = torch.full(nhd, NAN, dtype=dtype).transpose(1, 2)

    def random(*size: int) -> torch.Tensor:
        return torch.randn(*size, generator=rng, dtype=torch.float64).to(dtype)

    lengths = [past + new for past, new in requests]
    history = [(random(n, kv_heads, head_size), random(n, kv_heads, head_size)) for n in lengths]
    for row, (past, _) in enumerate(requests):
        for page in range(1, 1 + min(shared_blocks, past // block_size)):
            page -= 1
            if requests[0][0] // block_size > page:
                span = slice(page * block_size, (page + 1) * block_size)
                for mine, first in zip(history[row], history[0], strict=True):
                    mine[span] = first[span]
                table[row, page] = table[0, page]
    slots: list[int] = []
    for row, (past, new) in enumerate(requests):
        for position in range(past + new):
            block, offset = int(table[row, position // block_size]), position % block_size
            if position < past:
                cache[block, :, offset] = torch.cat(
                    (history[row][0][position], history[row][1][position]), -1
                )
            else:
                slots.append(block * block_size + offset)
    fresh = [
        torch.cat([whole[side][past:] for whole, (past, _) in zip(history, requests, strict=True)])
        for side in (0, 1)
    ]
    pad = torch.full((padding, kv_heads, head_size), NAN, dtype=dtype)
    starts = torch.tensor([0, *[new for _, new in requests]], dtype=torch.int32).cumsum(0).int()
    tokens = int(starts[-1])
    lens = torch.tensor(lengths, dtype=torch.int32)
    return Case(
        requests=requests,
        query=torch.cat(
            (
                random(tokens, kv_heads * group, head_size),
                torch.full((padding, kv_heads * group, head_size), NAN, dtype=dtype),
            )
        ),
        key=torch.cat((fresh[0], pad)),
        value=torch.cat((fresh[1], pad)),
        cache=cache,
        common=CommonAttentionMetadata(
            query_start_loc=starts,
            query_start_loc_cpu=starts,
            seq_lens=lens,
            seq_lens_cpu_upper_bound=lens,
            num_reqs=len(requests),
            num_actual_tokens=tokens,
            max_query_len=max(new for _, new in requests),
            max_seq_len=max(lengths),
            block_table_tensor=table,
            slot_mapping=torch.tensor(slots + [-1] * padding, dtype=torch.int64),
        ),
        history=history,
        scale=head_size**-0.5,
    )


def to_device(case: Case, device: str) -> Case:
    """The same case with the tensors where a server on ``device`` has them; host copies stay."""
    common = case.common.replace(
        query_start_loc=case.common.query_start_loc.to(device),
        seq_lens=case.common.seq_lens.to(device),
        block_table_tensor=case.common.block_table_tensor.to(device),
        slot_mapping=case.common.slot_mapping.to(device),
    )
    strides = case.cache.stride()
    cache = torch.empty_strided(case.cache.shape, strides, dtype=case.cache.dtype, device=device)
    return replace(
        case,
        query=case.query.to(device),
        key=case.key.to(device),
        value=case.value.to(device),
        cache=cache.copy_(case.cache),
        common=common,
    )


def make_impl(cls: type[StepImpl], case: Case, **arguments: object) -> StepImpl:
    heads, head_size = case.query.shape[1:]
    return cls(heads, head_size, case.scale, case.key.shape[1], **arguments)


def run(impl: StepImpl, planner: object, case: Case) -> torch.Tensor:
    """One layer's output [tokens, heads, D] on the host, through the same calls as vLLM makes."""
    block_size, device = case.cache.shape[2], case.query.device
    batch = Batch.of(case.common, block_size)
    metadata = StepMetadata(
        num_tokens=case.tokens,
        write=cache_write(case.common.slot_mapping[: case.tokens], block_size),
        plans={impl.visibility: planner(batch, impl.visibility, device)},
    )
    output = torch.full_like(case.query, 7.0)
    impl.forward(None, case.query, case.key, case.value, case.cache, metadata, output)
    assert (output[case.tokens :] == 7.0).all(), "rows of padding were written"
    return output[: case.tokens].cpu()


def dense_reference(case: Case, visibility: Visibility) -> torch.Tensor:
    """Softmax attention in float64, key by key from the definition, no cache and no pages."""
    outputs, row = [], 0
    for (past, new), (keys, values) in zip(case.requests, case.history, strict=True):
        heads = case.query.shape[1]
        group = heads // keys.shape[1]
        keys, values = (side.double().repeat_interleave(group, dim=1) for side in (keys, values))
        for step in range(new):
            at = past + step
            seen = [
                k
                for k in range(at + 1)
                if visibility.window is None or at - k < visibility.window or k < visibility.sink
            ]
            query = case.query[row].double().cpu()
            scores = torch.einsum("hd,khd->hk", query, keys[seen]) * case.scale
            outputs.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values[seen]))
            row += 1
    return torch.stack(outputs)

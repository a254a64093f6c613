"""sink_window's KV manager frees exactly the blocks that no later query can see."""

import pytest
import torch
import vllm
from vllm.v1.core.block_pool import BlockPool

from greenbench.contract.errors import UserError
from servers.plugins import sink_window_blocks
from servers.plugins.sink_window_blocks import SinkWindowManager, SinkWindowSpec
from servers.plugins.visibility import Visibility

BLOCK = 16


def spec(window: int, sink: int, **changes) -> SinkWindowSpec:
    return SinkWindowSpec(
        block_size=BLOCK,
        num_kv_heads=2,
        head_size=64,
        dtype=torch.bfloat16,
        window=window,
        sink=sink,
        in_flight_tokens=changes.get("in_flight_tokens", 32),
        max_model_len=changes.get("max_model_len", 1024),
    )


def manager_after(window: int, sink: int, tokens: int) -> tuple[SinkWindowManager, BlockPool]:
    """A manager of one request that has blocks for ``tokens`` tokens."""
    pool = BlockPool(
        num_gpu_blocks=200, enable_caching=False, hash_block_size=BLOCK, metrics_collector=None
    )
    manager = SinkWindowManager(
        spec(window, sink),
        block_pool=pool,
        enable_caching=False,
        kv_cache_group_id=0,
        scheduler_block_size=BLOCK,
    )
    manager.allocate_new_blocks("r", tokens, tokens)
    return manager, pool


@pytest.mark.parametrize("window", [1, 15, 16, 17, 40, 300])
@pytest.mark.parametrize("sink", [0, 1, 16, 17])
@pytest.mark.parametrize("computed", [1, 16, 63, 64, 200])
def test_held_blocks_are_those_a_later_query_sees(window, sink, computed):
    """Guards both directions: a freed block that is still read, and a block that is kept for nothing.

    The expected set comes from the definition, token by token: every query from ``computed`` on.
    """
    last = computed + 40
    manager, pool = manager_after(window, sink, last)
    free_before = pool.get_num_free_blocks()
    manager.remove_skipped_blocks("r", computed)
    manager.remove_skipped_blocks("r", computed)  # again: nothing is freed twice
    seen = Visibility(window=window, sink=sink)
    needed = {
        key // BLOCK
        for query in range(computed, last)
        for key in range(query + 1)
        if key > query - seen.window or key < seen.sink
    }
    held = {n for n, block in enumerate(manager.req_to_blocks["r"]) if block != pool.null_block}
    assert held == needed
    assert pool.get_num_free_blocks() - free_before == len(manager.req_to_blocks["r"]) - len(needed)


def test_a_request_never_holds_more_than_the_spec_says():
    """Guards the admission bound: too low a one would run the pool dry in the middle of a request."""
    window, sink, chunk = 50, 4, 32
    bound = spec(window, sink, in_flight_tokens=chunk)
    manager, pool = manager_after(window, sink, 0)
    most = 0
    for computed in range(0, 960, chunk):
        manager.remove_skipped_blocks("r", computed)
        manager.allocate_new_blocks("r", computed + chunk, computed + chunk)
        held = sum(block != pool.null_block for block in manager.req_to_blocks["r"])
        most = max(most, held)
    assert most <= bound.most_blocks == 1 + 7  # one sink block; ceil((49 + 32) / 16) + 1
    assert most >= bound.most_blocks - 1, "the bound is not that of this use"


def test_a_window_beyond_the_model_holds_no_more_than_full_attention():
    assert spec(10_000, 4).most_blocks == 1024 // BLOCK


def test_specs_of_unlike_layers_do_not_merge():
    assert SinkWindowSpec.merge([spec(32, 4), spec(32, 4)]) == spec(32, 4)
    with pytest.raises(AssertionError, match="differ"):
        SinkWindowSpec.merge([spec(32, 4), spec(64, 4)])


@pytest.mark.parametrize("owner, name", sink_window_blocks.SEAMS)
def test_a_vllm_without_the_seam_is_refused(monkeypatch, owner, name):
    """Guards against freeing that vLLM never calls; any release that has the seams is taken."""
    monkeypatch.setattr(vllm, "__version__", "0.99.0")
    sink_window_blocks.refuse_without_seams()
    holder = next(base for base in owner.__mro__ if name in vars(base))
    monkeypatch.delattr(holder, name)
    for base in holder.__mro__[1:]:
        if name in vars(base):
            monkeypatch.delattr(base, name)
    with pytest.raises(
        UserError, match=rf"free_blocks needs .*{name} of vLLM, which 0\.99\.0 has not"
    ):
        sink_window_blocks.free_unseen_blocks(Visibility(window=32, sink=4))

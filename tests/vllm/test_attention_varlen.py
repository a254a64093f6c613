"""sdpa and sink_window on CUDA: what they hand to PyTorch's varlen kernel, which this host cannot run.

A stand-in takes the kernel's arguments and computes, by its documented meaning, dense attention in
float64. So a wrong start, length, page, window or grouping shows as a wrong number. On a GPU the real
kernel runs in test_attention_exact.py.
"""

import inspect
import json
import os
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from paged import dense_reference, make_case, make_impl, run

from greenbench.contract.errors import UserError
from servers.plugins import (
    OPTIONS_ENV,
    pieces,
    sink_window,
    step,
    varlen,
    varlen_call,
    window_varlen,
)
from servers.plugins.sdpa import SdpaImpl
from servers.plugins.sink_window import SinkWindowBuilder, SinkWindowImpl
from servers.plugins.visibility import Visibility


class Kernel:
    """The operator by varlen_attn_out's documentation; notes requests and group of each call.

    And with its fault (pytorch issue 194167): where it may split keys over pages, rows of all sequences but
    the first are not written. NaN stands for what their memory held.
    """

    def __init__(self, lse_scale: float = 1.0) -> None:
        self.calls: list[tuple[int, int]] = []
        self.lse_scale = lse_scale

    def __call__(
        self,
        out,
        query,
        key,
        value,
        cu_seq_q,
        cu_seq_k,
        max_q,
        max_k,
        dropout,
        is_causal,
        debug_mask,
        *,
        scale,
        window_size_left,
        window_size_right,
        seqused_k,
        block_table,
        num_splits=None,
    ):
        left, right = window_size_left, window_size_right
        assert is_causal == ((left, right) == (-1, 0)), "varlen_attn_out's own rule"
        assert dropout == 0 and debug_mask is False
        assert (
            cu_seq_q.dtype == cu_seq_k.dtype == seqused_k.dtype == block_table.dtype == torch.int32
        )
        assert out.shape == query.shape
        group = query.shape[1] // key.shape[2]
        self.calls.append((len(seqused_k), group))
        assert cu_seq_k.tolist() == [0, *seqused_k.cumsum(0).tolist()]
        assert cu_seq_q[0] == 0 and cu_seq_q[-1] == len(query)
        assert max_q == (cu_seq_q[1:] - cu_seq_q[:-1]).max() and max_k == seqused_k.max()
        page = key.shape[1]
        sums = torch.full((query.shape[1], len(query)), torch.nan)  # as the operator's fake has it
        if self.lse_scale == 0:
            return torch.zeros(
                len(seqused_k), query.shape[1], max_q + 1
            )  # padded, as in older ones
        for i, length in enumerate(seqused_k.tolist()):
            if length == 0:
                continue  # nothing is promised of such rows: out keeps what it held
            pages = block_table[i, : -(-length // page)].long()
            keys, values = (
                side[pages].flatten(0, 1)[:length].double().repeat_interleave(group, 1)
                for side in (key, value)
            )
            rows = slice(int(cu_seq_q[i]), int(cu_seq_q[i + 1]))
            if i > 0 and num_splits != 1:
                out[rows] = torch.nan
                continue
            count = rows.stop - rows.start
            # aligned at the bottom right; -1 is no bound
            behind = torch.arange(count)[:, None] + length - count - torch.arange(length)
            hidden = torch.zeros_like(behind, dtype=torch.bool)
            if left >= 0:
                hidden |= behind > left
            if right >= 0:
                hidden |= -behind > right
            scores = torch.einsum("qhd,khd->hqk", query[rows].double(), keys) * scale
            share = scores.masked_fill(hidden, -torch.inf).softmax(-1)
            out[rows] = torch.einsum("hqk,khd->qhd", share, values).to(out.dtype)
            sums[:, rows] = scores.masked_fill(hidden, -torch.inf).logsumexp(-1).float()
        return sums * self.lse_scale


requests = st.lists(
    st.one_of(
        st.tuples(st.integers(0, 600), st.just(1)),
        st.tuples(st.integers(0, 300), st.integers(2, 30)),
    ),
    min_size=1,
    max_size=5,
)


@settings(max_examples=40, deadline=None)
@given(
    shapes=requests,
    seed=st.integers(0, 2**31),
    group=st.sampled_from([1, 3]),
    layout=st.sampled_from(["HND", "NHD"]),
    sliding_window=st.one_of(st.none(), st.integers(1, 90)),
    decodes_first=st.booleans(),
)
def test_the_kernel_gets_what_dense_attention_needs(
    shapes, seed, group, layout, sliding_window, decodes_first
):
    if decodes_first:  # as vLLM orders the batch for us; any other order must be right too
        shapes = sorted(shapes, key=lambda shape: shape[1] > 1)
    case = make_case(
        shapes,
        seed=seed,
        dtype=torch.float32,
        group=group,
        layout=layout,
        block_size=256,
        padding=2,
    )
    impl = make_impl(SdpaImpl, case, sliding_window=sliding_window)
    kernel = Kernel()
    with patch.object(varlen, "varlen_kernel", lambda: kernel):
        found = run(impl, varlen.plan_varlen, case)
    error = (found.double() - dense_reference(case, impl.visibility)).abs().max()
    assert error < 1e-5
    if decodes_first:
        leading = sum(new == 1 for _, new in shapes)
        if leading and sliding_window is None:
            assert kernel.calls[0] == (leading, 1), "a decode's keys are read once a query head"
        assert len(kernel.calls) <= 2


IN_PAGES = partial(pieces.cut, piece_tokens=256, worth_tokens=256)
long_decodes = st.lists(st.integers(0, 2000), min_size=1, max_size=4)  # 32 pages of 256 at most


@settings(max_examples=25, deadline=None)
@given(
    pasts=long_decodes,
    prompt=st.booleans(),
    seed=st.integers(0, 2**31),
    group=st.sampled_from([1, 3]),
)
def test_long_decodes_in_pieces_equal_dense_attention(pasts, prompt, seed, group):
    shapes = [*((past, 1) for past in pasts), *([(100, 20)] if prompt else [])]
    case = make_case(
        shapes, seed=seed, dtype=torch.float32, group=group, kv_heads=1, block_size=256, padding=2
    )
    impl, kernel = make_impl(SdpaImpl, case), Kernel()
    with (
        patch.object(varlen, "varlen_kernel", lambda: kernel),
        patch.object(varlen, "cut", IN_PAGES),
    ):
        found = run(impl, varlen.plan_varlen, case)
    assert (found.double() - dense_reference(case, impl.visibility)).abs().max() < 1e-5
    grid = len(pasts) * max(-(-(past + 1) // 256) for past in pasts) if len(pasts) > 1 else 1
    assert kernel.calls[-2 if prompt else -1] == (grid, 1)


def test_pieces_are_whole_pages_even_and_no_more_than_pay():
    assert pieces.cut([100_000], 256) is None  # the operator splits one sequence itself
    assert pieces.cut([1536, 1536], 256) is None
    assert pieces.cut([2048] * 8, 256) == pieces.Cut(span=512, most=4, lengths=[512] * 32)
    assert pieces.cut([32_768] * 32, 256) is None  # a piece a request fills the GPU already
    assert pieces.cut([32_768] * 8, 256) == pieces.Cut(span=8192, most=4, lengths=[8192] * 32)
    assert pieces.cut([8192] * 8, 256) == pieces.Cut(span=2048, most=4, lengths=[2048] * 32)
    uneven = pieces.cut([2200, 10], 256)
    assert uneven == pieces.Cut(512, 5, [512, 512, 512, 512, 152, 10, 0, 0, 0, 0])
    odd = pieces.cut([5000, 40_000], 256)  # 45,000 / 32 is 1,406.25: six pages of 256
    assert (odd.span, odd.most, sum(odd.lengths)) == (1536, 27, 45_000)


def test_an_operator_with_other_log_sum_exps_gets_no_pieces():
    """Guards against wrong weights, and so wrong answers, from a PyTorch that returns them in base 2."""
    assert pieces.joining_works(Kernel(), torch.device("cpu"))
    assert not pieces.joining_works(Kernel(lse_scale=0), torch.device("cpu"))
    other = Kernel(lse_scale=1.4427)
    assert not pieces.joining_works(other, torch.device("cpu"))
    case = make_case([(2000, 1), (2000, 1)], seed=1, dtype=torch.float32, block_size=256)
    other.calls.clear()
    with (
        patch.object(varlen, "varlen_kernel", lambda: other),
        patch.object(varlen, "cut", IN_PAGES),
    ):
        found = run(make_impl(SdpaImpl, case), varlen.plan_varlen, case)
    assert other.calls == [(2, 1)]
    assert (found.double() - dense_reference(case, Visibility())).abs().max() < 1e-5


def test_one_sequence_may_be_split_and_several_may_not():
    """A lone long request would else use as many of the GPU's units as it has key heads."""
    asked = []

    def kernel(*_, num_splits, **__):
        asked.append(num_splits)

    for shapes in ([(600, 1)], [(600, 1), (600, 1)], [(600, 1), (0, 9)]):
        case = make_case(shapes, seed=1, dtype=torch.float32, block_size=256)
        with patch.object(varlen, "varlen_kernel", lambda: kernel):
            run(make_impl(SdpaImpl, case), varlen.plan_varlen, case)
    assert asked == [None, 1, None, None]


@settings(max_examples=60, deadline=None)
@given(
    shapes=requests,
    seed=st.integers(0, 2**31),
    group=st.sampled_from([1, 3]),
    layout=st.sampled_from(["HND", "NHD"]),
    window=st.one_of(st.integers(1, 90), st.integers(1, 700)),
    sink=st.one_of(st.integers(0, 8), st.integers(0, 300)),  # within a page, and beyond one
    shared_blocks=st.integers(0, 1),
)
def test_a_window_and_first_tokens_by_two_calls(
    shapes, seed, group, layout, window, sink, shared_blocks
):
    """Guards against a first token seen twice or by nobody: queries just past the window miss some."""
    case = make_case(
        shapes,
        seed=seed,
        dtype=torch.float32,
        group=group,
        layout=layout,
        block_size=256,
        padding=2,
        shared_blocks=shared_blocks,
    )
    impl, kernel, seen = windowed(case, window, sink), Kernel(), Visibility(window, sink)
    with patch.object(window_varlen, "varlen_kernel", lambda: kernel):
        found = run(impl, window_varlen.plan_window, case)
    assert (found.double() - dense_reference(case, seen)).abs().max() < 1e-5
    beyond = sink > 0 and any(past + new > window for past, new in shapes)
    assert len(kernel.calls) == 1 + beyond


def windowed(case, window: int, sink: int) -> SinkWindowImpl:
    options = {"window": window, "sink": sink, "reads": "varlen"}
    with patch.dict(os.environ, {OPTIONS_ENV: json.dumps(options)}):
        return make_impl(SinkWindowImpl, case)


def test_how_pages_are_read_is_asked_when_the_builder_is_made_and_at_no_step():
    """Guards against JSON of the environment read anew at every step, between two forwards."""
    case = make_case([(2, 6), (9, 1)], seed=1, dtype=torch.float32, block_size=256)
    impl = windowed(case, 4, 3)
    layers = {"layer": SimpleNamespace(impl=impl, layer_name="layer")}
    cuda, spec = SimpleNamespace(is_cuda=lambda: True), SimpleNamespace(block_size=256)
    config = SimpleNamespace(speculative_config=None)
    with (
        patch.object(sink_window, "current_platform", cuda),
        patch.object(window_varlen, "varlen_kernel", Kernel),
        patch.object(step, "get_layers_from_vllm_config", lambda *_: layers),
    ):
        with patch.dict(os.environ, {OPTIONS_ENV: json.dumps({"reads": "varlen"})}):
            builder = SinkWindowBuilder(spec, ["layer"], config, torch.device("cpu"))
        with patch("servers.plugins.read_options", side_effect=AssertionError("asked again")):
            made = [builder.build(0, case.common).plans[impl.visibility] for _ in range(2)]
    assert [{type(call) for call in plan.calls} for plan in made] == [
        {window_varlen.WindowAndSinks}
    ] * 2


def test_which_queries_have_left_first_tokens_behind():
    """By hand: window 4, sink 3. Position 4 has key 0 behind it, 5 has 0 and 1, 6 and later all three."""
    case = make_case([(2, 6), (9, 1), (0, 4), (4, 1)], seed=1, dtype=torch.float32, block_size=256)
    found = []

    def kernel(_out, query, _k, _v, starts, _starts_k, *_, seqused_k, block_table, **__):
        found.append((starts.tolist(), seqused_k.tolist(), block_table.shape))
        return torch.zeros(query.shape[1], len(query))

    with patch.object(window_varlen, "varlen_kernel", lambda: kernel):
        run(windowed(case, 4, 3), window_varlen.plan_window, case)
    # positions 2 … 7 of the first request: 4 and 5 alone, 6 and 7 together; then 9, and 4 of the last
    assert found[1] == ([0, 1, 2, 4, 5, 6], [1, 2, 3, 3, 1], (5, 1))


def test_a_sink_is_refused():
    case = make_case([(20, 1)], seed=1, dtype=torch.float32, block_size=256)
    impl = make_impl(SdpaImpl, case)
    impl.visibility = Visibility(window=8, sink=2)
    with pytest.raises(UserError, match="no attention to first tokens"):
        run(impl, varlen.plan_varlen, case)


def test_a_pytorch_without_block_tables_is_refused(monkeypatch):
    """Guards against an error in the middle of the first request."""
    older = torch.ops.aten.scaled_dot_product_attention  # an operator without a block table
    for aten in (
        SimpleNamespace(),
        SimpleNamespace(_flash_attention_forward_no_dropout_inplace=older),
    ):
        monkeypatch.setattr(torch.ops, "aten", aten)
        with pytest.raises(UserError, match=r"lacks; take sdpa_gather"):
            varlen_call.varlen_kernel()


def test_this_pytorch_has_the_operator_that_varlen_attn_out_calls():
    """Guards against a changed argument list that only a GPU host would notice."""
    names = [argument.name for argument in varlen_call.varlen_kernel()._schema.arguments]
    positional = ["out", "query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k"]
    assert names[:11] == [*positional, "dropout_p", "is_causal", "return_debug_mask"]
    bounds = {"window_size_left", "window_size_right"}
    assert {"scale", *bounds, "seqused_k", "block_table", "num_splits"} <= set(names)
    import torch.nn.attention.varlen as public

    assert "aten._flash_attention_forward_no_dropout_inplace" in inspect.getsource(public)

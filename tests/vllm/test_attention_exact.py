"""Each of our attention classes against dense float64 attention over random paged caches.

On the GPU the same property holds for the CUDA paths: ``pytest -m gpu tests/vllm``.
"""

import json
import os
import sys
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel

sys.path.insert(0, str(Path(__file__).parent))
from emulation import emulated_xformers
from paged import dense_reference, make_case, make_impl, run, to_device

from servers.plugins import OPTIONS_ENV, pieces, tiles, varlen
from servers.plugins.page_views import plan_page_views
from servers.plugins.sdpa import SdpaImpl
from servers.plugins.sdpa_gather import SdpaGatherImpl
from servers.plugins.sink_window import SinkWindowImpl
from servers.plugins.tiles import plan_gather
from servers.plugins.varlen import plan_varlen
from servers.plugins.visibility import Visibility
from servers.plugins.window_varlen import plan_window
from servers.plugins.xformers_attn import XformersImpl, plan_xformers

# each example costs about 10 ms; GREENBENCH_EXAMPLES=1000 looks longer
EXAMPLES = int(os.environ.get("GREENBENCH_EXAMPLES", "60"))
BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 4e-3}
HALF = (torch.bfloat16, torch.float16)
NO_XFORMERS = "xformers is not installed (pip install --no-deps xformers==0.0.35)"


def on_cuda(test):
    needs_one = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
    return pytest.mark.gpu(needs_one(test))


@dataclass(frozen=True)
class Subject:
    """A class, its planner, and the cases it says it serves."""

    impl: type
    planner: object
    dtypes: tuple[torch.dtype, ...] = (torch.float32, torch.bfloat16)
    block_sizes: tuple[int, ...] = (16, 32)
    layouts: tuple[str, ...] = ("HND", "NHD")
    head_sizes: tuple[int, ...] = (32, 64, 80, 128)
    window: str = "sliding"  # sliding: the layer's own; option: ours; none
    options: dict = field(default_factory=dict)


CPU = {
    "sdpa": Subject(SdpaImpl, plan_page_views),
    "sdpa_gather": Subject(SdpaGatherImpl, plan_gather),
    "sink_window": Subject(SinkWindowImpl, plan_page_views, window="option"),
    "sink_window, gathered": Subject(SinkWindowImpl, plan_gather, window="option"),
}
XFORMERS = Subject(
    XformersImpl,
    plan_xformers,
    block_sizes=(64,),
    layouts=("NHD",),
    head_sizes=(32, 64, 128),
    window="none",
)
CUDA = {
    "sdpa": Subject(SdpaImpl, plan_varlen, dtypes=HALF, block_sizes=(256,)),
    "sdpa_gather": Subject(SdpaGatherImpl, plan_gather, dtypes=(torch.float32, *HALF)),
    "sink_window": Subject(
        SinkWindowImpl, plan_gather, dtypes=(torch.float32, *HALF), window="option"
    ),
    "sink_window, in place": Subject(
        SinkWindowImpl, plan_window, dtypes=HALF, block_sizes=(256,), window="option"
    ),
    "xformers": replace(XFORMERS, dtypes=HALF),
    "xformers, cutlass": replace(XFORMERS, dtypes=HALF, options={"prefill": "cutlass"}),
}

request_shapes = st.one_of(
    st.tuples(st.integers(0, 130), st.just(1)),  # decode
    st.tuples(st.just(0), st.integers(2, 70)),  # whole prompt
    st.tuples(st.integers(1, 100), st.integers(2, 40)),  # chunk of a prompt
)


@st.composite
def checks(draw, subject: Subject):
    """Arguments of make_case, and what queries see."""
    arguments = {
        "requests": draw(st.lists(request_shapes, min_size=1, max_size=6)),
        "seed": draw(st.integers(0, 2**31)),
        "dtype": draw(st.sampled_from(subject.dtypes)),
        "kv_heads": draw(st.sampled_from([1, 2, 3])),
        "group": draw(st.sampled_from([1, 2, 4])),
        "head_size": draw(st.sampled_from(subject.head_sizes)),
        "block_size": draw(st.sampled_from(subject.block_sizes)),
        "layout": draw(st.sampled_from(subject.layouts)),
        "padding": draw(st.integers(0, 3)),
        "contiguous": draw(st.booleans()),
        "shared_blocks": draw(st.integers(0, 3)),
    }
    window, sink = None, 0
    if subject.window != "none":
        window = draw(st.one_of(st.none(), st.integers(1, 90)))
    if subject.window == "option":
        window = window or 10_000
        sink = draw(st.integers(0, 40))
    return arguments, Visibility(window=window, sink=sink)


def worst_error(
    subject: Subject, arguments: dict, seen: Visibility, device: str, sharper: float = 1.0
) -> float:
    case = make_case(**arguments)
    case.query *= sharper
    expected = dense_reference(case, seen)
    case = to_device(case, device)
    own = subject.window == "option"
    options = {"window": seen.window, "sink": seen.sink} if own else subject.options
    with patch.dict(os.environ, {OPTIONS_ENV: json.dumps(options)}):
        impl = make_impl(subject.impl, case, sliding_window=None if own else seen.window)
    assert impl.visibility == seen
    return (run(impl, subject.planner, case).double() - expected).abs().max().item()


@pytest.mark.parametrize("name", CPU)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_equals_dense_attention(name, data):
    """Guards the whole arithmetic: a wrong mask, page, head, joining weight, or a leaking stale NaN."""
    arguments, seen = data.draw(checks(CPU[name]))
    assert worst_error(CPU[name], arguments, seen, "cpu") < BOUND[arguments["dtype"]]


def faulty_sdpa(query, keys, values, attn_mask, scale):
    """With the fault of PyTorch's memory-efficient CUDA kernel (issue 191937): a lone last query is lost."""
    result = F.scaled_dot_product_attention(query, keys, values, attn_mask=attn_mask, scale=scale)
    count, block = query.shape[-2], 64 if query.shape[-1] <= 128 else 32
    if count > 1 and count % block == 1 and keys.stride(-3) == 0:
        result[..., -1, :] = 9.0
    return result


@pytest.mark.parametrize("name", ["sdpa_gather", "sink_window, gathered"])
@pytest.mark.parametrize("head_size", [64, 160])
@pytest.mark.parametrize("requests", [[(0, 33)], [(0, 129)], [(7, 65), (90, 97), (32, 1)]])
def test_no_query_is_lost_to_pytorchs_kernel(name, head_size, requests):
    """Guards against a last prompt token that attends to something else at 129 tokens, as on an H100."""
    arguments = {"requests": requests, "seed": 1, "dtype": torch.float32, "head_size": head_size}
    seen = Visibility(window=10_000 if "window" in name else None)
    functions = SimpleNamespace(scaled_dot_product_attention=faulty_sdpa)
    with patch.object(tiles, "F", functions):
        assert worst_error(CPU[name], arguments, seen, "cpu") < BOUND[torch.float32]


@settings(max_examples=EXAMPLES, deadline=None)
@given(check=checks(XFORMERS))
def test_xformers_metadata_equals_dense_attention(check):
    """Guards xFormers' masks, key slots and page tables, with its operators replaced by arithmetic."""
    pytest.importorskip("xformers", reason=NO_XFORMERS)
    arguments, seen = check
    with emulated_xformers():
        assert worst_error(XFORMERS, arguments, seen, "cpu") < BOUND[arguments["dtype"]]


@on_cuda
@pytest.mark.parametrize("name", CUDA)
@settings(max_examples=EXAMPLES, deadline=None)
@given(data=st.data())
def test_equals_dense_attention_on_cuda(name, data):
    if "xformers" in name:
        pytest.importorskip("xformers", reason=NO_XFORMERS)
    arguments, seen = data.draw(checks(CUDA[name]))
    assert worst_error(CUDA[name], arguments, seen, "cuda") < BOUND[arguments["dtype"]]


@on_cuda
@pytest.mark.parametrize("head_size", [64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_pytorchs_masked_kernel_is_right_but_for_a_query_alone_in_its_block(dtype, head_size):
    """What `masked_attention` relies on; -s shows where the kernel is wrong."""
    rng = torch.Generator().manual_seed(1)

    def error(count: int, keys: int) -> float:
        query = 4 * torch.randn(2, 4, count, head_size, generator=rng)
        key, value = (torch.randn(2, 1, keys, head_size, generator=rng) for _ in range(2))
        query, key, value = (part.to("cuda", dtype) for part in (query, key, value))
        key, value = (part.expand(-1, 4, -1, -1) for part in (key, value))
        mask = torch.ones(count, keys, dtype=torch.bool, device="cuda").tril(keys - count)
        mask[:, 0] = True
        results = []
        for kernel in (SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH):
            with sdpa_kernel(kernel):
                results.append(F.scaled_dot_product_attention(query, key, value, attn_mask=mask))
        return (results[0].double() - results[1].double()).abs().max().item()

    counts = (1, 2, 31, 32, 33, 34, 63, 64, 65, 66, 97, 127, 128, 129, 130, 144, 257, 321, 512)
    errors = {(n, keys): error(n, keys) for n in counts for keys in (128, 129, 144, 640, 656)}
    rounding = 0.05  # at most
    wrong = {at: round(worst, 3) for at, worst in errors.items() if worst > rounding}
    print(dtype, head_size, wrong)
    assert all(count > 1 and count % tiles.QUERY_BLOCK == 1 for count, _ in wrong)


@on_cuda
@pytest.mark.parametrize("head_size", [64, 256])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "requests",
    [[(0, 129), (0, 513)], [(0, 500), (319, 321)], [(512, 129), (0, 97), (40, 33)]],
)
@pytest.mark.parametrize("name", CUDA)
def test_longer_sharper_prompts_equal_dense_attention_on_cuda(name, requests, dtype, head_size):
    """Lengths at which PyTorch's kernel is wrong, and queries so sharp that one lost key is seen."""
    if "xformers" in name:
        pytest.importorskip("xformers", reason=NO_XFORMERS)
    subject = CUDA[name]
    if dtype not in subject.dtypes:
        pytest.skip(f"{name} does not serve {dtype}")
    arguments = {"requests": requests, "seed": 1, "dtype": dtype, "group": 4}
    arguments |= {
        "head_size": head_size,
        "block_size": subject.block_sizes[0],
        "layout": subject.layouts[-1],
    }
    seen = Visibility(window=10_000 if subject.window == "option" else None)
    error = worst_error(subject, arguments, seen, "cuda", sharper=4.0)
    assert error < 2 * BOUND[dtype]


@on_cuda
@settings(max_examples=20, deadline=None)
@given(
    pasts=st.lists(st.integers(0, 3000), min_size=1, max_size=5),
    prompt=st.booleans(),
    seed=st.integers(0, 2**31),
    group=st.sampled_from([1, 4]),
    head_size=st.sampled_from([64, 128]),
    piece_tokens=st.sampled_from([256, 1024, 4096]),
)
def test_long_decodes_equal_dense_attention_on_cuda(
    pasts, prompt, seed, group, head_size, piece_tokens
):
    """Contexts beyond a page, which the operator itself would split (and lose rows of, left alone)."""
    arguments = {
        "requests": [*((past, 1) for past in pasts), *([(500, 40)] if prompt else [])],
        "seed": seed,
        "dtype": torch.bfloat16,
        "group": group,
        "head_size": head_size,
        "block_size": 256,
    }
    small = partial(pieces.cut, piece_tokens=piece_tokens, worth_tokens=piece_tokens)
    with patch.object(varlen, "cut", small):
        error = worst_error(CUDA["sdpa"], arguments, Visibility(), "cuda")
    assert error < BOUND[torch.bfloat16]


@on_cuda
def test_this_pytorch_returns_log_sum_exps_that_pieces_are_joined_by():
    assert pieces.joining_works(varlen.varlen_kernel(), torch.device("cuda"))

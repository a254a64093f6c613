"""Each of our attention classes against dense float64 attention over random paged caches."""

import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))
from paged import dense_reference, make_case, make_impl, run

from servers.plugins.page_views import plan_page_views
from servers.plugins.sdpa import SdpaImpl
from servers.plugins.sdpa_gather import SdpaGatherImpl
from servers.plugins.tiles import plan_gather

BOUND = {torch.float32: 1e-5, torch.bfloat16: 2e-2}
CLASSES = {"sdpa": (SdpaImpl, plan_page_views), "sdpa_gather": (SdpaGatherImpl, plan_gather)}

request_shapes = st.one_of(
    st.tuples(st.integers(0, 130), st.just(1)),  # decode
    st.tuples(st.just(0), st.integers(2, 70)),  # whole prompt
    st.tuples(st.integers(1, 100), st.integers(2, 40)),  # chunk of a prompt
)
cases = st.fixed_dictionaries(
    {
        "requests": st.lists(request_shapes, min_size=1, max_size=6),
        "seed": st.integers(0, 2**31),
        "dtype": st.sampled_from(list(BOUND)),
        "kv_heads": st.sampled_from([1, 2, 3]),
        "group": st.sampled_from([1, 2, 4]),
        "head_size": st.sampled_from([32, 64, 80, 128]),
        "block_size": st.sampled_from([16, 32]),
        "layout": st.sampled_from(["HND", "NHD"]),
        "padding": st.integers(0, 3),
        "contiguous": st.booleans(),
        "shared_blocks": st.integers(0, 3),
    }
)


@pytest.mark.parametrize("name", CLASSES)
@settings(max_examples=120, deadline=None)
@given(arguments=cases, sliding_window=st.one_of(st.none(), st.integers(1, 90)))
def test_equals_dense_attention(name, arguments, sliding_window):
    """Guards the whole arithmetic: a wrong mask, page, head, joining weight, or a leaking stale NaN."""
    case = make_case(**arguments)
    cls, planner = CLASSES[name]
    impl = make_impl(cls, case, sliding_window=sliding_window)
    error = (run(impl, planner, case).double() - dense_reference(case, impl.visibility)).abs().max()
    assert error < BOUND[arguments["dtype"]]

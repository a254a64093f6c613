"""The parts of the paged paths on their own: runs of blocks, pieces of pages, writes beside padding."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from servers.plugins.cache import cache_write, gather_pages
from servers.plugins.page_views import find_runs, part_table, split_span
from servers.plugins.tiles import page_numbers


def runs(blocks, owners):
    found = find_runs(np.array(blocks), np.array(owners))
    return [(run.tolist(), own.tolist()) for run, own in found]


def test_adjacent_blocks_are_one_run_whatever_their_order_and_owner():
    """Guards the number of kernel calls: freed blocks come back in falling order, requests interleave."""
    assert runs([9, 8, 7, 3, 4], [0, 0, 0, 1, 1]) == [([3, 4], [1, 1]), ([7, 8, 9], [0, 0, 0])]
    assert runs([5, 7, 6, 8], [0, 0, 1, 1]) == [([5, 6, 7, 8], [0, 1, 0, 1])]


def test_shared_blocks_make_one_run_a_sharer():
    """Guards prefix caching: cutting at every shared block would make a call of each."""
    assert runs([4, 5, 6, 4, 5, 9], [0, 0, 0, 1, 1, 1]) == [
        ([4, 5, 6], [0, 0, 0]),
        ([9], [1]),
        ([4, 5], [1, 1]),
    ]


@given(st.integers(0, 100), st.integers(1, 100), st.sampled_from([1, 4, 16]))
def test_a_span_is_cut_into_each_of_its_positions_once(start, count, size):
    whole, pieces = split_span(start, start + count, size)
    positions = [page * size + offset for page in whole for offset in range(size)]
    positions += [page * size + offset for page, a, b in pieces for offset in range(a, b)]
    assert sorted(positions) == list(range(start, start + count))
    assert all(b - a < size for _, a, b in pieces), "a whole page went as a piece"


def test_two_spans_that_meet_in_a_page_read_it_once():
    assert page_numbers([(0, 5), (9, 30)], 8) == [0, 1, 2, 3]
    assert page_numbers([(0, 5), (6, 30)], 8) == [0, 1, 2, 3]
    assert page_numbers([(0, 3), (70, 80)], 8) == [0, 8, 9]


def test_parts_are_listed_by_request_and_padded():
    table, padded = part_table(np.array([1, 0, 1, 1]), 2)
    assert (table.tolist(), padded) == ([[1, 4, 4], [0, 2, 3]], True)
    table, padded = part_table(np.array([1, 0]), 2)
    assert (table.tolist(), padded) == ([[1], [0]], False)


@pytest.mark.parametrize("slots", [[5, -1, 40], [-1, -1, -1], [-1, 3, -1]])
def test_padding_between_tokens_writes_nothing(slots):
    """Guards block 0 and the last block, where -1 would land as an index."""
    cache = torch.zeros(4, 2, 16, 8)
    key, value = torch.ones(3, 2, 4), torch.full((3, 2, 4), 2.0)
    cache_write(torch.tensor(slots), 16)(key, value, cache)
    written = {(b * 16 + n) for b, _, n in cache.any(-1).nonzero().tolist()}
    assert written == {slot for slot in slots if slot >= 0}
    for slot in written:
        assert cache[slot // 16, :, slot % 16].tolist() == [[1.0] * 4 + [2.0] * 4] * 2


@pytest.mark.parametrize("tokens_first", [False, True])
def test_gathering_pages_copies_those_pages_and_not_the_pool(tokens_first):
    """Guards the time of prompts: a copy of a 1 GiB pool takes 150 ms a layer and call."""
    page = torch.randn(1, 16, 2, 8).transpose(1, 2) if tokens_first else torch.randn(1, 2, 16, 8)
    pool = page.expand(10**12, -1, -1, -1)  # one page seen a million million times: 1 PB if copied
    pages = gather_pages(pool, torch.tensor([7, 3, 10**11]))
    assert torch.equal(pages, torch.cat([page[0]] * 3, dim=1))

"""When a pool is out and when it is back, and what of its page counts. Nothing waits: times are given."""

import time
from itertools import pairwise

import pytest

from gateway.pools import (
    EJECTED_MOST_NS,
    EJECTED_NS,
    MISSED_PROBES,
    OUTLIER_FAULTS,
    STALE_NS,
    Pool,
    states,
)
from gateway.prefixes import digest
from gateway.scrape import Scrape

TOLD = Scrape(running=3, waiting=1, total_kv_tokens=1000, free_kv_tokens=600, prefix_caching=True)


def up(name: str = "a") -> Pool:
    pool = Pool(name, "http://x")
    pool.answered()
    return pool


def fail(pool: Pool, now_ns: int, count: int = OUTLIER_FAULTS) -> None:
    for _ in range(count):
        pool.fault(now_ns)


def test_a_page_counts_until_it_is_stale() -> None:
    pool = up()
    pool.scraped(TOLD, 0)
    state = pool.state(STALE_NS)
    assert (state.running, state.waiting, state.free_kv_tokens) == (3, 1, 600)
    assert pool.caches_prefixes(STALE_NS)
    later = pool.state(STALE_NS + 1)
    assert (later.running, later.free_kv_tokens, later.total_kv_tokens) == (0, None, None)
    assert not pool.caches_prefixes(STALE_NS + 1)


def load(pool: Pool) -> int:
    state = pool.state(0)
    return state.running + state.waiting


def test_the_load_is_what_is_open_here_and_what_others_have_there() -> None:
    """The page tells of four requests, one of them this gateway's."""
    pool = up()
    with pool.taking(100):
        pool.asked_page()
        pool.scraped(TOLD, 0)
        assert load(pool) == 4
        with pool.taking(250):
            assert (load(pool), pool.state(0).free_kv_tokens) == (5, 350)
    assert load(pool) == 3
    with pool.taking(10**6):
        assert pool.state(0).free_kv_tokens == 0


def test_requests_that_end_while_the_page_is_on_its_way_are_no_others() -> None:
    """Four were open when the server wrote the page, and one when it came."""
    pool = up()
    with pool.taking(1):
        with pool.taking(1), pool.taking(1), pool.taking(1):
            pool.asked_page()
        pool.scraped(TOLD, 0)
        assert load(pool) == 1
    pool.asked_page()
    with pool.taking(1):
        pass  # came and went: it may be in the page
    pool.scraped(TOLD, 0)
    assert load(pool) == 3


def test_without_a_page_the_load_is_what_is_open_here() -> None:
    pool = up()
    with pool.taking(1), pool.taking(1):
        assert load(pool) == 2
        for told in (Scrape(running=None, waiting=0), Scrape(running=0, waiting=0)):
            pool.asked_page()
            pool.scraped(told, 0)
            assert load(pool) == 2


def test_slow_probes_take_a_pool_out_only_in_a_row() -> None:
    pool = up()
    for _ in range(MISSED_PROBES - 1):
        pool.missed("slow", 5)
    pool.answered()
    for _ in range(MISSED_PROBES - 1):
        pool.missed("slow", 5)
    assert pool.up
    pool.missed("slow", 5)
    assert not pool.up
    assert (pool.why_down, pool.down_since_ns) == ("slow", 5)
    pool.missed("slow", 9)
    assert pool.down_since_ns == 5
    pool.answered()
    assert pool.up
    assert pool.starts == 2


def test_ejections_grow_and_a_success_ends_the_row() -> None:
    pool, now, lengths = up(), 0, []
    for _ in range(6):
        fail(pool, now)
        lengths.append(pool.ejected_ns(now))
        now += lengths[-1]
        assert pool.ejected_ns(now) == 0
    assert lengths[0] == EJECTED_NS
    assert all(b == min(2 * a, EJECTED_MOST_NS) for a, b in pairwise(lengths))
    pool.success()
    fail(pool, now, OUTLIER_FAULTS - 1)
    pool.success()
    fail(pool, now, OUTLIER_FAULTS - 1)
    assert pool.ejected_ns(now) == 0
    fail(pool, now, 1)
    assert pool.ejected_ns(now) == EJECTED_NS


def test_the_last_pool_that_is_up_is_never_ejected() -> None:
    a, b = up("a"), up("b")
    fail(a, 0)
    assert [s.up for s in states([a, b], 1, set())] == [False, True]
    assert [s.up for s in states([a, b], 1, {"b"})] == [True, False]
    b.draining = True
    assert [s.up for s in states([a, b], 1, set())] == [True, True]


def test_a_pool_that_starts_anew_has_seen_nothing() -> None:
    pool, prompt = up(), digest("m", b"x" * 10_000)
    pool.prefixes.add(prompt)
    pool.answered()
    assert pool.prefixes.matched(prompt)
    pool.down("gone", 1)
    pool.answered()
    assert not pool.prefixes.matched(prompt)


def test_a_step_of_the_wall_clock_moves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ejections, stale pages and downtime go by the monotonic clock alone."""
    pool = up()
    pool.scraped(TOLD, time.monotonic_ns())
    fail(pool, time.monotonic_ns())
    for step_s in (1e9, -1e9):
        wall = time.time() + step_s
        monkeypatch.setattr(time, "time", lambda at=wall: at)
        monkeypatch.setattr(time, "time_ns", lambda at=wall: int(at * 1e9))
        now = time.monotonic_ns()
        assert 0 < pool.ejected_ns(now) <= EJECTED_NS
        assert pool.state(now).free_kv_tokens == 600

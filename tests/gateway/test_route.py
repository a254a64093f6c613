"""The choice with what is known of lengths, caches and pools."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gateway.length import Lengths
from gateway.policy_file import PolicyFile
from gateway.pools import Pool
from gateway.request import Asked, read_request
from gateway.route import Call, Router
from gateway.scrape import Scrape
from greenbench.contract.policy import Choice
from tests.fakes.gateways import LONG, policy, write_policy

NAMES = ["short", "long"]


@pytest.fixture
def router(tmp_path: Path) -> Callable[..., Router]:
    """Of pools that cache prefixes. ``counted``: what /tokenize would say, and how often it was asked."""

    def make(counted: list[int] | None = None, caching: bool = True, **more: Any) -> Router:
        write_policy(tmp_path / "policy.yaml", policy(NAMES, **more))
        pools = {name: Pool(name, "http://x") for name in NAMES}
        for pool in pools.values():
            pool.answered()
            told = Scrape(0, 0, total_kv_tokens=10**6, free_kv_tokens=10**6, prefix_caching=caching)
            pool.scraped(told, 0)

        async def count(asked: Asked, headers: object) -> int | None:
            return counted.pop() if counted else None

        return Router(
            PolicyFile(tmp_path / "policy.yaml", NAMES), pools, Lengths({"/tokenize": count})
        )

    return make


def call(router: Router, prompt: object, **more: Any) -> Call:
    body = json.dumps({"prompt": prompt, **more}, separators=(",", ":")).encode()
    return asyncio.run(router.measure(read_request("completions", body), [], 0))


def choice(router: Router, prompt: object, **more: Any) -> Choice:
    return router.choose(call(router, prompt, **more), 0)


def sent(router: Router, pool: str, prompt: object) -> None:
    router.pools[pool].prefixes.add(call(router, prompt).digest)


def test_text_is_counted_only_where_its_length_matters(router: Callable[..., Router]) -> None:
    """LONG tokens lie between 1 and 8 bytes a token of 4,000 bytes, not of 900 nor of 80,000."""
    counted = [LONG + 1]
    gate = router(counted)
    assert choice(gate, "x" * 898).pool == "short"
    assert choice(gate, "x" * 79_998).pool == "long"
    assert counted == [LONG + 1]
    asked = choice(gate, "x" * 3998)
    assert counted == []
    assert asked.pool == "long"
    assert f"{LONG + 1} prompt tokens (/tokenize)" in asked.reason
    assert "estimate" in choice(gate, "y" * 100).reason


def test_cached_tokens_count_where_they_are(router: Callable[..., Router]) -> None:
    """A long prompt whose beginning `short` has seen is a short one there, and a long one elsewhere."""
    prompt = [7] * 4 * LONG
    gate = router()
    assert choice(gate, prompt).pool == "long"
    sent(gate, "short", prompt)
    known = choice(gate, [*prompt, 8])
    assert known.pool == "short"
    assert "of them cached" in known.reason
    assert choice(gate, [8, *prompt]).pool == "long"  # another beginning
    gate.pools["short"].down("gone", 1)
    elsewhere = choice(gate, [*prompt, 8])
    assert elsewhere.pool == "long"
    assert "cached" not in elsewhere.reason


def test_where_pools_do_not_cache_nothing_is_cached(router: Callable[..., Router]) -> None:
    gate = router(caching=False)
    prompt = [7] * 4 * LONG
    sent(gate, "short", prompt)
    assert choice(gate, prompt).pool == "long"


def test_a_conversation_stays_within_the_dead_band(router: Callable[..., Router]) -> None:
    gate = router(caching=False, dead_band=1.5)
    near, far = [7] * (LONG + LONG // 4), [7] * 2 * LONG
    assert choice(gate, near).pool == choice(gate, far).pool == "long"
    sent(gate, "short", far)
    stays = choice(gate, near)
    assert stays.pool == "short"
    assert "dead band" in stays.reason
    assert choice(gate, far).pool == "long"


def test_pools_that_failed_and_pools_without_the_model_are_passed_over(
    router: Callable[..., Router],
) -> None:
    gate = router()
    failed = call(gate, [1])
    failed.tried.add("short")
    assert gate.choose(failed, 0).pool == "long"
    gate.pools["short"].models = frozenset({"other"})
    assert choice(gate, [1], model="m").pool == "long"
    assert choice(gate, [1]).pool == "short"
    gate.pools["long"].models = frozenset({"other"})
    assert choice(gate, [1], model="m").pool is None

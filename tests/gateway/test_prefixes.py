"""Which part of a prompt a pool has seen: counted in blocks from the beginning, oldest forgotten first."""

import pytest

from gateway.prefixes import BLOCK_BYTES, BLOCK_TOKENS, Prefixes, digest


def text(*blocks: str) -> bytes:
    return b"".join(block.encode() * BLOCK_BYTES for block in blocks)


def test_only_a_common_beginning_counts() -> None:
    seen = Prefixes()
    seen.add(digest("m", text("a", "b", "c")))
    assert seen.matched(digest("m", text("a", "b", "x", "c"))) == 2 / 4
    assert seen.matched(digest("m", text("b", "c"))) == 0  # in the middle of another prompt
    assert seen.matched(digest("m", text("a", "b", "c"))) == 1
    assert seen.matched(digest("other", text("a", "b", "c"))) == 0  # another model's cache


def test_the_rest_of_a_block_is_new() -> None:
    seen = Prefixes()
    seen.add(digest("m", text("a") + b"tail"))
    assert seen.matched(digest("m", text("a") + b"tail")) == pytest.approx(
        BLOCK_BYTES / (BLOCK_BYTES + 4)
    )
    assert seen.matched(digest("m", b"short")) == 0


def test_prompts_that_differ_behind_the_last_block_are_not_the_same() -> None:
    assert digest("m", text("a") + b"x").whole != digest("m", text("a") + b"y").whole
    assert digest("m", b"x").whole == digest("m", b"x").whole


def test_it_remembers_as_much_as_the_pools_cache_holds_and_forgets_the_oldest() -> None:
    seen = Prefixes()
    seen.fit(3 * BLOCK_TOKENS)
    for name in "ab":
        seen.add(digest("m", text(name)))
    seen.add(digest("m", text("a")))  # used again
    seen.add(digest("m", text("c", "d")))
    held = [name for name in "abc" if seen.matched(digest("m", text(name)))]
    assert held == ["a", "c"]
    seen.clear()
    assert seen.matched(digest("m", text("a"))) == 0

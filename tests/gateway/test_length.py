"""Where a prompt's length comes from, and that an estimate says what it does not know."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers

from gateway.counters import by_tokenizer
from gateway.length import MARGIN, UNKNOWN, Counter, Lengths
from gateway.prefixes import digest
from gateway.request import Asked, read_request
from greenbench.contract.errors import UserError


def ask(prompt: object) -> Asked:
    return read_request("completions", json.dumps({"prompt": prompt}).encode())


def counter(tokens: Callable[[Asked], int | None]) -> Counter:
    async def count(asked: Asked, headers: object) -> int | None:
        return tokens(asked)

    return count


def count(lengths: Lengths, asked: Asked):
    return asyncio.run(lengths.count(asked, digest("m", asked.prompt.raw), []))


def guess(lengths: Lengths, asked: Asked):
    return lengths.guess(asked.prompt, digest("m", asked.prompt.raw))


def test_token_ids_need_nobody() -> None:
    length = guess(Lengths({}), ask([5] * 321))
    assert (length.low, length.tokens, length.high) == (321, 321, 321)
    assert length.source == "token ids"


def test_an_estimate_before_anything_was_counted_is_wide() -> None:
    least, likely, most = UNKNOWN
    length = guess(Lengths({}), ask("x" * 7998))  # 8,000 bytes with its quotes
    assert (length.low, length.tokens) == (8000 / most, 8000 / likely)
    assert length.high >= 8000 / least
    assert length.source.startswith("estimate")


def test_what_was_counted_narrows_the_estimate() -> None:
    tokens = {100: 20, 200: 50}  # 5 and 4 bytes a token
    lengths = Lengths({"/tokenize": counter(lambda asked: tokens[asked.prompt.text_bytes])})
    for size in tokens:
        count(lengths, ask("x" * (size - 2)))
    length = guess(lengths, ask("y" * 8998))
    assert length.tokens == 9000 / 4.5
    assert length.low == int(9000 / (5 * MARGIN))
    assert length.high == int(9000 / (4 / MARGIN)) + 1


def test_the_first_counter_that_can_is_believed_and_the_answer_is_kept() -> None:
    calls = []
    second = counter(lambda asked: calls.append(asked) or 77)
    lengths = Lengths({"first": counter(lambda asked: None), "second": second})
    assert count(lengths, ask("a b c")).source == "second"
    assert guess(lengths, ask("a b c")).tokens == 77
    assert guess(lengths, ask("a b d")).source.startswith("estimate")
    assert len(calls) == 1


def test_where_nobody_can_count_the_estimate_stands() -> None:
    length = count(Lengths({"/tokenize": counter(lambda asked: None)}), ask("x" * 398))
    assert length.tokens == 100
    assert length.source.startswith("estimate")


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """One token a word."""
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "a": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def test_a_models_tokenizer_counts_text_and_leaves_chats_to_the_pool(model: Path) -> None:
    counted = by_tokenizer(model)
    assert asyncio.run(counted(ask("a b\nc d"), [])) == 4
    chat = read_request("chat", b'{"messages": [{"role": "user", "content": "a b"}]}')
    assert asyncio.run(counted(chat, [])) is None


def test_a_tokenizer_that_is_none_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"tokenizer\.json: no tokenizer can be read"):
        by_tokenizer(tmp_path)

"""The fuzz of the stream parser finds what it is there to find, and its inputs are seeded."""

import random
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.wire import sse
from loadgen.wire.response import Response
from scripts import fuzz_stream


@given(st.integers(0, 2**32))
def test_no_input_is_a_fault(seed: int) -> None:
    assert fuzz_stream.fault_of(fuzz_stream.reply_to(random.Random(seed))) is None


def test_the_same_seed_is_the_same_input() -> None:
    first, second = (fuzz_stream.reply_to(random.Random(5)).facts for _ in range(2))
    assert first == second


def test_an_error_without_words_and_an_invented_success_are_faults() -> None:
    silent, invented = Response(), Response()
    silent.facts.error_type, silent.facts.error_message = "bad_sse", " "
    assert fuzz_stream.fault_of(silent) == "an error without words"
    assert "called good with None" in (fuzz_stream.fault_of(invented) or "")


def test_a_parser_that_raises_ends_the_fuzz_with_1_and_the_input(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(*_: object) -> None:
        raise UnicodeDecodeError("utf-8", b"\xff", 0, 1, "as before it was mended")

    monkeypatch.setattr(sse.StreamReader, "feed_all", broken)
    monkeypatch.setattr(sys, "argv", ["fuzz_stream", "--count", "20", "--seed", "100"])
    assert fuzz_stream.main() == 1
    assert "it raised" in capsys.readouterr().err

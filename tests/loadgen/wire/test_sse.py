"""Body bytes to events, tokens and errors, however they are cut: every miscount peers are known for."""

import itertools
import json

import msgspec
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from loadgen.wire import sse as sse_module
from loadgen.wire.sse import Facts, SseError, SseSplitter, StreamReader, error_text, read_whole
from tests.fakes.openai_server import completion_events, event, sse


def read(segments: list[bytes], limit: int = 1000) -> Facts:
    """Facts of a body that comes as these segments, one a read."""
    reader = StreamReader(limit)
    reader.feed(zip(segments, range(1, len(segments) + 1), strict=True))
    return reader.facts


def cut(body: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted(at), len(body)]
    return [body[a:b] for a, b in itertools.pairwise(edges)]


NASTY = "a\u2028b\u2029c\u0085d\x0be\x0cf\x1c\x00g — né 漢字 🚀"
STEPS = [1, 2, 1, 5, 3]


def nasty_body(newline: bytes) -> bytes:
    events = completion_events(9, STEPS, lambda i: f"{i}:{NASTY}")
    return b": warm\n\n" + b"".join(sse(data, newline) for data in events)


@pytest.mark.parametrize("newline", [b"\n", b"\r\n", b"\r"])
def test_a_cut_at_any_byte_changes_nothing(newline: bytes) -> None:
    """Peers lose tokens to CRLF and comments and cut text at U+2028 (httpx's iter_lines)."""
    body = nasty_body(newline)
    for at in range(len(body)):
        facts = read(cut(body, [at]))
        assert facts.chunk_tokens == [1, 3, 4, 9, 12], at
        assert "".join(facts.texts) == "".join(f"{i}:{NASTY}" for i in range(5))
        assert (facts.prompt_tokens, facts.output_tokens, facts.done) == (9, 12, True)
        assert (facts.finish_reason, facts.error_type) == ("length", None)


def test_one_byte_a_read_marks_each_chunk_by_the_read_that_completed_it() -> None:
    events = completion_events(9, [1, 1])
    body = b"".join(sse(data) for data in events)
    facts = read([body[i : i + 1] for i in range(len(body))])
    first = len(sse(events[0]))
    assert facts.chunk_stamps == [first, first + len(sse(events[1]))]


def test_several_events_in_one_read_share_its_mark() -> None:
    events = completion_events(9, [1, 1, 1])
    facts = read([sse(events[0]) + sse(events[1]), sse(events[2]), sse(events[3]) + sse(events[4])])
    assert facts.chunk_stamps == [1, 1, 2]


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.data())
def test_any_cutting_gives_the_same_counts(steps: list[int], data: st.DataObject) -> None:
    body = b"".join(sse(d) for d in completion_events(7, steps, lambda i: "é\u2028" * i + "x"))
    at = data.draw(st.lists(st.integers(0, len(body)), max_size=12))
    facts = read(cut(body, at))
    assert facts.output_tokens == sum(steps)
    assert facts.chunk_tokens == [sum(steps[: i + 1]) for i in range(len(steps))]


ODD = [
    b"[DONE]",
    b"{",
    b"{}{}",
    b"{} {}",
    b'{"object":"a}',
    b'{b"}',
    b"5",
    b'{"error":"no"}',
    b'{"object":"error","message":"no"}',
    event("a", 3, 9, "length"),
    event("", 4, 9),
    event("b", None, 9),
    event(None, 5, 9),
    event("c", 2, 8, metrics={"queue_time_ms": 1.5}),
    b'{"choices":[{"text":"d"}],"usage":{"completion_tokens":6,"prompt_tokens_details":{"cached_tokens":4}}}',
]
SEGMENTS = st.one_of(
    st.integers(1, 9).map(lambda n: sse(event(f" t{n}", n, 9))),
    st.sampled_from(ODD).map(sse),
    st.sampled_from(
        [b": ping\n\n", b"data: {}\r\n\r\n", b"data: {}\n", b"\n", b"data: {", b"}\n\n"]
    ),
)


@example([sse(b'{"object":"error","message":"no"}')], 1)
@given(st.lists(SEGMENTS, max_size=12), st.integers(1, 14))
def test_many_segments_at_once_read_as_one_by_one(segments: list[bytes], limit: int) -> None:
    """The usual run is decoded in one call: whatever it holds, nothing may come out otherwise."""
    outcomes: list[object] = []
    for at_once in (False, True):
        reader = StreamReader(limit)
        error = ""
        try:
            if at_once:
                reader.feed_all(segments, list(range(len(segments))))
            else:
                reader.feed(zip(segments, range(len(segments)), strict=True))
        except SseError as fault:
            error = str(fault)
        outcomes.append((reader.facts, reader.events, error))
    assert outcomes[0] == outcomes[1]


def test_a_usual_stream_is_decoded_in_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    segments = [sse(data) for data in completion_events(9, [1] * 500)]
    monkeypatch.setattr(
        StreamReader, "_event", lambda self, name, data, stamp: self.facts.fail("", "slow")
    )
    reader = StreamReader(1000)
    reader.feed_all(segments[:-1], list(range(501)))
    assert (reader.facts.output_tokens, reader.facts.error_type) == (500, None)
    assert reader.facts.chunk_stamps == list(range(500))


@given(st.binary(max_size=300))
def test_no_bytes_crash_the_reader(body: bytes) -> None:
    """Fuzz: anything is read or refused as SseError, in one piece or in single bytes, alike."""
    outcomes: list[object] = []
    for segments in ([body], [body[i : i + 1] for i in range(len(body))]):
        try:
            outcomes.append(read(segments).texts)
        except SseError as error:
            outcomes.append(str(error))
    assert outcomes[0] == outcomes[1]


@given(
    st.lists(
        st.sampled_from(
            [
                b"data: x",
                b"data:y",
                b"data",
                b": c",
                b"id: 1",
                b"event: e",
                b"",
                b"\n",
                b"\r",
                b"\r\n",
            ]
        ),
        max_size=20,
    ),
    st.integers(0, 60),
)
def test_the_splitter_agrees_with_the_standards_rules_read_line_by_line(
    parts: list[bytes], at: int
) -> None:
    """Second method: the WHATWG rules applied naively to the whole text."""
    body = b"".join(parts)
    expected: list[tuple[bytes, bytes]] = []
    pending: list[bytes] = []
    name = b""
    *lines, _ = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
    for line in lines:
        if line == b"":
            if pending:
                expected.append((name, b"\n".join(pending)))
            pending, name = [], b""
        elif line.startswith(b"data: "):
            pending.append(line[6:])
        elif line.startswith(b"data:"):
            pending.append(line[5:])
        elif line == b"data":
            pending.append(b"")
        elif line.startswith(b"event: "):
            name = line[7:]
    splitter = SseSplitter()
    assert [
        e for piece in cut(body, [min(at, len(body))]) for e in splitter.feed(piece)
    ] == expected


def test_a_byte_order_mark_at_the_start_is_no_content() -> None:
    assert SseSplitter().feed(b"\xef\xbb\xbfdata: x\n\n") == [(b"", b"x")]


def test_an_empty_text_without_a_new_token_is_no_chunk_and_with_one_it_is() -> None:
    """`vllm bench serve` counts an empty text as the first token; half a character is a token."""
    events = [event("", 0, 9), event("a", 1, 9), event("", 2, 9), event("b", 3, 9, "length")]
    facts = read([sse(data) for data in events])
    assert facts.chunk_stamps == [2, 3, 4]
    assert facts.chunk_tokens == [1, 2, 3]


def test_without_running_usage_text_counts_and_tokens_stay_unknown() -> None:
    events = [event("a", None, 9), event("", None, 9), event("b", None, 9), event(None, 2, 9)]
    facts = read([sse(data) for data in events])
    assert facts.chunk_stamps == [1, 3]
    assert (facts.chunk_tokens, facts.output_tokens) == (None, 2)


def test_usage_that_goes_down_is_an_error() -> None:
    facts = read([sse(event("a", 5, 9)), sse(event("b", 3, 9))])
    assert facts.error_type == "length_mismatch"
    assert facts.error_message == "usage went down: 5 to 3"


@pytest.mark.parametrize(
    "data",
    [
        {"error": {"message": "out of blocks", "type": "BadRequest", "code": 400}},
        {"object": "error", "message": "out of blocks", "code": 400},
        {"error": "out of blocks"},
    ],
)
def test_an_error_event_is_an_error_though_done_follows(data: dict[str, object]) -> None:
    """AIPerf and vLLM count such a stream as completed."""
    facts = read([sse(event("a", 1, 9)), sse(json.dumps(data).encode()), sse(b"[DONE]")])
    assert (facts.error_type, facts.error_message) == ("server_error_event", "out of blocks")
    assert facts.chunk_tokens == [1]


@pytest.mark.parametrize(
    "payload",
    [
        b"{",
        b"nonsense",
        b'{"choices":[{"text":5}]}',
        b'{"usage":{"completion_tokens":"five"}}',
        b'{"usage":{"completion_tokens":16.5}}',
        b'{"usage":{"completion_tokens":-1}}',
        b'{"usage":{"completion_tokens":1180591620717411303424}}',
        b'{"choices":[{"text":"\xff"}]}',
        b'{"error":' + b"[" * 100_000,
        b"[1]",
    ],
)
def test_what_is_no_completion_event_is_refused_and_earlier_chunks_stay(payload: bytes) -> None:
    reader = StreamReader(100)
    with pytest.raises(SseError, match="not a completion event"):
        reader.feed([(sse(event("a", 1, 9)), 1), (sse(payload), 2)])
    assert reader.facts.chunk_tokens == [1]


def test_an_endless_line_is_refused_in_bounded_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_module, "MAX_EVENT_BYTES", 10_000)
    reader = StreamReader(100)
    with pytest.raises(SseError, match="over 10000 bytes"):
        for mark in range(1, 1000):
            reader.feed([(b"x" * 100, mark)])
    assert mark == 101


def test_an_endless_stream_is_refused() -> None:
    with pytest.raises(SseError, match="over 50 events"):
        read([sse(event("a", i, 9)) for i in range(60)], limit=50)


def test_vllms_own_times_are_kept_and_nulls_left_out() -> None:
    last = event(None, 1, 9, metrics={"time_to_first_token_ms": 12.5, "queue_time_ms": None})
    assert read([sse(event("a", 1, 9)), sse(last)]).server_metrics == {
        "time_to_first_token_ms": 12.5
    }


def test_a_whole_reply_gives_usage_and_text() -> None:
    body = {
        "choices": [{"text": "x", "finish_reason": "length", "prompt_logprobs": [None, {}]}],
        "usage": {
            "prompt_tokens": 7,
            "completion_tokens": 1,
            "prompt_tokens_details": {"cached_tokens": 4},
        },
    }
    facts = read_whole(msgspec.json.encode(body))
    assert (facts.prompt_tokens, facts.output_tokens, facts.cached_tokens) == (7, 1, 4)
    assert facts.chunk_stamps == []
    assert read_whole(b"<html>").error_type == "bad_http"


def test_error_text_holds_no_prompt() -> None:
    body = json.dumps(
        {"error": {"message": "1 validation error: {'type': 'x', 'input': [17, 23, 42]}"}}
    )
    assert error_text(body.encode()) == "1 validation error: {'type': 'x', …"

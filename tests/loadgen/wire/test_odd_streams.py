"""What servers send beside what vLLM sends: what no figure needs passes, what one needs is read."""

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.wire import sse as sse_module
from loadgen.wire.sse import Facts, SseError, SseSplitter, StreamReader, error_text, read_whole
from tests.fakes.openai_server import sse

PROMPT, TOKENS = 256, 16


def token_event(count: int, **more: Any) -> dict[str, Any]:
    """The event of the ``count``-th token, with its usage."""
    finish = "length" if count == TOKENS else None
    usage = {"prompt_tokens": PROMPT, "completion_tokens": count}
    choice = {"index": 0, "text": f" w{count}", "finish_reason": finish}
    return {"id": "c1", "choices": [choice], "usage": usage} | more


def body_of(events: list[Any], first: bytes = b"", done: bytes = b"data: [DONE]\n\n") -> bytes:
    return first + b"".join(sse(json.dumps(event).encode()) for event in events) + done


def stream(first: bytes = b"", done: bytes = b"data: [DONE]\n\n", **more: Any) -> bytes:
    return body_of([token_event(count, **more) for count in range(1, TOKENS + 1)], first, done)


def with_usage(change: Any) -> bytes:
    events = [token_event(count) for count in range(1, TOKENS + 1)]
    for event in events:
        event["usage"] = change(event["usage"])
    return body_of(events)


def read(body: bytes, pieces: int = 1, ended: bool = True) -> Facts:
    """Facts of a body in so many pieces that came to its end as HTTP says."""
    reader = StreamReader(1000)
    edges = [len(body) * i // pieces for i in range(pieces + 1)]
    segments = [body[a:b] for a, b in itertools.pairwise(edges)]
    reader.feed_all(segments, list(range(len(segments))))
    if ended:
        reader.end(len(segments))
    return reader.facts


LAST_USAGE = {"prompt_tokens": PROMPT, "completion_tokens": TOKENS}
GOOD: dict[str, bytes] = {
    "null choices first": stream(b'data: {"id":"c1","choices":null}\n\n'),
    "null choices last": stream(
        done=sse(json.dumps({"choices": None, "usage": LAST_USAGE}).encode()) + b"data: [DONE]\n\n"
    ),
    "empty choice objects": stream(b'data: {"choices":[{}]}\n\ndata: {"choices":[null]}\n\n'),
    "choices of another type": stream(b'data: {"choices":{}}\n\ndata: {"choices":"x"}\n\n'),
    "empty data": stream(b"data: \n\ndata\n\ndata:   \n\n"),
    "null data": stream(b"data: null\n\n"),
    "an empty list, a text and a number": stream(b'data: []\n\ndata: "hi"\n\ndata: 1\n\n'),
    "a ping by name": stream(b"event: ping\ndata: ping\n\n"),
    "a ping by name with JSON": stream(b'event: ping\ndata: {"type": "ping"}\n\n'),
    "a name that means none": stream(b'event: message\ndata: {"choices":[]}\n\n'),
    "comments, ids and retry": stream(b": OPENROUTER PROCESSING\n\nid: 7\nretry: 100\n\n"),
    "float usage": with_usage(lambda usage: {k: float(v) for k, v in usage.items()}),
    "usage in digits": with_usage(lambda usage: {k: str(v) for k, v in usage.items()}),
    "details are a list": with_usage(lambda usage: usage | {"prompt_tokens_details": []}),
    "details are odd": with_usage(
        lambda usage: usage | {"prompt_tokens_details": {"cached_tokens": "many"}}
    ),
    "more counts": with_usage(
        lambda usage: usage | {"completion_tokens_details": 3, "cost": None, "queue_time": 1e-4}
    ),
    "an object as message": stream(message={"role": "assistant", "content": "x"}),
    "metrics with a text": stream(metrics={"ttft_ms": 3.1, "worker": "decode-0"}),
    "metrics with an object": stream(metrics={"kv": {"hit": 3}}),
    "metrics that are a list": stream(metrics=[1, 2]),
    "metrics that are a text": stream(metrics="none"),
    "object is a number": stream(object=7),
    "an empty error": stream(error=""),
    "error: false": stream(error=False),
    "an empty error object": stream(error={}),
    "an error object of nothing": stream(error={"code": 0, "message": "", "type": None}),
    "a number that is not one": stream().replace(b'"id": "c1"', b'"logprob": NaN, "id": -Infinity'),
    "invalid UTF-8 where nobody looks": stream().replace(b'"c1"', b'"\xff\xfe"'),
    "a tab in a text": stream().replace(b" w1", b"\tw1"),
    "a number beyond any": stream().replace(b'"c1"', b"1e999"),
    "a space after done": stream(done=b"data: [DONE] \n\n"),
    "no space before done": stream(done=b"data:[DONE]\n\n"),
    "one newline after done": stream(done=b"data: [DONE]\n"),
    "no newline after done": stream(done=b"data: [DONE]"),
    "CR and nothing after done": stream(done=b"data: [DONE]\r"),
    "done by name": stream(done=b"event: done\ndata: [DONE]\n\n"),
    "more after done": stream(done=b"data: [DONE]\n\ndata: bye\n\n"),
    "done twice": stream(done=b"data: [DONE]\n\ndata: [DONE]\n\n"),
}


@pytest.mark.parametrize("pieces", [1, 7, 10_000])
@pytest.mark.parametrize("name", GOOD)
def test_what_no_figure_needs_never_fails_a_request(name: str, pieces: int) -> None:
    facts = read(GOOD[name], pieces)
    assert (facts.error_type, facts.error_message, facts.done) == (None, None, True)
    assert (facts.prompt_tokens, facts.output_tokens) == (PROMPT, TOKENS)
    assert facts.chunk_tokens == list(range(1, TOKENS + 1))
    assert facts.finish_reason == "length"
    assert (facts.text or "").split() == [f"w{n}" for n in range(1, TOKENS + 1)]


def test_of_a_servers_figures_the_numbers_are_kept() -> None:
    assert read(GOOD["metrics with a text"]).server_metrics == {"ttft_ms": 3.1}
    assert read(GOOD["metrics with an object"]).server_metrics is None
    assert read(GOOD["metrics that are a list"]).server_metrics is None
    odd = stream(metrics={"a": True, "b": 10**400, "c": -0.5})
    assert read(odd).server_metrics == {"c": -0.5}


def test_usage_that_comes_late_or_with_null_before_leaves_the_chunks() -> None:
    """As llama.cpp and SGLang send it: null until the last event, which has a reason and no text."""
    texts = [{"choices": [{"text": f" {n}"}], "usage": None} for n in range(3)]
    last = {"choices": [{"text": "", "finish_reason": "length"}], "usage": LAST_USAGE}
    facts = read(body_of([*texts, last]), 10_000)
    assert len(facts.chunk_stamps) == 3
    assert (facts.chunk_tokens, facts.output_tokens, facts.error_type) == (None, TOKENS, None)
    after_done = read(body_of(texts, done=b"data: [DONE]\n\n") + body_of([last]))
    assert (after_done.prompt_tokens, after_done.output_tokens) == (PROMPT, TOKENS)


def test_a_running_count_that_stands_still_does_not_hide_the_chunks() -> None:
    usage = {"prompt_tokens": PROMPT, "completion_tokens": 0}
    events = [{"choices": [{"text": "a"}], "usage": usage} for _ in range(4)]
    facts = read(body_of([*events, {"choices": [], "usage": LAST_USAGE}]))
    assert (len(facts.chunk_stamps), facts.chunk_tokens) == (4, None)


def test_a_chats_deltas_are_tokens_and_its_content_the_answer() -> None:
    deltas: list[dict[str, Any]] = [
        {"role": "assistant", "content": ""},
        {"reasoning_content": "hm"},
        {"reasoning": "so", "content": None},
        {"content": "4"},
        {"content": [{"type": "text", "text": "2"}]},
        {"tool_calls": [{"index": 0, "function": {"name": "add", "arguments": ""}}]},
        {"tool_calls": []},
        {},
    ]
    events = [{"choices": [{"index": 0, "delta": delta}]} for delta in deltas]
    end = {"choices": [{"delta": {}, "finish_reason": "stop"}], "usage": LAST_USAGE}
    facts = read(body_of([*events, end]))
    assert len(facts.chunk_stamps) == 5
    assert (facts.text, facts.finish_reason, facts.output_tokens) == ("42", "stop", TOKENS)


def test_a_chat_with_running_usage_is_counted_by_it_in_one_call() -> None:
    events = [
        {"choices": [{"delta": {"content": str(n)}}], "usage": {"completion_tokens": n}}
        for n in range(1, 9)
    ]
    segments = [sse(json.dumps(event).encode()) for event in events]
    reader = StreamReader(100)
    reader.feed_all(segments, list(range(8)))
    assert reader.facts.chunk_tokens == list(range(1, 9))
    assert reader.facts.text == "12345678"


def test_halves_of_a_character_in_two_events_become_one() -> None:
    """JSON of JavaScript's makers escapes a smiley as two halves, and tokens part them."""
    body = body_of([{"choices": [{"text": "\ud83d"}]}, {"choices": [{"text": "\ude00!"}]}])
    assert read(body).text == "\U0001f600!"
    assert read(body_of([{"choices": [{"text": "\ud83d!"}]}])).text == "\ufffd!"


@pytest.mark.parametrize(
    ("event", "words"),
    [
        (b'data: {"error":{"message":"out of blocks","code":1}}\n\n', "out of blocks"),
        (b'data: {"error":"out of blocks"}\n\n', "out of blocks"),
        (b'data: {"object":"error","message":"out of blocks"}\n\n', "out of blocks"),
        (b"event: error\ndata: out of blocks\n\n", "out of blocks"),
        (b'event: error\ndata: {"detail":"out of blocks"}\n\n', "out of blocks"),
        (b'data: {"choices":[{"error":"gone","finish_reason":"error"}]}\n\n', "gone"),
        (b'data: {"choices":[{"text":"","finish_reason":"error"}]}\n\n', "finish_reason error"),
        (b'data: {"error":" "}\n\n', "no reason was given"),
        (b'data: {"error":{"code":500}}\n\n', "500"),
        (b'data: {"error":"\\ud800 broken"}\n\n', "broken"),
    ],
)
def test_an_error_keeps_the_servers_words_and_never_none(event: bytes, words: str) -> None:
    facts = read(event + b"data: [DONE]\n\n")
    assert facts.error_type == "server_error_event"
    assert words in (facts.error_message or "")
    (facts.error_message or "").encode()  # can be written


@pytest.mark.parametrize(
    "event",
    [
        b'{"choices":[{"text":"\xff"}]}',
        b'{"choices":[{"text":{}}]}',
        b'{"choices":[{"delta":{"content":7}}]}',
        b'{"usage":{"completion_tokens":16.5}}',
        b'{"usage":{"prompt_tokens":-3}}',
        b'{"usage":{"completion_tokens":true}}',
        b'{"usage":{"completion_tokens":1e300}}',
        b'{"choices":' + b"[" * 50_000,
        b"{oops",
        b"[{}]",
    ],
)
def test_what_a_figure_needs_and_cannot_be_read_is_refused_in_words(event: bytes) -> None:
    with pytest.raises(SseError, match=r"not a completion event: ."):
        read(sse(event))


def test_half_an_event_at_the_end_is_no_event() -> None:
    facts = read(stream(done=b'data: {"choi'))
    assert (facts.done, facts.ended, facts.error_type) == (False, True, None)


def test_endless_data_lines_are_counted_as_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_module, "MAX_EVENT_BYTES", 60_000)
    splitter, fed = SseSplitter(), 0
    with pytest.raises(SseError, match="over 60000 bytes"):
        while True:
            splitter.feed(b"data:\n" * 10)
            fed += 1
    assert fed == 1000  # 6 bytes a line, empty as they are, are 60,000


def test_comments_without_end_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse_module, "MAX_EVENT_BYTES", 600)
    splitter = SseSplitter()
    for _ in range(1000):
        assert splitter.feed(b": still thinking\n") == []


def test_a_line_of_data_costs_the_same_however_many_came_before() -> None:
    """By counting, not by a clock: what `_dispatch` looks at is what one feed brought."""
    looked = 0

    class Counted(list[bytes]):
        def __iter__(self) -> Any:
            nonlocal looked
            looked += len(self)
            return super().__iter__()

    splitter = SseSplitter()
    splitter._data = Counted()  # pyright: ignore[reportPrivateUsage]
    for _ in range(2000):
        splitter.feed(b"data: x\n")
    assert looked == 0


PARTS = st.sampled_from(
    [
        b"data: ", b"data:", b"event: error\n", b"event: x\n", b"id: 1\n", b": c\n", b"\n", b"\r",
        b"\r\n", b"[DONE]", b"null", b"{", b"}", b"[", b"]", b'"choices":', b'"usage":', b'"text":',
        b'"delta":', b'"content":', b'"error":', b'"completion_tokens":', b'"prompt_tokens":', b"1",
        b"16.0", b"-5", b"1e999", b'"a"', b'"\\ud83d"', b"\xff", b",", b" ", b"NaN", b"\xef\xbb\xbf",
        json.dumps(token_event(1)).encode(), json.dumps(token_event(TOKENS)).encode(),
    ]
)  # fmt: skip


@given(st.lists(PARTS, max_size=40).map(b"".join), st.integers(1, 50))
def test_any_pieces_of_a_stream_are_read_or_refused_however_cut(body: bytes, pieces: int) -> None:
    outcomes: list[object] = []
    for count in (1, pieces):
        try:
            facts = read(body, count)
        except SseError as error:
            outcomes.append(str(error))
            continue
        assert (facts.error_type is None) == (facts.error_message is None)
        assert facts.error_message != ""
        (facts.text or "").encode()
        outcomes.append((facts.text, facts.output_tokens, facts.error_message, facts.done))
    assert outcomes[0] == outcomes[1]


@given(st.binary(max_size=200))
def test_no_body_crashes_the_words_of_an_error_or_a_whole_reply(body: bytes) -> None:
    error_text(body).encode()
    facts = read_whole(body)
    assert facts.error_message != ""


def test_a_whole_chat_gives_its_answer() -> None:
    message = {"role": "assistant", "content": "42", "reasoning_content": "hm", "tool_calls": []}
    body = {"choices": [{"message": message, "finish_reason": "length"}], "usage": LAST_USAGE}
    facts = read_whole(json.dumps(body).encode())
    assert (facts.text, facts.output_tokens, facts.error_type) == ("42", TOKENS, None)

"""Servers that misbehave, each against both clients: one row each, exact counts, the right error.

The golden server's script says what was sent; the expected outcome is worked out from it. httpx is the
second method: where both can know, both must say the same.
"""

import time
from collections.abc import Callable

import pytest

from loadgen.wire import response as exchange_module
from loadgen.wire.response import Response
from tests.fakes.clients import CLIENTS, PROMPT, fast, request
from tests.fakes.openai_server import (
    END_CHUNK,
    OK_STREAM,
    GoldenServer,
    Script,
    Write,
    chunked,
    completion_events,
    event,
    json_script,
    sse,
    stream_script,
)

N = len(PROMPT)
STEPS = [1, 2, 1, 5, 3]  # tokens an event: coalesced by the server
TOKENS = sum(STEPS)
EVENTS = completion_events(N, STEPS, lambda i: f"{i}\u2028\x00é漢🚀")
BODY = b"".join(sse(data) for data in EVENTS)


def whole(body: bytes, head: bytes = OK_STREAM, ending: str = "keep") -> Script:
    """One write: the head and the body as one chunk."""
    return Script([Write(0, head + chunked(body) + END_CHUNK)], ending)


def bytewise() -> Script:
    """Every byte a TCP segment of its own (TCP_NODELAY, a drain after each)."""
    raw = OK_STREAM + b"".join(chunked(sse(data)) for data in EVENTS) + END_CHUNK
    return Script([Write(0.0001, raw[i : i + 1]) for i in range(len(raw))])


def by_length(body: bytes, minor: int = 1, extra: bytes = b"") -> Script:
    head = b"HTTP/1.%d 200 OK\r\ncontent-type: text/event-stream\r\n%scontent-length: %d\r\n\r\n"
    return Script([Write(0, head % (minor, extra, len(body)) + body)])


def until_close(minor: int) -> Script:
    head = (
        b"HTTP/1.%d 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n" % minor
    )
    return Script([Write(0, head), Write(0.01, BODY)], "fin")


def typed(kind: bytes, body: bytes) -> Script:
    """A stream under another content type; none where ``kind`` is empty."""
    head = OK_STREAM.replace(b"content-type: text/event-stream; charset=utf-8\r\n", kind)
    return whole(body, head)


NOTHING = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"


def with_final(completion_tokens: int, prompt_tokens: int = N) -> Script:
    events = [*EVENTS[:-2], event(None, completion_tokens, prompt_tokens), b"[DONE]"]
    return whole(b"".join(sse(data) for data in events))


def without_usage() -> Script:
    events = [event("a", None, N), event("b", None, N, "length"), b"[DONE]"]
    return whole(b"".join(sse(data) for data in events))


def cut_after(events: int, ending: str) -> Script:
    first = [Write(0.0, OK_STREAM + chunked(sse(EVENTS[0])))]
    return Script(first + [Write(0.001, chunked(sse(d))) for d in EVENTS[1:events]], ending)


CRLF_BODY = b"".join(sse(data, b"\r\n") for data in EVENTS)
COMMENTED = b": hi\n\n" + b"".join(b": ping\n\n" + sse(data) for data in EVENTS)
ERROR_EVENT = sse(b'{"error":{"message":"out of blocks","code":500}}')

GOOD: dict[str, Callable[[], Script]] = {
    "as vLLM sends it": lambda: stream_script(EVENTS),
    "every byte alone": bytewise,
    "all events in one segment": lambda: whole(BODY),
    "CRLF": lambda: whole(CRLF_BODY),
    "CR": lambda: whole(BODY.replace(b"\n", b"\r")),
    "comments between": lambda: whole(COMMENTED),
    "content-length": lambda: by_length(BODY),
    "until close": lambda: until_close(1),
    "HTTP/1.0": lambda: until_close(0),
    "HTTP/1.0 keep-alive": lambda: by_length(BODY, 0, b"connection: keep-alive\r\n"),
    "100 continue first": lambda: whole(BODY, b"HTTP/1.1 100 Continue\r\n\r\n" + OK_STREAM),
    "plain text as content type": lambda: typed(b"content-type: text/plain\r\n", BODY),
    "no content type": lambda: typed(b"", BODY),
    "done without a newline": lambda: whole(BODY[:-2]),
    "done cut by the close": lambda: Script(
        [*until_close(1).writes[:1], Write(0.01, BODY[:-1])], "fin"
    ),
    "without [DONE]": lambda: whole(BODY.removesuffix(sse(b"[DONE]"))),
    "trailers": lambda: Script(
        [Write(0, OK_STREAM + chunked(BODY) + b"0\r\nserver-timing: x\r\n\r\n")]
    ),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", GOOD)
def test_a_good_reply_in_odd_clothes_is_counted_exactly(name: str, client: str) -> None:
    with GoldenServer(lambda seen: GOOD[name]()) as server:
        first, second = CLIENTS[client](server.url, [lambda t, n: request(t, TOKENS, number=n)] * 2)
    for got in (first, second):
        facts = got.facts
        assert (facts.error_type, facts.error_message) == (None, None)
        assert facts.chunk_tokens == [1, 3, 4, 9, 12]
        assert (facts.prompt_tokens, facts.output_tokens, got.http_status) == (N, 12, 200)
        assert got.text == "".join(f"{i}\u2028\x00é漢🚀" for i in range(5))
        assert got.chunk_ns and len(got.chunk_ns) == 5
        assert got.chunk_ns == sorted(got.chunk_ns) and got.chunk_ns[0] > 0
        assert got.headers_ns and got.end_ns and got.headers_ns <= got.chunk_ns[0] <= got.end_ns


# name -> (script, error type, a part of its message, chunks kept)
BAD: dict[str, tuple[Callable[[], Script], str, str, int]] = {
    "usage missing": (without_usage, "no_usage", "no token usage", 2),
    "too few tokens": (lambda: with_final(12 - 0, N + 1), "length_mismatch", "prompt of 10", 5),
    "usage wrong": (lambda: with_final(13), "length_mismatch", "13 output tokens, 12 were", 5),
    "usage going down": (lambda: with_final(11), "length_mismatch", "usage went down: 12 to 11", 5),
    "error event": (
        lambda: whole(sse(EVENTS[0]) + ERROR_EVENT + sse(b"[DONE]")),
        "server_error_event",
        "out of blocks",
        1,
    ),
    "malformed SSE": (lambda: whole(sse(EVENTS[0]) + b"data: {oops\n\n"), "bad_sse", "not a", 1),
    "no [DONE]": (lambda: whole(sse(EVENTS[0])), "cut_in_stream", "without [DONE]", 1),
    "no [DONE] and an end by closing": (
        lambda: Script(
            [*until_close(1).writes[:1], Write(0.01, BODY.removesuffix(sse(b"[DONE]")))], "fin"
        ),
        "cut_in_stream",
        "without [DONE]",
        5,
    ),
    "invalid UTF-8": (
        lambda: whole(sse(EVENTS[0]) + b'data: {"choices":[{"text":"\xff"}]}\n\n'),
        "bad_sse",
        "invalid UTF-8",
        1,
    ),
    "an error as JSON with status 200": (
        lambda: json_script({"error": {"message": "out of blocks"}}),
        "server_error_event",
        "out of blocks",
        0,
    ),
    "an error as a page with status 200": (
        lambda: typed(b"content-type: text/html\r\n", b"<html>login first</html>"),
        "bad_sse",
        "login first",
        0,
    ),
    "the whole answer at once": (
        lambda: json_script(
            {"choices": [{"text": "a"}], "usage": {"prompt_tokens": N, "completion_tokens": 12}}
        ),
        "bad_sse",
        "the whole answer at once",
        0,
    ),
    "nothing at all": (lambda: Script([Write(0, NOTHING)]), "bad_sse", "content type none", 0),
    "closed in the body": (lambda: cut_after(3, "fin"), "cut_in_stream", "", 3),
    "reset before the head": (lambda: Script([], "rst"), "cut_in_stream", "", 0),
    "closed before the head": (lambda: Script([], "fin"), "cut_in_stream", "", 0),
    "reset in the body": (lambda: cut_after(2, "rst"), "cut_in_stream", "", 2),
    "429": (
        lambda: json_script(
            {"error": {"message": "slow down"}}, "429 Too Many", extra="Retry-After: 2\r\n"
        ),
        "http_4xx",
        "HTTP 429; retry-after: 2; slow down",
        0,
    ),
    "503": (lambda: json_script({}, "503 Unavailable"), "http_5xx", "HTTP 503", 0),
    "redirect": (
        lambda: json_script({}, "307 Temporary Redirect", extra="location: http://other/\r\n"),
        "http_other",
        "location: http://other/",
        0,
    ),
    "wrong content type": (lambda: json_script({"choices": []}), "bad_sse", "application/json", 0),
    "not HTTP": (lambda: Script([Write(0, b"SSH-2.0-x\r\n\r\n")], "fin"), "bad_http", "", 0),
}


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("name", BAD)
def test_a_bad_reply_is_one_row_with_its_error_and_what_it_had(name: str, client: str) -> None:
    """And the next request on the same client is answered right."""
    script, error_type, message, chunks = BAD[name]
    replies = iter([script(), stream_script(EVENTS)])
    with GoldenServer(lambda seen: next(replies)) as server:
        bad, good = CLIENTS[client](server.url, [lambda t, n: request(t, TOKENS, number=n)] * 2)
    assert bad.facts.error_type == error_type
    assert message in (bad.facts.error_message or "")
    assert len(bad.chunk_ns or []) == chunks
    assert (good.facts.error_type, good.facts.output_tokens) == (None, 12)


@pytest.mark.parametrize("client", CLIENTS)
@pytest.mark.parametrize("at", ["nothing", "head", "middle", "drip"])
def test_a_stall_ends_as_a_timeout_at_the_limit(at: str, client: str) -> None:
    writes = {
        "nothing": [],
        "head": [Write(0, OK_STREAM)],
        "middle": [Write(0, OK_STREAM + chunked(sse(EVENTS[0])))],
        # a drip of single bytes keeps every read's own limit from passing
        "drip": [Write(0, OK_STREAM), *[Write(0.02, b"%x" % i) for i in range(1, 16)]],
    }[at]
    started = time.monotonic()
    with GoldenServer(lambda seen: Script(writes, "hang")) as server:
        (got,) = CLIENTS[client](server.url, [lambda t, n: request(t, TOKENS)], timeout_s=0.2)
    assert got.facts.error_type == "timeout"
    assert "within 0.2 s" in (got.facts.error_message or "")
    waited_ns = (time.monotonic() - started) * 1e9  # the script itself hangs for good
    assert got.end_ns and 0.19e9 < got.end_ns < waited_ns
    assert len(got.chunk_ns or []) == (1 if at == "middle" else 0)


@pytest.mark.parametrize("client", CLIENTS)
def test_a_closed_port_is_a_connect_error(client: str) -> None:
    with GoldenServer() as server:
        url = server.url
    (got,) = CLIENTS[client](url, [lambda t, n: request(t, TOKENS)])
    assert got.facts.error_type == "connect"
    assert got.sent is None


@pytest.mark.parametrize("client", CLIENTS)
def test_a_connection_closed_between_two_requests_costs_no_row(client: str) -> None:
    """uvicorn closes idle connections after 5 s: the next request opens a new one."""
    with GoldenServer(lambda seen: Script([*stream_script(EVENTS).writes], "fin")) as server:
        got = CLIENTS[client](server.url, [lambda t, n: request(t, TOKENS, number=n)] * 3)
        assert [g.facts.error_type for g in got] == [None] * 3
        assert len({seen.connection for seen in server.seen}) == 3


@pytest.mark.parametrize("client", CLIENTS)
def test_a_reset_after_the_body_costs_no_row(client: str) -> None:
    with GoldenServer(lambda seen: Script([*stream_script(EVENTS).writes], "rst")) as server:
        got = CLIENTS[client](server.url, [lambda t, n: request(t, TOKENS, number=n)] * 2)
    assert [(g.facts.error_type, g.facts.output_tokens) for g in got] == [(None, 12)] * 2


def test_a_kept_connection_is_reused_and_pays_for_connecting_once() -> None:
    with GoldenServer(lambda seen: stream_script(EVENTS)) as server:
        got = fast(server.url, [lambda t, n: request(t, TOKENS, number=n)] * 3)
        assert {seen.connection for seen in server.seen} == {1}
    assert [g.connect_ns is not None for g in got] == [True, False, False]


def test_bytes_after_the_reply_are_refused_with_their_connection() -> None:
    extra = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n"
    with GoldenServer(
        lambda seen: Script([Write(0, OK_STREAM + chunked(BODY) + END_CHUNK + extra)])
    ) as s:
        got = fast(s.url, [lambda t, n: request(t, TOKENS, number=n)] * 2)
        assert [seen.connection for seen in s.seen] == [1, 2]
    assert [(g.facts.error_type, g.facts.output_tokens) for g in got] == [(None, 12)] * 2


def test_an_endless_line_is_cut_with_bounded_memory() -> None:
    """A 1 GB line: refused at the event limit, long before it has come."""
    megabyte = b"x" * 2**20
    line = [Write(0, OK_STREAM + chunked(sse(EVENTS[0])))] + [Write(0, chunked(megabyte))] * 1024
    with GoldenServer(lambda seen: Script(line, "fin")) as server:
        before = _peak_bytes()
        (got,) = fast(server.url, [lambda t, n: request(t, TOKENS)], timeout_s=30)
        grown = _peak_bytes() - before
    assert (got.facts.error_type, len(got.chunk_ns or [])) == ("bad_sse", 1)
    assert "an event of over" in (got.facts.error_message or "")
    assert grown < 120 * 2**20


def _peak_bytes() -> int:
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@pytest.mark.parametrize("what", ["events", "comments"])
def test_an_endless_stream_is_cut(what: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_STREAM_BYTES", 2**20)
    piece = sse(EVENTS[0]) * 100 if what == "events" else b": ping\n\n" * 2000
    with GoldenServer(
        lambda seen: Script([Write(0, OK_STREAM)] + [Write(0, chunked(piece))] * 500)
    ) as s:
        (got,) = fast(s.url, [lambda t, n: request(t, TOKENS)])
    expected = "over 1072 events" if what == "events" else "a stream of over"
    assert (got.facts.error_type, expected in (got.facts.error_message or "")) == ("bad_sse", True)


def test_an_endless_plain_body_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exchange_module, "MAX_BODY_BYTES", 2**20)
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 999999999\r\n\r\n"
    with GoldenServer(
        lambda seen: Script([Write(0, head)] + [Write(0, b"x" * 2**16)] * 100, "fin")
    ) as s:
        (got,) = fast(s.url, [lambda t, n: request(t, 1, streaming=False)])
    assert (got.facts.error_type, got.body) == ("bad_http", None)


def test_a_server_that_answers_before_it_has_read_the_request_is_heard() -> None:
    """413 while a large body is still going out: the row says 413, not a broken pipe."""
    refusal = json_script({"error": "too large"}, "413 Too Large", extra="connection: close\r\n")
    script = Script(refusal.writes, "hang", before_body=True, hang_s=0.3)
    big = list(range(2_000_000))
    with GoldenServer(lambda seen: script) as server:
        (got,) = fast(
            server.url, [lambda t, n: request(t, TOKENS, prompt=big, path="/before_body")], 3
        )
    assert (got.facts.error_type, got.http_status) == ("http_4xx", 413)


def test_a_server_that_never_reads_is_a_stall_of_the_sending() -> None:
    script = Script([], "hang", before_body=True, hang_s=1)
    big = list(range(3_000_000))
    with GoldenServer(lambda seen: script) as server:
        make = lambda t, n: request(t, TOKENS, prompt=big, path="/before_body")  # noqa: E731
        (got,) = fast(server.url, [make], 0.2)
    assert (got.facts.error_type, got.send_ns) == ("stalled", None)
    assert got.send_waits > 0


def test_a_scored_reply_is_read_whole() -> None:
    with GoldenServer() as server:
        (got,) = fast(server.url, [lambda t, n: request(t, 1, streaming=False)])
    assert (got.facts.error_type, got.facts.prompt_tokens, got.facts.output_tokens) == (None, N, 1)
    assert got.body and b"prompt_logprobs" in got.body
    assert got.chunk_ns is None and got.end_ns


def _kernel(got: Response) -> bool:
    return got.kernel_times


def test_the_kernel_stamps_the_reads_here() -> None:
    with GoldenServer(lambda seen: stream_script(EVENTS, 0.01, 0.005)) as server:
        (got,) = fast(server.url, [lambda t, n: request(t, TOKENS)])
    assert _kernel(got) and got.delays_ns and min(got.delays_ns) >= 0

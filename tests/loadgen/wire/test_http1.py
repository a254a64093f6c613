"""HTTP/1.1 framing from raw bytes: h11 is the second method, hypothesis cuts the bytes."""

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.wire import http1
from loadgen.wire.http1 import Http1Error, ResponseParser

BODY = b"hello, world"


def parse(pieces: list[bytes], closed: bool = False) -> ResponseParser:
    parser = ResponseParser()
    for piece in pieces:
        parser.feed(piece)
    if closed:
        parser.end_of_stream()
    return parser


def with_h11(raw: bytes, closed: bool) -> tuple[int, bytes, bool]:
    """Status, body and completeness as h11 sees them."""
    connection = h11.Connection(h11.CLIENT)
    connection.send(
        h11.Request(method="POST", target="/", headers=[("host", "x"), ("content-length", "0")])
    )
    connection.send(h11.EndOfMessage())
    connection.receive_data(raw)
    status, body = 0, b""
    eof_told = False
    while True:
        got = connection.next_event()
        if isinstance(got, h11.Response):
            status = got.status_code
        elif isinstance(got, h11.Data):
            body += bytes(got.data)
        elif isinstance(got, h11.EndOfMessage):
            return status, body, True
        elif got is h11.NEED_DATA:
            if not closed or eof_told:
                return status, body, False
            connection.receive_data(b"")
            eof_told = True


def chunks(*parts: bytes, trailer: bytes = b"") -> bytes:
    return b"".join(b"%X;x=1\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n" + trailer + b"\r\n"


CASES: dict[str, tuple[bytes, bool]] = {
    "length": (b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY, False),
    "length twice alike": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\ncontent-length:12\r\n\r\n" + BODY,
        False,
    ),
    "chunked": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks(b"hello, ", b"world"),
        False,
    ),
    "trailers": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks(BODY, trailer=b"Digest: abc\r\nX-Y: z\r\n"),
        False,
    ),
    "100 first": (
        b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\nlink: x\r\n\r\n"
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + BODY,
        False,
    ),
    "until close": (b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n" + BODY, True),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nServer: old\r\n\r\n" + BODY, True),
    "empty": (b"HTTP/1.1 204 No Content\r\n\r\n", False),
    "length 0": (b"HTTP/1.1 503 Unavailable\r\nContent-Length: 0\r\n\r\n", False),
    "no reason": (b"HTTP/1.1 200\r\nContent-Length: 12\r\n\r\n" + BODY, False),
    "bare LF": (b"HTTP/1.1 200 OK\nContent-Length: 12\n\n" + BODY, False),
    "CRLF in chunk": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + chunks(b"0\r\n\r\n", b"5\r\n", b"\r\n\r\n"),
        False,
    ),
    "cut length": (b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n" + BODY, False),
    "cut chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel", False),
}


@pytest.mark.parametrize("name", CASES)
def test_status_body_and_end_are_those_of_h11_wherever_the_bytes_are_cut(name: str) -> None:
    raw, closed = CASES[name]
    expected = with_h11(raw, closed)
    for at in range(len(raw) + 1):
        parser = parse([raw[:at], raw[at:]] if at else [raw], closed)
        found = (parser.status, b"".join(parser.segments), parser.complete)
        assert found == expected, at
    single = parse([raw[i : i + 1] for i in range(len(raw))], closed)
    assert (single.status, b"".join(single.segments), single.complete) == expected


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=5), st.data())
def test_any_chunking_and_any_cutting_gives_the_body_back(
    parts: list[bytes], data: st.DataObject
) -> None:
    raw = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    raw += b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in parts) + b"0\r\n\r\n"
    edges = sorted(data.draw(st.lists(st.integers(0, len(raw)), max_size=8)))
    pieces = [raw[a:b] for a, b in zip([0, *edges], [*edges, len(raw)], strict=True)]
    parser = parse([piece for piece in pieces if piece])
    assert parser.complete and parser.reusable
    assert b"".join(parser.segments) == b"".join(parts)


@given(st.binary(max_size=200))
def test_no_bytes_crash_the_parser(raw: bytes) -> None:
    for prefix in (b"", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"):
        try:
            parse([prefix + raw]) if prefix + raw else None
        except Http1Error:
            continue


def test_segments_are_handed_over_once() -> None:
    head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
    parser = parse([head, b"3\r\nabc\r\n", b"2\r\nd", b"e\r\n0\r", b"\n\r\n"])
    assert parser.take() == [b"abc", b"d", b"e"]
    assert parser.take() == []
    assert parser.complete


@pytest.mark.parametrize(
    ("raw", "closed", "reusable"),
    [
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok", False, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nok", False, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\nok", False, False),
        (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\nConnection: keep-alive\r\n\r\nok", False, True),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nokHTTP/1.1 200 OK\r\n", False, False),
        (b"HTTP/1.1 200 OK\r\n\r\nok", True, False),
    ],
    ids=["1.1", "close", "1.0", "1.0 keep-alive", "leftover", "until close"],
)
def test_a_connection_is_reused_only_where_the_reply_allows_it(
    raw: bytes, closed: bool, reusable: bool
) -> None:
    """A leftover is the reply to nothing: reading on would give the next request a wrong answer."""
    parser = parse([raw], closed)
    assert (parser.complete, parser.reusable) == (True, reusable)
    assert b"".join(parser.segments) == b"ok"


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 abc OK\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nbad name: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: 1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n+5\r\nhello\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhelloX\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\nnot a trailer\r\n\r\n",
    ],
)
def test_what_is_not_http_is_refused_and_never_guessed(raw: bytes) -> None:
    with pytest.raises(Http1Error):
        parse([raw])
    with pytest.raises(Http1Error):
        parse([raw[i : i + 1] for i in range(len(raw))])


def test_an_endless_head_and_an_endless_chunk_line_are_refused() -> None:
    parser = ResponseParser()
    with pytest.raises(Http1Error, match="head of over"):
        for i in range(2000):
            parser.feed(b"HTTP/1.1 200 OK\r\n" if i == 0 else b"x-y: " + b"z" * 100 + b"\r\n")
    assert i * 100 < 2 * http1.MAX_HEAD_BYTES
    parser = parse([b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"])
    with pytest.raises(Http1Error, match="line of over"):
        for _ in range(2000):
            parser.feed(b"1;" + b"x" * 100)


@given(st.text(alphabet="\r\na", max_size=24))
def test_the_first_empty_line_ends_a_head_however_lines_end(text: str) -> None:
    """Against a look at every place where a line may end."""
    data = text.encode()
    ends = [
        (at, at + len(ending))
        for at in range(len(data))
        for ending in (b"\r\n\r\n", b"\r\n\n", b"\n\r\n", b"\n\n")
        if data.startswith(ending, at)
    ]
    assert http1._head_ends(data, 0) == min(ends, default=(-1, -1))

"""HTTP/1.1 responses from raw bytes: no socket, no clock.

`ResponseParser` takes what each read brought and gives the body back in segments. It decodes framing
only (chunked, content-length, until close; 1xx skipped, trailers dropped). What RFC 9112 does not
allow raises `Http1Error`; it never guesses where a message ends.
"""

import functools
import re
from collections.abc import Callable
from typing import Final, NamedTuple

MAX_HEAD_BYTES: Final = 64 * 1024
MAX_LINE_BYTES: Final = 16 * 1024  # a chunk-size line or one trailer
# Sizes as servers write them. A hit is exact; a miss (upper case, extensions) is parsed at length.
CHUNK_SIZES: Final = {b"%x" % size: size for size in range(1, 8192)}
LAST_CHUNK: Final = b"0\r\n\r\n"  # without trailers

_HEAD_END = re.compile(rb"\r?\n\r?\n")
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9]{2})(?: [^\r\n]*)?")
_HEADER = re.compile(rb"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([^\x00\r\n]*?)[ \t]*")
_CHUNK_LINE = re.compile(rb"([0-9A-Fa-f]{1,15})[ \t]*(?:;[^\r\n]*)?")

HEAD, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILERS, LENGTH, UNTIL_CLOSE, DONE = range(8)


class Http1Error(ValueError):
    """The bytes are not an HTTP/1.1 response. The text says what was found."""


class ResponseParser:
    """One response. ``feed`` each read; ``end_of_stream`` when the peer closes.

    ``segments`` are the body bytes not yet taken (``take``). ``complete``: the body ended as its
    framing says. ``reusable``: another request may follow on the same connection.
    """

    __slots__ = (
        "_rest",
        "_state",
        "_wanted",
        "complete",
        "headers",
        "reusable",
        "segments",
        "started",
        "status",
    )

    def __init__(self) -> None:
        self.status: int | None = None
        self.headers: dict[bytes, bytes] = {}
        self.started = False  # any byte of a response has come
        self.complete = False
        self.reusable = False
        self.segments: list[bytes] = []
        self._rest = b""
        self._state = HEAD
        self._wanted = 0  # bytes still to come of the chunk or body

    @property
    def at_chunk(self) -> bool:
        """The next byte begins a chunk, so that a read may be taken as one whole chunk."""
        return self._state == CHUNK_SIZE and not self._rest

    @property
    def framed(self) -> bool:
        """The body has an end of its own, so that a cut shows: it does not end by closing."""
        return b"transfer-encoding" in self.headers or b"content-length" in self.headers

    def take(self) -> list[bytes]:
        """Hand over the segments gathered so far and forget them."""
        taken, self.segments = self.segments, []
        return taken

    def feed(self, data: bytes) -> None:
        self.started = True
        buffer = self._rest + data if self._rest else data
        self._rest = buffer[self._consume(buffer) :]

    def end_of_stream(self) -> None:
        """The peer closed. Ends a body that has no other end; otherwise it stays incomplete."""
        if self._state == UNTIL_CLOSE:
            self._finish(reusable=False)

    def _consume(self, buffer: bytes) -> int:
        """Parse as far as ``buffer`` goes; the number of bytes used up."""
        at, end = 0, len(buffer)
        while at < end:
            used = _CONSUME[self._state](self, buffer, at)
            if used == at:  # what comes next is cut
                break
            at = used
        return at

    def _consume_chunk_start(self, buffer: bytes, at: int) -> int:
        """Use up a chunk that lies whole in ``buffer``, its size written as servers do; or its size line."""
        line_end = buffer.find(b"\r\n", at, at + 8)
        size = CHUNK_SIZES.get(buffer[at:line_end]) if line_end > 0 else None
        if size is None:
            if buffer.startswith(LAST_CHUNK, at):
                self._finish(self.reusable)
                return at + len(LAST_CHUNK)
        elif buffer[line_end + 2 + size : line_end + 4 + size] == b"\r\n":
            self.segments.append(buffer[line_end + 2 : line_end + 2 + size])
            return line_end + 4 + size
        return self._consume_line(buffer, at)

    def _consume_counted(self, buffer: bytes, at: int) -> int:
        piece = buffer[at : at + self._wanted] if at else buffer[: self._wanted]
        self.segments.append(piece)
        self._wanted -= len(piece)
        if self._wanted == 0:
            if self._state == LENGTH:
                self._finish(self.reusable)
            else:
                self._state = CHUNK_END
        return at + len(piece)

    def _consume_until_close(self, buffer: bytes, at: int) -> int:
        self.segments.append(buffer[at:])
        return len(buffer)

    def _consume_surplus(self, buffer: bytes, at: int) -> int:
        """Bytes after the reply belong to no request: never reuse the connection."""
        self.reusable = False
        return len(buffer)

    def _finish(self, reusable: bool) -> None:
        self._state = DONE
        self.complete = True
        self.reusable = reusable

    def _consume_line(self, buffer: bytes, at: int) -> int:
        """Use up one chunk-size line, chunk end or trailer line; ``at`` when it is cut."""
        line_end = buffer.find(b"\n", at)
        if line_end < 0:
            if len(buffer) - at > MAX_LINE_BYTES:
                raise Http1Error(f"a chunk-size or trailer line of over {MAX_LINE_BYTES} bytes")
            return at
        line = buffer[at:line_end]
        if not line.endswith(b"\r"):
            raise Http1Error(f"a chunk line that ends without CR: {line[:40]!r}")
        _LINES[self._state](self, line[:-1])
        return line_end + 1

    def _chunk_end(self, line: bytes) -> None:
        if line:
            raise Http1Error(f"a chunk longer than its size: {line[:40]!r}")
        self._state = CHUNK_SIZE

    def _trailer(self, line: bytes) -> None:
        """The empty line ends the message."""
        if not line:
            self._finish(self.reusable)
        elif not _HEADER.fullmatch(line):
            raise Http1Error(f"a malformed trailer: {line[:40]!r}")

    def _chunk_size(self, line: bytes) -> None:
        match = _CHUNK_LINE.fullmatch(line)
        if match is None:
            raise Http1Error(f"a malformed chunk size: {line[:40]!r}")
        self._wanted = int(match[1], 16)
        self._state = CHUNK_DATA if self._wanted else TRAILERS

    def _consume_head(self, buffer: bytes, at: int) -> int:
        head_end, end = _head_ends(buffer, at)
        if head_end < 0 or end - at > MAX_HEAD_BYTES:
            if len(buffer) - at > MAX_HEAD_BYTES:
                raise Http1Error(f"a response head of over {MAX_HEAD_BYTES} bytes")
            if not b"HTTP/1.".startswith(buffer[at : at + 7]):
                raise Http1Error(f"not an HTTP/1 response: {buffer[at : at + 40]!r}")
            return at
        head = _head(buffer[at:head_end])
        if head.status >= 200:
            self.status = head.status
            self.headers = head.headers
            self.reusable = head.reusable
            self._state = head.state
            self._wanted = head.length
            self.complete = head.state == DONE
        return end


# How each state takes bytes: where they end that were used up, or ``at`` when they are cut.
_CONSUME: Final[dict[int, Callable[[ResponseParser, bytes, int], int]]] = {
    HEAD: ResponseParser._consume_head,
    CHUNK_SIZE: ResponseParser._consume_chunk_start,
    CHUNK_DATA: ResponseParser._consume_counted,
    CHUNK_END: ResponseParser._consume_line,
    TRAILERS: ResponseParser._consume_line,
    LENGTH: ResponseParser._consume_counted,
    UNTIL_CLOSE: ResponseParser._consume_until_close,
    DONE: ResponseParser._consume_surplus,
}
_LINES: Final[dict[int, Callable[[ResponseParser, bytes], None]]] = {
    CHUNK_SIZE: ResponseParser._chunk_size,
    CHUNK_END: ResponseParser._chunk_end,
    TRAILERS: ResponseParser._trailer,
}


def _head_ends(buffer: bytes, at: int) -> tuple[int, int]:
    """Where a head ends without its empty line, and with it; (-1, -1) when it has not come whole."""
    head_end = buffer.find(b"\r\n\r\n", at)
    if buffer.find(b"\n\r\n", at) == head_end + 1 > 0 > buffer.find(b"\n\n", at, head_end):
        return head_end, head_end + 4
    match = _HEAD_END.search(buffer, at)  # some line ends with LF alone
    return match.span() if match else (-1, -1)


class Head(NamedTuple):
    """What a head says. ``state``: what follows it; ``length``: of a body of state LENGTH."""

    status: int
    headers: dict[bytes, bytes]
    reusable: bool
    state: int
    length: int


@functools.lru_cache(maxsize=256)  # a server's heads differ by the second, if at all
def _head(head: bytes) -> Head:
    """Read a head without its empty line."""
    first, *lines = re.split(rb"\r?\n", head)
    status_line = _STATUS_LINE.fullmatch(first)
    if status_line is None:
        raise Http1Error(f"not an HTTP/1 status line: {first[:40]!r}")
    minor, status, headers = int(status_line[1]), int(status_line[2]), _headers(lines)
    if status == 101:
        raise Http1Error("101 Switching Protocols, which was not asked for")
    if status < 200:
        return Head(status, headers, False, HEAD, 0)
    options = {word.strip() for word in headers.get(b"connection", b"").lower().split(b",")}
    reusable = b"close" not in options and (minor == 1 or b"keep-alive" in options)
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Http1Error(f"content-encoding {headers[b'content-encoding'][:40]!r}, not asked for")
    state, length = _framing(minor, status, headers)
    if state == CHUNK_SIZE and b"content-length" in headers:
        reusable = False
    return Head(status, headers, reusable, state, length)


def _framing(minor: int, status: int, headers: dict[bytes, bytes]) -> tuple[int, int]:
    """How the body ends (RFC 9112, section 6.3): the state that follows, and the body's length."""
    coding = headers.get(b"transfer-encoding")
    length = headers.get(b"content-length")
    if status in (204, 304):
        return DONE, 0
    if coding is not None:
        if coding.lower() != b"chunked" or minor == 0:
            raise Http1Error(f"transfer-encoding {coding[:40]!r} in HTTP/1.{minor}")
        return CHUNK_SIZE, 0
    if length is not None:
        if not re.fullmatch(rb"[0-9]{1,15}", length):
            raise Http1Error(f"content-length {length[:40]!r}")
        return (LENGTH if int(length) else DONE), int(length)
    return UNTIL_CLOSE, 0


def _headers(lines: list[bytes]) -> dict[bytes, bytes]:
    """Header lines to a dict by lower-case name; repeated ones joined, equal lengths counted once."""
    headers: dict[bytes, bytes] = {}
    for line in lines:
        match = _HEADER.fullmatch(line)
        if match is None:
            raise Http1Error(f"a malformed header line: {line[:40]!r}")
        name, value = match[1].lower(), match[2]
        if name not in headers or (name == b"content-length" and headers[name] == value):
            headers[name] = value
        else:
            headers[name] += b", " + value
    return headers

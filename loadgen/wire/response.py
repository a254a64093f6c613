"""One request and what came of it, the same for every client.

`Request` is ready to be written. `RawReply` collects what each read brought and when, and is parsed later,
so that the callback of a read stays short. `Response` is the parsed outcome: offsets from the moment of
sending, counts, or the error. No sockets here; the caller passes the times.
"""

from typing import Final

import msgspec

from greenbench.contract.clock import Anchor
from greenbench.contract.schema import Phase
from loadgen.wire.http1 import CHUNK_SIZES, Http1Error, ResponseParser
from loadgen.wire.retry_after import retry_hint
from loadgen.wire.sse import MAX_BODY_BYTES, Facts, SseError, StreamReader, error_text, read_whole

SSE_TYPE: Final = b"text/event-stream"
VAGUE_TYPES: Final = (b"text/plain", b"text/html", b"application/octet-stream")
BLANK: Final = b"\r\n\xef\xbb\xbf"
SSE_STARTS: Final = (b"data:", b"event:", b": ", b"id:", b"retry:")
SSE_START_BYTES: Final = max(map(len, SSE_STARTS))
DRAIN_BYTES: Final = 256 * 1024  # parse ahead of the end from here on, so that memory stays bounded
DRAIN_READS: Final = 1024
MAX_STREAM_BYTES: Final = 64 * 2**20  # of one streamed reply, beside 16 KiB a token
# Slewing moves the clock by at most 500 ppm; a larger disagreement of the two clocks is a step.
STEP_NS: Final = 1_000_000
STEP_SHARE: Final = 0.001
# Every eighth chunk is enough for percentiles of the delay from kernel to program.
DELAY_STRIDE: Final = 8

ENDED_EARLY: Final = " (finish_reason stop: the server does not heed ignore_eos)"

TIMESPEC_BYTES: Final = 16  # two native 64-bit numbers: seconds, nanoseconds
Stamp = tuple[int, bytes | None]  # of a read: the program's monotonic ns, the kernel's timespec


class Request(msgspec.Struct, frozen=True):
    """A request ready to be written: ``head`` (ends with the empty line) and ``body``, encoded once."""

    request_id: str
    head: bytes
    body: bytes
    streaming: bool
    context_tokens: int
    output_tokens: int
    prompt_at: int = 0  # place in the prompt list
    scheduled_mono_ns: int | None = None
    conversation: int | None = None
    turn: int | None = None
    user: int | None = None  # of a closed loop
    phase: Phase = "measure"  # in which it was let out; it may be on the wire a moment later

    @property
    def event_limit(self) -> int:
        """Events after which a stream is called endless."""
        return 4 * self.output_tokens + 1024


class Response(msgspec.Struct):
    """The outcome of one request. Offsets ``*_ns`` count from ``sent``. None: not known."""

    sent: Anchor | None = None
    connect_ns: int | None = None
    send_ns: int | None = None
    headers_ns: int | None = None
    end_ns: int | None = None
    chunk_ns: list[int] | None = None
    kernel_times: bool = False
    http_status: int | None = None
    facts: Facts = msgspec.field(default_factory=Facts)
    body: bytes | None = None  # of a reply that is not streamed
    delays_ns: list[int] = []  # kernel to program, a sample of chunks
    # of each chunk whose read brought a later chunk too: how much earlier it may have come than that
    shared_bounds_ns: list[int] = []
    clock_stepped: bool = False
    send_waits: int = 0  # times the kernel's send buffer was full
    sent_again: bool = False  # the connection had been closed: this counts from the second sending

    @property
    def text(self) -> str | None:
        return self.facts.text


def failed(error_type: str, message: str, connect_ns: int | None = None) -> Response:
    """A response for a request that got no reply."""
    response = Response(connect_ns=connect_ns)
    response.facts.fail(error_type, message)
    return response


class RawReply:
    """A reply as it comes in, unparsed. `add` is the hot path; `result` parses, once, at the end.

    The segments and the two times of each are kept in three lists of plain values: of tuples, a
    hundred thousand a second, the garbage collector would make pauses.
    """

    __slots__ = (
        "_headers_stamp",
        "_held_bytes",
        "_kernel",
        "_last_stamp",
        "_mono_ns",
        "_parsed",
        "_reader",
        "_segments",
        "_streamed_bytes",
        "_streams",
        "_take_whole_chunks",
        "connect_ns",
        "deadline_ns",
        "ended_mono_ns",
        "error",
        "parser",
        "request",
        "send_ns",
        "send_waits",
        "sent",
        "sent_again",
    )

    def __init__(self, request: Request, deadline_ns: int, connect_ns: int | None = None) -> None:
        self.request = request
        self.deadline_ns = deadline_ns
        self.connect_ns = connect_ns
        self.parser = ResponseParser()
        self.sent: Anchor | None = None
        self.send_ns: int | None = None
        self.send_waits = 0
        self.sent_again = False
        self.ended_mono_ns: int | None = None
        self.error: tuple[str, str] | None = None
        self._segments: list[bytes] = []  # body bytes not yet parsed …
        self._mono_ns: list[int] = []  # … when the program read each …
        self._kernel: list[bytes | None] = []  # … and when the kernel had received it
        self._take_whole_chunks = False
        self._reader: StreamReader | None = None
        self._parsed = 0  # segments
        self._held_bytes = 0
        self._streamed_bytes = 0
        self._streams: bool | None = None  # None until the head has come
        self._headers_stamp: Stamp | None = None
        self._last_stamp: Stamp | None = None

    def add(self, data: bytes, mono_ns: int, kernel: bytes | None) -> bool:
        """Take what one read brought, with the program's time and the kernel's (a timespec).

        True when the reply is complete or cannot go on.
        """
        if self._take_whole_chunks:
            # the usual read is exactly one whole chunk: its size line says so, nothing is looked into
            line_end = data.find(b"\r\n", 0, 8)
            size = CHUNK_SIZES.get(data[:line_end])
            if size == len(data) - line_end - 4 and data.endswith(b"\r\n"):
                self._segments.append(data[line_end + 2 : -2])
                self._mono_ns.append(mono_ns)
                self._kernel.append(kernel)
                return len(self._segments) >= DRAIN_READS and self._bounded()
        return self._add_at_length(data, (mono_ns, kernel))

    def _add_at_length(self, data: bytes, stamp: Stamp) -> bool:
        parser = self.parser
        self._last_stamp = stamp
        try:
            parser.feed(data)
        except Http1Error as error:
            self.error = ("bad_http", str(error))
        if self._headers_stamp is None and parser.status is not None:
            self._headers_stamp = stamp
        for segment in parser.take():
            self._held_bytes += len(segment)
            self._segments.append(segment)
            self._mono_ns.append(stamp[0])
            self._kernel.append(stamp[1])
        self._take_whole_chunks = parser.at_chunk and self._is_stream
        if self._held_bytes > DRAIN_BYTES and self._bounded():
            return True
        return parser.complete or self.error is not None

    @property
    def chunks(self) -> int:
        """Body segments that have come: of a stream the tokens, and what else the server sent."""
        return self._parsed + len(self._segments)

    @property
    def arrived_mono_ns(self) -> int | None:
        """When the kernel had the last segment; None where it is not known."""
        kernel = self._kernel[-1] if self._kernel else None
        if kernel is None or len(kernel) != TIMESPEC_BYTES or self.sent is None:
            return None
        seconds, ns = memoryview(kernel).cast("q")
        return self.sent.to_mono_ns(seconds * 1_000_000_000 + ns)

    def stamp_head(self, mono_ns: int) -> None:
        """For a client that gets the head already decoded."""
        self._headers_stamp = (mono_ns, None)

    def closed_by_peer(self, reason: str = "the server closed the connection") -> None:
        """The connection ended. That is a cut unless the body's end was to be the closing itself."""
        self.parser.end_of_stream()
        if not self.parser.complete and self.error is None:
            where = "in mid-reply" if self.parser.started else "before any byte of the reply"
            self.error = ("cut_in_stream", f"{reason} {where}")

    def send_again(self) -> None:
        """Forget the sending that met a closed connection."""
        self.sent = self.send_ns = None
        self.sent_again = True

    @property
    def _is_stream(self) -> bool:
        """By the content type; of a server that gives none, or another text's, by the first bytes."""
        if self._streams is None and self.parser.status is not None:
            kind = self.parser.headers.get(b"content-type", b"").lower()
            asked = self.parser.status == 200 and self.request.streaming
            if asked and (not kind or kind.startswith(VAGUE_TYPES)):
                start = b"".join(self._segments).lstrip(BLANK)
                if len(start) >= SSE_START_BYTES:
                    self._streams = start.startswith(SSE_STARTS)
            else:
                self._streams = asked and kind.startswith(SSE_TYPE)
        return bool(self._streams)

    def _bounded(self) -> bool:
        """Parse ahead, so that memory stays bounded; True when the reply is too large to go on."""
        try:
            if self._is_stream:
                self._streamed_bytes += sum(map(len, self._segments))
                if self._streamed_bytes > MAX_STREAM_BYTES + 16384 * self.request.output_tokens:
                    raise SseError(f"a stream of over {self._streamed_bytes} bytes")
                self._held_bytes = 0
                self._drain()
            elif self._held_bytes > MAX_BODY_BYTES:
                self._take_held()
                raise Http1Error(f"a body of over {MAX_BODY_BYTES} bytes")
        except (SseError, Http1Error) as error:
            self.error = ("bad_sse" if isinstance(error, SseError) else "bad_http", str(error))
            return True
        return False

    def _drain(self) -> None:
        """Parse what has come of a stream."""
        if self._reader is None:
            self._reader = StreamReader(self.request.event_limit)
        self._reader.feed_all(*self._take_held())

    def _take_held(self) -> tuple[list[bytes], list[Stamp]]:
        """Hand over the segments and their stamps, and forget them. One read, one equal stamp."""
        self._parsed += len(self._segments)
        held = self._segments, list(zip(self._mono_ns, self._kernel, strict=True))
        self._segments, self._mono_ns, self._kernel = [], [], []
        return held

    def result(self, now: Anchor) -> Response:
        """Parse what is left and work out the outcome."""
        facts, body = self._facts()
        response = Response(
            sent=self.sent,
            connect_ns=self.connect_ns,
            send_ns=self.send_ns,
            http_status=self.parser.status,
            facts=facts,
            body=body,
            send_waits=self.send_waits,
            sent_again=self.sent_again,
        )
        if self.sent is not None:
            self._times(response, self.sent, now)
        return response

    def _facts(self) -> tuple[Facts, bytes | None]:
        parser = self.parser
        facts, body = Facts(), None
        if self._is_stream:
            try:
                self._drain()
            except SseError as error:
                self.error = self.error or ("bad_sse", str(error))
            assert self._reader is not None
            if parser.complete and self.error is None:
                self._reader.end(self._last_stamp)
            facts = self._reader.facts
        else:
            body = b"".join(self._take_held()[0])
        if self.error is not None:
            facts.fail(*self.error)
        if facts.error_type is not None:
            return facts, None
        if parser.status != 200:
            facts.fail(*_status_fault(parser, body or b""))
        elif body is not None:
            facts, body = self._whole(body)
        elif not facts.done and not (facts.ended and parser.framed):
            facts.fail("cut_in_stream", "the stream ended without [DONE]")
        if facts.error_type is None:
            _check_counts(facts, self.request)
        return facts, body

    def _whole(self, body: bytes) -> tuple[Facts, bytes | None]:
        """A body that is no stream: the reply that was asked for, or the server's word on why not."""
        facts = read_whole(body)
        if facts.error_type == "server_error_event":
            return facts, None
        kind = self.parser.headers.get(b"content-type", b"none")
        if self.request.streaming:
            said = f"content type {kind[:60].decode('latin-1')}, {SSE_TYPE.decode()} was asked for"
            words = "the whole answer at once" if facts.texts else error_text(body)
            facts = Facts()
            facts.fail("bad_sse", "; ".join(filter(None, [said, words])))
        elif facts.error_type is not None:
            said = f"content type {kind[:60].decode('latin-1')}; {facts.error_message}"
            facts = Facts()
            facts.fail("bad_http", said)
        return facts, body

    def _times(self, response: Response, sent: Anchor, now: Anchor) -> None:
        """Offsets from the sending: the kernel's where it stamped every read that matters."""
        mono_span, unix_span = now.mono_ns - sent.mono_ns, now.unix_ns - sent.unix_ns
        drift = unix_span - mono_span
        response.clock_stepped = abs(drift) > STEP_NS + STEP_SHARE * mono_span
        chunks: list[Stamp] = response.facts.chunk_stamps
        count = len(chunks)
        edges = [stamp for stamp in (self._headers_stamp, self._last_stamp) if stamp is not None]
        stamps = [*chunks, *edges]
        offsets = None
        if not response.clock_stepped:
            offsets = _kernel_offsets(stamps, sent.unix_ns)
        response.kernel_times = offsets is not None
        if offsets is None:
            offsets = [stamp[0] - sent.mono_ns for stamp in stamps]
        elif abs(drift) > 1000 and unix_span > 0:  # the wall clock was slewed meanwhile
            offsets = [round(offset * mono_span / unix_span) for offset in offsets]
        if self._headers_stamp is not None:
            response.headers_ns = offsets[count]
        if self.parser.complete and self._last_stamp is not None:
            response.end_ns = offsets[-1]
        elif self.ended_mono_ns is not None:  # cut or given up: no byte marks the end
            response.end_ns = self.ended_mono_ns - sent.mono_ns
        if chunks:
            response.chunk_ns = offsets[:count]
            if len({stamp[0] for stamp in chunks}) < count:  # no two reads are at one moment
                response.shared_bounds_ns = _shared_bounds(chunks, sent.mono_ns, offsets)
            if response.kernel_times:
                sample = range(0, count, DELAY_STRIDE)
                response.delays_ns = [chunks[i][0] - sent.mono_ns - offsets[i] for i in sample]


def _shared_bounds(chunks: list[Stamp], sent_mono_ns: int, offsets: list[int]) -> list[int]:
    """Of each chunk that shares its read with a later one, how much too late its time may be, ns.

    It came after the read before, and not before the program last looked: bounded by both.
    """
    bounds: list[int] = []
    before = 0  # offset of the read before; the sending, for the first
    for i in range(len(chunks) - 1):
        if chunks[i] == chunks[i + 1]:
            delay = chunks[i][0] - sent_mono_ns - offsets[i]
            since = offsets[i] - before
            bounds.append(min(delay, since) if delay > 0 else since)
        else:
            before = offsets[i]
    return bounds


def _kernel_offsets(stamps: list[Stamp], sent_unix_ns: int) -> list[int] | None:
    """Nanoseconds from ``sent_unix_ns`` by the kernel's clock; None unless it stamped every read."""
    times = [kernel for _, kernel in stamps if kernel is not None]
    packed = b"".join(times)
    if not stamps or len(times) < len(stamps) or len(packed) != TIMESPEC_BYTES * len(times):
        return None
    words = memoryview(packed).cast("q").tolist()
    return [
        seconds * 1_000_000_000 + ns - sent_unix_ns
        for seconds, ns in zip(words[::2], words[1::2], strict=True)
    ]


def _status_fault(parser: ResponseParser, body: bytes) -> tuple[str, str]:
    status = parser.status or 0
    kind = {4: "http_4xx", 5: "http_5xx"}.get(status // 100, "http_other")
    location = parser.headers.get(b"location", b"")[:80].decode("latin-1")
    parts = [
        f"HTTP {status}",
        retry_hint(parser.headers),
        location and f"location: {location}",
        error_text(body),
    ]
    return kind, "; ".join(part for part in parts if part)


def _check_counts(facts: Facts, request: Request) -> None:
    """A reply that came whole is still bad when its lengths are unknown or not those asked for."""
    if facts.prompt_tokens is None or facts.output_tokens is None:
        facts.fail("no_usage", "the server reported no token usage")
    elif facts.prompt_tokens != request.context_tokens:
        facts.fail(
            "length_mismatch",
            f"prompt of {facts.prompt_tokens} tokens, {request.context_tokens} were sent",
        )
    elif facts.output_tokens != request.output_tokens:
        facts.fail(
            "length_mismatch",
            f"{facts.output_tokens} output tokens, {request.output_tokens} were asked for"
            + ENDED_EARLY * (facts.finish_reason == "stop"),
        )

"""Completion replies from body bytes: Server-Sent Events, token counts, errors. No socket, no clock.

Every client of this package reads through here: bytes in, facts out. A chunk is an event that brought
tokens (its running `usage.completion_tokens` rose, or, where the server sends no running usage, its
text is not empty); events that bring none, comments and keep-alives are no chunks. Nothing is
re-tokenised.

The SSE rules are those of the WHATWG HTML standard, section 9.2.6: lines end with LF, CR or CRLF (and
with nothing else: U+2028 is text), an empty line ends an event, `data` lines are joined by LF.

A field that no figure needs may hold anything: an event that the typed decoder refuses is read again by
`loadgen.wire.odd_event`, which takes what is needed. What is needed and cannot be read is an error.
"""

import contextlib
import json
import re
from collections.abc import Iterable
from typing import Any, Final, cast

import msgspec

from loadgen.wire.odd_event import (
    NOTHING,
    Choice,
    CompletionEvent,
    NotAnEvent,
    Usage,
    mended,
    numbers,
    says_error,
    take_what_is_needed,
)

MAX_EVENT_BYTES: Final = 16 * 2**20  # a longer line is refused, so that memory stays bounded
MAX_BODY_BYTES: Final = (
    512 * 2**20
)  # of a reply that is not streamed (prompt_logprobs: ~76 B a token)
MESSAGE_CHARS: Final = 200
ERROR_KEYS: Final = ("error", "errors", "message", "msg", "detail")  # where servers put their words

DONE: Final = b"[DONE]"
ERROR_EVENT: Final = b"error"  # a name under which gateways send an error
OUR_EVENTS: Final = (b"", b"message")  # without a name, and the name that means none
FAILED_FINISHES: Final = frozenset({"error", "abort"})  # vLLM's, of a request that it gave up

_LINE_END = re.compile(rb"\r\n|\n|\r")
_ECHOED_INPUT = re.compile(
    r"'input'.*", re.DOTALL
)  # validation errors repeat the prompt from there on


class SseError(ValueError):
    """The bytes are no Server-Sent Events, or an event is no completion event."""


class SseSplitter:
    """Body bytes to complete events as (name, data), however they are cut. Most have no name."""

    __slots__ = (
        "_carry", "_data", "_held", "_name", "_skip_lf", "_unfinished", "at_start", "between_events",
    )  # fmt: skip

    def __init__(self, at_start: bool = True) -> None:
        self._carry: list[bytes] = []  # pieces of a line whose end has not come
        self._unfinished = 0  # bytes kept of an event whose empty line has not come
        self._held = 0  # … of them in whole data lines
        self._data: list[bytes] = []  # these lines …
        self._name = b""  # … and its name
        self._skip_lf = False  # the last byte was CR: an LF that follows belongs to it
        self.at_start = at_start  # only the first bytes may be a byte-order mark
        self.between_events = True  # nothing carried: the next byte begins a line of a new event

    def feed(self, segment: bytes) -> list[tuple[bytes, bytes]]:
        """Name and `data` of every event that this segment completes, in order."""
        if self._skip_lf and segment:
            self._skip_lf = False
            if segment.startswith(b"\n"):
                segment = segment[1:]
        self._unfinished += len(segment)
        if self._unfinished > MAX_EVENT_BYTES:
            raise SseError(f"an event of over {MAX_EVENT_BYTES} bytes")
        if b"\n" not in segment and b"\r" not in segment:
            if segment:
                self._carry.append(segment)
                self.between_events = False
            return []
        self._skip_lf = segment.endswith(b"\r")
        lines = _LINE_END.split(b"".join([*self._carry, segment]))
        rest = lines.pop()
        self._carry = [rest] if rest else []
        if self.at_start:
            lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
            self.at_start = False
        return self._dispatch(lines, rest)

    def end(self) -> list[tuple[bytes, bytes]]:
        """The event that the body's end cut short of its empty line, if it cut one."""
        return self.feed(b"\n\n")

    def _dispatch(self, lines: list[bytes], rest: bytes) -> list[tuple[bytes, bytes]]:
        events: list[tuple[bytes, bytes]] = []
        for line in lines:
            if not line:
                if self._data:
                    data = self._data[0] if len(self._data) == 1 else b"\n".join(self._data)
                    events.append((self._name, data))
                    self._data = []
                    self._held = 0
                self._name = b""
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
                self._held += len(line) + 1  # of an empty one as well: an endless row ends
            elif line == b"data":
                self._data.append(b"")
                self._held += len(line) + 1
            elif line.startswith(b"event:"):
                self._name = line[6:].strip()
            # comments (":…") and the fields id and retry mean nothing to a benchmark
        self._unfinished = self._held + len(rest)
        self.between_events = not (rest or self._data or self._name or self._skip_lf)
        return events


_decoder = msgspec.json.Decoder(CompletionEvent)
_decode_event = _decoder.decode
_decode_events = _decoder.decode_lines
UNREADABLE: Final = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)


class Facts(msgspec.Struct):
    """What the reply said. ``chunk_stamps``: the stamp of the segment that completed each chunk."""

    chunk_stamps: list[Any] = []
    chunk_tokens: list[int] | None = []  # None once a chunk lacks usage
    texts: list[str] = []
    prompt_tokens: int | None = None
    cached_tokens: int | None = None
    output_tokens: int | None = None
    finish_reason: str | None = None
    server_metrics: dict[str, float] | None = None
    error_type: str | None = None
    error_message: str | None = None
    done: bool = False

    @property
    def text(self) -> str | None:
        """The whole answer; None where there is none."""
        return mended("".join(self.texts)) if self.texts else None

    @property
    def ended(self) -> bool:
        """All that tells of the end has come: a reason for it, and the counts."""
        return (
            self.finish_reason is not None
            and self.prompt_tokens is not None
            and self.output_tokens is not None
        )

    def fail(self, error_type: str, message: str) -> None:
        """The first fault stays: what follows is usually its consequence."""
        if self.error_type is None:
            said = mended(message[:MESSAGE_CHARS]).strip()
            self.error_type, self.error_message = error_type, said or "no reason was given"

    def add_usage(self, usage: Usage) -> None:
        if usage.prompt_tokens is not None:
            self.prompt_tokens = usage.prompt_tokens
        if usage.prompt_tokens_details and usage.prompt_tokens_details.cached_tokens is not None:
            self.cached_tokens = usage.prompt_tokens_details.cached_tokens
        tokens = usage.completion_tokens
        if tokens is not None:
            if tokens < (self.output_tokens or 0):
                self.fail("length_mismatch", f"usage went down: {self.output_tokens} to {tokens}")
            self.output_tokens = tokens

    def add_finish(self, choice: Choice, data: bytes) -> None:
        """Take why the answer ended; ``error`` or ``abort`` is one of the reply."""
        if choice.finish_reason is not None:
            self.finish_reason = mended(choice.finish_reason[:MESSAGE_CHARS])
        if choice.finish_reason in FAILED_FINISHES:
            self.fail(
                "server_error_event", f"finish_reason {self.finish_reason}: {error_text(data)}"
            )


class StreamReader:
    """Body segments of a streamed completion to `Facts`. ``event_limit`` bounds an endless stream."""

    __slots__ = ("_at_start", "_event_limit", "_splitter", "events", "facts")

    def __init__(self, event_limit: int) -> None:
        self.facts = Facts()
        self.events = 0
        self._event_limit = event_limit
        self._splitter: SseSplitter | None = None  # made for the first segment that is not usual
        self._at_start = True

    def feed_all(self, segments: list[bytes], stamps: list[Any]) -> None:
        """The same as `feed`, many segments at once: a run of usual ones is decoded in one call."""
        usual = self._read_usual(segments, stamps) if self._between_events else 0
        self.feed(zip(segments[usual:], stamps[usual:], strict=True))

    def _read_usual(self, segments: list[bytes], stamps: list[Any]) -> int:
        """Read the run of usual segments at the front; how many those were (0: look at each).

        Usual: one event, an object, on one line with LF. Then joined lines decode to as many events
        as there are segments, or something is odd: no object can go on in the next line, because no
        JSON holds a bare LF inside a string, nor "}" and "{" side by side.
        """
        count = len(segments)
        while count and not _is_usual(segments[count - 1]):  # the end: usage, [DONE]
            count -= 1
        front = segments[:count]
        lines = b"".join([segment[6:-1] for segment in front])
        if (
            not count
            or lines.count(b"\n") != count
            or b"\r" in lines
            or [segment[:7] for segment in front].count(b"data: {") != count
            or [segment[-3:] for segment in front].count(b"}\n\n") != count
        ):
            return 0
        try:
            events = _decode_events(lines)
        except UNREADABLE:
            return 0  # read one by one, it is known which
        if len(events) != count or self.events + count > self._event_limit:
            return 0
        self._skip_start()
        self.events += count
        take_token = self._take_token
        for event, stamp, segment in zip(events, stamps, front, strict=False):
            if not take_token(event, stamp):
                self._take(event, stamp, segment[6:-2])
        return count

    def _take_token(self, event: CompletionEvent, stamp: Any) -> bool:
        """Take an event that only brings tokens; False for any other. The same as `_take`, sooner."""
        usage, choices, facts = event.usage, event.choices, self.facts
        if usage is None or not choices or facts.chunk_tokens is None:
            return False
        choice, tokens = choices[0], usage.completion_tokens
        if (
            tokens is None
            or tokens <= (facts.output_tokens or 0)
            or choice.finish_reason is not None
            or event.error is not None
            or event.metrics
            or event.object == "error"
            or usage.prompt_tokens_details is not None
        ):
            return False
        if (prompt_tokens := usage.prompt_tokens) is not None:
            facts.prompt_tokens = prompt_tokens
        facts.output_tokens = tokens
        facts.chunk_tokens.append(tokens)
        facts.chunk_stamps.append(stamp)
        if text := choice.text if choice.delta is None else choice.answer:
            facts.texts.append(text)
        return True

    def feed(self, segments: Iterable[tuple[bytes, Any]]) -> None:
        """Read (segment, stamp) pairs. A malformed event raises `SseError`; what came before is kept."""
        for segment, stamp in segments:
            # the usual segment: one event on one line; anything else is split at length
            if (
                segment.startswith(b"data: ")
                and segment.find(b"\n", 6) == len(segment) - 2
                and segment.endswith(b"\n")
                and b"\r" not in segment
                and self._between_events
            ):
                self._skip_start()
                self._event(b"", segment[6:-2], stamp)
            else:
                if self._splitter is None:
                    self._splitter = SseSplitter(self._at_start)
                for name, data in self._splitter.feed(segment):
                    self._event(name, data, stamp)

    def end(self, stamp: Any) -> None:
        """The body ended as HTTP says it must: an event that only lacks its empty line counts."""
        if self._splitter is not None:
            with contextlib.suppress(SseError):  # half an event: the stream then lacks its end
                for name, data in self._splitter.end():
                    self._event(name, data, stamp)

    @property
    def _between_events(self) -> bool:
        return self._splitter is None or self._splitter.between_events

    def _skip_start(self) -> None:
        """A usual segment was read: a byte-order mark may not come any more."""
        self._at_start = False
        if self._splitter is not None:
            self._splitter.at_start = False

    def _event(self, name: bytes, data: bytes, stamp: Any) -> None:
        if (name or data[:1] != b"{") and not self._is_ours(name, data):
            return
        try:
            event = _decode_event(data)
        except UNREADABLE:
            try:
                event = take_what_is_needed(data)
            except NotAnEvent as error:
                if name not in OUR_EVENTS or self.facts.done:
                    return
                raise SseError(f"not a completion event: {error}") from error
            if event is NOTHING:
                return
        if name and name not in OUR_EVENTS and not event.choices and event.usage is None:
            return
        self.events += 1
        if self.events > self._event_limit:
            raise SseError(f"over {self._event_limit} events, far more than tokens were asked for")
        if not self._take_token(event, stamp):
            self._take(event, stamp, data)

    def _is_ours(self, name: bytes, data: bytes) -> bool:
        """Whether to decode the event; the end, an error by name, and one that is empty are taken here."""
        if name == ERROR_EVENT:
            self.facts.fail("server_error_event", error_text(data))
            return False
        bare = data.strip()
        if bare == DONE:
            self.facts.done = True
        return bare not in (DONE, b"")

    def _take(self, event: CompletionEvent, stamp: Any, data: bytes) -> None:
        facts = self.facts
        if says_error(event.error) or event.object == "error":
            facts.fail("server_error_event", error_text(data))
            return
        if event.metrics:
            facts.server_metrics = numbers(event.metrics)
        before = facts.output_tokens or 0
        running = None
        if event.usage is not None:
            running = event.usage.completion_tokens
            facts.add_usage(event.usage)
        if event.choices:
            self._choice(event.choices[0], running, before, stamp, data)

    def _choice(
        self, choice: Choice, running: int | None, before: int, stamp: Any, data: bytes
    ) -> None:
        facts = self.facts
        facts.add_finish(choice, data)
        if answer := choice.answer:
            facts.texts.append(answer)
        if running is not None and running > before and facts.chunk_tokens is not None:
            facts.chunk_stamps.append(stamp)
            facts.chunk_tokens.append(running)
        elif choice.brings:  # without a running count an event with text is a chunk of unknown size
            facts.chunk_stamps.append(stamp)
            facts.chunk_tokens = None


def _is_usual(segment: bytes) -> bool:
    return segment.startswith(b"data: {") and segment.endswith(b"}\n\n")


def read_whole(body: bytes) -> Facts:
    """A reply that is not streamed, e.g. of the perplexity task. It has no chunks."""
    facts = Facts()
    try:
        event = _decode_whole(body)
    except NotAnEvent as error:
        facts.fail("bad_http", f"the reply is no completion: {error}")
        return facts
    if says_error(event.error) or event.object == "error":
        facts.fail("server_error_event", error_text(body))
        return facts
    if event.usage is not None:
        facts.add_usage(event.usage)
    if event.metrics:
        facts.server_metrics = numbers(event.metrics)
    if event.choices:
        facts.add_finish(event.choices[0], body)
        facts.texts.append(event.choices[0].answer or "")
    facts.done = True
    return facts


def _decode_whole(body: bytes) -> CompletionEvent:
    """By the types, which are quick with megabytes of log-probabilities; a chat's message they leave out."""
    try:
        event = _decode_event(body)
    except UNREADABLE:
        return take_what_is_needed(body)
    if event.choices and event.choices[0].text is None:
        return take_what_is_needed(body)
    return event


def error_text(body: bytes) -> str:
    """The server's own words for an error, in one line, without the prompt that it may repeat."""
    said: object = body[: 4 * MESSAGE_CHARS].decode("utf-8", "replace")
    with contextlib.suppress(ValueError, RecursionError):
        said = str(_words(json.loads(body)))
    return mended(" ".join(_ECHOED_INPUT.sub("…", str(said)).split())[:MESSAGE_CHARS])


def _words(said: object) -> object:
    """What stands under the key, or the keys one in another, that hold an error's words."""
    for key in ERROR_KEYS:
        if isinstance(said, dict):
            said = cast("dict[str, object]", said).get(key) or said
    return said

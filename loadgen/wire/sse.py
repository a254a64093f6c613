"""Completion replies from body bytes: Server-Sent Events, token counts, errors. No socket, no clock.

Every client of this package reads through here: bytes in, facts out. A chunk is an event that brought
tokens (its running `usage.completion_tokens` rose, or, where the server sends no running usage, its
text is not empty); events that bring none, comments and keep-alives are no chunks. Nothing is
re-tokenised.

The SSE rules are those of the WHATWG HTML standard, section 9.2.6: lines end with LF, CR or CRLF (and
with nothing else: U+2028 is text), an empty line ends an event, `data` lines are joined by LF.
"""

import re
from collections.abc import Iterable
from typing import Any, Final

import msgspec

MAX_EVENT_BYTES: Final = 16 * 2**20  # a longer line is refused, so that memory stays bounded
MAX_BODY_BYTES: Final = (
    512 * 2**20
)  # of a reply that is not streamed (prompt_logprobs: ~76 B a token)
MESSAGE_CHARS: Final = 200

_LINE_END = re.compile(rb"\r\n|\n|\r")
_ECHOED_INPUT = re.compile(
    r"'input'.*", re.DOTALL
)  # validation errors repeat the prompt from there on


class SseError(ValueError):
    """The bytes are no Server-Sent Events, or an event is no completion event."""


class SseSplitter:
    """Body bytes to the `data` of complete events, however they are cut."""

    __slots__ = ("_carry", "_carry_bytes", "_data", "_skip_lf", "at_start", "between_events")

    def __init__(self, at_start: bool = True) -> None:
        self._carry: list[bytes] = []  # pieces of a line whose end has not come
        self._carry_bytes = 0  # of the whole unfinished event
        self._data: list[bytes] = []  # data lines of an event whose empty line has not come
        self._skip_lf = False  # the last byte was CR: an LF that follows belongs to it
        self.at_start = at_start  # only the first bytes may be a byte-order mark
        self.between_events = True  # nothing carried: the next byte begins a line of a new event

    def feed(self, segment: bytes) -> list[bytes]:
        """The `data` of every event that this segment completes, in order."""
        if self._skip_lf and segment:
            self._skip_lf = False
            if segment.startswith(b"\n"):
                segment = segment[1:]
        self._carry_bytes += len(segment)
        if self._carry_bytes > MAX_EVENT_BYTES:
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

    def _dispatch(self, lines: list[bytes], rest: bytes) -> list[bytes]:
        events: list[bytes] = []
        for line in lines:
            if not line:
                if self._data:
                    events.append(b"\n".join(self._data))
                    self._data = []
            elif line.startswith(b"data:"):
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line == b"data":
                self._data.append(b"")
            # comments (":…") and the fields event, id and retry mean nothing to a benchmark
        self._carry_bytes = len(rest) + sum(map(len, self._data))
        self.between_events = not (rest or self._data or self._skip_lf)
        return events


class PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    prompt_tokens_details: PromptDetails | None = None


class Choice(msgspec.Struct, gc=False):
    text: str | None = None
    finish_reason: str | None = None


class CompletionEvent(msgspec.Struct, gc=False):
    """The fields that are read of one streamed event, or of a whole reply. Others are left aside."""

    choices: list[Choice] = []
    usage: Usage | None = None
    metrics: dict[str, float | None] | None = None
    error: object = None
    object: str | None = None
    message: str | None = None


_decoder = msgspec.json.Decoder(CompletionEvent)
_decode_event = _decoder.decode
_decode_events = _decoder.decode_lines


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

    def fail(self, error_type: str, message: str) -> None:
        """The first fault stays: what follows is usually its consequence."""
        if self.error_type is None:
            self.error_type, self.error_message = error_type, message[:MESSAGE_CHARS]

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
        except msgspec.DecodeError:
            return 0  # read one by one, it is known which
        if len(events) != count or self.events + count > self._event_limit:
            return 0
        self._skip_start()
        self.events += count
        for event, stamp, segment in zip(events, stamps, front, strict=False):
            if not self._take_token(event, stamp):
                self._take(event, stamp, segment[6:-2])
        return count

    def _take_token(self, event: CompletionEvent, stamp: Any) -> bool:
        """Take an event that only brings tokens; False for any other. The same as `_take`, sooner."""
        usage, choices, facts = event.usage, event.choices, self.facts
        if usage is None or len(choices) != 1 or facts.chunk_tokens is None:
            return False
        tokens = usage.completion_tokens
        if (
            tokens is None
            or tokens <= (facts.output_tokens or 0)
            or event.error is not None
            or event.metrics
            or event.object == "error"
            or usage.prompt_tokens_details is not None
            or choices[0].finish_reason is not None
        ):
            return False
        if usage.prompt_tokens is not None:
            facts.prompt_tokens = usage.prompt_tokens
        facts.output_tokens = tokens
        facts.chunk_tokens.append(tokens)
        facts.chunk_stamps.append(stamp)
        if text := choices[0].text:
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
                self._event(segment[6:-2], stamp)
            else:
                if self._splitter is None:
                    self._splitter = SseSplitter(self._at_start)
                for data in self._splitter.feed(segment):
                    self._event(data, stamp)

    @property
    def _between_events(self) -> bool:
        return self._splitter is None or self._splitter.between_events

    def _skip_start(self) -> None:
        """A usual segment was read: a byte-order mark may not come any more."""
        self._at_start = False
        if self._splitter is not None:
            self._splitter.at_start = False

    def _event(self, data: bytes, stamp: Any) -> None:
        if data == b"[DONE]":
            self.facts.done = True
            return
        self.events += 1
        if self.events > self._event_limit:
            raise SseError(f"over {self._event_limit} events, far more than tokens were asked for")
        try:
            event = _decode_event(data)
        except msgspec.DecodeError as error:  # also ValidationError: a field of the wrong type
            raise SseError(f"not a completion event: {error}") from error
        self._take(event, stamp, data)

    def _take(self, event: CompletionEvent, stamp: Any, data: bytes) -> None:
        facts = self.facts
        if event.error is not None or event.object == "error":
            facts.fail("server_error_event", error_text(data))
            return
        if event.metrics:
            facts.server_metrics = _numbers(event.metrics)
        before = facts.output_tokens or 0
        running = None
        if event.usage is not None:
            running = event.usage.completion_tokens
            facts.add_usage(event.usage)
        if event.choices:
            self._choice(event.choices[0], running, before, stamp)

    def _choice(self, choice: Choice, running: int | None, before: int, stamp: Any) -> None:
        facts = self.facts
        if choice.finish_reason is not None:
            facts.finish_reason = choice.finish_reason
        if choice.text:
            facts.texts.append(choice.text)
        if running is None:
            if choice.text:
                facts.chunk_stamps.append(stamp)
                facts.chunk_tokens = None
        elif running > before:
            facts.chunk_stamps.append(stamp)
            if facts.chunk_tokens is not None:
                facts.chunk_tokens.append(running)


def _is_usual(segment: bytes) -> bool:
    return segment.startswith(b"data: {") and segment.endswith(b"}\n\n")


def read_whole(body: bytes) -> Facts:
    """A reply that is not streamed, e.g. of the perplexity task. It has no chunks."""
    facts = Facts()
    try:
        event = _decode_event(body)
    except msgspec.DecodeError as error:
        facts.fail("bad_http", f"the reply is no completion: {error}")
        return facts
    if event.error is not None or event.object == "error":
        facts.fail("server_error_event", error_text(body))
        return facts
    if event.usage is not None:
        facts.add_usage(event.usage)
    if event.metrics:
        facts.server_metrics = _numbers(event.metrics)
    if event.choices:
        facts.finish_reason = event.choices[0].finish_reason
        facts.texts.append(event.choices[0].text or "")
    facts.done = True
    return facts


def error_text(body: bytes) -> str:
    """The server's own words for an error, in one line, without the prompt that it may repeat."""
    try:
        said: object = msgspec.json.decode(body)
    except msgspec.DecodeError:
        said = body[:MESSAGE_CHARS].decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(said, dict) and key in said:
            said = said[key]
    return " ".join(_ECHOED_INPUT.sub("…", str(said)).split())[:MESSAGE_CHARS]


def _numbers(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}

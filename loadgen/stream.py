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
from dataclasses import dataclass, field
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

    def __init__(self) -> None:
        self._carry: list[bytes] = []  # pieces of a line whose end has not come
        self._carry_bytes = 0  # of the whole unfinished event
        self._data: list[bytes] = []  # data lines of an event whose empty line has not come
        self._skip_lf = False  # the last byte was CR: an LF that follows belongs to it
        self.at_start = True  # only the first bytes may be a byte-order mark
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


_decode_event = msgspec.json.Decoder(CompletionEvent).decode


@dataclass(slots=True)
class Facts:
    """What the reply said. ``chunk_stamps``: the stamp of the segment that completed each chunk."""

    chunk_stamps: list[Any] = field(default_factory=list[Any])
    chunk_tokens: list[int] | None = field(
        default_factory=list[int]
    )  # None once a chunk lacks usage
    texts: list[str] = field(default_factory=list[str])
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

    __slots__ = ("_event_limit", "_splitter", "events", "facts")

    def __init__(self, event_limit: int) -> None:
        self.facts = Facts()
        self.events = 0
        self._event_limit = event_limit
        self._splitter = SseSplitter()

    def feed(self, segments: Iterable[tuple[bytes, Any]]) -> None:
        """Read (segment, stamp) pairs. A malformed event raises `SseError`; what came before is kept."""
        splitter = self._splitter
        for segment, stamp in segments:
            # the usual segment: one event on one line; anything else is split at length
            if (
                segment.startswith(b"data: ")
                and segment.find(b"\n", 6) == len(segment) - 2
                and segment.endswith(b"\n")
                and b"\r" not in segment
                and splitter.between_events
            ):
                splitter.at_start = False
                self._event(segment[6:-2], stamp)
            else:
                for data in splitter.feed(segment):
                    self._event(data, stamp)

    def _event(self, data: bytes, stamp: Any) -> None:
        facts = self.facts
        if data == b"[DONE]":
            facts.done = True
            return
        self.events += 1
        if self.events > self._event_limit:
            raise SseError(f"over {self._event_limit} events, far more than tokens were asked for")
        try:
            event = _decode_event(data)
        except msgspec.DecodeError as error:  # also ValidationError: a field of the wrong type
            raise SseError(f"not a completion event: {error}") from error
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
        found: object = msgspec.json.decode(body)
    except msgspec.DecodeError:
        found = body[:MESSAGE_CHARS].decode("utf-8", "replace")
    for key in ("error", "message", "detail"):
        if isinstance(found, dict) and key in found:
            found = found[key]
    return " ".join(_ECHOED_INPUT.sub("…", str(found)).split())[:MESSAGE_CHARS]


def _numbers(metrics: dict[str, float | None]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if value is not None}

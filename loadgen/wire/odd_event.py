"""One streamed event, or a whole reply, as Python values: usual ones by types, odd ones by what is needed.

`CompletionEvent` is what the typed decoder of `loadgen.wire.sse` reads. Servers send more than it knows,
and other forms: null for a list, 16.0 for 16, text in parts. `take_what_is_needed` reads those. It refuses
only what a figure would have to be guessed from.
"""

import json
from typing import Annotated, Any, Final, cast

import msgspec

MOST_TOKENS: Final = 2**53  # above it a float is no exact number
SHOWN_CHARS: Final = 60

Tokens = Annotated[int, msgspec.Meta(ge=0, le=MOST_TOKENS)]


class NotAnEvent(ValueError):
    """What was found in place of something that is needed."""


class PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: Tokens | None = None


class Usage(msgspec.Struct, gc=False):
    prompt_tokens: Tokens | None = None
    completion_tokens: Tokens | None = None
    prompt_tokens_details: PromptDetails | None = None


class Delta(msgspec.Struct, gc=False):
    """What an event of a chat brought. Reasoning and calls of tools are tokens, and no part of the answer."""

    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    refusal: str | None = None
    tool_calls: Any = None
    function_call: Any = None

    @property
    def brings(self) -> bool:
        """Whether any token's text is in it."""
        return bool(
            self.content
            or self.reasoning_content
            or self.reasoning
            or self.refusal
            or self.tool_calls
            or self.function_call
        )


class Choice(msgspec.Struct, gc=False):
    """``text`` of a completion, ``delta`` of a chat: what an event brought, or the whole message."""

    text: str | None = None
    finish_reason: str | None = None
    delta: Delta | None = None

    @property
    def answer(self) -> str | None:
        return self.text or (self.delta.content if self.delta is not None else None)

    @property
    def brings(self) -> bool:
        return bool(self.text) or (self.delta is not None and self.delta.brings)


class CompletionEvent(msgspec.Struct, gc=False):
    """The fields that are read. Others are left aside."""

    choices: list[Choice] | None = None
    usage: Usage | None = None
    metrics: Any = None
    error: Any = None
    object: Any = None


NOTHING: Final = CompletionEvent()


def take_what_is_needed(data: bytes) -> CompletionEvent:
    """An event in a form that the typed decoder refuses; `NOTHING` where it carries nothing.

    Raises NotAnEvent for bytes that are no JSON, for a list, and for an odd form of a text or a count.
    """
    try:
        said: object = json.loads(data.decode("utf-8"), strict=False)
    except UnicodeDecodeError as error:
        raise NotAnEvent(f"invalid UTF-8 at byte {error.start}") from error
    except RecursionError as error:
        raise NotAnEvent("nested too deeply to be read") from error
    except ValueError as error:
        raise NotAnEvent(str(error)) from error
    if isinstance(said, list) and said:
        raise NotAnEvent(f"a list, {_shown(cast(object, said))}")
    event = _object(said)
    if event is None:
        return NOTHING
    choices = event.get("choices")
    first = _object(next(iter(choices), None)) if isinstance(choices, list) else None
    return CompletionEvent(
        choices=None if first is None else [_choice(first)],
        usage=_usage(event.get("usage")),
        metrics=event.get("metrics"),
        error=event.get("error"),
        object=event.get("object"),
    )


def _choice(first: dict[str, Any]) -> Choice:
    finish = first.get("finish_reason")
    return Choice(
        text=_text(first.get("text"), "choices[0].text"),
        finish_reason=finish if isinstance(finish, str) else None,
        delta=_delta(first.get("delta") or first.get("message")),
    )


def _delta(said: object) -> Delta | None:
    found = _object(said)
    if found is None:
        return None
    return Delta(
        content=_text(found.get("content"), "content"),
        reasoning_content=_text(found.get("reasoning_content"), "reasoning_content"),
        reasoning=_text(found.get("reasoning"), "reasoning"),
        refusal=_text(found.get("refusal"), "refusal"),
        tool_calls=found.get("tool_calls"),
        function_call=found.get("function_call"),
    )


def _text(said: object, where: str) -> str | None:
    """Text, or the texts of a list of parts, as some servers give a content."""
    if said is None or isinstance(said, str):
        return said
    if isinstance(said, list):
        parts = [_object(part) or {"text": part} for part in cast("list[object]", said)]
        texts = [part["text"] for part in parts if isinstance(part.get("text"), str)]
        return "".join(texts)
    raise NotAnEvent(f"{where} is {_shown(said)}, no text")


def _usage(said: object) -> Usage | None:
    found = _object(said)
    if found is None:
        return None
    details = _object(found.get("prompt_tokens_details")) or {}
    try:
        cached = _tokens(details.get("cached_tokens"), "cached_tokens")
    except NotAnEvent:  # no figure needs it
        cached = None
    return Usage(
        prompt_tokens=_tokens(found.get("prompt_tokens"), "prompt_tokens"),
        completion_tokens=_tokens(found.get("completion_tokens"), "completion_tokens"),
        prompt_tokens_details=PromptDetails(cached),
    )


def _tokens(said: object, name: str) -> int | None:
    """A count in any form that means a whole number: 16, 16.0 or "16"."""
    if said is None:
        return None
    whole = -1
    if isinstance(said, int) and not isinstance(said, bool):
        whole = said
    elif isinstance(said, float) and said.is_integer():
        whole = int(said)
    elif isinstance(said, str) and said.isascii() and said.isdigit():
        whole = int(said[:20])
    if not 0 <= whole <= MOST_TOKENS:
        raise NotAnEvent(f"usage.{name} is {_shown(said)}, no number of tokens")
    return whole


def says_error(said: object) -> bool:
    """Whether the value of ``error`` says one: null, false, "", {} and {"code": 0} say none."""
    if isinstance(said, dict):
        return any(cast("dict[str, object]", said).values())
    return bool(said)


def numbers(metrics: object) -> dict[str, float] | None:
    """The finite numbers among a server's own figures; None where there are none."""
    found = {
        name: float(value)
        for name, value in (_object(metrics) or {}).items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and abs(value) <= MOST_TOKENS
    }
    return found or None


def mended(text: str) -> str:
    """Text as UTF-8 can hold it: halves of a character that came as two escapes become one again."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text


def _object(said: object) -> dict[str, Any] | None:
    return cast("dict[str, Any]", said) if isinstance(said, dict) else None


def _shown(said: object) -> str:
    return mended(repr(said)[:SHOWN_CHARS])

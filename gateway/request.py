"""What the body of a request says: its model, its prompt, and how much it may generate.

The prompt is kept as it stands in the body. Nothing of it is decoded that need not be.
"""

from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

Kind = Literal["completions", "chat"]
GENERATES: Final[dict[str, Kind]] = {
    "/v1/completions": "completions",
    "/v1/chat/completions": "chat",
}
NOT_TEXT: Final = (b'"image_url"', b'"input_audio"', b'"video_url"', b'"image_embeds"')
EMPTY: Final = msgspec.Raw()
SPACE: Final = b" \t\r\n"


class Malformed(ValueError):
    """The body is no JSON object. The text says what was found."""


class _Body(msgspec.Struct):
    """The keys that choosing a pool needs; a value of another type than expected is the pool's to refuse."""

    model: object = None
    prompt: msgspec.Raw = EMPTY
    messages: msgspec.Raw = EMPTY
    tools: msgspec.Raw = EMPTY
    max_tokens: object = None
    max_completion_tokens: object = None


class _Part(msgspec.Struct):
    text: str = ""


class _Message(msgspec.Struct):
    content: str | list[_Part] | None = None


BODY: Final = msgspec.json.Decoder(_Body)
MESSAGES: Final = msgspec.json.Decoder(list[_Message])
ID_LISTS: Final = msgspec.json.Decoder(list[list[int]])
TEXTS: Final = msgspec.json.Decoder(list[str])


@dataclass(frozen=True, slots=True)
class Prompt:
    """The longest prompt of a request.

    ``raw``: as it stands in the body (JSON). ``tokens``: where it is given as token ids, else None.
    ``text_bytes``: of what becomes tokens, JSON's own characters counted. ``whole``: ``raw`` is all text.
    """

    raw: bytes
    tokens: int | None = None
    text_bytes: int = 0
    whole: bool = True


@dataclass(frozen=True, slots=True)
class Asked:
    """``expected_output_tokens``: the request's own limit; None where it has none."""

    kind: Kind
    model: str | None
    prompt: Prompt
    expected_output_tokens: int | None
    tools: bytes = b""


def read_request(kind: Kind, body: bytes) -> Asked:
    """Raises Malformed."""
    try:
        if not body.isascii():
            body.decode()  # what is kept as it stands is not looked at below
        said = BODY.decode(body)
        prompt = _messages(said) if kind == "chat" else _prompt(said.prompt)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise Malformed(f"the body is no JSON object as the API takes it: {error}") from error
    except RecursionError as error:
        raise Malformed("the body is nested too deeply to be read") from error
    limits = (said.max_completion_tokens, said.max_tokens)
    output = next((n for n in limits if type(n) is int and n >= 0), None)
    model = said.model if isinstance(said.model, str) and said.model else None
    return Asked(kind, model, prompt, output, bytes(said.tools))


def _prompt(given: msgspec.Raw) -> Prompt:
    raw = bytes(given)
    inner = raw[1:].lstrip(SPACE)[:1]
    if raw[:1] == b"[" and (inner.isdigit() or inner == b"]"):
        return Prompt(raw, tokens=raw.count(b",") + (inner != b"]"))
    if raw[:1] == b"[" and inner == b"[":
        return Prompt(raw, tokens=max(map(len, ID_LISTS.decode(raw)), default=0))
    if raw[:1] == b"[" and inner == b'"':
        longest = max(TEXTS.decode(raw), key=len)
        return Prompt(text := msgspec.json.encode(longest), text_bytes=len(text))
    if raw[:1] == b'"':
        return Prompt(raw, text_bytes=len(raw))
    return Prompt(b"", tokens=0)  # none at all: the pool says so


def _messages(said: _Body) -> Prompt:
    raw = bytes(said.messages)
    if not any(word in raw for word in NOT_TEXT):
        return Prompt(raw, text_bytes=len(raw) + len(said.tools))
    contents = [message.content for message in MESSAGES.decode(raw)]
    texts = sum(
        len(content) if isinstance(content, str) else sum(len(part.text) for part in content or ())
        for content in contents
    )
    return Prompt(raw, text_bytes=texts + len(said.tools), whole=False)


def api_error(
    status: int, message: str, code: str | None = None, param: str | None = None
) -> bytes:
    """The body of an error as OpenAI's API writes it."""
    kind = "invalid_request_error" if status < 500 else "server_error"
    error: dict[str, Any] = {"message": message, "type": kind, "param": param, "code": code}
    return msgspec.json.encode({"error": error})

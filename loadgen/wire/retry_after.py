"""How long a server asks to wait: Retry-After in seconds, whole or not, or as a date (RFC 9110, 10.2.3)."""

import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from typing import Final

SHOWN_CHARS: Final = 80
_SECONDS: Final = re.compile(r"[0-9]{1,9}(?:\.[0-9]*)?|\.[0-9]+")
_HINT: Final = re.compile(r"HTTP [0-9]+; retry-after: ([0-9.]+)")


def retry_hint(headers: Mapping[bytes, bytes], now_s: float | None = None) -> str | None:
    """e.g. ``retry-after: 2``, as a part of a message; None where the server asks for nothing.

    A date is told as seconds from the reply's own Date, so that the server's clock may be wrong; from
    ``now_s`` (Unix seconds) where it has none. ``retry-after-ms`` is what OpenAI's clients read first.
    """
    milliseconds = headers.get(b"retry-after-ms", b"").decode("latin-1").strip()
    if _SECONDS.fullmatch(milliseconds):
        return f"retry-after: {float(milliseconds) / 1000:g}"
    if b"retry-after" not in headers:
        return None
    said = headers[b"retry-after"].decode("latin-1").strip()[:SHOWN_CHARS]
    until_s = _unix_s(said)
    if until_s is None:
        return f"retry-after: {said}"
    then_s = _unix_s(headers.get(b"date", b"").decode("latin-1"))
    start_s = then_s or now_s or time.time()
    return f"retry-after: {max(0.0, until_s - start_s):.0f} ({said})"


def retry_seconds(message: str) -> float | None:
    """The seconds that a failed request's message says to wait; None where it says none."""
    hint = _HINT.match(message)
    number = _SECONDS.match(hint[1]) if hint else None
    return float(number[0]) if number else None


def _unix_s(text: str) -> float | None:
    try:
        return parsedate_to_datetime(text).timestamp()
    except (ValueError, TypeError, IndexError, OverflowError):
        return None

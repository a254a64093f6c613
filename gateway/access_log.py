"""One JSON line a request: where it went and why, how long it took. No prompt, no key, no answer."""

import logging
import sys
import time
from contextlib import suppress
from io import RawIOBase
from pathlib import Path
from typing import Any, Final

import msgspec

log = logging.getLogger("gateway")
WAITING_BYTES: Final = 1 << 20


class Entry(msgspec.Struct):
    """``at``: unix seconds when it ended, the only wall-clock time of the gateway. Others: ms, monotonic.

    ``ended``: complete, refused, client_gone, pool_lost, too_slow or no_pool.
    """

    method: str
    path: str
    at: float = 0.0
    status: int | None = None
    ended: str = "complete"
    pool: str | None = None
    rule: str | None = None
    reason: str | None = None
    tried: list[str] = []
    model: str | None = None
    prompt_tokens: int | None = None
    length_source: str | None = None
    cached_tokens: int | None = None
    expected_output_tokens: int | None = None
    own_ms: float | None = None  # from the whole body to the send to the (last) pool
    ttft_ms: float | None = None  # from the head of the request to the first byte of the body
    total_ms: float | None = None
    request_bytes: int = 0
    response_bytes: int = 0
    chunks: int = 0


class AccessLog:
    """``path`` None: standard output. A full disk stops no request: lines wait until it has room, up to
    ``WAITING_BYTES``; how many were lost beyond that is a warning then.
    """

    def __init__(self, path: Path | None) -> None:
        # unbuffered: what was taken is known, so that no line is torn or written twice
        self._file = _standard_output() if path is None else path.open("ab", buffering=0)
        self._closes = path is not None
        self._encoder = msgspec.json.Encoder()
        self._waiting = bytearray()
        self._lost = 0

    def write(self, entry: Entry) -> None:
        entry.at = round(time.time(), 3)
        if len(self._waiting) < WAITING_BYTES:
            self._waiting += self._encoder.encode(entry) + b"\n"
        else:
            self._lost += 1
        with suppress(OSError):
            del self._waiting[: self._file.write(self._waiting) or 0]
        if self._lost and not self._waiting:
            log.warning("access log: %d lines were lost, its disk took none", self._lost)
            self._lost = 0

    def close(self) -> None:
        if self._closes:
            self._file.close()


def _standard_output() -> RawIOBase:
    stream: Any = sys.stdout.buffer
    return getattr(stream, "raw", stream)

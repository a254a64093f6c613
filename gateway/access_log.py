"""One JSON line a request: where it went and why, how long it took. No prompt, no key, no answer."""

import sys
import time
from pathlib import Path

import msgspec


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
    """``path`` None: standard output."""

    def __init__(self, path: Path | None) -> None:
        self._file = sys.stdout.buffer if path is None else path.open("ab", buffering=0)
        self._encoder = msgspec.json.Encoder()

    def write(self, entry: Entry) -> None:
        entry.at = round(time.time(), 3)
        try:
            self._file.write(self._encoder.encode(entry) + b"\n")
            self._file.flush()
        except OSError:
            pass  # a full disk or a reader that left stops no request

    def close(self) -> None:
        if self._file is not sys.stdout.buffer:
            self._file.close()

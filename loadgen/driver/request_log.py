"""What a client process writes while it drives: one row a request, phase marks, and replies for grading.

Rows are encoded by msgspec straight from the contract's dataclasses (3 µs a row of 64 chunks, where
`dataclasses.asdict` takes 190 µs), because this runs between two sends.
"""

import errno
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Final

import msgspec

from greenbench.contract.clock import Anchor
from greenbench.contract.schema import Event, RequestRecord, Row
from loadgen.prompts.prompt_file import Prompt
from loadgen.wire.response import Request, Response

_encode = msgspec.json.encode
FULL: Final = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class Records:
    """Requests and their outcomes as rows of one client of one run."""

    run_id: str
    client_id: str
    prompts: list[Prompt]

    def record(self, request: Request, response: Response, in_flight: int) -> RequestRecord:
        """``in_flight``: other requests of this client that were open when this one was sent."""
        prompt = self.prompts[request.prompt_at]
        facts, chunk_ns, sent = response.facts, response.chunk_ns, response.sent
        return RequestRecord(
            run_id=self.run_id,
            client_id=self.client_id,
            request_id=request.request_id,
            phase=request.phase,
            task=prompt.task,
            prompt_index=prompt.prompt_index,
            prompt_sha256=prompt.sha256,
            context_tokens_target=request.context_tokens,
            max_output_tokens=request.output_tokens,
            in_flight_at_send=in_flight,
            time_source="kernel" if response.kernel_times else "user",
            prompt_tokens=facts.prompt_tokens,
            cached_tokens=facts.cached_tokens,
            output_tokens=facts.output_tokens,
            scheduled_unix_ns=_unix_ns(request.scheduled_mono_ns, sent),
            sent_unix_ns=sent.unix_ns if sent else None,
            sent_mono_ns=sent.mono_ns if sent else None,
            connect_ns=response.connect_ns,
            send_ns=response.send_ns,
            headers_ns=response.headers_ns,
            first_token_ns=chunk_ns[0] if chunk_ns else None,
            last_token_ns=chunk_ns[-1] if chunk_ns else None,
            end_ns=response.end_ns,
            chunk_ns=chunk_ns,
            chunk_tokens=facts.chunk_tokens if chunk_ns else None,
            http_status=response.http_status,
            finish_reason=facts.finish_reason,
            server_metrics=facts.server_metrics,
            error_type=facts.error_type,
            error_message=facts.error_message,
            conversation=request.conversation,
            turn=request.turn,
            user=request.user,
        )


def _unix_ns(scheduled_mono_ns: int | None, sent: Anchor | None) -> int | None:
    """By the clocks at the sending, so that the lag in the row is the monotonic clock's."""
    if scheduled_mono_ns is None:
        return None
    return (sent or Anchor.now()).to_unix_ns(scheduled_mono_ns)


class RowWriter:
    """Appends rows to one JSONL file, whole lines a write.

    Rows wait for `flush`, which the session calls at every tick: kill -9 loses at most the rows of the
    last 20 ms, never half a line. What a full disk does not take waits until there is room again.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        self._file = FileIO(path, "a")
        self._waiting: list[bytes] = []
        self._left = memoryview(b"")  # of whole lines, what the disk has not taken yet

    def write(self, row: Row) -> None:
        self._waiting.append(_encode(row))
        self.rows += 1

    def flush(self) -> None:
        if self._waiting and not self._left:
            self._waiting.append(b"")
            self._left = memoryview(b"\n".join(self._waiting))
            self._waiting = []
        if self._left:
            self._left = self._left[self._taken() :]

    def _taken(self) -> int:
        """Bytes that the disk took: less than asked where it fills up just then."""
        try:
            return self._file.write(self._left) or 0
        except OSError as error:
            if error.errno not in FULL:
                raise
            return 0

    def close(self) -> None:
        """OSError where rows are left that a full disk did not take."""
        with self._file:
            while self._left or self._waiting:
                before = len(self._left), len(self._waiting)
                self.flush()
                if before == (len(self._left), len(self._waiting)):
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))


class EventWriter:
    """Phase marks in events.jsonl, which the sweep and the recorder append to as well."""

    def __init__(self, path: Path) -> None:
        self._rows = RowWriter(path)

    def mark(self, name: str, mono_ns: int, detail: dict[str, object] | None = None) -> None:
        """Write the mark for a moment of the monotonic clock; the wall clock is read now."""
        unix_ns = Anchor.now().to_unix_ns(mono_ns)
        self._rows.write(Event(unix_ns=unix_ns, mono_ns=mono_ns, name=name, detail=detail or {}))
        self._rows.flush()

    def close(self) -> None:
        self._rows.close()


class Replies:
    """Replies kept for grading after the last request. Bodies (up to megabytes) wait on disk."""

    def __init__(self) -> None:
        self._spill = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as this object
        self._kept: list[tuple[str, int, str | None, int, int]] = []
        self._end = 0

    def keep(self, request_id: str, prompt_at: int, text: str | None, body: bytes | None) -> None:
        start = self._end
        if body:
            self._spill.write(body)
            self._end += len(body)
        self._kept.append((request_id, prompt_at, text, start, self._end))

    def __iter__(self) -> Iterator[tuple[str, int, str | None, bytes | None]]:
        for request_id, prompt_at, text, start, end in self._kept:
            if end > start:
                self._spill.seek(start)
                yield request_id, prompt_at, text, self._spill.read(end - start)
            else:
                yield request_id, prompt_at, text, None

    def close(self) -> None:
        self._spill.close()

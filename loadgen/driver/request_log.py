"""What a client process writes while it drives: one line a request, and replies set aside.

Rows are encoded by msgspec straight from the contract's dataclasses (3 µs a row of 64 chunks, where
`dataclasses.asdict` takes 190 µs), because this runs between two sends.
"""

import tempfile
import time
from collections.abc import Iterator
from io import FileIO
from pathlib import Path

import msgspec

from greenbench.contract.schema import Event, Row

_encode = msgspec.json.encode


class RowWriter:
    """Appends rows to one JSONL file, whole lines a write.

    Rows wait for `flush`, which the session calls at every tick: kill -9 loses what came since
    (20 ms), and never half a line.
    """

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        self._file = FileIO(path, "a")
        self._waiting: list[bytes] = []

    def write(self, row: Row) -> None:
        self._waiting.append(_encode(row))
        self.rows += 1

    def flush(self) -> None:
        if self._waiting:
            self._waiting.append(b"")
            self._file.write(b"\n".join(self._waiting))
            self._waiting = []

    def close(self) -> None:
        self.flush()
        self._file.close()


class EventWriter:
    """Phase marks in events.jsonl, which the sweep and the recorder append to as well."""

    def __init__(self, path: Path) -> None:
        self._rows = RowWriter(path)

    def mark(self, name: str, mono_ns: int, detail: dict[str, object] | None = None) -> None:
        """Write the mark for a moment of the monotonic clock; wall time is read now, and set back."""
        unix_ns = time.time_ns() - (time.monotonic_ns() - mono_ns)
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

    def __len__(self) -> int:
        return len(self._kept)

    def __iter__(self) -> Iterator[tuple[str, int, str | None, bytes | None]]:
        for request_id, prompt_at, text, start, end in self._kept:
            if end > start:
                self._spill.seek(start)
                yield request_id, prompt_at, text, self._spill.read(end - start)
            else:
                yield request_id, prompt_at, text, None

    def close(self) -> None:
        self._spill.close()

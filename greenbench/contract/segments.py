"""A JSONL file that may grow for hours: full parts are compressed beside it, the live part stays plain.

``gpu.jsonl`` is the live part. Past ``part_bytes`` it becomes ``gpu.0000.jsonl.gz`` and a new ``gpu.jsonl``
starts. An ordinary point never gets there, so it has just the one file. A kill -9 loses no whole line.
"""

import gzip
import os
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from greenbench.contract.schema import Row
from greenbench.contract.unpack import gunzip

PART_BYTES = 16 * 2**20
TAIL_BYTES = 1 << 16
GZIP_LEVEL = 3  # level 9 saves a tenth more for five times the processor time


def segments(path: Path) -> list[Path]:
    """The parts of ``path`` in writing order, compressed ones first; empty when there is none.

    A part that was cut off while being compressed exists plain as well; the plain one is whole.
    """
    stem = path.name.removesuffix(".jsonl")
    plain = sorted(path.parent.glob(f"{stem}.[0-9][0-9][0-9][0-9].jsonl"))
    packed = sorted(path.parent.glob(f"{stem}.[0-9][0-9][0-9][0-9].jsonl.gz"))
    done = [part for part in packed if part.with_suffix("") not in plain]
    parts = sorted([*done, *plain], key=lambda part: part.name)
    return [*parts, path] if path.is_file() else parts


def read_bytes(path: Path) -> bytes:
    """All parts of ``path`` as one text of JSON lines, uncompressed."""
    return b"".join(
        gunzip(part) if part.suffix == ".gz" else part.read_bytes() for part in segments(path)
    )


class SegmentedJsonlWriter:
    """Appends rows for hours: a whole line at a time, flushed. Packing runs in a thread of its own."""

    def __init__(self, path: Path, part_bytes: int = PART_BYTES) -> None:
        self.path = path
        self.part_bytes = part_bytes
        self.rows = 0
        path.parent.mkdir(parents=True, exist_ok=True)
        drop_half_line(path)
        self._live = path.open("ab")
        self._size = self._live.tell()
        self._packer: threading.Thread | None = None

    def write(self, row: Row) -> None:
        self.write_all([row])

    def write_all(self, rows: Sequence[Row]) -> None:
        """Rows of one moment, together: a system call each costs more than encoding them."""
        self._size += self._live.write("".join(row.to_json() + "\n" for row in rows).encode())
        self._live.flush()
        self.rows += len(rows)
        if self._size >= self.part_bytes:
            self._rotate()

    def _rotate(self) -> None:
        self._live.close()
        stem = self.path.name.removesuffix(".jsonl")
        number = len([part for part in segments(self.path) if part != self.path])
        full = self.path.with_name(f"{stem}.{number:04d}.jsonl")
        self.path.rename(full)
        self._live, self._size = self.path.open("ab"), 0
        if self._packer:
            self._packer.join()
        self._packer = threading.Thread(target=pack, args=(full,), name="pack")
        self._packer.start()

    def close(self) -> None:
        self._live.close()
        if self._packer:
            self._packer.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def drop_half_line(path: Path) -> None:
    """What a writer left that ended on a full disk; the next row would be written behind it, in its line."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        at = file.seek(0, os.SEEK_END)
        while at > 0:
            start = max(at - TAIL_BYTES, 0)
            file.seek(start)
            newline = file.read(at - start).rfind(b"\n")
            if newline >= 0:
                file.truncate(start + newline + 1)
                return
            at = start
        file.truncate(0)


def pack(part: Path) -> None:
    """Compress one full part; the plain one goes only when the packed one is whole."""
    packed = part.with_name(part.name + ".gz")
    scratch = part.with_name(part.name + ".gz.tmp")
    with part.open("rb") as source, gzip.open(scratch, "wb", compresslevel=GZIP_LEVEL) as target:
        shutil.copyfileobj(source, target, 2**20)
    scratch.replace(packed)
    part.unlink()

"""Compressed files of a run, unpacked up to a limit: a small file may stand for more than a memory holds."""

import gzip
from pathlib import Path
from typing import Final

MOST_BYTES: Final = (
    256 * 2**20
)  # a part of a recording has 16 MiB, a server's log without its steps far less


def gunzip(path: Path, most: int = MOST_BYTES) -> bytes:
    """Raises OSError where it unpacks to more than ``most`` bytes, or is damaged (EOFError, zlib.error)."""
    with gzip.open(path) as packed:
        content = packed.read(most + 1)
    if len(content) > most:
        raise OSError(f"{path}: unpacks to over {most >> 20} MiB, which no file of a run does")
    return content

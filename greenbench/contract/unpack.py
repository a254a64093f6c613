"""Compressed files of a run, unpacked up to a limit: a small file may stand for more than a memory holds."""

import gzip
from pathlib import Path

MOST_BYTES = 256 * 2**20  # a part of a recording has 16 MiB, a server's log far less


def gunzip(path: Path) -> bytes:
    """OSError where it unpacks to more than MOST_BYTES, or is damaged (EOFError and zlib.error, too)."""
    with gzip.open(path) as packed:
        content = packed.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise OSError(
            f"{path}: unpacks to over {MOST_BYTES >> 20} MiB, which no file of a run does"
        )
    return content

"""What a recorder wrote that may have been killed, or may be writing: its whole lines."""

import json
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from greenbench.contract.segments import read_bytes


def whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    for line in read_bytes(path).splitlines():
        with suppress(ValueError):
            yield json.loads(line)


def moments(path: Path) -> Iterator[float]:
    """When each row was read, monotonic s."""
    for line in whole_lines(path):
        yield line["mono_ns"] / 1e9


def records(path: Path, since_s: float) -> bool:
    """Whether a row is of a recorder that was started then. Its process may be there and not have begun."""
    return max(moments(path), default=since_s) > since_s

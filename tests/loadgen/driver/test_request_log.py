"""Rows on a disk that fills up, and has room again."""

import errno
import io
import os
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.schema import Event
from loadgen.driver import request_log
from loadgen.driver.request_log import RowWriter


class Disk(io.FileIO):
    """Takes ``room`` bytes and then none; as with a file system, the last write is a short one."""

    room = 0

    def write(self, data: Any, /) -> int:
        if not Disk.room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        taken = super().write(bytes(data)[: Disk.room])
        Disk.room -= taken
        return taken


@pytest.fixture
def rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowWriter:
    monkeypatch.setattr(request_log, "FileIO", Disk)
    return RowWriter(tmp_path / "rows.jsonl")


def written(rows: RowWriter, *names: str) -> None:
    for name in names:
        rows.write(Event(1, 1, name, {}))
    rows.flush()


def names(rows: RowWriter) -> list[str]:
    return [row["name"] for row in read_jsonl(rows.path)]


@pytest.mark.parametrize("room", [0, 1, 30, 100])
def test_no_row_is_lost_doubled_or_torn_where_the_disk_has_room_again(
    rows: RowWriter, room: int
) -> None:
    Disk.room = room
    written(rows, "a", "b")
    written(rows, "c")
    Disk.room = 10_000
    written(rows, "d")
    rows.close()
    assert names(rows) == ["a", "b", "c", "d"]


def test_what_a_full_disk_did_not_take_is_an_error_at_the_end(rows: RowWriter) -> None:
    Disk.room = 1000
    written(rows, "a")
    Disk.room = 7
    written(rows, "b")
    with pytest.raises(OSError, match="No space left on device"):
        rows.close()
    assert names(rows) == ["a"]

"""A recording that is begun anew on the file of a recorder that met a full disk."""

from pathlib import Path

import pytest

from greenbench.contract import segments
from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.schema import Event
from greenbench.contract.segments import SegmentedJsonlWriter


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ("", []),
        ('{"name": "a"}\n', ["a"]),
        ('{"name": "a"}\n{"na', ["a"]),
        ('{"name": "a"}\n' + '{"name": "' + 50 * "b", ["a"]),  # longer than what is read at a time
        ('{"na', []),
    ],
)
def test_a_half_line_goes_and_no_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, left: str, kept: list[str]
) -> None:
    monkeypatch.setattr(segments, "TAIL_BYTES", 16)
    path = tmp_path / "host.jsonl"
    path.write_text(left)
    with SegmentedJsonlWriter(path) as writer:
        writer.write(Event(1, 1, "new", {}))
    assert [row["name"] for row in read_jsonl(path)] == [*kept, "new"]

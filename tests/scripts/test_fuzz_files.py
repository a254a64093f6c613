"""The fuzz of files finds what it is there to find, and its inputs are seeded."""

import argparse
import random
from collections import Counter
from pathlib import Path

import pytest

from scripts import fuzz_files
from scripts.damage import damaged


@pytest.mark.parametrize("seed", range(40))
def test_no_damaged_result_is_a_fault(tmp_path: Path, seed: int) -> None:
    step = fuzz_files.import_step(tmp_path)
    outcomes, count = step(seed)
    assert count == 1 and set(outcomes) <= {"imported", "refused"}


@pytest.mark.parametrize("seed", [3, fuzz_files.REPORT_EVERY])
def test_no_damaged_run_is_a_fault(tmp_path: Path, seed: int) -> None:
    """The second seed goes through the whole report."""
    outcomes, count = fuzz_files.run_step(tmp_path)(seed)
    assert outcomes.total() == fuzz_files.GROUP + 1 and count > fuzz_files.GROUP


def test_the_same_seed_is_the_same_input() -> None:
    content = b'{"a": [1, 2, {"b": null}]}\n' * 5
    one, two = (
        [damaged(random.Random(seed), "a.jsonl", content) for seed in range(50)] for _ in range(2)
    )
    assert one == two and len(set(one)) > 20


@pytest.mark.parametrize("text", ["", " ", "a\nb", "Traceback (most", "a\x1b[2J", "x" * 2000])
def test_what_is_no_sentence(text: str) -> None:
    with pytest.raises(fuzz_files.Failed):
        fuzz_files.a_sentence(text)


def test_an_import_that_raises_or_leaves_something_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = argparse.Namespace(count=3, seed=7, go_on=True)

    def raises(_: int) -> tuple[Counter[str], int]:
        raise KeyError("phases")

    assert fuzz_files.fuzz(raises, tmp_path / "case", options) == 1
    assert "seed 7: it raised KeyError" in capsys.readouterr().err

    def leaves(*_: object) -> None:
        (tmp_path / "case" / "out").mkdir()
        raise fuzz_files.UserError("no result")

    monkeypatch.setattr(fuzz_files, "write_all", leaves)
    monkeypatch.setattr(fuzz_files, "read_result", lambda path: [])
    sound = fuzz_files.tool_files(tmp_path / "sound")
    with pytest.raises(fuzz_files.Failed, match="it was refused, and out is there"):
        fuzz_files.one_import(random.Random(1), sound, tmp_path / "case")

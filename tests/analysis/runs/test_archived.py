"""A run that cannot be written (an archive, another person's folder) is analysed all the same."""

import subprocess
import sys
from pathlib import Path

import pytest

from analysis.runs.parquet import folders_beside, parquet_file
from analysis.runs.run import load_run
from greenbench.contract.errors import UserError
from tests.fakes.rundirs import FakeRun, write_run


@pytest.fixture(autouse=True)
def caches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("GREENBENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "system"))
    return tmp_path / "cache"


def closed(tmp_path: Path) -> Path:
    """A run where no folder ``derived`` can be made, for root neither: a file has that name."""
    run = write_run(tmp_path / "runs", FakeRun())
    run.derived_dir.write_text("")
    return run.path


def test_its_tables_lie_in_the_cache_and_are_used_again(tmp_path: Path, caches: Path) -> None:
    path = closed(tmp_path)
    parquet_file(path, "requests")
    table = folders_beside(path)[0] / "requests.parquet"
    assert caches in table.parents
    made_ns = table.stat().st_mtime_ns
    parquet_file(path, "requests")
    assert table.stat().st_mtime_ns == made_ns
    assert len(load_run(path).requests) == 4 * 42
    assert (path / "derived").read_text() == ""


def test_two_runs_of_one_name_do_not_share_a_table(tmp_path: Path) -> None:
    assert folders_beside(tmp_path / "a" / "r0") != folders_beside(tmp_path / "b" / "r0")


def test_where_the_cache_is_no_folder_either_the_systems_is_taken(
    tmp_path: Path, caches: Path
) -> None:
    path = closed(tmp_path)
    caches.write_text("")
    parquet_file(path, "requests")
    table = folders_beside(path)[1] / "requests.parquet"
    assert tmp_path / "system" in table.parents and table.is_file()
    second = closed(tmp_path / "second")
    (tmp_path / "system").rename(tmp_path / "gone")
    (tmp_path / "system").write_text("")
    with pytest.raises(UserError, match="set GREENBENCH_CACHE to a folder that can"):
        parquet_file(second, "requests")


def test_a_link_in_place_of_derived_is_not_followed(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", FakeRun())
    (tmp_path / "elsewhere").mkdir()
    run.derived_dir.symlink_to(tmp_path / "elsewhere")
    parquet_file(run.path, "requests")
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("out", ["/proc/report.html", "/proc/nowhere/report.html"])
def test_a_place_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, out: str) -> None:
    """/proc takes no file, from root neither."""
    write_run(tmp_path / "runs", FakeRun())
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "report", str(tmp_path / "runs"), "--out", out],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == ""
    assert "cannot be written" in done.stderr and "choose another --out" in done.stderr
    assert done.stderr.count("\n") == 1

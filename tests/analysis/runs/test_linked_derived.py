"""A run directory from elsewhere may hold links: an analysis writes nothing through them."""

import os
from pathlib import Path

from analysis.runs.run import read_runs
from tests.fakes.rundirs import FakeRun, write_run


def test_what_a_link_in_derived_leads_to_is_not_overwritten(tmp_path: Path) -> None:
    run = write_run(tmp_path / "runs", FakeRun(measure_s=15))
    precious = tmp_path / "precious"
    precious.write_text("keys")
    run.derived_dir.mkdir(exist_ok=True)
    (run.derived_dir / f"requests.{os.getpid()}.tmp").symlink_to(precious)
    ((read,), unreadable) = read_runs(tmp_path / "runs")
    assert unreadable == [] and len(read.requests) == read.manifest.counts.rows
    assert precious.read_text() == "keys"

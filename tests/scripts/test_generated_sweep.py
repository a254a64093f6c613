"""The sweep on which the report is timed is one that the analysis takes for real."""

from pathlib import Path

from analysis.runs.check_forms import read_forms
from analysis.runs.run import load_runs
from analysis.runs.validity import faults
from scripts.generated_sweep import PERIOD_NS, REQUESTS, write_sweep


def test_its_points_have_the_form_of_the_contract_and_no_faults(tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path, 10)
    runs = load_runs(sweep)
    assert [run.point.task.name for run in runs] == ["retrieve"] * 9 + ["perplexity"]
    assert read_forms(sweep).faults == []
    for run in runs:
        assert faults(run) == []
        assert len(run.requests) >= REQUESTS[run.point.task.name]
        assert len(run.steps) >= len(run.requests)
    scrapes = runs[0].server["unix_ns"]
    assert set(scrapes.drop_duplicates().diff().dropna()) == {PERIOD_NS}
    assert len(runs[0].server) / scrapes.nunique() > 40  # series, as vLLM has them

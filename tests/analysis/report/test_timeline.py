"""The timeline of a point: no two of its lines look alike."""

from pathlib import Path

import pytest

from analysis.point.point import analyse
from analysis.report import timeline as module
from analysis.report.plots import COLOURS
from analysis.runs.run import read_runs
from tests.fakes.rundirs import FakeRun, write_run


@pytest.mark.parametrize("colours", [8, 3], ids=["a colour each", "more lines than colours"])
def test_no_two_lines_look_alike(
    colours: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "COLOURS", COLOURS[:colours])
    write_run(tmp_path, FakeRun(measure_s=15, gpu_power_w=100))
    ((run,), _) = read_runs(tmp_path)
    traces = module.timeline(run, analyse(run)).data
    looks = [(trace.line.color, trace.line.dash) for trace in traces]
    assert len(traces) > 3 and len({trace.yaxis for trace in traces}) >= 3
    assert len(set(looks)) == len(looks)
    assert len({colour for colour, _ in looks}) == min(colours, len(looks))

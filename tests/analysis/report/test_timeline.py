"""The timeline of a point: no two of its lines look alike, and no peak is lost."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

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


VALUES = st.lists(st.one_of(st.integers(0, 300), st.floats(0, 1e6, width=32)), min_size=1)


@given(VALUES, st.integers(2, 40))
def test_a_thinned_line_keeps_both_ends_and_every_extreme(values: list[float], most: int) -> None:
    drawn = np.asarray(values, dtype=float)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "TIMELINE_STEPS", most)
        times, kept = module._thin(np.arange(len(drawn)), drawn)
    assert len(times) <= most + 2
    assert (times[0], times[-1]) == (0, len(drawn) - 1)
    assert (kept.min(), kept.max()) == (drawn.min(), drawn.max())
    assert np.array_equal(drawn[times], kept)


def test_a_timeline_is_drawn_with_short_numbers_that_are_right(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(measure_s=15, gpu_power_w=100))
    ((run,), _) = read_runs(tmp_path)
    traces = {trace.name: trace for trace in module.timeline(run, analyse(run)).data}
    rss = traces["server RSS"]
    assert (rss.x.dtype, traces["waiting (server)"].y.dtype) == (np.float32, np.int16)
    assert rss.y == pytest.approx(run.host["server_rss_bytes"] / 2**30, rel=1e-6)
    start_ns = run.manifest.phases["measure"][0]
    assert rss.x == pytest.approx((run.host["unix_ns"] - start_ns) / 1e9, abs=1e-4)
    # past what two bytes hold, and halves, stay what they are
    assert module._short(np.array([40000.0, 1.0])).tolist() == [40000.0, 1.0]
    assert module._short(np.array([0.5, 1.0])).tolist() == [0.5, 1.0]
    assert np.isnan(module._short(np.array([np.nan, 1.0]))[0])

"""The registry of objectives: what every entry must hold, and what those of one request say."""

from pathlib import Path

import numpy as np
import pytest

from analysis.objectives import BY_NAME, OBJECTIVES, Objective
from analysis.point.point import analyse
from analysis.report import formats
from analysis.runs.run import load_run
from tests.fakes.rundirs import FakeRun, write_run


@pytest.mark.parametrize("objective", OBJECTIVES, ids=lambda objective: objective.name)
def test_every_objective_can_be_told(objective: Objective) -> None:
    """Guards against an entry that only a report with such a winner, or such a figure, would trip over."""
    assert BY_NAME[objective.name] is objective
    assert objective.worse.split(" ", 1)[1] == objective.better.split(" ", 1)[1]
    adjective = "higher" if objective.higher_is_better else "lower"
    assert objective.better.split(" ")[0] in (adjective, "fewer")
    assert formats.measured(None, objective.unit) == formats.DASH
    assert formats.measured(2.0, objective.unit).startswith("2")
    assert objective.latency is None or objective.quantity


@pytest.mark.parametrize(("measure_s", "known"), [(45, False), (60, True)])
def test_ttft_p95_needs_200_requests(tmp_path: Path, measure_s: float, known: bool) -> None:
    """Four users, a request of 1 s each: about 180 requests, or 240. The p95 by sorting the raw rows."""
    run = load_run(write_run(tmp_path, FakeRun(measure_s=measure_s, jitter=0.2)).path)
    point = analyse(run)
    found = BY_NAME["ttft_p95"].measure(point)
    assert point.latency is not None and found.n == point.latency.ttft_s.n
    if not known:
        assert found.value is None and found.reason == f"p95 needs 200, has {found.n} in a start"
        return
    sent, asked = run.requests["sent_unix_ns"], run.requests["phase"] == "measure"
    assert point.window is not None
    rows = run.requests[asked & (sent >= point.window.start_unix_ns)]
    ordered = np.sort(rows["first_token_ns"].to_numpy(dtype=float)) / 1e9
    rank = 0.95 * len(ordered)
    # the two counts differ by requests at the window's edges, a few of 240
    low, high = ordered[round(rank) - 6], ordered[round(rank) + 4]
    assert found.value is not None and low <= found.value <= high
    assert found.edge_error is not None and 0 < found.edge_error < 0.1

"""Where the evidence of a bottleneck comes from: the engine's steps, and the load generator's self-check."""

from dataclasses import replace
from pathlib import Path

import pytest

from analysis.bottleneck.classify import classify_client, step_figures
from analysis.point.point import analyse
from analysis.point.steady_window import Window, WindowEvidence
from analysis.runs.engine_steps import parse_steps
from analysis.runs.run import load_run
from tests.fakes.rundirs import FakeRun, write_run


@pytest.mark.parametrize(
    ("late", "open_requests", "held"),
    [
        (["event-loop lag p99 is 300 ms, at most 50 ms was allowed"], 3.1, True),
        (["event-loop lag p99 is 300 ms, at most 50 ms was allowed"], 3.9, False),
        ([], 3.1, False),
    ],
)
def test_users_without_a_request_and_a_late_client_are_the_client(
    tmp_path: Path, late: list[str], open_requests: float, held: bool
) -> None:
    written = write_run(tmp_path, FakeRun(users=4))
    warnings = [*late, "chunks sharing a read is 0.3, at most 0.1 was allowed"]
    said = {"over_budget": False, "reasons": [], "warnings": warnings, "event_loop_late": late}
    audit = {"locust": said}
    written.write_manifest(written.manifest().model_copy(update={"client_audit": audit}))
    run = load_run(written.path)
    good = analyse(run)
    evidence = WindowEvidence(mean_in_flight=open_requests)
    window = Window("steady", 0, 1, evidence=evidence)
    found = classify_client(run, replace(good, status="invalid", window=window))
    assert classify_client(run, good) is None
    assert (found is not None) == held
    if found is not None:
        assert found.bound == "client"
        assert "on average 3.1 of 4 requests were open; event-loop lag" in found.sentence


def test_a_long_step_weighs_as_long_as_it_took() -> None:
    """Guards against a median over steps, or over scrapes, which nine short decode steps would win."""
    line = (
        "{0:.3f} INFO Engine 000: Iteration({1}): {2} context requests, {3} context tokens, "
        "{4} generation requests, {4} generation tokens, iteration elapsed time: {5} ms, "
        "CPU KV cache usage: {6}%"
    )
    start = 10**9  # seconds
    rows = [(start + 1 + i / 100, i, 0, 0, 1, 10.0, 30.0) for i in range(9)]
    steps = parse_steps(
        [line.format(*row) for row in [*rows, (start + 2, 9, 2, 2000, 1, 810.0, 100.0)]]
    )
    found = step_figures(steps, Window("steady", start * 10**9, (start + 2) * 10**9 + 1))
    assert found["running"] == pytest.approx((9 * 10 * 1 + 810 * 3) / 900)
    assert (found["kv_p50"], found["kv_p90"]) == (1.0, 1.0)
    assert found["engine_share"] == pytest.approx(0.9 / 2)
    assert found["step_tokens_p50"] == 2001
    assert step_figures(parse_steps([]), Window("steady", 0, 1)) == {}


def test_engines_run_beside_each_other() -> None:
    """Two engines: 4 and 6 requests in each step, in steps for 1.0 and 0.5 of 2 s."""
    start = 1_700_000_000
    line = (
        "{:.3f} INFO Engine {:03d}: Iteration({}): 0 context requests, 0 context tokens, {} generation "
        "requests, 4 generation tokens, iteration elapsed time: 100.00 ms, GPU KV cache usage: {}%"
    )
    steps = parse_steps(
        [line.format(start + 0.1 * i, 0, i, 4, 60) for i in range(10)]
        + [line.format(start + 0.1 * i, 1, i, 6, 60) for i in range(5)]
    )
    found = step_figures(steps, Window("steady", start * 10**9, (start + 2) * 10**9))
    assert found["running"] == pytest.approx(4 + 6)
    assert found["engine_share"] == pytest.approx((1.0 + 0.5) / 2 / 2)
    assert found["kv_p90"] == pytest.approx(0.6)  # of the pool, never 1.2 of it

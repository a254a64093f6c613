"""Expansion of sweeps and the verdict on a point: pure functions, no processes."""

import pytest

from greenbench.contract.config import ModelConfig, SweepConfig, parse
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import ClientAudit
from greenbench.contract.new_run import point_hash
from greenbench.sweep.order import (
    FEWEST_ANSWERS,
    ServerStart,
    check_window,
    expand,
    prompt_file_name,
    prompt_request,
    quality_warnings,
)
from greenbench.sweep.plan import check_objective, check_tasks
from greenbench.sweep.verdict import Faults, count, judge

MODEL = ModelConfig(name="m", path="/m", max_model_len=4096)


def sweep(**changes: object) -> SweepConfig:
    base = {
        "name": "s", "models": ["m"], "backends": ["a", "b"], "repeats": 3, "contexts": [512, 2048],
        "tasks": ["retrieve", "summarize"], "loads": [{"users": 1}, {"users": 4}],
    }  # fmt: skip
    return parse(SweepConfig, {**base, **changes}, "test")


def starts_of(config: SweepConfig) -> list[ServerStart]:
    return expand(config, [MODEL], config.contenders)


def test_one_start_for_each_model_backend_and_repeat_with_every_point_inside() -> None:
    starts = starts_of(sweep())
    assert len(starts) == 1 * 2 * 3
    assert all(len(start.points) == 2 * 2 * 2 for start in starts)
    # blocks: each repeat holds each backend once before the next repeat begins
    for repeat in range(3):
        block = starts[2 * repeat : 2 * repeat + 2]
        assert {start.request.backend.name for start in block} == {"a", "b"}
        assert {start.repeat for start in block} == {repeat}


def test_the_order_is_random_over_blocks_and_the_same_for_the_same_seed() -> None:
    def order(seed: int) -> list[str]:
        return [
            s.label + str([p.workload for p in s.points])
            for s in starts_of(sweep(seed=seed, repeats=8))
        ]

    assert order(1) == order(1)
    assert order(1) != order(2)
    firsts = [s.request.backend.name for s in starts_of(sweep(repeats=8))][::2]
    assert {"a", "b"} == set(firsts), "one backend always went first"


def test_all_points_of_a_sweep_are_different_measurements() -> None:
    hashes = [point_hash(point) for start in starts_of(sweep()) for point in start.points]
    assert len(hashes) == len(set(hashes)) == 48


def test_prompts_are_the_same_for_every_backend_repeat_and_load() -> None:
    names = {
        prompt_file_name(point, prompt_request(point, "/m"))
        for start in starts_of(sweep())
        for point in start.points
    }
    assert len(names) == 2 * 2  # contexts × tasks


def test_a_context_that_does_not_fit_the_window_is_refused_before_a_start() -> None:
    tight = sweep(contexts=[4080], tasks=["retrieve"])
    fits = [("model 'm'", 4096), ("unknown", None)]  # 4080 + 16 = 4096, the window
    check_window(tight, fits, {"retrieve": 16})
    with pytest.raises(UserError, match=r"4080 plus 17 output tokens of task 'retrieve' is longer"):
        check_window(tight, [("model 'm'", 4096)], {"retrieve": 17})
    own = sweep(contexts=[4080], tasks=[{"name": "retrieve", "output_tokens": 99}])
    with pytest.raises(UserError, match=r"4080 plus 99 output tokens"):
        check_window(own, [("model 'm'", 4096)], {"retrieve": 16})


def test_unknown_tasks_and_parameters_name_the_nearest() -> None:
    table = {"retrieve": {"params": {"depth": 0.5}}, "summarize": {"params": {}}}
    with pytest.raises(UserError, match=r"Unknown task 'retreive'; did you mean 'retrieve'"):
        check_tasks(sweep(tasks=["retreive"]), table)
    with pytest.raises(UserError, match="has no parameter 'dept'; did you mean 'depth'"):
        check_tasks(sweep(tasks=[{"name": "retrieve", "params": {"dept": 1}}]), table)
    check_tasks(sweep(), table)


def test_an_objective_that_no_report_knows_is_refused_before_anything_is_measured() -> None:
    """Guards against hours of measuring after which the report alone says it."""
    with pytest.raises(UserError, match="objective: no 'tfft' is known; did you mean 'ttft'"):
        check_objective(sweep(objective="tfft"))
    check_objective(sweep(objective="ttft_p95"))
    check_objective(sweep())


MEASURED = {"measure": (1, 2)}


def row(
    phase: str = "measure", error: str | None = None, message: str | None = None
) -> dict[str, object]:
    return {
        "phase": phase, "error_type": error, "error_message": message,
        "sent_unix_ns": 1, "scheduled_unix_ns": None,
    }  # fmt: skip


def test_the_servers_own_words_stand_in_the_sentence() -> None:
    """Guards against a reason that is in a file and not on the screen."""
    words = "HTTP 422; this model supports /v1/chat/completions only"
    rows = [row(error="http_4xx", message=words)] * 2
    said = judge(rows, {}, MEASURED, Faults()).failure
    assert said == f"no request of the measured phase succeeded (2 × http_4xx: {words})"
    mixed = judge([*rows, row(error="timeout", message="60 s")], {}, MEASURED, Faults()).failure
    assert mixed is not None and mixed.endswith(
        f"(2 × http_4xx, 1 × timeout; the first of them: {words})"
    )


def test_a_load_generator_that_ends_without_its_marks_fails_the_point() -> None:
    """Guards against an exit code 0 of a client whose schedule broke off."""
    verdict = judge([row()], {}, {}, Faults())
    assert verdict.failure == "the load generator ended before the measured phase was over"
    assert verdict.status == "failed"


def test_zero_good_requests_fail_the_point_even_when_warmup_was_good() -> None:
    rows = [row("warmup"), row(error="http_5xx"), row(error="http_5xx")]
    verdict = judge(rows, {}, MEASURED, Faults())
    assert verdict.status == "failed"
    assert verdict.failure == "no request of the measured phase succeeded (2 × http_5xx)"
    assert (
        judge([], {}, MEASURED, Faults()).failure
        == "no request of the measured phase succeeded (none was sent)"
    )


def test_some_failed_requests_leave_the_point_complete_with_both_counts() -> None:
    rows = [row(), row(), row(error="timeout")]
    assert judge(rows, {}, MEASURED, Faults()).status == "complete"
    assert (count(rows).ok, count(rows).failed, count(rows).rows, count(rows).sent) == (2, 1, 3, 3)


def test_a_wrong_prompt_length_or_a_client_over_budget_makes_the_point_invalid() -> None:
    rows = [row(), row(error="length_mismatch")]
    verdict = judge(rows, {"w0": ClientAudit(invalid=["client_bound"])}, MEASURED, Faults())
    assert verdict.status == "invalid"
    assert verdict.reasons == ("prompt_length_mismatch", "client_bound")


def test_a_failure_of_the_server_is_not_overwritten_by_what_the_rows_say() -> None:
    verdict = judge([], {}, MEASURED, Faults("the server died during the point", ("server_died",)))
    assert verdict == Faults("the server died during the point", ("server_died",))


def test_a_task_may_ask_for_its_own_number_of_requests() -> None:
    """Guards the demo: 32 prompts decide a gate, and 32 long perplexities would take minutes."""
    tasks = [{"name": "retrieve", "requests": 32}, "summarize"]
    points = starts_of(sweep(tasks=tasks, phases={"requests": 5}))[0].points
    limits = {(point.task.name, point.phases.requests) for point in points}
    assert limits == {("retrieve", 32), ("summarize", 5)}
    # the prompts do not depend on how many of them are asked
    assert {point.task.requests for point in points} == {None}


def warned(tasks: list[object], **changes: object) -> dict[str, str]:
    said = quality_warnings(sweep(tasks=tasks, **changes), ["perplexity"])
    return dict(sentence.split(": ", 1) for sentence in said)


def test_too_few_prompts_for_a_verdict_on_quality_are_said_before_the_start() -> None:
    found = warned(
        [
            {"name": "retrieve", "requests": FEWEST_ANSWERS},
            {"name": "summarize", "requests": FEWEST_ANSWERS - 1},
            {"name": "perplexity", "requests": 8},
        ]
    )
    assert set(found) == {"summarize"}
    assert "28 prompts a point" in found["summarize"] and "raise 'requests'" in found["summarize"]
    few = warned([{"name": "retrieve", "requests": 64}], prompts_per_point=16)
    assert "16 prompts a point" in few["retrieve"] and "'prompts_per_point'" in few["retrieve"]
    # repeated prompts say nothing new, and without a count only the clock ends a point
    assert "'requests: 80'" in warned(["retrieve"], phases={"measure_s": 30})["retrieve"]
    assert warned(["retrieve"], phases={"requests": 80}) == {}
    # p90 takes 100 requests, more than quality; p50 takes 6
    assert warned(["retrieve"]) == {}
    assert "a higher 'percentile'" in warned(["retrieve"], phases={"percentile": 50})["retrieve"]

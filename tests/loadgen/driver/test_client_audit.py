"""The client's audit: figures by arithmetic, and a breach of each bound makes the run invalid."""

import pytest

from greenbench.contract.clock import Anchor
from greenbench.contract.manifest import ClientAudit
from loadgen.driver.client_audit import Audit, Histogram
from loadgen.wire.response import Request, Response, failed
from loadgen.wire.sse import Facts

MS = 1_000_000
GAP = "TTFT over the server's own p50 is 90 ms, at most 75 ms was allowed"


def sent(
    chunk_ms: list[float],
    *,
    lag_ms: float | None = None,
    kernel: bool = True,
    shared: int = 0,
    **more: object,
) -> tuple[Request, Response]:
    at = None if lag_ms is None else 1_000 * MS
    request = Request("r", b"", b"", True, 9, len(chunk_ms), scheduled_mono_ns=at)
    response = Response(
        sent=Anchor(5, (at or 0) + round((lag_ms or 0) * MS)),
        chunk_ns=[round(c * MS) for c in chunk_ms],
        kernel_times=kernel,
        facts=Facts(output_tokens=len(chunk_ms), **more),  # type: ignore[arg-type]
        delays_ns=[MS // 10],
        shared_bounds_ns=[2 * MS] * shared,
    )
    return request, response


def audit(*exchanges: tuple[Request, Response]) -> Audit:
    made = Audit()
    for request, response in exchanges:
        made.add(request, response)
    return made


def test_percentiles_are_within_a_bucket_of_the_true_ones() -> None:
    histogram = Histogram()
    for value in range(1, 10_001):
        histogram.add(value * 1000)
    assert histogram.quantile_ms(0.5) == pytest.approx(5.0, rel=0.06)
    assert histogram.quantile_ms(0.99) == pytest.approx(9.9, rel=0.06)
    assert histogram.figures()["max_ms"] == 10.0
    assert Histogram().figures() == {"n": 0, "p50_ms": None, "p99_ms": None, "max_ms": None}


def test_a_good_run_is_within_budget() -> None:
    report = audit(*[sent([50, 60, 70], lag_ms=0.2)] * 100).report()
    assert (report["over_budget"], report["reasons"], report["warnings"]) == (False, [], [])
    assert report["figures"]["tokens_per_chunk"] == 1.0
    assert report["figures"]["schedule_lag"]["n"] == 100


def test_late_sends_are_over_budget_against_what_is_measured() -> None:
    """9 ms late spoils a TTFT of 50 ms and not one of 300 ms (5 %)."""
    short = audit(*[sent([50, 60], lag_ms=9)] * 10).report()
    assert short["over_budget"] and "schedule lag p99 is 9 ms" in short["reasons"][0]
    long = audit(*[sent([300, 310], lag_ms=9)] * 10).report()
    assert (long["over_budget"], len(long["warnings"])) == (False, 1)


def test_one_request_that_could_not_be_sent_is_over_budget() -> None:
    request, _ = sent([50])
    report = audit(*[sent([50, 60])] * 500, (request, failed("not_sent", "late"))).report()
    assert report["over_budget"] and "requests not sent" in report["reasons"][0]


@pytest.mark.parametrize(("kernel", "over"), [(True, False), (False, True)])
def test_a_lagging_loop_spoils_only_times_of_the_program(kernel: bool, over: bool) -> None:
    made = audit(*[sent([50, 60], kernel=kernel)] * 10)
    for _ in range(100):
        made.loop_lag.add(20 * MS)
    assert made.report()["over_budget"] is over


def test_shared_reads_count_by_the_doubt_they_leave_over_all_chunks() -> None:
    """10 chunks a request, gaps of 5 ms; each shared chunk may be 2 ms early: 40 % of a gap."""
    chunks = [50 + 5 * i for i in range(10)]
    rare = audit(*[sent(chunks)] * 199, sent(chunks, shared=9)).report()  # 0.45 % of the chunks
    assert (rare["over_budget"], rare["figures"]["shared_time_p99_ms"]) == (False, 0.0)
    assert not rare["itl_tail_in_doubt"]
    some = audit(*[sent(chunks)] * 9, sent(chunks, shared=9)).report()  # 9 %: only the tail of ITL
    assert (some["over_budget"], some["itl_tail_in_doubt"]) == (False, True)
    assert "uncertainty of chunk times p99 is 2 ms, at most 1 ms was allowed" in some["warnings"]
    often = audit(*[sent(chunks)] * 4, sent(chunks, shared=9)).report()  # 18 %: all of ITL
    assert (often["over_budget"], often["itl_in_doubt"], some["itl_in_doubt"]) == (
        False,
        True,
        False,
    )
    early = [15 + 5 * i for i in range(10)]  # 2 ms are 13 % of this TTFT
    spoilt = audit(*[sent(early)] * 4, sent(early, shared=9)).report()
    assert "uncertainty of chunk times p90 is 2 ms, at most 1.5 ms was allowed" in spoilt["reasons"]
    slow = audit(*[sent([50 + 50 * i for i in range(10)], shared=9)] * 9).report()  # 4 % of a gap
    assert not slow["over_budget"] and slow["warnings"]


@pytest.mark.parametrize(
    ("server_ms", "kernel", "over", "warnings"),
    [
        (140.0, True, False, 0),
        (140.0, False, False, 0),
        (90.0, True, False, 1),  # 60 of 150 ms: the kernel's times are not the client's lateness
        (90.0, False, True, 1),
        (60.0, True, True, 1),  # 90 of 150 ms: the run cannot say what it measured
    ],
)
def test_a_ttft_far_over_the_servers_own_is_over_budget(
    server_ms: float, kernel: bool, over: bool, warnings: int
) -> None:
    own = {"time_to_first_token_ms": server_ms, "queue_time_ms": 0.0}
    found = audit(*[sent([150, 160], kernel=kernel, server_metrics=own)] * 5).report()
    assert found["over_budget"] is over
    assert len(found["warnings"]) == warnings
    assert all("over the server's own" in each for each in found["reasons"] + found["warnings"])


def test_a_gap_that_the_clients_own_clocks_rule_out_is_not_its_fault() -> None:
    """90 of 150 ms lie outside the engine; the client was late by 2 ms at most, in loop and kernel."""
    own = {"time_to_first_token_ms": 60.0, "queue_time_ms": 0.0}
    on_time = audit(*[sent([150, 160], server_metrics=own)] * 5)
    for _ in range(100):
        on_time.loop_lag.add(1_000_000)
    late = audit(*[sent([150, 160], server_metrics=own)] * 5)
    for _ in range(100):
        late.loop_lag.add(95_000_000)
    assert not on_time.report()["over_budget"] and len(on_time.report()["warnings"]) == 1
    assert late.report()["over_budget"]
    told = ClientAudit.model_validate(on_time.report() | {"over_budget": True, "reasons": [GAP]})
    assert told.faults == []  # as such a point was judged before
    told = ClientAudit.model_validate(late.report() | {"reasons": [GAP, "CPU of one core is 0.99"]})
    assert told.faults == [GAP, "CPU of one core is 0.99"]


def test_time_in_the_servers_queue_is_the_servers() -> None:
    queued = {"time_to_first_token_ms": 60.0, "queue_time_ms": 80.0}
    assert not audit(*[sent([150, 160], server_metrics=queued)] * 5).report()["over_budget"]


def test_a_clock_step_marks_the_run() -> None:
    request, response = sent([50, 60])
    response.clock_stepped = True
    assert audit((request, response)).report()["clock_stepped"]
    assert not audit(sent([50, 60])).report()["clock_stepped"]


def test_chunks_without_a_running_count_are_said() -> None:
    """As of most servers that are not vLLM: times are known, sizes are not."""
    audit = Audit()
    for counts in ([1, 2], None):
        response = Response(chunk_ns=[1_000_000, 2_000_000], kernel_times=True)
        response.facts.chunk_tokens = counts
        audit.add(Request("r", b"", b"", True, 9, 2), response)
    (said,) = [w for w in audit.report()["warnings"] if "unknown size" in w]
    assert " in 1 request: " in said

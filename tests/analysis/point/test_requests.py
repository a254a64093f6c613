"""Metrics against scripts whose times are known: every expected value is worked out by hand."""

import json
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pandas as pd
import pytest

from analysis.point.answers import answers
from analysis.point.goodput import Goodput, good_requests, goodput
from analysis.point.latency import latency
from analysis.point.point import Point, analyse, choose_window
from analysis.point.requests import point_requests, request_metrics, run_cycles, token_gaps
from analysis.point.throughput import point_rates, throughput
from analysis.runs.run import ChunkBatch, load_run
from analysis.statistics.samples import statistic, wilson
from greenbench.contract.config import SloConfig
from loadgen.driver.slo_search import meets
from tests.fakes.points import edge, value
from tests.fakes.rundirs import FakeRun, write_run

MS = 1_000_000


def batch(chunks: list[tuple[list[int], list[int]]], **columns: list[object]) -> ChunkBatch:
    """Requests from (chunk times in ms, cumulative tokens); other columns as given."""
    count = len(chunks)
    rows = pd.DataFrame(
        {
            "sent_unix_ns": [10_000 * MS] * count,
            "scheduled_unix_ns": [None] * count,
            "first_token_ns": [times[0] * MS if times else None for times, _ in chunks],
            "last_token_ns": [times[-1] * MS if times else None for times, _ in chunks],
            "end_ns": [(times[-1] + 1) * MS if times else 5 * MS for times, _ in chunks],
            "output_tokens": [counts[-1] if counts else None for _, counts in chunks],
            "prompt_tokens": [100] * count,
            "error_type": [None] * count,
        }
        | columns
    )
    offsets = np.cumsum([0, *(len(times) for times, _ in chunks)])
    ns = np.array([t * MS for times, _ in chunks for t in times], dtype=np.int64)
    tokens = np.array([c for _, counts in chunks for c in counts], dtype=np.int32)
    return ChunkBatch(rows, offsets, ns, tokens)


def test_known_chunks_give_ttft_tpot_and_e2e() -> None:
    # chunks at 100, 105, 115 ms with one token each: TTFT 100, TPOT (115-100)/2 = 7.5, E2E 116
    found = request_metrics(batch([([100, 105, 115], [1, 2, 3])])).iloc[0]
    assert found["ttft_s"] == pytest.approx(0.100)
    assert found["tpot_s"] == pytest.approx(0.0075)
    assert found["e2e_s"] == pytest.approx(0.116)


def test_open_loop_latency_counts_from_the_schedule() -> None:
    # sent 30 ms late: coordinated omission would hide those 30 ms
    late = batch([([100, 110], [1, 2])], scheduled_unix_ns=[9_970 * MS])
    found = request_metrics(late).iloc[0]
    assert found["ttft_s"] == pytest.approx(0.130)
    assert found["e2e_s"] == pytest.approx(0.141)
    assert found["lag_s"] == pytest.approx(0.030)


def test_chunks_of_several_tokens_weigh_by_tokens() -> None:
    # 5 tokens in 3 chunks: 1 at 100, 3 more at 130, 1 more at 140 → gaps 10,10,10,10 ms, not 30 and 10
    gaps = token_gaps(batch([([100, 130, 140], [1, 4, 5])]), np.array([True]))
    assert gaps.seconds.tolist() == pytest.approx([0.010, 0.010, 0.010, 0.010])


def test_bundled_first_chunk_does_not_shorten_tpot() -> None:
    # 3 tokens at once, then 2 in 20 ms: 10 ms a token; dividing by output_tokens − 1 would say 5
    found = request_metrics(batch([([100, 120], [3, 5])])).iloc[0]
    assert found["tpot_s"] == pytest.approx(0.010)


def test_a_chunk_without_new_token_lengthens_the_next_gap() -> None:
    gaps = token_gaps(batch([([100, 104, 110], [1, 1, 2])]), np.array([True]))
    assert gaps.seconds.tolist() == pytest.approx([0.010])


def test_gaps_never_span_two_requests_and_unwanted_ones_are_left_out() -> None:
    two = batch([([100, 110], [1, 2]), ([500, 550], [1, 2]), ([900, 907], [1, 2])])
    gaps = token_gaps(two, np.array([True, False, True]))
    assert gaps.seconds.tolist() == pytest.approx([0.010, 0.007])


def test_chunks_without_token_counts_give_no_itl_and_say_so() -> None:
    unknown = batch([([100, 110], [-1, -1])], output_tokens=[2])
    gaps = token_gaps(unknown, np.array([True]))
    assert (len(gaps.seconds), gaps.untimed) == (0, 1)
    # TPOT falls back to the server's total: 10 ms over 2 − 1 tokens
    assert request_metrics(unknown)["tpot_s"].iloc[0] == pytest.approx(0.010)


@pytest.mark.parametrize(
    ("n", "refused"),
    [(5, {50, 90, 99}), (6, {90, 99}), (99, {90, 99}), (100, {99}), (999, {99}), (1000, set())],
)
def test_percentiles_are_refused_below_the_n_they_need(n: int, refused: set[int]) -> None:
    found = statistic(np.arange(n, dtype=float))
    assert {p for p in (50, 90, 99) if getattr(found, f"p{p}") is None} == refused
    assert len(found.refused) == len(refused)


def test_median_interval_covers_the_true_median() -> None:
    # second method: simulate; an order-statistic interval covers in at least 95 % of samples
    rng = np.random.default_rng(3)
    hits = 0
    for _ in range(1000):
        found = statistic(rng.exponential(size=25))
        assert found.p50_low is not None and found.p50_high is not None
        hits += found.p50_low <= np.log(2) <= found.p50_high
    assert 0.94 <= hits / 1000 <= 0.99


def test_wilson_matches_a_published_value() -> None:
    # 81 of 263: the example of Newcombe (1998), 0.2553 to 0.3662
    low, high = wilson(81, 263)
    assert (low, high) == (pytest.approx(0.2553, abs=1e-4), pytest.approx(0.3662, abs=1e-4))


@pytest.mark.parametrize(("users", "ttft_s", "itl_s"), [(4, 0.5, 0.05), (2, 0.3, 0.02)])
def test_closed_loop_point_is_arithmetic(
    tmp_path: Path, users: int, ttft_s: float, itl_s: float
) -> None:
    # 11 tokens: E2E = ttft + 10·itl; U users serve U·11/E2E tokens a second, whatever the window
    e2e_s = ttft_s + 10 * itl_s
    run = load_run(write_run(tmp_path, FakeRun(users=users, ttft_s=ttft_s, itl_s=itl_s)).path)
    window = choose_window(run)
    assert window is not None and window.valid
    cycles = run_cycles(run, window)
    assert cycles is not None
    measured = point_requests(run, window, cycles)
    found = latency(measured)
    rates = throughput(measured, point_rates(measured.frame, cycles, window, None))
    assert found.ttft_s.n > 50
    assert found.ttft_s.p50 == pytest.approx(ttft_s)
    assert found.itl_s.p50 == pytest.approx(itl_s, rel=1e-6)
    assert found.e2e_s.p50 == pytest.approx(e2e_s)
    # whole cycles: no edge cuts a token, so the figures are exact and equal cycles leave no error
    assert rates.output.value == pytest.approx(users * 11 / e2e_s, rel=1e-9)
    assert rates.total.value == pytest.approx(users * (11 + 1024) / e2e_s, rel=1e-9)
    assert rates.requests.value == pytest.approx(users / e2e_s, rel=1e-9)
    assert rates.output.standard_error == pytest.approx(0, abs=1e-9)
    assert rates.little == pytest.approx(1, abs=1e-3)


def test_counts_of_the_window_are_of_what_arrived_in_it(tmp_path: Path) -> None:
    # requests of 1 s sent in warm-up and ending in the window still bring their late tokens
    run = load_run(write_run(tmp_path, FakeRun(warmup_s=2.5)).path)
    window = choose_window(run)
    assert window is not None
    measured = point_requests(run, window)
    # phase starts in the middle of a request: of its 11 tokens at 0.5…1.0 s, all are after 2.5 s
    assert measured.tokens.output == round(window.duration_s) * 4 * 11
    assert measured.tokens.completions == round(window.duration_s) * 4


def test_goodput_counts_failed_requests_in_the_share(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, FakeRun(failed_every=4)).path)
    window = choose_window(run)
    assert window is not None
    cycles = run_cycles(run, window)
    assert cycles is not None
    frame = point_requests(run, window, cycles).frame

    def met(slo: SloConfig) -> Goodput:
        good = good_requests(frame, slo)
        return goodput(frame, good, cycles, point_rates(frame, cycles, window, good).good)

    good = met(SloConfig(ttft_s=0.6))
    assert good.share == pytest.approx(0.75, abs=0.02)
    # four users, a cycle of 1 s each; of the cycles three quarters are good
    assert good.per_s == pytest.approx(3, rel=0.03)
    none = met(SloConfig(ttft_s=0.4))
    assert (none.good, none.per_s) == (0, 0.0)  # zero is a value
    assert met(SloConfig()).reason == "the sweep sets no SLO"


def test_the_search_and_the_report_call_the_same_requests_good(tmp_path: Path) -> None:
    fake = FakeRun(failed_every=5, jitter=0.2, tokens_per_chunk=3, slo_tpot_s=0.05)
    run = load_run(write_run(tmp_path, fake).path)
    window = choose_window(run)
    assert window is not None
    frame = point_requests(run, window).frame
    rows = {
        row["request_id"]: row
        for path in (run.path / "requests").glob("*.jsonl")
        for row in map(json.loads, path.read_text().splitlines())
    }
    for slo in (
        SloConfig(ttft_s=0.55),
        SloConfig(tpot_s=0.05),
        SloConfig(e2e_s=1.0),
        SloConfig(ttft_s=0.6, tpot_s=0.052, e2e_s=1.1),
    ):
        good = good_requests(frame, slo)
        assert good is not None and 10 < good.sum() < 150
        assert good.tolist() == [meets(rows[name], slo) for name in frame["request_id"]]


def test_answers_are_counted_per_prompt(tmp_path: Path) -> None:
    # prompts 0..3 of 8 are answered right, each many times: n is 8, not the number of requests
    run = load_run(write_run(tmp_path, FakeRun(correct_share=0.5)).path)
    found = answers(run)
    assert (found.correct_share, found.prompts) == (0.5, 8)
    assert found.graded > 100
    assert found.low is not None and found.low < 0.25


def test_perplexity_is_exp_of_the_mean_nll(tmp_path: Path) -> None:
    fake = FakeRun(task="perplexity", streaming=False, output_tokens=1, nll_per_token=2.0)
    point = analyse(load_run(write_run(tmp_path, fake).path))
    assert point.answers is not None
    assert point.answers.perplexity == pytest.approx(7.389056, rel=1e-6)
    assert point.latency is not None and point.latency.ttft_s.n == 0
    assert point.throughput is not None and point.throughput.output.value is None


def test_zero_good_requests_is_failed_and_never_zero_tokens(tmp_path: Path) -> None:
    point = analyse(load_run(write_run(tmp_path, FakeRun(failed_every=1)).path))
    assert point.status == "failed"
    assert point.throughput is None and point.latency is None
    assert "none of the" in point.reasons[0]


def test_telemetry_may_be_absent(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun(kv_usage=None))
    (run.telemetry_dir / "host.jsonl").unlink()
    loaded = load_run(run.path)
    assert loaded.host.empty and loaded.gpu.empty and loaded.server.empty
    assert "mem_used_bytes" in loaded.gpu.columns
    window = choose_window(loaded)
    assert window is not None and window.valid


def with_audit(root: Path, **audit: object) -> Point:
    run = write_run(root, FakeRun(measure_s=60, users=20, slo_tpot_s=0.1))
    raw = json.loads(run.manifest_path.read_text())
    figures = {"shared_time_p90_ms": 13.8, "shared_time_p99_ms": 22.5}
    raw["client_audit"] = {"locust": {"figures": figures, **audit}}
    run.manifest_path.write_text(json.dumps(raw))
    return analyse(load_run(run.path))


def test_gaps_in_doubt_are_null_with_the_clients_reason(tmp_path: Path) -> None:
    sure = with_audit(tmp_path / "a")
    assert sure.latency is not None and sure.goodput is not None
    assert None not in (sure.latency.itl_s.p99, sure.latency.tpot_s.p50)
    assert sure.goodput.per_s is not None
    tail = with_audit(tmp_path / "b", itl_tail_in_doubt=True)
    assert tail.latency is not None and tail.goodput is not None
    found = tail.latency.itl_s
    assert (found.p50, found.p90, found.p99) == (ANY, None, None)
    assert found.p50 == sure.latency.itl_s.p50
    assert "22.5 ms of doubt" in found.refused[0]
    assert tail.latency.tpot_s == sure.latency.tpot_s
    whole = with_audit(tmp_path / "c", itl_tail_in_doubt=True, itl_in_doubt=True)
    assert whole.latency is not None and whole.goodput is not None
    for doubted in (whole.latency.itl_s, whole.latency.tpot_s):
        assert doubted.p50 is None and doubted.mean is None
        assert "13.8 ms of doubt" in doubted.refused[0]
    assert whole.goodput.per_s is None and "13.8 ms" in str(whole.goodput.reason)
    # what does not rest on gaps stands
    assert whole.latency.ttft_s == sure.latency.ttft_s
    assert whole.throughput == sure.throughput


@pytest.mark.parametrize("measure_s", [20.0, 21.0])
def test_users_in_step_have_the_rate_of_whole_rounds_wherever_the_window_ends(
    tmp_path: Path, measure_s: float
) -> None:
    # rounds of 3 s bring 44 tokens in their last second; 20 s hold 6 rounds and 4 tokens of another, which
    # counted by the window would be 13.4 tokens/s
    fake = FakeRun(ttft_s=2.0, itl_s=0.1, warmup_s=3.0, measure_s=measure_s)
    point = analyse(load_run(write_run(tmp_path, fake).path))
    assert point.throughput is not None
    assert point.throughput.output.value == pytest.approx(44 / 3, rel=1e-9)
    assert edge(point, "output") == pytest.approx(0, abs=1e-9)


def test_an_open_loops_edge_error_covers_what_its_arrivals_leave_at_the_edges(
    tmp_path: Path,
) -> None:
    fake = FakeRun(users=None, rate_per_s=5.0, started_s=1, measure_s=80)
    run = load_run(write_run(tmp_path, fake).path)
    point = analyse(run)
    assert point.throughput is not None and point.window is not None
    start, end = point.window.start_unix_ns, point.window.end_unix_ns
    # second method: requests that were sent in the window
    sent = run.requests["sent_unix_ns"].between(start, end).sum() / ((end - start) / 1e9)
    found = point.throughput
    assert found.requests.value == pytest.approx(sent, rel=0.02)
    assert found.output.value == pytest.approx(11 * sent, rel=0.02)
    assert 0.001 < edge(point, "requests") < 0.03
    assert found.little == pytest.approx(1, abs=0.02)
    # Poisson: 5 a second for 80 s, ±√400
    assert found.requests.standard_error == pytest.approx(20 / 80, rel=0.5)


@pytest.mark.parametrize("rate_per_s", [None, 2.0])
def test_joules_a_request_are_the_power_over_the_rate(
    tmp_path: Path, rate_per_s: float | None
) -> None:
    # constant 450 W; closed loop: 4 users, a cycle of 3 s, of which a window of 70 s cuts one
    fake = FakeRun(
        users=4 if rate_per_s is None else None,
        rate_per_s=rate_per_s,
        ttft_s=2.0,
        itl_s=0.1,
        warmup_s=3.0,
        measure_s=80.0,
        gpu_power_w=450.0,
    )
    point = analyse(load_run(write_run(tmp_path, fake).path))
    assert point.energy is not None and point.energy.result.status == "measured", point.energy
    assert point.throughput is not None
    gross = point.energy.result.gross
    assert gross is not None
    per_s = value(point, "requests")
    # in open loop joules and work are those between two changes of the counter, half a second less
    near = 1e-3 if rate_per_s is None else 5e-3
    if rate_per_s is None:
        assert gross.j_per_request == pytest.approx(450 * 3 / 4, rel=1e-4)
    assert gross.j_per_request == pytest.approx(450 / per_s, rel=near)
    assert gross.j_per_output_token == pytest.approx(450 / value(point, "output"), rel=near)
    assert gross.j_per_total_token == pytest.approx(450 / value(point, "total"), rel=near)
    # at constant power a joule's edge error is that of the rate
    for joules, rate in (("energy", "output"), ("energy_request", "requests")):
        assert edge(point, joules) == pytest.approx(edge(point, rate), rel=0.2, abs=1e-4)

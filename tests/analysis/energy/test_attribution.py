"""Oracle C-11: energies of a simulated server with known prices are found again, and add up."""

from dataclasses import asdict

import numpy as np
import pandas as pd
import pytest

from analysis.energy.attribution import (
    LAG_SD_S,
    WORK,
    Attribution,
    WorkCurve,
    attribute,
    fit,
    fit_lag,
    phase_energy,
    step_work,
)
from analysis.energy.attribution_coverage import Sensor, Served, coverage, simulate
from analysis.energy.result import EnergyResult
from analysis.runs.clocks import WallClock
from greenbench.contract.forms import Sources
from tests.fakes.energy_frames import ns, sources
from tests.fakes.nvml import SECOND, FakeGpu, constant

# J a unit: about an 8B model on an H200
TRUE = {
    "prefill_tokens": 0.02,
    "prefill_pairs": 2e-6,
    "decode_tokens": 0.25,
    "decode_context": 2e-5,
}
IDLE_W = 124.0


def simulated(windows: int, noise: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Windows of a server whose batch, contexts and phases vary as they do in a mixed load."""
    rng = np.random.default_rng(seed)
    prefill = rng.integers(0, 40_000, windows) * (rng.random(windows) < 0.6)
    pairs = prefill * rng.uniform(500, 16_000, windows)
    decode = rng.integers(20, 2_000, windows).astype(float)
    context = decode * rng.uniform(1_000, 30_000, windows)
    amounts = np.column_stack([prefill, pairs, decode, context])
    seconds = np.full(windows, 2.0)
    truth = IDLE_W * seconds + amounts @ np.array(list(TRUE.values()))
    return truth * (1 + rng.normal(0, noise, windows)), amounts, seconds


def test_c11_prices_are_recovered_within_their_standard_errors() -> None:
    """2 % noise; two standard errors around each price, over ten simulated servers."""
    inside = tried = 0
    for seed in range(10):
        joules, amounts, seconds = simulated(150, 0.02, seed)
        found = fit(joules, amounts, seconds, IDLE_W)
        assert found.status == "attributed"
        for price in found.prices[1:]:
            assert price.standard_error is not None
            tried += 1
            inside += abs(price.j_per_unit - TRUE[price.work]) <= 2 * price.standard_error
    assert tried == 40
    assert inside >= 34  # 95 % of 40 are 38; fewer than 34 would be a chance of 2 %


def test_c11_what_is_attributed_adds_up_to_what_was_measured() -> None:
    joules, amounts, seconds = simulated(150, 0.02, 3)
    found = fit(joules, amounts, seconds, IDLE_W)
    assert sum(price.attributed_j for price in found.prices) == pytest.approx(
        joules.sum(), rel=1e-12
    )
    assert found.measured_j == pytest.approx(joules.sum())
    assert found.unexplained_share is not None and abs(found.unexplained_share) < 0.01


def test_c11_held_out_windows_are_predicted_and_a_wrong_model_is_seen_there() -> None:
    joules, amounts, seconds = simulated(150, 0.02, 4)
    right = fit(joules, amounts, seconds, IDLE_W)
    assert right.held_out_median_error is not None and right.held_out_p90_error is not None
    assert 0.005 < right.held_out_median_error < 0.03  # of the size of the noise
    shuffled = np.random.default_rng(5).permutation(joules)
    wrong = fit(shuffled, amounts, seconds, IDLE_W)
    assert wrong.held_out_median_error is not None
    assert wrong.held_out_median_error > 5 * right.held_out_median_error


def test_prices_are_never_negative_and_absent_work_has_none() -> None:
    joules, amounts, seconds = simulated(150, 0.02, 6)
    amounts[:, 1] = 0
    found = fit(joules, amounts, seconds, IDLE_W)
    assert [price.work for price in found.prices] == [
        "idle_s",
        "prefill_tokens",
        "decode_tokens",
        "decode_context",
    ]
    assert all(price.j_per_unit >= 0 for price in found.prices)
    assert found.prices[0].standard_error is None  # idle power is measured, not fitted


def test_columns_that_cannot_be_told_apart_are_refused() -> None:
    """All requests alike: tokens and pairs in one ratio. A price for each would be made up."""
    joules, amounts, seconds = simulated(150, 0.02, 7)
    amounts[:, 1] = amounts[:, 0] * 4096.0
    found = fit(joules, amounts, seconds, IDLE_W)
    assert found.status == "undetermined" and "together" in found.reasons[0]
    assert not found.prices
    few = fit(joules[:20], amounts[:20], seconds[:20], IDLE_W)
    assert few.status == "undetermined" and "20 windows" in few.reasons[0]


@pytest.mark.parametrize(
    ("served", "sensor"),
    [
        (Served(), Sensor(period_s=0.1, lag_s=0.05)),
        (Served(episode_s=5.0, by_turns=True), Sensor(period_s=0.1, lag_s=0.1)),
    ],
)
def test_true_prices_lie_within_two_errors_where_the_counter_is_late(
    served: Served, sensor: Sensor
) -> None:
    """50 servers of 119 windows each, at 100 ms sampling; the table in docs/energy.md has 200."""
    found = coverage(served, sensor, 50)
    assert (found.runs, found.prices) == (50, 200)
    assert found.inside >= 0.9
    assert found.median_error < 0.04  # and not by being wide


@pytest.mark.parametrize("lag_s", [0.0, 0.1, 0.2])
def test_the_lag_of_the_counter_is_found(lag_s: float) -> None:
    """The card's own, and up to a sampling period until the change is seen."""
    exact = Served(noise=0.0, drift=0.0)
    for seed in range(5):
        found = simulate(exact, Sensor(period_s=0.1, lag_s=lag_s, jitter_s=0.0), seed)
        assert found.lag_s is not None and found.lag_error_s is not None
        assert -0.02 <= found.lag_s - lag_s <= 0.12
        assert found.lag_error_s < 0.02


def test_a_steady_load_says_nothing_of_the_lag() -> None:
    """All windows alike but for noise that is no work's: the lag stays where it is expected to be."""
    joules, amounts, seconds = simulated(150, 0.02, 9)
    found = fit_lag(joules, lambda _: amounts, seconds, IDLE_W, 0.05)
    without = fit(joules, amounts, seconds, IDLE_W)
    assert found.lag_s == pytest.approx(0.05, abs=1e-6)
    assert found.lag_error_s is None or found.lag_error_s == pytest.approx(LAG_SD_S, rel=0.2)
    assert [p.j_per_unit for p in found.prices] == [p.j_per_unit for p in without.prices]


def test_work_of_overlapping_steps_by_hand() -> None:
    """Two engines: 100 tokens over 1 s, and 60 over 2 s from the half on. Windows of 1 s."""
    work = pd.DataFrame(0.0, index=[0, 1], columns=list(WORK)).assign(
        prefill_tokens=[100.0, 0.0],
        decode_tokens=[0.0, 60.0],
        start_ns=[0, SECOND // 2],
        end_ns=[SECOND, SECOND // 2 + 2 * SECOND],
    )
    done = WorkCurve.of(work).between(np.array([-1, 0, 1, 2, 3]) * SECOND)
    assert done[:, 0] == pytest.approx([0, 100, 0, 0])
    assert done[:, 2] == pytest.approx([0, 15, 30, 15])


# From log and traces to work


def trace(
    sent_s: float, prompt: int, first_s: float, last_s: float, output: int
) -> dict[str, object]:
    return {
        "sent_mono_ns": ns(sent_s),
        "first_token_ns": ns(first_s - sent_s),
        "last_token_ns": ns(last_s - sent_s),
        "end_ns": ns(last_s - sent_s),
        "prompt_tokens": prompt,
        "output_tokens": output,
    }


def steps_table(rows: list[tuple[float, float, int, int]]) -> pd.DataFrame:
    """(end s, length s, prefill tokens, decode tokens) → the columns of analysis.runs.engine_steps."""
    wall = 1_700_000_000 * SECOND
    return pd.DataFrame(
        {
            "unix_ns": pd.array([wall + ns(end) for end, *_ in rows], dtype="Int64"),
            "elapsed_s": [length for _, length, *_ in rows],
            "prefill_tokens": [prefill for *_, prefill, _ in rows],
            "decode_tokens": [decode for *_, decode in rows],
        }
    )


CLOCK = WallClock(1_700_000_000 * SECOND, 0)


def test_pairs_and_context_of_a_schedule_worked_out_by_hand() -> None:
    """Two prompts of 100 and 60 in chunks of 64, then both decode."""
    requests = pd.DataFrame([trace(0.0, 100, 1.25, 3.25, 4), trace(0.1, 60, 1.85, 3.25, 2)])
    steps = steps_table(
        [(0.6, 0.5, 64, 0), (1.2, 0.5, 64, 0), (1.8, 0.5, 32, 1), (2.25, 0.4, 0, 2)]
    )
    work = step_work(steps, requests, CLOCK)
    assert work["prefill_pairs"].tolist() == [
        64 * 65 / 2,  # first chunk of the first prompt
        36 * 64 + 36 * 37 / 2 + 28 * 29 / 2,  # its rest, then 28 of the second prompt
        32 * 28 + 32 * 33 / 2,  # the second's rest
        0,
    ]
    # at 1.8 s only the first decodes, 0.55 of its 2 s in; at 2.25 s half of it, 0.4 of 1.4 s of the other
    assert work["decode_context"].tolist() == pytest.approx(
        [0, 0, 100 + 4 * 0.55 / 2, 100 + 4 * 0.5 + 60 + 2 * 0.4 / 1.4]
    )
    assert work["start_ns"].tolist()[0] == pytest.approx(ns(0.1), abs=1000)


def test_a_request_that_was_not_streamed_counts_with_its_end() -> None:
    requests = pd.DataFrame([trace(0.0, 100, 0.7, 0.7, 1)]).assign(
        first_token_ns=None, last_token_ns=None
    )
    work = step_work(steps_table([(0.6, 0.5, 100, 0)]), requests, CLOCK)
    assert work["prefill_pairs"].tolist() == [100 * 101 / 2]


def test_a_clock_that_stepped_gives_no_times() -> None:
    assert step_work(steps_table([(1, 1, 1, 1)]), pd.DataFrame(), WallClock(0, SECOND)).empty


def test_energy_of_a_run_goes_to_the_work_of_its_steps() -> None:
    """End to end on frames: a counter that is the integral of the steps' own prices."""
    rng = np.random.default_rng(8)
    count, length_s = 4000, 0.05
    prefill = rng.integers(0, 2048, count) * (rng.random(count // 20).repeat(20) < 0.5)
    decode = rng.integers(1, 64, count // 20).repeat(20)
    work = pd.DataFrame(
        {
            "prefill_tokens": prefill,
            "prefill_pairs": prefill * rng.uniform(100, 16_000, count // 50).repeat(50),
            "decode_tokens": decode,
            "decode_context": decode * rng.uniform(1_000, 30_000, count // 40).repeat(40),
            "start_ns": [ns(10 + n * length_s) for n in range(count)],
            "end_ns": [ns(10 + (n + 1) * length_s) for n in range(count)],
        }
    )
    step_j = work[list(WORK)].to_numpy() @ np.array(list(TRUE.values())) + IDLE_W * length_s
    at_s = np.arange(0, 220, 0.1)
    total_j = np.interp(
        at_s, 10 + np.arange(count + 1) * length_s, np.concatenate(([0], step_j.cumsum()))
    )
    total_j += np.minimum(at_s, 10) * IDLE_W
    gpu = pd.DataFrame(
        {
            "mono_ns": (at_s * 1e9).round().astype(np.int64),
            "gpu_uuid": "GPU-a",
            "energy_mj": (total_j * 1e3).round() + 1,
            "power_avg_w": 300.0,
        }
    )
    told = Sources.model_validate(sources([FakeGpu(constant(1), uuid="GPU-a")]))
    found = attribute(gpu, told, work, ns(10.1), ns(209.9), IDLE_W)
    assert found.status == "attributed", found.reasons
    for price in found.prices[1:]:
        assert price.j_per_unit == pytest.approx(TRUE[price.work], rel=0.05), price.work
    assert found.held_out_median_error is not None and found.held_out_median_error < 0.01
    none = attribute(gpu.iloc[:0], told, work, ns(10.1), ns(209.9), IDLE_W)
    assert none.status == "unavailable"


def measured(joules: float) -> EnergyResult:
    return EnergyResult("measured", [], [], [], energy_j=joules)


def test_a_point_of_one_phase_is_measured_and_a_mixed_one_is_not() -> None:
    prefill = steps_table([(1, 1, 500, 0), (2, 1, 500, 0)])
    decode = steps_table([(1, 1, 0, 8), (2, 1, 0, 8)])
    only = phase_energy(measured(20.0), prefill)
    assert only is not None and (only.phase, only.j_per_token, only.tokens) == (
        "prefill",
        0.02,
        1000,
    )
    rest = phase_energy(measured(4.0), decode)
    assert rest is not None and (rest.phase, rest.j_per_token) == ("decode", 0.25)
    assert phase_energy(measured(24.0), pd.concat([prefill, decode])) is None
    assert phase_energy(EnergyResult("invalid", ["mig"], [], []), prefill) is None
    assert asdict(Attribution("unavailable"))["prices"] == []

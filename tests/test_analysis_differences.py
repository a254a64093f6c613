"""Differences between server starts: no claim without cause, and known effects are found."""

import math
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import ttest_rel

from analysis.decisions import decisions
from analysis.differences import OBJECTIVES, differences, holm, noise_floor, paired_ratio
from analysis.load import load_runs
from analysis.points import Point, analyse
from analysis.simulate import simulate, t_power
from tests.fakes.rundirs import FakeRun, write_run


def points_of(
    tmp_path: Path, factors: dict[str, list[float]], contexts: tuple[int, ...] = (1024,)
) -> list[Point]:
    """One point a backend, block and context; a factor multiplies every time of that start."""
    for backend, starts in factors.items():
        for repeat, factor in enumerate(starts):
            for context in contexts:
                write_run(
                    tmp_path,
                    FakeRun(
                        backend=backend,
                        context_tokens=context,
                        repeat=repeat,
                        start_factor=factor,
                        measure_s=20,
                        started_s=repeat * 100,
                    ),
                )
    return [analyse(run)[0] for run in load_runs(tmp_path)]


def test_t_interval_against_scipys_paired_test() -> None:
    a, b = np.array([1.10, 1.22, 1.15, 1.09]), np.array([1.00, 1.05, 1.01, 1.02])
    found = paired_ratio(list(np.log(a / b)))
    reference = ttest_rel(np.log(a), np.log(b))
    interval = reference.confidence_interval(0.95)
    assert found.p == pytest.approx(reference.pvalue)
    assert (found.low, found.high) == (
        pytest.approx(math.exp(interval.low)),
        pytest.approx(math.exp(interval.high)),
    )


def test_one_block_gives_a_ratio_and_no_interval() -> None:
    found = paired_ratio([math.log(2)])
    assert (found.ratio, found.low, found.p) == (pytest.approx(2), None, None)
    with pytest.raises(ValueError, match="no blocks"):
        paired_ratio([])


def test_bca_is_used_for_many_blocks_and_covers_the_truth() -> None:
    logs = np.random.default_rng(5).normal(math.log(1.2), 0.05, 60)
    found = paired_ratio(list(logs))
    assert found.method.startswith("BCa")
    assert found.low is not None and found.high is not None and found.low < 1.2 < found.high


def test_holm_by_hand() -> None:
    # 0.01 ≤ 0.05/4, 0.015 ≤ 0.05/3, 0.03 > 0.05/2: it and all after it stand
    assert holm([0.03, 0.01, 0.04, 0.015]) == [False, True, False, True]
    assert holm([]) == []


def test_twice_as_slow_is_found_and_equal_arms_are_a_tie(tmp_path: Path) -> None:
    points = points_of(
        tmp_path,
        {
            "fast": [1.00, 1.02, 0.99, 1.01],
            "same": [1.01, 0.99, 1.00, 1.02],
            "slow": [2.02, 1.98, 2.03, 2.00],
        },
    )
    assert all(point.usable for point in points)
    found = {(d.a, d.b): d for d in differences(points) if d.objective == "ttft"}
    assert found["fast", "same"].verdict == "tie"
    assert found["fast", "slow"].verdict == "better"
    assert found["fast", "slow"].ratio.ratio == pytest.approx(0.5, rel=0.02)
    table = {d.objective: d for d in decisions(points, found.values())}
    assert table["ttft"].tied == [{"fast": "same", "same": "fast"}[table["ttft"].best]]
    assert table["ttft"].beaten == ["slow"]
    assert table["ttft"].winner is None


def test_an_effect_within_the_noise_of_equal_arms_is_not_claimed(tmp_path: Path) -> None:
    # both drift by 20 % from block to block together: paired ratios are tight around 1.01,
    # but two starts of one backend differ by far more than that
    drift = [1.0, 1.2, 1.0, 1.2, 1.0, 1.2]
    points = points_of(tmp_path, {"a": drift, "b": [1.01 * f for f in drift]})
    floor = noise_floor(points, next(o for o in OBJECTIVES if o.name == "ttft"))
    assert floor is not None and floor.sd == pytest.approx(math.log(1.2), rel=0.01)
    found = next(d for d in differences(points) if d.objective == "ttft")
    assert found.ratio.low is not None and found.ratio.high is not None
    assert not found.ratio.low <= 1 <= found.ratio.high
    assert (found.verdict, found.reason) == ("tie", "within the noise between equal arms")


def test_one_start_each_claims_nothing(tmp_path: Path) -> None:
    points = points_of(tmp_path, {"a": [1.0], "b": [3.0]})
    found = differences(points)
    assert found and all(d.verdict == "untested" for d in found)
    made = decisions(points, found)
    assert made and all(d.winner is None and not d.tested for d in made)
    assert {d.best for d in made if d.objective == "e2e"} == {"a"}


def test_a_barred_backend_cannot_win(tmp_path: Path) -> None:
    points = points_of(tmp_path, {"fast": [1.0, 1.01, 1.02], "exact": [2.0, 2.01, 2.02]})
    where = (points[0].model, points[0].context_tokens)
    made = decisions(points, differences(points), {where: {"fast": "worse answers"}})
    assert {d.best for d in made} == {"exact"}
    assert all(d.barred == {"fast": "worse answers"} for d in made)


@pytest.mark.parametrize("blocks", [3, 5, 8])
def test_equal_arms_give_about_5_percent_false_exclusions(blocks: int) -> None:
    found = simulate("normal", blocks, 1.0, trials=2000)
    # binomial sd at 5 % and 2000 trials is 0.5 %
    assert found.interval_excludes == pytest.approx(0.05, abs=0.016)
    assert found.claimed <= 0.05


def test_known_effects_are_found_at_the_promised_rate() -> None:
    found = simulate("normal", 5, 1.05, trials=2000)
    assert found.promised == t_power(1.05, 0.03, 5)
    assert found.interval_excludes == pytest.approx(found.promised, abs=0.035)
    assert simulate("normal", 5, 1.30, trials=200).claimed > 0.99

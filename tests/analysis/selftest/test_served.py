"""Oracles G-8, G-9 and G-12 on sweeps whose joules are known: watts of each start over its tokens/s."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_rel

from analysis.selftest.judge import Recording, judge
from analysis.selftest.served import (
    Missing,
    Served,
    near_a_published_figure,
    real_over_random,
    same_backend_twice,
)
from greenbench.contract.forms import Sources
from tests.fakes.rundirs import FakeRun, write_run

TOKENS_PER_S = 44  # 4 users, each a request of 11 tokens a second
FIRST = (400.0, 404.0, 398.0, 402.0, 401.0)


def write_starts(root: Path, watts: tuple[float, ...], arm: int = 0, **fields: Any) -> None:
    for repeat, power in enumerate(watts):
        fake = FakeRun(
            gpu_power_w=power,
            measure_s=70,
            repeat=repeat,
            arm=arm,
            started_s=1000 * repeat + 100 * arm,
            **fields,
        )
        write_run(root, fake)


def numbers(figure: str) -> tuple[float, float, float]:
    ratio, rest = figure.partition(" [")[0].split()[-1], figure.partition("[")[2]
    low, high = rest.partition("]")[0].split(", ")
    return float(ratio), float(low), float(high)


@pytest.mark.parametrize(
    ("factors", "passed"),
    [((1.01, 0.99, 1.004, 0.995, 1.002), True), ((1.05, 1.06, 1.055, 1.052, 1.058), False)],
)
def test_g8_one_backend_as_both_arms(
    tmp_path: Path, factors: tuple[float, ...], passed: bool
) -> None:
    second = tuple(watts * factor for watts, factor in zip(FIRST, factors, strict=True))
    write_starts(tmp_path, FIRST, arm=0)
    write_starts(tmp_path, second, arm=1)
    figure, bound, found = same_backend_twice(Served.read(tmp_path))
    reference = ttest_rel(np.log(second), np.log(FIRST)).confidence_interval(0.95)
    assert found is passed and bound == "the interval holds 1"
    assert numbers(figure) == (
        pytest.approx(math.prod(factors) ** 0.2, abs=1e-3),
        pytest.approx(math.exp(reference.low), abs=1e-3),
        pytest.approx(math.exp(reference.high), abs=1e-3),
    )
    floor = (math.exp((reference.high - reference.low) / 2) - 1) * 100
    assert float(figure.rpartition("floor ")[2].split()[0]) == pytest.approx(floor, abs=0.05)


def test_g8_wants_two_arms_and_five_starts_of_each(tmp_path: Path) -> None:
    write_starts(tmp_path, FIRST)
    with pytest.raises(Missing, match="no backend is listed twice"):
        same_backend_twice(Served.read(tmp_path))
    write_starts(tmp_path, FIRST[:3], arm=1)
    with pytest.raises(Missing, match="3 paired starts, 5 are wanted"):
        same_backend_twice(Served.read(tmp_path))


def test_g9_real_weights_over_random_ones(tmp_path: Path) -> None:
    write_starts(tmp_path, FIRST, model="dummy", weights="random")
    with pytest.raises(Missing, match="both real and random weights"):
        real_over_random(Served.read(tmp_path))
    write_starts(tmp_path, tuple(1.1 * w for w in FIRST), model="true", weights="real")
    figure, _, passed = real_over_random(Served.read(tmp_path))
    assert passed is None and "true over dummy on alpha" in figure
    assert numbers(figure)[0] == pytest.approx(1.1, abs=1e-3)


def test_g12_a_published_figure_within_a_factor_of_two(tmp_path: Path) -> None:
    write_starts(tmp_path, FIRST)
    ours_j = math.prod(FIRST) ** 0.2 / TOKENS_PER_S
    for factor, near in ((0.45, False), (0.55, True), (1.9, True), (2.2, False)):
        figure, _, passed = near_a_published_figure(Served.read(tmp_path, ours_j * factor))
        assert passed is near, figure
        assert float(figure.split()[0]) == pytest.approx(ours_j, rel=0.03)
    with pytest.raises(Missing, match="published-j-per-token"):
        near_a_published_figure(Served.read(tmp_path))


def test_a_sweep_without_joules_answers_nothing_and_the_table_says_so(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(measure_s=70))
    setup = {"cut_short": "no load", "gpu": {"uuid": "GPU-0"}}
    verdicts = judge(Recording(setup, {}, Sources(), None, Served.read(tmp_path)))
    found = {v.oracle: v for v in verdicts}
    assert {found[o].verdict for o in ("G-8", "G-9", "G-12")} == {"not run"}
    assert "no backend is listed twice" in found["G-8"].figure

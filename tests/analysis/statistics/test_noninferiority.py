"""The tests of pairs against arithmetic, brute force and simulation."""

from collections import Counter
from math import comb
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import multinomial

from analysis.quality.gate import MIN_DRIFT_PROMPTS
from analysis.statistics.noninferiority import (
    FEWEST_PAIRS,
    LEVEL,
    MARGIN,
    beyond_p,
    judge,
    loss_p,
    mean_limits,
    most_lost,
    power,
)
from greenbench.contract.config import SweepConfig
from greenbench.sweep import order

DOCS = Path(__file__).resolve().parents[3] / "docs" / "method.md"


def test_a_loss_by_hand() -> None:
    assert loss_p(8, 0) == pytest.approx(1 / 256)
    # one-sided McNemar, 9 against 1 discordant: (C(10,9) + C(10,10)) / 2¹⁰
    assert loss_p(9, 1) == pytest.approx((comb(10, 9) + 1) / 1024)
    assert loss_p(0, 0) == loss_p(0, 5) == 1.0


def test_agreement_of_all_pairs_by_hand() -> None:
    """Where a tenth is lost, n prompts show none of it with probability 0.9ⁿ."""
    assert 0.9**28 > LEVEL > 0.9**29
    assert beyond_p(0, 0, 28) == pytest.approx(0.9**28)
    assert 0.9**29 <= beyond_p(0, 0, 29) <= LEVEL
    assert FEWEST_PAIRS == 29
    assert most_lost(0, 0, 40) == pytest.approx(1 - LEVEL ** (1 / 40), abs=1e-3)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 12, 40])
def test_where_every_prompt_is_lost_the_limit_is_all_of_them(n: int) -> None:
    assert most_lost(n, 0, n) == 1.0
    assert (n - 1) / n <= most_lost(n - 1, 0, n) < 1.0 or n == 1


def log_likelihood(q: float, lost: int, gained: int, n: int, margin: float) -> float:
    shares = np.array([q + margin, q, 1 - 2 * q - margin])
    counts = np.array([lost, gained, n - lost - gained])
    return float(np.sum(counts[counts > 0] * np.log(np.maximum(shares[counts > 0], 1e-300))))


def score(lost: int, gained: int, n: int, margin: float) -> float:
    """Tango's, its share gained found by search instead of his formula."""
    found = minimize_scalar(
        lambda q: -log_likelihood(q, lost, gained, n, margin),
        bounds=(0, (1 - margin) / 2),
        method="bounded",
        options={"xatol": 1e-10},
    )
    q = float(found.x)  # type: ignore[attr-defined]
    return (lost - gained - n * margin) / np.sqrt(n * (2 * q + margin * (1 - margin)))


@pytest.mark.parametrize(("lost", "gained"), [(0, 0), (1, 0), (1, 1), (0, 2), (2, 1)])
def test_the_exact_p_is_the_sum_over_all_tables_at_its_largest(lost: int, gained: int) -> None:
    n, margin = 9, 0.3
    cells = [(b, c) for b in range(n + 1) for c in range(n + 1 - b)]
    observed = score(lost, gained, n, margin)
    inside = [cell for cell in cells if score(*cell, n, margin) <= observed + 1e-6]
    sums = [
        sum(
            multinomial.pmf([b, c, n - b - c], n, [q + margin, q, 1 - 2 * q - margin])
            for b, c in inside
        )
        for q in np.linspace(0, (1 - margin) / 2, 400)
    ]
    assert beyond_p(lost, gained, n, margin) == pytest.approx(max(sums), abs=2e-3)


def test_the_cases_that_won_before() -> None:
    """20 or 23 of 28 right where the reference has all."""
    assert judge(8, 0, 28) == judge(5, 0, 28) == "worse"
    assert judge(4, 0, 28) == "undecided"
    assert judge(0, 0, 28) == "undecided"
    # the published FP8 attention: 91 and 13 of 100; mended, 89
    assert judge(78, 0, 100) == "worse"
    assert judge(2, 0, 100) == "no worse"


def test_a_real_loss_below_the_margin_passes_and_one_that_may_be_above_does_not() -> None:
    assert loss_p(10, 0) < LEVEL and judge(10, 0, 400) == "no worse"
    assert judge(10, 0, 110) == "worse"


def test_the_limit_and_the_verdict_agree() -> None:
    for n in (10, 29, 33, 46, 60):
        for lost in range(8):
            for gained in range(min(6, n - lost)):
                passed = judge(lost, gained, n) == "no worse"
                assert passed == (most_lost(lost, gained, n) <= MARGIN), (lost, gained, n)


@pytest.mark.parametrize("gained", [0.0, 0.02, 0.1, 0.2, 0.4])
@pytest.mark.parametrize("n", [29, 40, 64, 80, 128])
def test_a_candidate_that_loses_the_margin_passes_in_five_percent_at_most(
    n: int, gained: float
) -> None:
    assert power(n, gained + MARGIN, gained)[0] <= LEVEL + 1e-9


@pytest.mark.parametrize("gained", [0.01, 0.1, 0.3])
@pytest.mark.parametrize("n", [29, 80])
def test_an_equal_candidate_is_called_worse_in_five_percent_at_most(n: int, gained: float) -> None:
    assert power(n, gained, gained)[1] <= LEVEL


def test_power_is_what_drawing_finds() -> None:
    rng = np.random.default_rng(5)
    n, lost, gained, draws = 60, 0.08, 0.03, 4000
    counted = Counter(
        map(tuple, rng.multinomial(n, [lost, gained, 1 - lost - gained], draws)[:, :2].tolist())
    )
    found = Counter[str]()
    for (b, c), times in counted.items():
        found[judge(b, c, n)] += times
    no_worse, worse = power(n, lost, gained)
    for share, verdict in ((no_worse, "no worse"), (worse, "worse")):
        spread = 4 * np.sqrt(share * (1 - share) / draws)
        assert found[verdict] / draws == pytest.approx(share, abs=spread)


def test_the_default_number_of_prompts_decides() -> None:
    """Equal answers pass, and a loss of ten points is found in four of five sweeps."""
    n = SweepConfig.model_fields["prompts_per_point"].default
    assert judge(0, 0, n) == "no worse"
    assert power(n, 0.01, 0.01)[0] >= 0.95  # a hundredth of answers differs each way
    assert power(n, 0.10, 0.0)[1] >= 0.8


def test_the_dry_run_warns_by_the_numbers_of_the_gate() -> None:
    assert (order.FEWEST_ANSWERS, order.FEWEST_SCORED) == (FEWEST_PAIRS, MIN_DRIFT_PROMPTS)


def test_the_power_table_of_the_docs_is_the_functions() -> None:
    """A cell: percent that pass when equal / that are not disqualified when ten points are lost."""
    text = DOCS.read_text().partition("Power of the gate")[2].partition("\n\n")[2]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.partition("\n\n")[0].splitlines()
        if line[2].isdigit()
    ]
    assert len(rows) >= 6
    for row in rows:
        n, said = int(row[0]), [cell.split(" / ") for cell in row[1:]]
        pairs = [(0.0, 0.0), (0.01, 0.01)] + [(a * (1 - a), a * (1 - a)) for a in (0.9, 0.8, 0.6)]
        losses = [(0.1, 0.0), (0.11, 0.01)]
        losses += [(a * (1.1 - a), (1 - a) * (a - 0.1)) for a in (0.9, 0.8, 0.6)]
        for (passes, remains), equal, loss in zip(said, pairs, losses, strict=True):
            assert int(passes) == round(100 * power(n, *equal)[0]), row
            assert int(remains) == round(100 * (1 - power(n, *loss)[1])), row


@pytest.mark.parametrize("n", [8, 12, 30])
def test_the_interval_of_a_mean_holds_it_as_often_as_it_says(n: int) -> None:
    rng = np.random.default_rng(n)
    limits = [mean_limits(values) for values in rng.normal(0.05, 0.02, (4000, n))]
    missed_above = np.mean([high < 0.05 for _, high in limits])
    missed_below = np.mean([low > 0.05 for low, _ in limits])
    for missed in (missed_above, missed_below):
        assert missed == pytest.approx(0.025, abs=4 * np.sqrt(0.025 * 0.975 / 4000))


def test_the_interval_of_a_skewed_mean_passes_at_most_six_percent() -> None:
    """Means of prompts, spread by half of themselves and skewed (gamma 4): the side that lets through."""
    rng = np.random.default_rng(1)
    draws = rng.gamma(4, 0.1 / 4, (6000, 8))
    assert np.mean([mean_limits(values)[1] < 0.1 for values in draws]) <= 0.065

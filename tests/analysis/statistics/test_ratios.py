"""Intervals against scipy's, corrections by hand and by simulation of equals."""

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind, ttest_rel

from analysis.statistics.ratios import (
    correlation,
    holm_adjusted,
    max_t_adjusted,
    paired_ratio,
    paired_zero,
    unpaired_ratio,
)


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


def test_an_edge_error_is_not_made_smaller_by_more_starts() -> None:
    """sd 0 between 16 starts, edge error 0.01: half-width t(0.975, 15)·0.01 = 2.1314 · 0.01."""
    found = paired_ratio([0.05] * 16, edge=0.01)
    assert found.low is not None and found.high is not None
    assert math.log(found.high / found.low) / 2 == pytest.approx(0.021314, rel=1e-3)


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


def test_the_inverse_speaks_of_the_other_one() -> None:
    found = paired_ratio([0.1, 0.2, 0.15])
    turned = paired_ratio([-0.1, -0.2, -0.15])
    assert (found.inverse.ratio, found.inverse.low, found.inverse.high) == (
        pytest.approx(turned.ratio),
        pytest.approx(turned.low),
        pytest.approx(turned.high),
    )


def test_zero_against_something_is_tested_by_differences() -> None:
    b = [1.0, 1.2, 1.1, 0.9]
    found = paired_zero([0.0] * 4, b)
    assert found.ratio is None
    assert found.p == pytest.approx(ttest_rel([0.0] * 4, b).pvalue)


def test_starts_without_a_common_block_go_by_welch() -> None:
    a, b = [0.10, 0.12, 0.08], [0.01, 0.05, 0.02, 0.03]
    found = unpaired_ratio(a, b)
    reference: Any = ttest_ind(a, b, equal_var=False)
    assert found.p == pytest.approx(reference.pvalue)
    interval = reference.confidence_interval(0.95)
    assert found.low == pytest.approx(math.exp(interval.low))
    assert unpaired_ratio([0.1], [0.2]).p is None


def test_holm_by_hand() -> None:
    """Sorted 0.01·4, 0.015·3 = 0.045, 0.03·2 = 0.06, 0.04·1 but never below the one before."""
    assert holm_adjusted([0.03, 0.01, 0.04, 0.015]) == pytest.approx([0.06, 0.04, 0.06, 0.045])
    assert holm_adjusted([]) == []


def test_one_quantity_told_three_ways_counts_once() -> None:
    """Three equal columns: the adjusted p is the plain one; three unrelated ones of many blocks: some 3 p."""
    rng = np.random.default_rng(3)
    logs = rng.normal(0.02, 0.02, 8)
    single = paired_ratio(list(logs))
    assert single.t is not None and single.p is not None
    column = (logs - logs.mean())[:, None]
    same = max_t_adjusted([single.t] * 3, np.repeat(column, 3, axis=1), draws=20_000)
    assert same == pytest.approx([single.p] * 3, abs=4 * math.sqrt(single.p / 20_000))
    apart = rng.normal(0, 1, (200, 3))
    apart -= apart.mean(axis=0)
    p = 2 * 0.0124  # of |t| = 2.263 with 199 degrees of freedom
    found = max_t_adjusted([2.263] * 3, apart, draws=20_000)
    assert found == pytest.approx([1 - (1 - p) ** 3] * 3, abs=0.008)


def test_two_blocks_go_by_holm() -> None:
    deviations = np.array([[0.1, 0.2], [-0.1, -0.2]])
    # t with one degree of freedom is Cauchy: p = 1 − 2·atan(t)/π
    p = [1 - 2 * math.atan(t) / math.pi for t in (20.0, 3.0)]
    assert max_t_adjusted([20.0, 3.0], deviations) == pytest.approx([2 * p[0], p[1]])


def test_a_correlation_that_few_blocks_make_by_chance_is_shrunk() -> None:
    """Of 4 blocks r = 0.5: 0.5 · (1 − 0.75² / (2·0.25)) is below 0, so none is left; r = 1 stays."""
    a = np.array([1.0, -1.0, 1.0, -1.0])
    b = np.array([1.0, -1.0, 0.0, 0.0]) * math.sqrt(0.5) * 1.0
    found = correlation(np.stack([a, a * 3, b], axis=1))
    plain = np.asarray(np.corrcoef(a, b))[0, 1]
    shrunk = plain * (1 - min(1, (1 - plain**2) ** 2 / (2 * plain**2)))
    assert found[0, 1] == pytest.approx(1.0)
    assert found[0, 2] == pytest.approx(shrunk)
    assert found[2, 2] == 1.0


@pytest.mark.parametrize(
    "blocks, shape", [(3, "apart"), (5, "apart"), (5, "together"), (5, "contexts")]
)
def test_of_20_families_of_equals_one_holds_a_false_claim(blocks: int, shape: str) -> None:
    """24 true hypotheses, 400 families: at most 5 % + 2.5 binomial standard deviations (1.09 %)."""
    rng = np.random.default_rng(blocks)
    false = 0
    for _ in range(400):
        noise = {
            "apart": lambda: rng.standard_normal((blocks, 24)),
            "together": lambda: np.repeat(rng.standard_normal((blocks, 1)), 24, axis=1),
            "contexts": lambda: np.repeat(rng.standard_normal((blocks, 3)), 8, axis=1),
        }[shape]()
        mean, error = noise.mean(axis=0), noise.std(axis=0, ddof=1) / math.sqrt(blocks)
        false += min(max_t_adjusted(mean / error, noise - mean, draws=500)) <= 0.05
    assert false / 400 <= 0.05 + 2.5 * 0.0109

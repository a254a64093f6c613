"""Intervals and distributions against scipy.stats, which the program itself does not load."""

import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import binom, t

from analysis.statistics import student_t
from analysis.statistics.samples import statistic


@pytest.mark.parametrize("freedom", [1, 2, 3.7, 30, 1000.5])
def test_students_t_is_scipys(freedom: float) -> None:
    x = np.array([-2.0, 0.0, 0.3, 1.96, 40.0, np.inf])
    assert student_t.sf(x, freedom) == pytest.approx(t.sf(x, freedom), rel=1e-14)
    shares = np.array([0.001, 0.025, 0.5, 0.975, 0.999])
    assert student_t.ppf(shares, freedom) == pytest.approx(t.ppf(shares, freedom), rel=1e-14)


def enclosing(n: int) -> int:
    """The largest k for which x(k) and x(n+1−k) enclose the median with 95 %."""
    lower = binom.cdf(np.arange(n // 2), n, 0.5)  # P(fewer than k of n lie below), k from 1
    return int(np.flatnonzero(2 * lower <= 0.05).max()) + 1


@pytest.mark.parametrize("n", [*range(6, 60), 500, 4_321, 100_001])
def test_the_medians_interval_is_the_narrowest_that_encloses_95_percent(n: int) -> None:
    values = np.random.default_rng(n).permutation(np.arange(1.0, n + 1))  # the k-th smallest is k
    of = statistic(values)
    assert (of.p50_low, of.p50_high) == (enclosing(n), n + 1 - enclosing(n))


def test_a_report_is_made_without_loading_scipy_stats() -> None:
    """It takes as long to load as ten points to analyse."""
    code = (
        "import sys, analysis.study, analysis.report.page; sys.exit('scipy.stats' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

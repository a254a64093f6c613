"""Sampling times: absolute deadlines, and a period that a slow sensor can afford."""

import threading
import time

import pytest

from telemetry.ticker import LARGEST_DUTY, SHORTEST_PERIOD_S, Tally, Ticker, sample_period_s


@pytest.mark.parametrize(
    ("asked_s", "refresh_s", "cost_s", "expected_s"),
    [
        (0.1, 0.1, 0.004, 0.1),  # what was asked
        (None, 0.4, 0.004, 0.2),  # half the refresh
        (None, 0.02, 0.001, 0.05),  # never under the shortest
        (0.01, None, 0.0, 0.05),
        (0.1, 0.1, 0.080, 0.32),  # eight cards at 10 ms each: 80 ms is a quarter of 320
    ],
)
def test_period_is_asked_or_half_refresh_and_never_more_than_the_reads_afford(
    asked_s: float | None, refresh_s: float | None, cost_s: float, expected_s: float
) -> None:
    assert sample_period_s(asked_s, refresh_s, cost_s) == pytest.approx(expected_s)
    assert LARGEST_DUTY == 0.25 and SHORTEST_PERIOD_S == 0.05


def test_a_slow_sample_does_not_move_the_deadlines_after_it() -> None:
    """Guards drift: a loop of sleep(period) would be 15 ms later on every tick."""
    ticker = Ticker(0.02, threading.Event())
    first = time.monotonic_ns()
    for _ in range(10):
        ticker.wait()
        time.sleep(0.015)
    ticker.wait()
    spent_s = (time.monotonic_ns() - first) / 1e9
    deadlines = 10 + ticker.missed  # skipped ones are counted, not caught up
    assert ticker.lateness.count == 11
    assert spent_s == pytest.approx(deadlines * 0.02, abs=0.019)


def test_deadlines_that_passed_are_skipped_and_counted() -> None:
    ticker = Ticker(0.02, threading.Event())
    ticker.wait()
    time.sleep(0.09)  # four deadlines pass, the fifth is next
    ticker.wait()
    assert ticker.missed >= 3
    assert ticker.lateness.max_ns >= 60_000_000


def test_stop_ends_a_wait_at_once() -> None:
    stop = threading.Event()
    ticker = Ticker(60.0, stop)
    assert ticker.wait()  # the first deadline is now
    stop.set()
    assert not ticker.wait()


def test_tally_of_nothing_has_no_figures() -> None:
    assert Tally().summary()["p50_ms"] is None
    tally = Tally()
    for ms in (1, 2, 3, 4, 100):
        tally.add(ms * 1_000_000)
    assert tally.summary() == {
        "count": 5,
        "mean_ms": 22.0,
        "p50_ms": 3.0,
        "p99_ms": 100.0,
        "max_ms": 100.0,
    }

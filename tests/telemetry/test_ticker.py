"""Sampling times: absolute deadlines, and a period that a slow sensor can afford."""

import threading

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


MS = 1_000_000


class PlayedTime(threading.Event):
    """Time that passes only in waits and where a test says so. ``oversleep_ns``: how late a wait ends."""

    def __init__(self, oversleep_ns: int = 0) -> None:
        super().__init__()
        self.now_ns = 1_000 * MS
        self.oversleep_ns = oversleep_ns

    def clock(self) -> int:
        return self.now_ns

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        self.now_ns += round(timeout * 1e9) + self.oversleep_ns
        return self.is_set()


def ticks(
    time: PlayedTime, costs_ms: list[int], period_s: float = 0.02
) -> tuple[Ticker, list[float]]:
    """A ticker, and the milliseconds from its start at which each tick came; a tick costs so many ms."""
    ticker = Ticker(period_s, time, time.clock)
    start_ns, came = time.now_ns, []
    for cost_ms in costs_ms:
        assert ticker.wait()
        came.append((time.now_ns - start_ns) / MS)
        time.now_ns += cost_ms * MS
    return ticker, came


def test_a_slow_sample_does_not_move_the_deadlines_after_it() -> None:
    """Guards drift: a loop of sleep(period) would be 15 ms later on every tick."""
    ticker, came = ticks(PlayedTime(), costs_ms=[15] * 10)
    assert came == [20 * n for n in range(10)]
    assert (ticker.missed, ticker.lateness.max_ns) == (0, 0)


def test_a_wait_that_ends_late_does_not_move_them_either() -> None:
    """Guards drift by the 60 µs that a Linux sleep takes too long."""
    ticker, came = ticks(PlayedTime(oversleep_ns=3 * MS), costs_ms=[5] * 10)
    assert came == [20 * n + 3 for n in range(10)]
    assert (ticker.missed, ticker.lateness.count, ticker.lateness.max_ns) == (0, 10, 3 * MS)


def test_deadlines_that_passed_are_skipped_and_counted() -> None:
    """After a sample of 90 ms the tick of 20 ms comes at once; those of 40, 60 and 80 ms are skipped."""
    ticker, came = ticks(PlayedTime(), costs_ms=[90, 0, 0])
    assert came == [0, 90, 100]
    assert (ticker.missed, ticker.lateness.max_ns) == (3, 70 * MS)


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

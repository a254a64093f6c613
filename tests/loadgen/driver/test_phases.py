"""Phases: what is measured, when sending stops. Plain numbers for nanoseconds."""

from greenbench.contract.config import PhaseConfig
from loadgen.driver.phases import PhaseClock


def clock(requests: int | None = None) -> PhaseClock:
    return PhaseClock(PhaseConfig(warmup_s=2e-8, measure_s=1e-7, drain_s=3e-8, requests=requests))


def test_marks_count_from_the_first_send() -> None:
    phases = clock()
    assert phases.admit(1000)
    assert (phases.warmup_start, phases.measure_start, phases.measure_end) == (1000, 1020, 1120)
    assert phases.drain_deadline == 1150
    assert [phases.phase_of(t) for t in (1000, 1019, 1020, 1119, 1120)] == [
        "warmup",
        "warmup",
        "measure",
        "measure",
        "drain",
    ]


def test_nothing_is_sent_from_measure_end_on() -> None:
    phases = clock()
    assert [phases.admit(t) for t in (1000, 1119, 1120, 1121)] == [True, True, False, False]


def test_a_limit_counts_measured_requests_only_and_ends_the_window_where_one_more_was_due() -> None:
    phases = clock(requests=2)
    assert [phases.admit(t) for t in (1000, 1010, 1020, 1030)] == [True] * 4
    assert not phases.admit(1044)
    assert (phases.measure_end, phases.drain_deadline) == (1044, 1074)


def test_a_stop_during_warm_up_measures_nothing() -> None:
    phases = clock()
    phases.admit(1000)
    phases.stop(1005)
    assert (phases.measure_start, phases.measure_end) == (1005, 1005)
    assert phases.phase_of(1000) == "warmup"


def test_a_stop_after_the_end_moves_nothing() -> None:
    phases = clock()
    phases.admit(1000)
    phases.stop(5000)
    assert phases.measure_end == 1120

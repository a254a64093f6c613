"""Both clients on one server: the rule their throughput is worked out by, against loads of known rate."""

import argparse

import pytest

from scripts.by_turns import WARMUP_S, Sent, Shape, figures, their_requests

USERS, TOKENS, TTFT_S, E2E_S, PAUSE_S = 8, 128, 1.3, 2.5, 0.1


def request(start_s: float) -> Sent:
    gap_s = (E2E_S - TTFT_S) / (TOKENS - 1)
    return Sent(start_s, [start_s + TTFT_S + at * gap_s for at in range(TOKENS)], TOKENS)


def in_step(rounds: int, stagger_s: float = 0.0) -> list[Sent]:
    """Every user sends ``rounds`` requests, a pause after each answer, the users apart by a stagger."""
    cycle_s = E2E_S + PAUSE_S
    return [
        request(number * cycle_s + user * stagger_s)
        for number in range(rounds)
        for user in range(USERS)
    ]


@pytest.mark.parametrize("stagger_s", [0.0, 0.05, (E2E_S + PAUSE_S) / USERS])
@pytest.mark.parametrize("rounds", [7, 10, 31])
def test_throughput_is_that_of_the_load_whether_or_not_users_keep_in_step(
    rounds: int, stagger_s: float
):
    """A closed loop gives users × tokens a cycle. Pauses that the window cuts are all that may be off."""
    found = figures(in_step(rounds, stagger_s), counter=[])
    assert found is not None
    expected = USERS * TOKENS / (E2E_S + PAUSE_S)
    window_s = (rounds - 1) * (E2E_S + PAUSE_S) + (USERS - 1) * stagger_s - WARMUP_S
    assert found["window_s"] == pytest.approx(window_s)
    assert found["tokens_per_s"] == pytest.approx(expected, rel=PAUSE_S / window_s)
    assert found["mean_ttft_ms"] == pytest.approx(1e3 * TTFT_S)
    assert found["mean_tpot_ms"] == pytest.approx(1e3 * (E2E_S - TTFT_S) / (TOKENS - 1))
    assert found["watts"] is None


def test_a_turn_too_short_to_tell_anything_tells_nothing():
    """Guards against a throughput out of one round of requests, none of which ended in the window."""
    assert figures([request(0.0), request(0.1), request(WARMUP_S + 0.5)], counter=[]) is None


def test_the_counter_is_read_between_its_readings_inside_the_window():
    counter = [(float(second), 1000 * 500 * second) for second in range(40)]  # 500 W
    found = figures(in_step(10), counter)
    assert found is not None and found["watts"] == pytest.approx(500.0)


def test_their_turn_takes_the_rounds_that_a_slow_server_needs():
    """6 requests/s of 16 users: 15 s are 90 requests, 24 rounds are 384; and 5 s of warm-up."""
    assert their_requests(users=16, per_s=6.0, least_s=15.0) == 16 + 384 + 30
    assert their_requests(users=2, per_s=50.0, least_s=15.0) == 2 + 750 + 250


@pytest.mark.parametrize("text", ["8192x16:off,ours", "8192x16:ours,of", "8kx16:ours", "8192x16:"])
def test_a_shape_that_cannot_be_run_is_refused(text: str):
    with pytest.raises(argparse.ArgumentTypeError, match="is no shape; give"):
        Shape.parse(text)
    assert Shape.parse("8192x16:ours,off") == Shape(8192, 16, ("ours", "off"))

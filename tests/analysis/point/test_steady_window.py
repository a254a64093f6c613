"""The measured window on synthetic loads whose ramps and drifts are known."""

import numpy as np
import pandas as pd
import pytest

from analysis.point.steady_window import WindowRule, ml_energy_window, steady_window
from analysis.runs.activity import Activity, Series, activity, in_flight, mean_level

S = 1_000_000_000
T0 = 1_795_000_000 * S


def closed(
    users: int, request_s: float, ramp_s: float, end_s: float, down_s: float = 0.0
) -> Activity:
    """Users start evenly over the ramp, loop without pause, stop evenly over the last ``down_s``."""
    starts: list[int] = []
    for user in range(users):
        at = user * ramp_s / users
        stop = end_s - down_s + (user + 1) * down_s / users
        while at < stop:
            starts.append(round(at * S))
            at += request_s
    start = np.array(sorted(starts)) + T0
    return Activity(start, start + round(request_s * S))


def phase(start_s: float, end_s: float) -> tuple[int, int]:
    return T0 + round(start_s * S), T0 + round(end_s * S)


def test_ramps_at_both_ends_are_found_within_a_second() -> None:
    # 20 users over 30 s: 19 of 20 (95 %) are there when the 19th starts, at 27 s; the first stops at 92 s
    load = closed(users=20, request_s=2.0, ramp_s=30, end_s=100, down_s=10)
    window = steady_window(load, phase(0, 100), users=20)
    assert window.valid, window.reasons
    assert (window.start_unix_ns - T0) / S == pytest.approx(27.0, abs=1.0)
    assert (window.end_unix_ns - T0) / S == pytest.approx(92.5, abs=1.5)


@pytest.mark.parametrize("ramp_s", [0.0, 12.0])
def test_start_follows_the_ramp(ramp_s: float) -> None:
    window = steady_window(closed(4, 1.0, ramp_s, 60), phase(0, 60), users=4)
    assert window.valid
    assert (window.start_unix_ns - T0) / S == pytest.approx(0.75 * ramp_s, abs=0.01)


def test_load_that_never_stands_is_invalid_not_the_whole_run() -> None:
    window = steady_window(closed(4, 1.0, 0, 60), phase(0, 60), users=8)
    assert not window.valid
    assert "never stood at its target: at most 4 of 8" in window.reasons[0]


def talking(late_s: float) -> tuple[pd.DataFrame, np.ndarray]:
    """Two users, conversations of two turns of 2 s with 1 s between: 4 of 5 s with a request open.

    At 30 s one of them comes ``late_s`` later than its pause says.
    """
    rows = []
    for user in (0, 1):
        at = user * 0.5
        while at < 60:
            again = at + 3 + (late_s if user == 0 and at >= 30 > at - 5 else 0)
            rows += [(user, at, 0), (user, again, 1)]
            at = again + 2
    rows.sort(key=lambda row: row[1])
    frame = pd.DataFrame(
        {
            "sent_unix_ns": [T0 + round(at * S) for _, at, _ in rows],
            "end_ns": [2.0 * S] * len(rows),
            "turn": [turn for _, _, turn in rows],
        }
    )
    return frame, np.array([user for user, _, _ in rows])


def test_a_user_between_two_turns_is_present_for_as_long_as_planned() -> None:
    frame, users = talking(0.0)
    window = steady_window(activity(frame, users, 1.0), phase(1, 59), users=2)
    assert window.valid, window.reasons
    assert window.evidence.mean_in_flight == pytest.approx(2 * 4 / 5, rel=0.02)
    assert not steady_window(activity(frame), phase(1, 59), users=2).valid
    # a client that is 4 s late is not a user who thinks
    late, users = talking(4.0)
    window = steady_window(
        activity(late, users, 1.0), phase(1, 59), 2, rule=WindowRule(kept_share=1)
    )
    assert any("fewer than 2 requests were open for 4.0 s" in why for why in window.reasons)


def test_what_the_search_cuts_is_said_and_pace_is_never_cut() -> None:
    before, after = closed(4, 1.0, 0, 20), closed(4, 1.0, 0, 60)
    start = np.concatenate([before.start_ns, after.start_ns + 35 * S])
    window = steady_window(Activity(start, start + S), phase(0, 95), users=4)
    assert window.valid and "fewer than 4 requests were open" in str(window.evidence.left_out)
    # 30 % slower from the middle on: 40 requests of 1 s a user, then 31 of 1.3 s
    times = np.concatenate([np.full(40, 1.0), np.full(31, 1.3)])
    ends = np.cumsum(times)
    start = np.repeat(T0 + np.round((ends - times) * S).astype(np.int64), 4)
    load = Activity(start, start + np.repeat(np.round(times * S).astype(np.int64), 4))
    window = steady_window(load, phase(0, 80), users=4)
    assert window.valid and window.evidence.left_out is None
    assert window.duration_s == pytest.approx(80)
    pace = window.evidence.pace
    assert pace is not None
    assert pace.early_s == pytest.approx(1.0)
    assert pace.late_s == pytest.approx(1.3, rel=0.01)


def test_a_stall_inside_is_cut_away_or_refused() -> None:
    before, after = closed(4, 1.0, 0, 20), closed(4, 1.0, 0, 60)
    start = np.concatenate([before.start_ns, after.start_ns + 35 * S])
    load = Activity(start, start + S)
    window = steady_window(load, phase(0, 95), users=4)
    # 0–20 busy, 20–35 nothing, 35–95 busy: the long stretch after the stall is what remains
    assert window.valid, window.reasons
    assert (window.start_unix_ns - T0) / S >= 34
    assert window.duration_s > 50


def test_completion_rate_that_keeps_falling_is_not_steady() -> None:
    starts, at, length = [], 0.0, 0.5
    while at < 100:
        starts.append((at, length))
        at += length
        length *= 1.02
    load = Activity(
        np.array([T0 + round(a * S) for a, _ in starts]),
        np.array([T0 + round((a + b) * S) for a, b in starts]),
    )
    window = steady_window(load, phase(0, 100), users=1)
    assert not window.valid
    assert any("mean request time drifted" in reason for reason in window.reasons)


def test_growing_kv_usage_is_not_steady() -> None:
    times = T0 + np.arange(0, 60 * S, S // 2)
    growing = Series(times, np.linspace(0.1, 0.95, len(times)))
    flat = Series(times, np.full(len(times), 0.5))
    load = closed(4, 1.0, 0, 60)
    assert steady_window(load, phase(0, 60), 4, kv_usage=flat).valid
    # a rule that may not trim shows the reason
    window = steady_window(load, phase(0, 60), 4, growing, rule=WindowRule(kept_share=1))
    assert window.reasons == ("KV usage drifted from 0.31 to 0.74",)


def test_too_short_and_too_few_are_named() -> None:
    window = steady_window(closed(1, 10.0, 0, 25), phase(0, 25), users=1)
    assert any("shorter than 3 times" in reason for reason in window.reasons)
    assert any("only 2 requests ended" in reason for reason in window.reasons)


def test_open_loop_below_capacity_is_steady_and_above_it_is_not() -> None:
    rng = np.random.default_rng(1)
    arrivals = np.cumsum(rng.exponential(0.25, 480))  # 4 a second for 120 s
    start = T0 + (arrivals * S).astype(np.int64)
    below = Activity(start, start + S)
    assert steady_window(below, phase(5, 115), users=None).valid
    # one server of 0.3 s a request: 3.3 a second are served, the queue grows without end
    ends, free = [], 0.0
    for at in arrivals:
        free = max(free, at) + 0.3
        ends.append(free)
    above = Activity(start, T0 + (np.array(ends) * S).astype(np.int64))
    window = steady_window(above, phase(5, 115), users=None)
    assert not window.valid
    assert any("more arrives than the server can serve" in reason for reason in window.reasons)


def test_mean_level_is_time_weighted() -> None:
    load = Activity(np.array([T0, T0 + 2 * S]), np.array([T0 + 4 * S, T0 + 3 * S]))
    times, levels = in_flight(load)
    # 0–2 s: 1, 2–3 s: 2, 3–4 s: 1 → (2 + 2 + 1) / 4
    assert mean_level(times, levels, T0, T0 + 4 * S) == pytest.approx(1.25)


def test_ml_energy_window_by_hand() -> None:
    # requests of 1 s with first token after 0.5 s, sent one a second: 12 of them, 2 at a time
    rows = pd.DataFrame(
        {
            "error_type": [None] * 12,
            "sent_unix_ns": [T0 + i * S for i in range(12)],
            "first_token_ns": [S // 2] * 12,
            "end_ns": [S] * 12,
        }
    )
    window = ml_energy_window(rows, max_num_seqs=2)
    # second first token at 1.5 s; all but 3 have ended when the 9th ends, at 9 s
    assert window.start_unix_ns == T0 + 3 * S // 2
    assert window.end_unix_ns == T0 + 9 * S
    assert not ml_energy_window(rows, max_num_seqs=6).valid

"""Rates of whole cycles and of spread work: by hand, and against closed loops whose truth is arithmetic."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t as student

from analysis.point.point import Point, analyse
from analysis.runs.run import load_run
from analysis.statistics.medians import cycles_edge, modes
from analysis.statistics.rates import (
    NOBODY,
    Cycles,
    Ratio,
    Work,
    ratio,
    spread_ratio,
    users_of,
    whole_cycles,
)
from tests.fakes.closed_loops import CASES, NS, T0_NS, Loop, pair, play
from tests.fakes.points import edge
from tests.fakes.rundirs import FakeRun, write_run


def rows(
    spans: Sequence[tuple[int, float, float]], turns: Sequence[int | None] | None = None
) -> pd.DataFrame:
    """(user, sent, ended) in seconds, in order of sending."""
    return pd.DataFrame(
        {
            "user": [user for user, _, _ in spans],
            "sent_unix_ns": [T0_NS + round(sent * NS) for _, sent, _ in spans],
            "end_ns": [float(round((end - sent) * NS)) for _, sent, end in spans],
            "conversation": None,
            "turn": turns or [None] * len(spans),
        }
    )


def span(start_s: float, end_s: float) -> tuple[int, int]:
    return T0_NS + round(start_s * NS), T0_NS + round(end_s * NS)


def test_whole_cycles_by_hand() -> None:
    # user 0 ends at 3, 6, 9, 12 and 15, user 1 at 5, 10, 15; the span is 2 to 14 s. User 1's last end in it
    # is at 10 s; user 0 stops at its first from there on, at 12 s. What ends after 14 s is the drain's
    frame = rows(
        [(0, a, a + 3) for a in range(0, 15, 3)] + [(1, a, a + 5) for a in range(0, 15, 5)]
    ).sort_values("sent_unix_ns", ignore_index=True)
    found = whole_cycles(frame, users_of(frame), span(2, 14), users=2)
    got = [(u, (e - T0_NS) / NS) for u, e in zip(found.user, found.end_ns, strict=True)]
    assert got == [(0, 6.0), (0, 9.0), (0, 12.0), (1, 10.0)]
    assert found.seconds.tolist() == [3.0, 3.0, 3.0, 5.0]
    assert found.number.tolist() == [0, 1, 2, 0]
    assert found.reason is not None and "2.0 whole cycles a user" in found.reason
    assert ratio(found, np.ones(4), found.seconds).reason == found.reason


def test_pauses_and_failures_belong_to_their_cycle() -> None:
    # one user, requests of 2 s with 1 s of pause: a cycle is 3 s; each third request fails and brings nothing
    frame = rows([(0, a, a + 2) for a in range(0, 60, 3)])
    found = whole_cycles(frame, users_of(frame), span(0, 60), users=1)
    bring = np.array([0.0 if row % 3 == 2 else 30.0 for row in found.request])
    rate = ratio(found, bring, found.seconds)
    assert len(found) == 19  # 20 ends
    assert rate.value == pytest.approx(bring.sum() / (19 * 3))
    assert rate.standard_error is not None and rate.standard_error > 0


def test_fewer_than_three_cycles_a_user_give_no_rate() -> None:
    few = rows([(0, a, a + 10) for a in range(0, 40, 10)])
    assert (
        whole_cycles(few, users_of(few), span(5, 35), users=1).reason is not None
    )  # ends 10 20 30
    enough = rows([(0, a, a + 10) for a in range(0, 50, 10)])
    assert whole_cycles(enough, users_of(enough), span(5, 45), users=1).reason is None
    silent = whole_cycles(enough, users_of(enough), span(5, 45), users=2)
    assert silent.reason == "only 1 of 2 users ended two requests in the window"
    assert whole_cycles(enough, users_of(enough), span(100, 200), users=1).reason is not None


def test_each_turn_of_a_conversation_weighs_alike() -> None:
    # turns of 1, 2 and 3 s bringing 10, 20 and 60 tokens, over and over: 90 tokens in 6 s. The span cuts the
    # last conversation after its second turn
    spans, turns, at = [], [], 0.0
    for number in range(14):
        length = float(number % 3 + 1)
        spans.append((0, at, at + length))
        turns.append(number % 3)
        at += length
    frame = rows(spans, turns)
    found = whole_cycles(frame, users_of(frame), span(0, at), users=1, turns=3)
    tokens = np.array([[10.0, 20.0, 60.0][turns[row]] for row in found.request])
    rate = ratio(found, tokens, found.seconds)
    assert rate.value == pytest.approx(90 / 6)
    assert tokens.sum() / found.seconds.sum() != pytest.approx(90 / 6, rel=0.01)
    first_two = whole_cycles(frame, users_of(frame), span(0, 60), users=1, turns=4)
    assert first_two.reason == "1 turns of a conversation have no whole cycle in the window"


def test_requests_without_a_user_are_chained_to_the_one_that_just_ended() -> None:
    played = play(Loop(6, 0.3, 2.0, noise=0.2, fails_every=7), 60)
    frame = played.requests
    chained = users_of(frame.drop(columns="user"))
    ends = (frame["sent_unix_ns"] + frame["end_ns"].astype(int)).to_numpy()
    for user in range(6):
        mine = frame["sent_unix_ns"].to_numpy()[chained == user], ends[chained == user]
        assert (mine[0][1:] >= mine[1][:-1]).all()  # one at a time
    assert set(chained) == set(range(6))
    window = span(5, 55)
    by_record, by_chain = (
        whole_cycles(frame, users, window, 6) for users in (users_of(frame), chained)
    )
    one, other = (ratio(c, np.full(len(c), 6.0), c.seconds).value for c in (by_record, by_chain))
    assert one == pytest.approx(other, rel=0.01)


def test_a_pausing_users_next_turn_is_its_own() -> None:
    # two users pause 2 s between two turns; each turn 0 comes at once. By the last end alone they would swap
    frame = rows(
        [(0, 0, 3), (1, 0, 4), (0, 5, 8), (1, 6, 9), (0, 8, 11), (1, 9, 12)],
        turns=[0, 0, 1, 1, 0, 0],
    )
    frame["conversation"] = [7, 8, 7, 8, 9, 10]
    assert users_of(frame.drop(columns="user")).tolist() == [0, 1, 0, 1, 0, 1]


def test_what_was_never_sent_has_no_user() -> None:
    frame = rows([(0, 0, 1), (0, 1, 2)])
    frame["sent_unix_ns"] = frame["sent_unix_ns"].astype("Int64")
    frame.loc[1, ["sent_unix_ns", "end_ns"]] = pd.NA
    assert users_of(frame).tolist() == [0, NOBODY]


# Errors


def in_step(lengths: Sequence[float], users: int) -> Cycles:
    ends = T0_NS + np.round(np.cumsum([0.0, *lengths]) * NS).astype(np.int64)
    n = len(lengths)
    return Cycles(
        np.arange(n * users),
        np.repeat(np.arange(users), n),
        np.tile(ends[:-1], users),
        np.tile(ends[1:], users),
        np.ones(n * users),
        users,
    )


def test_users_in_step_are_worth_one() -> None:
    """Rounds of 1.0 and 1.2 s by turns, one request each. By hand: r = U·10 / 11; residuals 1 − r·C/U."""
    lengths = [1.0, 1.2] * 5
    found = [
        ratio(c, np.full(len(c), float(c.users)), c.seconds)
        for c in (in_step(lengths, 1), in_step(lengths, 8))
    ]
    one, eight = found
    assert (one.value, eight.value) == (pytest.approx(10 / 11), pytest.approx(80 / 11))
    left = [1 - 10 / 11 * length for length in lengths]
    error = math.sqrt(10 / 9 * sum(d * d for d in left)) / 11
    assert one.standard_error == pytest.approx(error)
    assert eight.standard_error == pytest.approx(8 * error)
    # the edge error is one round's deviation over the number of rounds
    assert one.edge_error == eight.edge_error == pytest.approx(error * 11 / 10 / math.sqrt(10))


def test_the_standard_error_is_the_spread_between_starts() -> None:
    """Second method: independent users whose cycles differ by 20 %, 400 times."""
    rng = np.random.default_rng(5)
    values, errors = [], []
    for _ in range(400):
        spans = []
        for user in range(4):
            ends = rng.uniform(0, 2) + np.cumsum(rng.normal(2, 0.4, 60))
            spans += [(user, end - 0.1, end) for end in ends]
        frame = rows(spans)
        found = whole_cycles(frame, users_of(frame), span(10, 80), users=4)
        rate = ratio(found, np.full(len(found), 4.0), found.seconds)
        assert rate.value is not None and rate.standard_error is not None
        values.append(rate.value)
        errors.append(rate.standard_error)
    assert np.mean(values) == pytest.approx(2.0, rel=0.003)  # 4 users, a cycle of 2 s
    assert math.sqrt(np.mean(np.square(errors))) == pytest.approx(np.std(values), rel=0.15)


def test_stopping_before_the_edge_does_not_favour_short_cycles() -> None:
    """Cycles drawn from an exponential distribution: what is whole before a fixed edge is short."""
    rng = np.random.default_rng(6)
    found_values, naive = [], []
    for _ in range(800):
        ends = np.cumsum(rng.exponential(1.0, 60))
        frame = rows([(0, end - 1e-3, end) for end in ends])
        cycles = whole_cycles(frame, users_of(frame), span(5, 25), users=1)
        alone = [end for end in ends if 5 <= end <= 25]
        if cycles.reason is None:
            found_values.append(ratio(cycles, np.ones(len(cycles)), cycles.seconds).value)
            naive.append(_own_rate(alone))
    # of one user its own last end is all there is: the known bias of 1/n stays
    assert np.mean(naive) == pytest.approx(1 + 1 / 20, abs=0.02)
    assert np.mean(found_values) == pytest.approx(np.mean(naive), abs=1e-6)
    many, last_ends = [], []
    for _ in range(60):
        spans = []
        for user in range(16):
            ends = np.cumsum(rng.exponential(1.0, 60))
            spans += [(user, end - 1e-3, end) for end in ends]
        frame = rows(spans)
        cycles = whole_cycles(frame, users_of(frame), span(5, 25), users=16)
        many.append(ratio(cycles, np.full(len(cycles), 16.0), cycles.seconds).value)
        rates = [
            _own_rate([e for u, _, e in spans if u == user and 5 <= e <= 25]) for user in range(16)
        ]
        last_ends.append(sum(rates))
    assert np.mean(last_ends) > 16 * 1.04
    assert np.mean(many) == pytest.approx(16.0, rel=0.02)


def _own_rate(ends: list[float]) -> float:
    return (len(ends) - 1) / (ends[-1] - ends[0])


# Equal candidates


def measured(
    loop: Loop, seed: int, warmup_s: float, measure_s: float
) -> tuple[Ratio, Ratio, Ratio]:
    """Output tokens/s, total tokens/s and J per output token."""
    end_s = warmup_s + measure_s
    played = play(loop, end_s, seed)
    frame = played.requests
    found = whole_cycles(frame, users_of(frame), span(warmup_s, end_s), loop.users)
    output = frame["output_tokens"].to_numpy()[found.request]
    total = output + frame["prompt_tokens"].to_numpy()[found.request]
    joules = played.energy_j((found.start_ns - T0_NS) / NS, (found.end_ns - T0_NS) / NS)
    return (
        ratio(found, output * loop.users, found.seconds),
        ratio(found, total * loop.users, found.seconds),
        ratio(found, joules, output * loop.users),
    )


@pytest.mark.parametrize("name", list(CASES))
def test_equal_candidates_with_another_split_are_equal(name: str) -> None:
    case, sweeps, starts = CASES[name], 40, 3
    loops = pair(case, noise=0.01)
    truth = case.users * 128 / case.cycle_s
    bound = 0.003 if case.users == 8 else 0.005
    differences = np.zeros((sweeps, starts, 3))
    edges = np.zeros((sweeps, starts, 3))
    levels = []
    for sweep in range(sweeps):
        warmup_s = 10 + sweep * 0.7
        for start in range(starts):
            found = [
                measured(loop, 2 * (sweep * 9 + start) + i, warmup_s, case.measure_s)
                for i, loop in enumerate(loops)
            ]
            levels += [one[0].value for one in found]
            for figure in range(3):
                a, b = (one[figure] for one in found)
                assert a.value and b.value and a.edge_error is not None and b.edge_error is not None
                differences[sweep, start, figure] = math.log(b.value / a.value)
                edges[sweep, start, figure] = math.hypot(a.edge_error, b.edge_error)
    assert np.mean(levels) == pytest.approx(truth, rel=bound)
    assert np.abs(differences.mean(axis=(0, 1))).max() < bound
    # claimed: the mean of the starts beyond t(n − 1) standard errors, the edges' beside the spread
    errors = np.sqrt(differences.var(axis=1, ddof=1) / starts + (edges**2).mean(axis=1))
    claimed = np.abs(differences.mean(axis=1)) > student.ppf(0.975, starts - 1) * errors
    assert claimed.any(axis=1).mean() <= 0.05


# Trends


def slowing(root: Path, **more: object) -> Point:
    fake = FakeRun(warmup_s=5, measure_s=90, jitter=0.02, **more)  # type: ignore[arg-type]
    return analyse(load_run(write_run(root, fake).path))


def test_a_server_that_slows_down_keeps_no_fast_half(tmp_path: Path) -> None:
    # 44 tokens/s until the middle of the phase at 50 s, then requests take 1.3 times as long: 33.8
    point = slowing(tmp_path, slower_from_s=50, slower=1.3)
    assert point.status == "ok" and point.throughput is not None and point.window is not None
    assert point.window.duration_s == pytest.approx(90, rel=0.02)
    true = (44 + 44 / 1.3) / 2
    assert point.throughput.output.value == pytest.approx(true, rel=0.02)
    told = next(note for note in point.notes if "the pace changed" in note)
    early, late = (float(word) for word in told.split() if word[0].isdigit() and "." in word)
    assert early == pytest.approx(44, rel=0.02) and late == pytest.approx(44 / 1.3, rel=0.03)
    # either half lies within its error
    assert edge(point, "output") >= math.log(44 / true) * 0.95
    assert edge(point, "e2e") > 0.1


def test_a_steady_server_has_no_trend(tmp_path: Path) -> None:
    point = slowing(tmp_path)
    assert point.status == "ok"
    assert not any("pace changed" in note for note in point.notes)
    assert edge(point, "output") < 0.003


def test_a_server_twice_as_slow_has_no_steady_state(tmp_path: Path) -> None:
    point = slowing(tmp_path, slower_from_s=50, slower=2.0)
    assert point.status == "invalid" and point.throughput is None
    assert "the mean request time drifted from 1 s" in point.reasons[0]


def test_chance_makes_few_trends() -> None:
    rng = np.random.default_rng(8)
    trends = 0
    for _ in range(300):
        spans = []
        for user in range(2):
            ends = rng.uniform(0, 4) + np.cumsum(rng.normal(4, 0.8, 30))
            spans += [(user, end - 0.1, end) for end in ends]
        frame = rows(spans)
        found = whole_cycles(frame, users_of(frame), span(10, 80), users=2)
        trends += ratio(found, np.ones(len(found)), found.seconds).trend is not None
    assert trends <= 9  # 3 % of 300, at p < 0.01


# Medians


def test_two_kinds_of_requests_are_found_and_one_is_not_cut_in_two() -> None:
    rng = np.random.default_rng(9)
    two = np.concatenate([rng.uniform(6e-3, 8e-3, 14), rng.uniform(33e-3, 38e-3, 14)])
    found = modes(rng.permutation(two))
    assert found is not None and found.share_high == 0.5
    assert 6e-3 < found.low < 8e-3 and 33e-3 < found.high < 38e-3
    for draw in (
        lambda n: rng.normal(10, 1, n),
        lambda n: rng.uniform(1, 9, n),
        lambda n: rng.exponential(1, n) + 0.1,
        lambda n: rng.lognormal(0, 1, n),
    ):
        assert sum(modes(draw(30)) is not None for _ in range(300)) <= 3
    assert modes(np.append(np.full(40, 1.0), 9.0)) is None  # one straggler is no kind


def test_a_point_says_that_its_median_hides_two_kinds(tmp_path: Path) -> None:
    fake = FakeRun(slow_every=2, slow_decode=4.0, users=1, measure_s=80, jitter=0.05)
    point = analyse(load_run(write_run(tmp_path, fake).path))
    assert point.medians is not None
    two = point.medians.tpot_s.modes
    assert two is not None
    assert (two.low, two.high) == (pytest.approx(0.05, rel=0.1), pytest.approx(0.2, rel=0.1))
    assert two.share_high == pytest.approx(0.5, abs=0.05)
    assert point.medians.ttft_s.modes is None
    # the next request more or less turns the median over, and its error says so
    assert edge(point, "tpot") > 0.05 > edge(point, "ttft")


def test_a_medians_edge_error_is_what_one_round_changes() -> None:
    # one user's five cycles, 1 2 3 4 5: without 1 or 2 the median is 3.5, without 3 it is 3, else 2.5
    cycles = in_step([1.0] * 5, 1)
    found = cycles_edge(np.arange(1.0, 6.0), np.ones(5, dtype=bool), cycles)
    up, down = math.log(3.5 / 3), math.log(2.5 / 3)
    assert found is not None
    # and the times rise: 1.5 early and 4 late, a trend beside the edge
    assert found == pytest.approx(
        math.hypot(math.sqrt((2 * up**2 + 2 * down**2) / 5), math.log(4 / 1.5) / 2)
    )
    mixed = np.array([3.0, 1.0, 5.0, 2.0, 4.0])
    found = cycles_edge(mixed, np.ones(5, dtype=bool), cycles)
    assert found == pytest.approx(math.sqrt((2 * up**2 + 2 * down**2) / 5))


# Open loop


def test_work_is_spread_over_the_time_in_which_it_was_done() -> None:
    # 100 prompt tokens from 0 to 10 s: 30 of them between 2 and 5 s
    prompt = Work(np.array([T0_NS]), np.array([T0_NS + 10 * NS]), np.array([100.0]))
    assert prompt.done(*span(2, 5)) == pytest.approx(30)
    assert prompt.done(*span(-5, 20)) == pytest.approx(100)
    assert prompt.done(*span(11, 20)) == 0
    at_once = Work(np.array([T0_NS]), np.array([T0_NS]), np.array([7.0]))
    assert at_once.done(*span(-1, 1)) == pytest.approx(7)


def test_an_open_loops_edge_error_is_what_moving_its_edges_changes() -> None:
    # constant arrivals of 2 a second, 1 s each: nothing changes. One burst of 10 at 0.5 s does
    starts = T0_NS + np.arange(0, 60 * NS, NS // 2)
    even = Work(starts, starts + NS, np.ones(len(starts)))
    calm = spread_ratio((even,), None, span(5, 55), 1.0)
    assert calm.value == pytest.approx(2.0, rel=1e-6)
    assert calm.edge_error == pytest.approx(0, abs=1e-6)
    burst = np.append(starts, np.full(10, T0_NS + round(5.2 * NS)))
    uneven = Work(burst, burst + NS // 10, np.ones(len(burst)))
    told = spread_ratio((uneven,), None, span(5, 55), 1.0)
    # 110 requests; most moves of the first edge lose the 10: about 9 %, in half of the moves
    assert told.edge_error is not None and 0.04 < told.edge_error < 0.09

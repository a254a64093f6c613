"""The way to the engine, found again from the log of a played server whose way is known."""

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest

from planning.batches import Lengths, Line, Sent
from planning.closed_loop import play_users
from planning.front import straight, ways
from planning.simulator import Costs, Engine, Job, Settings, costs
from planning.step_time import shape_of
from tests.planning.steps import KNOWN, model

COSTS = costs(shape_of(model()), KNOWN, 2048)
BEFORE_S, REPLY_S = 0.012, 0.001
FLAT = Costs((0.01,) * 101, 0.01, 0.0, 0.0, (), (), 0.0)  # 10 ms a step, whatever it computes


@dataclass(eq=False)
class Logging(Engine):
    """One that writes a line a step: steps that are alike are played one by one."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.lines: list[Line] = []

    def _steps_alike(self) -> int:
        return 1

    def finish(self) -> list[Job]:
        line = Line(sum(new for _, new in self.due), self.decoding, round(1e9 * self.end_s))
        self.lines.append(line)
        return super().finish()


@pytest.mark.parametrize("ahead", [False, True])
@pytest.mark.parametrize("users", [1, 8])
def test_the_way_in_and_back_is_found_from_the_log(ahead: bool, users: int) -> None:
    settings = Settings(16, 2048, ahead=ahead)
    engine = Logging("", settings, COSTS)
    rng = np.random.default_rng(3)
    lengths = ((int(n), 32) for n in itertools.repeat(3000))
    sent: list[float] = []

    def coming_s(at: float, _: int) -> float:
        pause = REPLY_S + rng.uniform(0, 0.02)  # users that pause keep no step
        return at + pause + BEFORE_S

    asked, played = play_users(users, lengths, engine, coming_s, 20.0)
    sent = (asked.at_s - BEFORE_S).tolist()
    rows = [
        (
            Sent(
                round(1e9 * at),
                round(1e9 * (BEFORE_S + ttft + REPLY_S)),
                users == 1,
                1e9 * (BEFORE_S + REPLY_S),
            ),
            Lengths(3000, 0, 32),
        )
        for at, ttft in zip(sent, played.ttft_s, strict=True)
    ]
    found = ways(engine.lines, rows, settings)
    assert found is not None
    assert found.reply_s == pytest.approx(REPLY_S, abs=1e-6)
    before_s, slope = straight(found.tokens, found.low_s, found.high_s)
    assert before_s == pytest.approx(BEFORE_S, abs=0.1e-3 if users == 1 else 2e-3)
    assert (slope, *set(found.tokens)) == (0, 3000)


def test_requests_alone_decide_where_a_closed_loop_leaves_it_open() -> None:
    """Alone the way in takes 4 ms + 1 µs a token; of others it is only known that it took 0 to 20 or 40 ms,
    and of one 30 to 50.
    """
    alone = np.array([1000.0, 1000.0, 4000.0, 4000.0])
    open_ = np.array([1000.0] * 30 + [4000.0] * 20 + [1000.0])
    low = np.array([0.0] * 50 + [0.03])
    high = np.array([0.02] * 30 + [0.04] * 20 + [0.05])
    exact = 0.004 + 1e-6 * alone
    found = straight(
        np.concatenate([alone, open_]), np.concatenate([exact, low]), np.concatenate([exact, high])
    )
    assert found == pytest.approx((0.004, 1e-6), rel=1e-2)


def started_s(ahead: bool) -> float:
    """Of a request that comes in the second of a running one's decode steps."""
    engine = Engine("", replace(Settings(4, 100), ahead=ahead), FLAT)
    engine.arrive(Job(0, 0.0, 50, 0, 20), 0.0)
    engine.finish()  # its prompt: 0 to 10 ms
    late = Job(1, 0.025, 50, 0, 1)
    engine.arrive(late, 0.025)
    while late.end_s != late.end_s and engine.end_s < math.inf:
        engine.finish()
    return late.started_s


def test_a_step_composed_ahead_is_waited_for_too() -> None:
    """Steps of 10 ms: come at 25, the step under way ends at 30, the one composed at 20 ends at 40."""
    assert started_s(ahead=False) == pytest.approx(0.03)
    assert started_s(ahead=True) == pytest.approx(0.04)


def test_a_closed_loop_keeps_littles_law() -> None:
    """Users = requests a second × (time in the engine + time away)."""
    users, away = 5, 0.03
    engine = Engine("", Settings(16, 2048), COSTS)
    asked, played = play_users(
        users, itertools.repeat((1500, 64)), engine, lambda at, _: at + away, 60.0
    )
    over = np.sort(asked.at_s + played.e2e_s)
    rate = (len(over) - 101) / (over[-1 - users] - over[100 - users])
    assert rate * (played.e2e_s[100:].mean() + away) == pytest.approx(users, rel=0.02)

"""A policy is refused where it is not shown to win 95 % of fresh traces; one that does says so."""

import math
from dataclasses import dataclass, field

import numpy as np
import pytest

from greenbench.contract.policy import Policy
from planning import fit
from planning.evidence import Evidence
from planning.fresh import ERROR, LOOKS, Course, Fresh, asked, least_share
from planning.playing import Fold
from tests.planning.sweeps import CROSSING, TOKENS, truth


@dataclass
class Drawn:
    """In place of a course: traces that are won with a known chance."""

    share: float
    seen: list[int] = field(default_factory=list)

    def trace(self, busy: float, count: int, seed: int) -> int:
        return seed

    def gain(self, traffic: int, seed: int) -> float:
        self.seen.append(seed)
        return self.share - float(np.random.default_rng(seed).random())


def many(share: float, seeds: int) -> list[Fresh]:
    return [asked(Drawn(share), 0.7, seed) for seed in range(seeds)]  # type: ignore[arg-type]


def test_a_share_below_95_percent_is_seldom_passed() -> None:
    """5 % at the most: 5 of 100 expected, 2 deviations of 2.2 above."""
    assert sum(found.shown for found in many(0.949, 100)) <= 9


def test_a_share_well_above_is_passed_soon_and_one_well_below_refused_soon() -> None:
    above, below = many(1.0, 10), many(0.5, 10)
    assert all(found.shown and len(found.gains) == LOOKS[0] for found in above)
    assert not any(found.shown or len(found.gains) > LOOKS[0] for found in below)


def test_traces_differ_and_none_is_counted_twice() -> None:
    course = Drawn(0.97)
    found = asked(course, 0.7, 3)  # type: ignore[arg-type]
    assert len(set(course.seen)) == len(course.seen) == len(found.gains)
    assert found.won == sum(gain >= 0 for gain in found.gains)


@pytest.mark.parametrize(("won", "n"), [(100, 100), (197, 200), (388, 400), (95, 100)])
def test_the_limit_is_where_so_many_wins_are_as_rare_as_the_error(won: int, n: int) -> None:
    """P(at least so many of n are won), summed term by term at the limit."""
    p = least_share(won, n)
    chance = sum(math.comb(n, k) * p**k * (1 - p) ** (n - k) for k in range(won, n + 1))
    assert chance == pytest.approx(ERROR)


def test_a_tie_is_as_good() -> None:
    assert Fresh(0.5, (0.0, -1e-15, 0.1, -0.1)).won == 3


def test_the_traces_keep_the_servers_as_busy_as_said(policy: Policy) -> None:
    """One request of 8,192 tokens takes alpha, the default, 0.10 + 0.10 + 31 · 0.004 s alone."""
    known = {name: truth(cost) for name, cost in CROSSING.items()}
    course = Course(Fold(policy, known), 2, "e2e", policy.slo, np.full(100, 8192), TOKENS)
    traffic = course.trace(0.5, 4000, 1)
    assert 4000 / traffic.at_s[-1] == pytest.approx(0.5 * 2 / 0.324, rel=0.05)
    assert set(traffic.prompt_tokens) == {8192} and set(traffic.output_tokens) == {TOKENS}
    assert not np.array_equal(traffic.at_s, course.trace(0.5, 4000, 2).at_s)


def test_a_policy_that_passes_says_in_how_many(
    evidence: Evidence, policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    won = [Fresh(busy, (0.03,) * 100) for busy in (0.7, 0.5)]
    monkeypatch.setattr(fit, "every", lambda course, seed: won)
    made = fit.policy_of(evidence)
    assert made is not None and made.rules == policy.rules
    assert (
        "Of generated traces of 500 requests it is at least as good as 2 servers of whichever does best "
        "alone in 100 of 100 (70% busy) and 100 of 100 (50% busy)."
    ) in made.said


def test_rules_that_lose_too_many_traces_are_no_policy(
    evidence: Evidence, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = [Fresh(0.7, (0.03, -0.01) * 50)]
    monkeypatch.setattr(fit, "every", lambda course, seed: lost)
    made = fit.policy_of(evidence)
    assert made is not None and not made.decided and not made.rules
    assert made.said[0] == (
        "No policy: by E2E time switching is at least as good as 2 servers of whichever does best alone in "
        "50 of 100 (70% busy) of the generated traces of 500 requests, and it is not shown to be so in 95% "
        "of such traces. Serve all with alpha."
    )

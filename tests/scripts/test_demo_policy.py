"""What the demo makes of its measurements: the policy, and the figures of its page."""

import math

import pytest

from greenbench.contract.policy import PoolState, Request, choose
from scripts.demo_policy import (
    CALIBRATION_PROMPTS,
    STRATEGIES,
    Answer,
    Measured,
    Turn,
    page,
    paid,
    policy_of,
    requests_a_round,
    row,
    sentences,
    two_exact,
    verdict,
)
from tests.fakes.pages import check_closed

LENGTHS = (512, 1000, 4096)


def answer(
    strategy: str = "policy", context: int = 512, index: int = 0, right: bool = True, **more
):
    values = {"round": 1, "user": 0, "pool": "exact", "rule": "r", "why": "w"}
    times = {"sent_s": 1.0, "first_s": 1.5, "end_s": 2.0}
    return Answer(
        **values | times | more, strategy=strategy, context=context, index=index, right=right
    )


def measured(window_s: float = 0.2, worse_from: int = 4096, exact_s: float = 0.1) -> list[Measured]:
    n = CALIBRATION_PROMPTS
    found = [Measured("exact", length, exact_s, n, n, "") for length in LENGTHS]
    for length in LENGTHS:
        worse = length >= worse_from
        found.append(
            Measured(
                "window", length, window_s, 3 if worse else n, n, "worse" if worse else "no worse"
            )
        )
    return found


def test_answers_are_judged_prompt_by_prompt() -> None:
    prompts = range(CALIBRATION_PROMPTS)
    right = [answer(index=i) for i in prompts]
    assert verdict(right, list(reversed(right))) == "no worse"
    assert verdict(right, [answer(index=i, right=i > 8) for i in prompts]) == "worse"
    assert verdict(right[:5], right[:5]) == "undecided"  # too few to show it


@pytest.mark.parametrize(("tokens", "open_there", "pool"), [
    (512, 0, "exact"),  # half as long there
    (512, 1, "exact"),
    (512, 2, "window"),  # three times the wait of one that takes twice as long
    (1000, 2, "window"),
    (4096, 9, "exact"),  # the window may not
])  # fmt: skip
def test_the_policy_shares_what_both_may_serve_by_their_speed(
    tokens: int, open_there: int, pool: str
) -> None:
    states = [PoolState("exact", True, running=open_there), PoolState("window", True)]
    assert choose(policy_of(measured()), Request(tokens), states).pool == pool


def test_a_window_that_is_nowhere_right_serves_nothing() -> None:
    states = [PoolState("exact", True, running=99), PoolState("window", True)]
    made = policy_of(measured(worse_from=512))
    assert [choose(made, Request(n), states).pool for n in (1, 512, 4096)] == ["exact"] * 3


@pytest.mark.parametrize(
    ("open_at", "pool"), [((0, 0), "exact"), ((1, 0), "exact-2"), ((1, 2), "exact")]
)
def test_two_exact_pools_share_by_load(open_at: tuple[int, int], pool: str) -> None:
    states = [
        PoolState(name, True, running=n)
        for name, n in zip(("exact", "exact-2"), open_at, strict=True)
    ]
    assert choose(two_exact(), Request(4096), [*states, PoolState("window", True)]).pool == pool


@pytest.mark.parametrize(
    ("ratios", "words"),
    [([1.1, 1.2], "paid"), ([0.8, 0.9], "did not pay"), ([0.9, 1.1], "not shown")],
)
def test_it_says_whether_the_window_paid(ratios: list[float], words: str) -> None:
    assert words in paid(ratios)


def test_the_quicker_pool_comes_first() -> None:
    (rule,) = policy_of(measured(window_s=0.1, exact_s=0.3)).rules
    assert rule.pool == "window"
    assert math.isclose(rule.spill["exact"], 3)


def test_a_row_counts_answers_and_rates_by_round() -> None:
    answers = [
        *(answer(index=i, end_s=2.0 + i) for i in range(4)),  # 4 in 5 s
        *(answer(round=2, context=4096, end_s=4.0, right=False, pool="window") for _ in range(2)),
        answer(strategy="exact"),
    ]
    made = row("policy", answers)
    assert made.rates == [4 / 5, 2 / 4]
    assert made.right == {0: (4, 6), 512: (4, 4), 1000: (0, 0), 4096: (0, 2)}
    assert made.taken == {"exact": 4, "window": 2}


def test_a_round_is_as_long_as_the_exact_pool_makes_it() -> None:
    """Two users at once, all lengths 0.1 s: 20 requests/s, for 45 s."""
    assert requests_a_round(measured(exact_s=0.1)) == 900


def test_the_page_stands_by_itself_and_says_when_it_is_in_doubt() -> None:
    answers = [
        answer(strategy=s, context=n, index=i, pool=p, why="<b>")
        for s in STRATEGIES
        for i, (n, p) in enumerate(zip(LENGTHS, ("exact", "window", "exact"), strict=True))
    ]
    turns = [Turn("policy", 1, 9.0, 0.02)]
    html = page(policy_of(measured()), measured(), answers, turns, {"model": "m"})
    assert "3 of 3 answers right" in html
    assert "<b>" not in html
    check_closed(html)
    assert "in doubt" not in html
    rows = {s: row(s, answers) for s in STRATEGIES}
    assert "doubt" in sentences(rows, [Turn("policy", 1, 9.0, 0.5)])[0]

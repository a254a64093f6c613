"""What the demo makes of its measurements: the policy, and the figures of its page."""

import pytest

from greenbench.contract.policy import PoolState, Request, choose
from planning.fresh import Fresh
from scripts.demo_policy.choice import both_servers, policy_of, verdict
from scripts.demo_policy.comparison import Turn
from scripts.demo_policy.experiment import (
    CALIBRATION_PROMPTS,
    LENGTHS,
    STRATEGIES,
    Answer,
    Measured,
)
from scripts.demo_policy.gain import expected, mixed, requests_a_round, shares, told_before
from scripts.demo_policy.page import page, paid, row, sentences
from tests.fakes.pages import check_closed

SHORT, MIDDLE, LONG = LENGTHS
EXACT_S = {SHORT: 0.2, MIDDLE: 0.4, LONG: 6.0}
WINDOW_S = {SHORT: 0.4, MIDDLE: 0.8, LONG: 3.0}  # twice as slow, twice as slow, twice as quick


def answer(
    strategy: str = "policy", context: int = SHORT, index: int = 0, right: bool = True, **more
):
    values = {"round": 1, "user": 0, "pool": "exact", "rule": "r", "why": "w"}
    times = {"sent_s": 1.0, "first_s": 1.5, "end_s": 2.0}
    return Answer(
        **values | times | more, strategy=strategy, context=context, index=index, right=right
    )


def measured(window_s: dict[int, float] = WINDOW_S, worse_from: int = LONG + 1) -> list[Measured]:
    n = CALIBRATION_PROMPTS
    found = [Measured("exact", length, 0.8 * s, s, n, n, "") for length, s in EXACT_S.items()]
    for length, s in window_s.items():
        right, said = (3, "worse") if length >= worse_from else (n, "no worse")
        found.append(Measured("window", length, 0.8 * s, s, right, n, said))
    return found


def test_answers_are_judged_prompt_by_prompt() -> None:
    prompts = range(CALIBRATION_PROMPTS)
    right = [answer(index=i) for i in prompts]
    assert verdict(right, list(reversed(right))) == "no worse"
    assert verdict(right, [answer(index=i, right=i > 8) for i in prompts]) == "worse"
    assert verdict(right[:5], right[:5]) == "undecided"  # too few to show it


@pytest.mark.parametrize(("tokens", "exact_open", "window_open", "pool"), [
    (SHORT, 0, 0, "exact"),  # half as long there
    (SHORT, 1, 0, "exact"),
    (SHORT, 2, 0, "window"),  # three times the wait of one that takes twice as long
    (MIDDLE, 0, 0, "exact"),
    (4472, 0, 0, "window"),  # from √(2,000 · 10,000) on
    (4471, 0, 0, "exact"),
    (LONG, 0, 1, "window"),
    (LONG, 0, 2, "exact"),
    (LONG + 1, 0, 0, "exact"),  # not tested there
])  # fmt: skip
def test_each_length_goes_to_the_quicker_kind_until_it_is_too_busy(
    tokens: int, exact_open: int, window_open: int, pool: str
) -> None:
    states = [
        PoolState("exact", True, running=exact_open),
        PoolState("window", True, running=window_open),
    ]
    assert choose(policy_of(measured()), Request(tokens), states).pool == pool


def test_a_window_that_is_wrong_serves_nothing_from_there() -> None:
    states = [PoolState("exact", True, running=99), PoolState("window", True)]
    made = policy_of(measured(worse_from=MIDDLE))
    assert [choose(made, Request(n), states).pool for n in (SHORT, MIDDLE, LONG)] == [
        "window", "exact", "exact",
    ]  # fmt: skip
    (bar,) = made.pools["window"].barred
    assert bar.why == f"its answers are worse at {MIDDLE} tokens: 3 of {CALIBRATION_PROMPTS} right"


@pytest.mark.parametrize(
    ("open_at", "pool"), [((0, 0), "window"), ((1, 0), "window-2"), ((1, 2), "window")]
)
def test_two_servers_of_a_kind_share_by_load(open_at: tuple[int, int], pool: str) -> None:
    states = [
        PoolState(name, True, running=n)
        for name, n in zip(("window", "window-2"), open_at, strict=True)
    ]
    idle = [PoolState(name, True) for name in ("exact", "exact-2")]
    assert choose(both_servers("window"), Request(LONG), [*states, *idle]).pool == pool


def test_the_traffic_gives_both_kinds_as_much_to_do() -> None:
    of = shares(measured())
    assert sum(of.values()) == pytest.approx(1)
    exact_s = of[SHORT] * EXACT_S[SHORT] + of[MIDDLE] * EXACT_S[MIDDLE]
    assert exact_s == pytest.approx(of[LONG] * WINDOW_S[LONG])
    assert requests_a_round(measured()) == round(45 / exact_s)
    # 2.5, 1.25 and 0.333 in 4.083: 61, 31 and 8 of 100
    prompts = {n: [n] for n in LENGTHS}
    work = mixed(prompts, of, 100, 1)  # type: ignore[arg-type]
    assert [work.count(n) for n in LENGTHS] == [61, 31, 8]  # type: ignore[arg-type]
    assert work != mixed(prompts, of, 100, 2)  # type: ignore[arg-type]


def test_one_kind_that_is_quicker_throughout_is_no_policy() -> None:
    slow = {n: 2 * s for n, s in EXACT_S.items()}
    found = expected(policy_of(measured(slow)), measured(slow))
    assert not found[-1].shown and "no policy" in told_before(found)


@pytest.mark.parametrize(
    ("ratios", "words"),
    [
        ([1.1, 1.2], "In these 2 rounds the policy served more than two exact servers"),
        ([0.8, 0.9], "did not pay"),
        ([0.9, 1.1], "not shown"),
        ([1.1], "One round shows little: in it the policy served more"),
        ([0.9], "One round shows little: in it the policy did not serve more"),
    ],
)
def test_it_says_whether_the_policy_paid(ratios: list[float], words: str) -> None:
    assert words in paid(row("exact", [answer("exact")]), ratios)


def test_a_row_counts_answers_and_rates_by_round() -> None:
    answers = [
        *(answer(index=i, end_s=2.0 + i) for i in range(4)),  # 4 in 5 s
        *(answer(round=2, context=LONG, end_s=4.0, right=False, pool="window") for _ in range(2)),
        answer(strategy="exact"),
    ]
    made = row("policy", answers)
    assert made.rates == [4 / 5, 2 / 4]
    assert made.right == {0: (4, 6), SHORT: (4, 4), MIDDLE: (0, 0), LONG: (0, 2)}
    assert made.taken == {"exact": 4, "window": 2}


def test_the_page_stands_by_itself_and_says_when_it_is_in_doubt() -> None:
    answers = [
        answer(strategy=s, context=n, index=i, pool=p, why="<b>")
        for s in STRATEGIES
        for i, (n, p) in enumerate(zip(LENGTHS, ("exact", "window", "exact"), strict=True))
    ]
    turns = [Turn("policy", 1, 9.0, 0.02)]
    found = [Fresh(0.7, (0.1, 0.2, -0.1))]
    html = page(policy_of(measured()), measured(), found, answers, turns, {"model": "m"})
    assert "one of each, at random 3 of 3;" in html
    assert "<b>" not in html
    check_closed(html)
    assert "in doubt" not in html
    rows = {s: row(s, answers) for s in STRATEGIES}
    assert "doubt" in " ".join(sentences(rows, [Turn("policy", 1, 9.0, 0.5)], measured(), found))

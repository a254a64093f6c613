"""Small clauses of the report, each against arithmetic or what it was given."""

from dataclasses import replace
from types import SimpleNamespace
from typing import cast

import pytest

from analysis.bottleneck.classify import Bottleneck, Evidence, PhaseBound, PhaseVerdict, PointBound
from analysis.compare.decisions import Contender, Decision, Eligible
from analysis.objectives import GOODPUT
from analysis.report.answer import counts, tally
from analysis.report.choices import untested_words
from analysis.report.formats import factor
from analysis.report.sentences import bound_words, by_bound
from analysis.report.tables import bounds
from analysis.runs.identity import Scenario
from analysis.study import Study


@pytest.mark.parametrize(
    ("gain", "interval", "said"),
    [
        (1.2512, (1.2249, 1.2781), "1.25× [1.22, 1.28]"),
        (1.0812, (1.058, 1.104), "8.1 % [5.8 %, 10.4 %]"),
        (12.345, (9.87, 15.21), "12.3× [9.9, 15.2]"),
        (1234.5, (987.2, 1500.0), "1,234× [987, 1,500]"),
        (2.0, None, "2.00×"),
    ],
)
def test_a_ratio_and_its_interval_have_the_same_decimals(
    gain: float, interval: tuple[float, float] | None, said: str
) -> None:
    assert factor(gain, interval) == said


def bound(prefill: PhaseBound, decode: PhaseBound, of: PointBound = "engine") -> Bottleneck:
    phases = [PhaseVerdict("prefill", prefill, ""), PhaseVerdict("decode", decode, "")]
    return Bottleneck(of, "", phases, Evidence())


def test_all_are_bound_alike_only_where_each_is() -> None:
    known, unknown = bound("compute", "bandwidth"), bound("undetermined", "undetermined")
    alike = "compute-bound in prefill and bandwidth-bound in decode"
    assert bound_words([known, known]) == alike
    assert bound_words([known, unknown]) == "undetermined"  # its starts disagree
    assert bound_words([bound("compute", "undetermined")]) == (
        "compute-bound in prefill and undetermined in decode"
    )
    # the table says "engine" of it
    assert bound_words([unknown]) == "limited by the engine's own speed"
    assert bound_words([bound("undetermined", "undetermined", "undetermined")]) == "undetermined"
    assert bound_words([bound("compute", "compute", "client")]) == "limited by the load generator"
    assert by_bound({"a": alike, "b": alike}) == f"all are {alike}"
    assert by_bound({"d": "undetermined", "a": alike, "b": alike, "c": "undetermined"}) == (
        f"`a` and `b` are {alike}; `c` and `d` are undetermined"
    )


def test_bounds_stand_by_the_number_of_users() -> None:
    def point(users: int) -> SimpleNamespace:
        load = SimpleNamespace(users=users, rate_per_s=None)
        scenario = SimpleNamespace(workload=SimpleNamespace(load=load))
        own = {"run_id": str(users), "load": f"{users} users", "scenario": scenario}
        return SimpleNamespace(model="m", task="t", context_tokens=8192, backend="b", **own)

    points = [point(users) for users in (64, 8, 32, 1)]
    whole = SimpleNamespace(points=points, bottlenecks={p.run_id: None for p in points})
    assert [row.point.run_id for row in bounds(cast(Study, whole))] == ["1", "8", "32", "64"]


def decision(
    starts: dict[str, int],
    front: tuple[str, ...],
    absent: tuple[str, ...] = (),
    tested: bool = False,
) -> Decision:
    outcome = "indicative" if len(front) == 1 else "no clear winner"
    held = tuple(Contender(label, 1.0, n, Eligible(True)) for label, n in starts.items())
    return Decision(cast(Scenario, None), GOODPUT, outcome, front, held, tested, (), absent)


@pytest.mark.parametrize(
    ("starts", "said"),
    [
        ({"a": 1, "b": 1}, "one start each is too few to test"),
        ({"a": 1, "b": 2}, "1 to 2 starts each are too few to test"),
        ({"a": 2, "b": 2}, "2 starts each are too few to test"),
        ({"a": 4, "b": 1}, "fewer than 3 starts of `b` are too few to test"),
    ],
)
def test_starts_are_counted_as_they_were_made(starts: dict[str, int], said: str) -> None:
    assert untested_words([decision(starts, ("a", "b"))]) == said
    assert untested_words([decision(starts, ("a", "b"), tested=True)]) is None


def test_what_is_less_is_less_by_a_share_of_the_other() -> None:
    """38,383 of 41,472 are 7.4 % fewer, and 41,472 are 8.0 % more than 38,383."""
    up = 41_472 / 38_383
    assert (factor(up), factor(up, less=True)) == ("8.0 %", "7.4 %")
    assert factor(up, (1.0, 1.0989), less=True) == "7.4 % [0.0 %, 9.0 %]"
    assert factor(2.0, None, less=True) == "2.00×"


def test_cases_of_too_few_starts_are_tallied() -> None:
    both = {"a": 1, "b": 1}
    made = [decision(both, ("a",)), decision(both, ("a",)), decision(both, ("a", "b"))]
    made.append(decision({"b": 1, "c": 1}, ("b",), absent=("a",)))
    assert tally(made) == (
        "Of 4 compared cases `a` was ahead in 2, `b` was ahead in 1 (`a` has no value there) and 1 has no "
        "clear winner; enter yours below"
    )


def test_cases_of_which_some_are_tested_count_wins_and_leads_apart() -> None:
    both = {"a": 3, "b": 3}
    alike = [decision(both, ("a", "b"), tested=True)] * 6
    led = decision({"a": 1, "c": 1}, ("c",))
    won = replace(decision(both, ("a",), tested=True), outcome="winner")
    assert counts(alike) == ": **no clear winner** in any of the 6 compared cases"
    assert counts([*alike, led]) == (
        ": **no winner is shown** in any of the 7 compared cases; `c` was ahead in 1 (indicative)"
    )
    assert counts([*alike, led, won, won]) == (
        ": it depends on task, load and length: of the 9 compared cases **`a`** wins 2 and 6 have no clear "
        "winner; `c` was ahead in 1 (indicative)"
    )

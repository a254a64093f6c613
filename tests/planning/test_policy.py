"""From sweeps whose truth is known: a policy where candidates cross, none where they do not, refusals."""

import json
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from pathlib import Path

import pytest

from analysis.study import Study, study
from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from greenbench.contract.policy import Policy, PolicyObjective, PoolState, Request, choose
from planning.evidence import Evidence, evidence_of, gather
from planning.fit import policy_of
from planning.policy import pool_names
from planning.policy import written as written_out
from planning.regions import draft
from tests.outside.generator import Point
from tests.planning.sweeps import CROSSING, LONG, SHORT, Cost, crossing_tokens, points, written


@cache
def studied(root: Path, ttft_s: float | None) -> Study:
    return study(root, across_executions=True, slo=limit(ttft_s))


def limit(ttft_s: float | None) -> SloConfig | None:
    return None if ttft_s is None else SloConfig(ttft_s=ttft_s)


def evidence(root: Path, objective: PolicyObjective, ttft_s: float | None) -> Evidence:
    return evidence_of(studied(root, ttft_s), objective, limit(ttft_s))


def made(root: Path, objective: PolicyObjective = "e2e", ttft_s: float | None = None) -> Policy:
    """As `greenbench policy` makes it but for the fresh traces, of which test_fresh.py is."""
    found = policy_of(evidence(root, objective, ttft_s), on_fresh=False)
    assert found is not None
    return found


def drafted(root: Path, objective: PolicyObjective = "e2e", ttft_s: float | None = None) -> Policy:
    """The rules, whether or not they pay with as many servers."""
    found = draft(evidence(root, objective, ttft_s))
    assert found is not None
    return written_out(found)


def takes(policy: Policy, tokens: int) -> str | None:
    states = [PoolState(name, up=True) for name in policy.pools]
    return choose(policy, Request(tokens, 0, 32), states).pool


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return written(tmp_path_factory.mktemp("crossed"), points(CROSSING))


def test_it_switches_where_the_curves_cross(crossed: Path) -> None:
    policy = made(crossed)
    at = crossing_tokens(SHORT, LONG)
    assert policy.decided and set(policy.pools) == {"alpha", "beta"}
    switch = min(
        rule.when.uncached_prompt_tokens.low for rule in policy.rules if rule.pool == "beta"
    )
    assert (
        at < switch < at * 1.15
    )  # the end of the crossover's interval at which beta is surely better
    assert [takes(policy, n) for n in (2048, 8192, 32768, 60_000)] == [
        "alpha", "alpha", "beta", "beta",
    ]  # fmt: skip


def test_gains_are_those_of_the_curves(crossed: Path) -> None:
    policy = made(crossed)
    rule = next(rule for rule in policy.rules if rule.gain is not None)
    true = SHORT.e2e_s(32768) / LONG.e2e_s(32768)
    assert rule.gain is not None and rule.gain.low is not None and rule.gain.high is not None
    assert rule.gain.ratio == pytest.approx(true, rel=0.03)
    assert rule.gain.low < rule.gain.ratio < rule.gain.high
    assert policy.gain is not None and policy.gain.low is not None
    whole = true ** (1 / 3)  # one of three lengths, all weighing the same
    assert policy.gain.ratio == pytest.approx(whole, rel=0.01) and policy.gain.low > 1
    assert policy.default == "alpha"


def test_every_rule_names_the_runs_behind_it(crossed: Path) -> None:
    policy = made(crossed)
    folders = {path.name for path in (crossed / "outside").iterdir()}
    for rule in policy.rules:
        assert rule.runs and set(rule.runs) <= folders
    assert policy.provenance.repeats == 4


def test_rules_and_default_cover_each_length_once(crossed: Path) -> None:
    spans = sorted(
        (rule.when.uncached_prompt_tokens.low, rule.when.uncached_prompt_tokens.high)
        for rule in made(crossed).rules
    )
    assert spans[0][0] == 1024 and spans[-1][1] == 65_537  # twice beyond what was measured
    assert all(a[1] == b[0] for a, b in pairwise(spans))


@pytest.mark.parametrize("objective", ["ttft", "energy", "capacity"])
def test_other_objectives_have_their_policy(crossed: Path, objective: PolicyObjective) -> None:
    policy = drafted(crossed, objective, ttft_s=60)
    assert policy.decided and takes(policy, 32768) == "beta" and takes(policy, 2048) == "alpha"


def test_energy_does_not_spill_to_a_pool_that_takes_more(crossed: Path) -> None:
    assert all(not rule.spill for rule in made(crossed, "energy").rules)
    assert any(rule.spill for rule in made(crossed, "e2e").rules)


def test_tpot_is_equal_so_there_is_no_policy_by_it(crossed: Path) -> None:
    policy = made(crossed, "tpot")
    assert not policy.decided and len(policy.pools) == 1
    assert policy.said[0].startswith("No policy: no candidate is shown to be better than")


def no_policy(tmp_path: Path, made_points: Sequence[Point], repeats: int = 4) -> Policy:
    policy = made(written(tmp_path, made_points, repeats, sd=0.02))
    assert not policy.decided and not policy.rules and list(policy.pools) == [policy.default]
    assert policy.gain is None
    return policy


def test_equal_candidates_have_none(tmp_path: Path) -> None:
    no_policy(tmp_path, points({"alpha": SHORT, "beta": SHORT}))


def test_one_that_is_better_throughout_is_served_alone(tmp_path: Path) -> None:
    slow = Cost(0.12, 0.12)
    assert no_policy(tmp_path, points({"alpha": slow, "beta": SHORT})).default == "beta"


def test_one_start_each_shows_nothing(tmp_path: Path) -> None:
    policy = no_policy(tmp_path, points(CROSSING), repeats=1)
    assert "one server start of each shows nothing" in policy.said[0]


def wrong_when_long(point: Point) -> Point:
    """beta answers most prompts wrong from 16,384 tokens on."""
    bad = point.backend == "beta" and point.context >= 16_384
    return replace(point, right=frozenset(range(6))) if bad else point


def test_one_that_is_disqualified_there_never_serves_there(tmp_path: Path) -> None:
    fast = {"alpha": SHORT, "beta": Cost(0.05, 0.02)}
    root = written(tmp_path, points(fast, (2048, 8192, 16_384, 32_768), change=wrong_when_long))
    policy = drafted(root)
    assert takes(policy, 8192) == "beta" and takes(policy, 16_384) == "alpha"
    down = [PoolState("alpha", up=False), PoolState("beta", up=True)]
    assert choose(policy, Request(16_384), down).pool is None
    assert choose(policy, Request(8_193), down).pool is None  # not shown to be right there
    assert choose(policy, Request(8_192), down).pool == "beta"
    assert any(s.startswith("beta may not serve 16,384 and 32,768 tokens: ") for s in policy.said)


def right_when_short(point: Point) -> Point:
    """gamma, the fastest at 2,048 tokens, answers wrong beyond."""
    bad = point.backend == "gamma" and point.context > 2048
    return replace(point, right=frozenset(range(6))) if bad else point


def test_a_pool_that_does_not_pay_for_its_server_is_left_out(tmp_path: Path) -> None:
    """gamma is 7 % faster in a third of the lengths, and would idle in the rest as one of three servers."""
    costs = {**CROSSING, "gamma": Cost(0.08, 0.01)}
    root = written(tmp_path, points(costs, change=right_when_short))
    assert set(drafted(root).pools) == {"alpha", "beta", "gamma"}
    policy = made(root)
    assert set(policy.pools) == {"alpha", "beta"} and policy.decided
    assert any(s.startswith("gamma has no pool: ") for s in policy.said)
    assert any(
        s.startswith("With 2 servers each, best single (beta) takes 1.") for s in policy.said
    )


def test_a_policy_that_is_not_shown_to_pay_is_none(tmp_path: Path) -> None:
    """beta is the fastest up to 8k and may not serve more: half of the servers for a fifth of the work."""
    fast = {"alpha": SHORT, "beta": Cost(0.05, 0.02)}
    root = written(tmp_path, points(fast, (2048, 8192, 32_768), change=wrong_when_long))
    assert drafted(root).decided
    policy = made(root)
    assert not policy.decided and list(policy.pools) == ["alpha"]
    assert "not shown to be better than 2 servers of alpha" in policy.said[0]


def fp8_of_random_weights(point: Point) -> Point:
    """Nobody is right anywhere, and beta has an FP8 KV cache."""
    nobody = replace(point, right=frozenset())
    fp8 = {"kv_cache_dtype": "fp8"}
    return replace(nobody, server=fp8) if point.backend == "beta" else nobody


def test_what_may_change_answers_that_nobody_judged_serves_only_if_allowed(tmp_path: Path) -> None:
    """beta is better throughout, and its FP8 KV cache was tried on random weights: that says nothing of its
    answers. alpha's are judged as little, but it is exact by design.
    """
    slow = {"alpha": Cost(0.12, 0.12), "beta": SHORT}
    root = written(tmp_path, points(slow, (2048, 32_768), change=fp8_of_random_weights), 2)
    found = study(root, across_executions=True)
    policies = [policy_of(evidence_of(found, "e2e", None, allow)) for allow in (False, True)]
    barred, allowed = [policy for policy in policies if policy is not None]
    assert barred.pools[barred.default].backend == "alpha"
    said = " ".join(barred.said)
    assert "its KV cache is fp8, and its answers there are not judged (" in said
    assert "Not judged: the answers of alpha" in said and "They may be worse" not in said
    assert set(barred.pools[barred.default].unjudged) == {2048, 32_768}
    assert allowed.pools[allowed.default].backend == "beta" and allowed.allow_unjudged
    assert "They may be worse, as its KV cache is fp8; it is here by E2E time alone." in " ".join(
        allowed.said
    )


def unproven(point: Point) -> Point:
    return replace(point, proof="unproven") if point.backend == "beta" else point


def found_running(point: Point) -> Point:
    return replace(point, server={"base_url": "http://127.0.0.1:9000"})


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (unproven, "only alpha has runs here that it may rest on: left out is beta, unproven: "),
        (found_running, "none has runs here that it may rest on: .*base_url"),
    ],
)
def test_unproven_servers_are_refused(tmp_path: Path, change: object, sentence: str) -> None:
    root = written(tmp_path, points(CROSSING, (2048, 32768), change=change), 2)  # type: ignore[arg-type]
    with pytest.raises(UserError, match=sentence):
        gather(root, "e2e")


def test_two_models_are_refused(tmp_path: Path) -> None:
    both = [
        *points(CROSSING, (2048,)),
        *points({"alpha": SHORT}, (2048,), change=lambda p: replace(p, model="other")),
    ]
    with pytest.raises(UserError, match="for one model, the runs are of other and outside-llama"):
        gather(written(tmp_path, both, 1), "e2e")


def test_capacity_needs_an_slo(tmp_path: Path) -> None:
    root = written(tmp_path, points(CROSSING, (2048,), change=lambda p: replace(p, slo={})), 1)
    with pytest.raises(UserError, match="give --slo"):
        gather(root, "capacity")


def test_one_that_misses_the_slo_does_not_serve(tmp_path: Path) -> None:
    """TTFT of 4 users is four prefills: alpha's is 8 s at 32k, beta's 5.8 s; at 2k 0.13 and 0.25 s."""
    root = written(tmp_path, points(CROSSING))
    policy = made(root, "energy", ttft_s=7)
    assert takes(policy, 32_768) == "beta"
    assert any("met the SLO" in sentence for sentence in policy.said)


def loads(users: int) -> list[Point]:
    costs = CROSSING if users == 2 else {"alpha": SHORT, "beta": Cost(0.05, 0.03)}
    return points(costs, (2048, 32768), users=users)


def test_loads_part_at_their_geometric_mean(tmp_path: Path) -> None:
    """At 2 open requests alpha is better with short prompts, at 8 beta: parted at 4."""
    policy = drafted(written(tmp_path, [*loads(2), *loads(8)]))

    def at(open_requests: int) -> str | None:
        states = [PoolState(name, True, running=open_requests) for name in policy.pools]
        return choose(policy, Request(2048, 0, 32), states).pool

    assert [at(n) for n in (0, 3, 4, 30)] == ["alpha", "alpha", "beta", "beta"]


def test_restarts_pay_after_what_the_start_cost(crossed: Path) -> None:
    """The generator's servers do not say how long they took: nothing is made up."""
    (restart,) = made(crossed).restarts
    assert (restart.of, restart.to, restart.boot_s) == ("alpha", "beta", None)
    assert restart.break_even_requests is None and restart.said
    assert restart.changes == ["backend: alpha → beta"]


def test_a_measured_start_is_won_back_after_so_many_requests(tmp_path: Path) -> None:
    """At 4 open requests all takes four times as long: a request of 32k saves 4 · (alpha's − beta's) seconds
    and four wait for the start. beta serves one request a time alone.
    """
    root = written(tmp_path, points(CROSSING))
    for path in root.rglob("manifest.json"):
        manifest = json.loads(path.read_text())
        manifest["server"]["ready_s"] = 40.0
        path.write_text(json.dumps(manifest))
    (restart,) = made(root).restarts
    requests = 40.0 / (SHORT.e2e_s(32768) - LONG.e2e_s(32768))
    assert restart.boot_s == 40.0 and restart.said is None
    assert restart.break_even_requests == pytest.approx(requests, rel=0.05)
    assert restart.break_even_s == pytest.approx(requests * LONG.e2e_s(32768), rel=0.05)
    by_rate = next(r for r in drafted(root, "capacity").restarts)
    saved = LONG.e2e_s(32768) / SHORT.e2e_s(32768)  # what alpha serves of what beta does
    assert by_rate.break_even_s == pytest.approx(40 * saved / (1 - saved), rel=0.1)
    assert drafted(root, "energy").restarts[0].said == "the energy of a start was not recorded"


def test_names_may_stand_in_a_header() -> None:
    called = [
        ("flash_attn", "flash_attn · KV fp8"),
        ("flash_attn", "flash_attn · KV auto"),
        ("sink_window(sink=4)", "sink_window(sink=4) · KV auto"),
        ("A b", "1"),
        ("a/b", "2"),
    ]
    assert pool_names(called) == [
        "flash_attn-kv-fp8", "flash_attn-kv-auto", "sink_window-sink-4", "a-b", "a-b-2",
    ]  # fmt: skip

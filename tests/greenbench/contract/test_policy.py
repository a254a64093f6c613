"""A policy file is read or refused in one sentence, and ``choose`` follows it whatever the pools are like."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from greenbench.contract.errors import UserError
from greenbench.contract.policy import (
    Choice,
    Policy,
    PoolState,
    Request,
    choose,
    compile,
    dump_policy,
    load_policy,
)

LONG = {"uncached_prompt_tokens": {"at_least": 8192}}


def raw(**changed: Any) -> dict[str, Any]:
    """Two pools: ``short`` by default, ``long`` from 8,192 uncached tokens on."""
    return {
        "schema": 1,
        "objective": "e2e",
        "model": {"name": "m"},
        "default": "short",
        "dead_band": 1.25,
        "pools": {"short": {"backend": "alpha"}, "long": {"backend": "beta"}},
        "rules": [{"name": "from-8k", "pool": "long", "when": LONG, "spill": {"short": 2.0}}],
    } | changed


def policy(**changed: Any) -> Policy:
    return Policy.model_validate(raw(**changed))


def idle(*names: str, **told: Any) -> list[PoolState]:
    return [PoolState(name, up=True, **told) for name in names]


BOTH = idle("short", "long")


@pytest.mark.parametrize(
    ("prompt", "cached", "pool"),
    [
        (8191, 0, "short"),
        (8192, 0, "long"),
        (100_000, 95_000, "short"),  # what counts is what must be computed
        (100_000, 91_808, "long"),
        (100, 200, "short"),
    ],
)
def test_a_rule_holds_from_its_first_token_by_uncached_tokens(
    prompt: int, cached: int, pool: str
) -> None:
    chosen = choose(policy(), Request(prompt, cached), BOTH)
    assert (chosen.pool, chosen.rule) == (pool, "from-8k" if pool == "long" else None)


def test_the_compiled_policy_chooses_alike() -> None:
    for tokens in (1, 8191, 8192, 50_000):
        request = Request(tokens)
        assert choose(policy(), request, BOTH) == choose(compile(policy()), request, BOTH)


@pytest.mark.parametrize(
    ("state", "why"),
    [
        (PoolState("long", up=False), "long is down"),
        (PoolState("long", up=True, draining=True), "long is draining"),
        (PoolState("other", up=True), "long is not known"),
        (PoolState("long", up=True, total_kv_tokens=9_000), "holds 9000 KV tokens"),
        (PoolState("long", up=True, free_kv_tokens=9_000), "has 9000 KV tokens free of 9100"),
    ],
)
def test_a_pool_that_cannot_take_it_is_passed_over(state: PoolState, why: str) -> None:
    chosen = choose(policy(), Request(9_000, 0, 100), [PoolState("short", up=True), state])
    assert chosen.pool == "short"
    assert why in chosen.reason


def test_no_free_kv_anywhere_is_no_reason_to_go_elsewhere() -> None:
    full = idle("short", "long", free_kv_tokens=10)
    assert choose(policy(), Request(9_000), full).pool == "long"


def test_what_the_policy_measured_stands_in_for_a_silent_pool() -> None:
    pools = {"short": {"backend": "a"}, "long": {"backend": "b", "total_kv_tokens": 9_000}}
    assert choose(policy(pools=pools), Request(9_000), BOTH).pool == "short"
    pools = {"short": {"backend": "a"}, "long": {"backend": "b", "max_model_len": 9_000}}
    assert choose(policy(pools=pools), Request(9_000), BOTH).pool == "short"
    assert choose(policy(pools=pools), Request(8_999), BOTH).pool == "long"


def test_a_barred_pool_is_no_fallback_either() -> None:
    barred = [{"prompt_tokens": {"at_least": 4_096}, "why": "answers are worse"}]
    pools = {"short": {"backend": "sink", "barred": barred}, "long": {"backend": "exact"}}
    without = [PoolState("short", up=True), PoolState("long", up=False)]
    chosen = choose(policy(pools=pools), Request(9_000, 8_999), without)
    assert chosen.pool is None  # by the whole prompt: cached tokens are attended to as well
    assert "answers are worse" in chosen.reason and "long is down" in chosen.reason
    assert choose(policy(pools=pools), Request(4_095), without).pool == "short"


def test_no_pool_at_all_is_a_choice_with_its_reason() -> None:
    chosen = choose(policy(), Request(10), [])
    assert chosen == Choice(
        None, None, "no pool can take it: short is not known; long is not known"
    )


@pytest.mark.parametrize(("open_requests", "pool"), [(0, "long"), (1, "long"), (2, "short")])
def test_a_loaded_pool_spills_beyond_its_ratio(open_requests: int, pool: str) -> None:
    """At 2: (2 + 1) > 2.0 × (0 + 1); at 1 both are equal."""
    states = [PoolState("short", up=True), PoolState("long", up=True, running=open_requests)]
    assert choose(policy(), Request(9_000), states).pool == pool


def test_without_a_ratio_nothing_spills() -> None:
    rules = [{"name": "r", "pool": "long", "when": LONG}]
    states = [PoolState("short", up=True), PoolState("long", up=True, running=500, waiting=500)]
    assert choose(policy(rules=rules), Request(9_000), states).pool == "long"


def test_load_is_the_mean_over_the_pools_that_can_take_it() -> None:
    when = LONG | {"load": {"at_least": 4}}
    rules = [{"name": "busy", "pool": "long", "when": when}]
    for running, pool in ((3, "short"), (4, "long")):  # (2·4 + running) / 2 at least 4
        states = [
            PoolState("short", up=True, running=running, waiting=0),
            PoolState("long", up=True, running=2, waiting=2),
        ]
        assert choose(policy(rules=rules), Request(9_000), states).pool == pool


@pytest.mark.parametrize(
    ("key", "known", "unknown"),
    [
        ("expected_output_tokens", Request(9_000, 0, 500), Request(9_000, 0, None)),
    ],
)
def test_a_rule_that_asks_for_the_output_needs_to_know_it(
    key: str, known: Request, unknown: Request
) -> None:
    rules = [{"name": "r", "pool": "long", "when": LONG | {key: {"at_least": 400}}}]
    asked = policy(rules=rules)
    assert choose(asked, known, BOTH).pool == "long"
    assert choose(asked, unknown, BOTH).pool == "short"


def test_free_kv_is_that_of_the_rules_own_pool() -> None:
    rules = [{"name": "r", "pool": "long", "when": {"free_kv_tokens": {"below": 1_000}}}]
    asked = policy(rules=rules)
    little = [
        PoolState("short", up=True, free_kv_tokens=9_999),
        PoolState("long", up=True, free_kv_tokens=999),
    ]
    assert choose(asked, Request(10), little).pool == "long"
    assert choose(asked, Request(10), idle("short", "long", free_kv_tokens=1_000)).pool == "short"
    assert choose(asked, Request(10), BOTH).pool == "short"  # unknown


def test_a_conversation_stays_within_the_dead_band() -> None:
    before = Choice("short", None, "")
    asked = policy()
    assert choose(asked, Request(8_192), BOTH, before).pool == "short"
    assert choose(asked, Request(10_239), BOTH, before).pool == "short"  # 10,239 / 1.25 < 8,192
    assert choose(asked, Request(10_240), BOTH, before).pool == "long"
    after = Choice("long", "from-8k", "")
    assert choose(asked, Request(6_554), BOTH, after).pool == "long"  # 6,554 · 1.25 ≥ 8,192
    assert choose(asked, Request(6_553), BOTH, after).pool == "short"
    assert choose(asked, Request(9_000), [PoolState("long", up=True)], before).pool == "long"


STATES = st.builds(
    PoolState,
    name=st.sampled_from(["short", "long"]),
    up=st.booleans(),
    running=st.integers(0, 50),
    waiting=st.integers(0, 50),
    free_kv_tokens=st.none() | st.integers(0, 20_000),
    total_kv_tokens=st.none() | st.integers(1, 40_000),
    draining=st.booleans(),
)


@given(
    st.integers(1, 30_000),
    st.integers(0, 30_000),
    st.none() | st.integers(0, 2_000),
    st.lists(STATES, max_size=2, unique_by=lambda s: s.name),
)
def test_whoever_is_chosen_can_take_it(
    prompt: int, cached: int, output: int | None, states: list[PoolState]
) -> None:
    chosen = choose(policy(), Request(prompt, cached, output), states)
    whole = prompt + (output or 1)
    able = {
        s.name
        for s in states
        if s.up and not s.draining and (s.total_kv_tokens is None or whole <= s.total_kv_tokens)
    }
    assert (chosen.pool in able) if able else chosen.pool is None
    assert chosen.reason


def test_what_is_written_is_read_again(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(dump_policy(policy()))
    assert load_policy(path) == policy()


NOTHING = {"decided": False, "rules": [], "pools": {"short": {"backend": "alpha"}}}


def test_no_policy_is_a_policy(tmp_path: Path) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(raw(**NOTHING, said=["nothing is shown to differ"])))
    assert choose(load_policy(path), Request(9_000), idle("short")).pool == "short"


def overlapping(at: int) -> list[dict[str, Any]]:
    return [
        {"name": "a", "pool": "long", "when": LONG},
        {"name": "b", "pool": "short", "when": {"uncached_prompt_tokens": {"below": at}}},
    ]


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"schema": 2}, "a policy of schema 2, this program reads 1; use the version"),
        ({"schema": 0}, "a policy of schema 0, this program reads 1; make it anew"),
        ({"schema": "one"}, "schema: the number 1 is wanted, found 'one'"),
        ({"default": "shrot"}, "default: no pool 'shrot'; did you mean 'short'"),
        ({"rules": [{"name": "r", "pool": "lnog"}]}, "rules.0.pool: no pool 'lnog'"),
        (
            {"rules": [{"name": "r", "pool": "long", "spill": {"x": 2}}]},
            "rules.0.spill: no pool 'x'",
        ),
        ({"rules": overlapping(8_193)}, "rules 'a' and 'b' hold for the same requests"),
        (
            {
                "rules": [
                    {
                        "name": "r",
                        "pool": "long",
                        "when": {"load": {"at_least": 4, "below": 4}},
                    }
                ]
            },
            "no value is at least 4 and below 4",
        ),
        ({"decided": False}, "'decided: false' means that there is no policy"),
        ({"rules": [{"name": "r", "pool": "long", "spill": {"short": 0.5}}]}, "at least 1"),
        ({"objective": "speed"}, "objective: it should be 'ttft', 'tpot', 'e2e', 'energy'"),
        ({"pols": {}}, "unknown key 'pols'; did you mean 'pools'"),
    ],
)
def test_what_is_wrong_is_one_sentence(
    tmp_path: Path, changed: dict[str, Any], sentence: str
) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(yaml.safe_dump(raw(**changed)))
    with pytest.raises(UserError) as error:
        load_policy(path)
    assert str(error.value).startswith(f"{path}: ") and sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("- a\n- b\n", "keys and values are wanted"),
        ("", "it is empty"),
        ("pools: {", "not valid YAML"),
        ("default: short\n", "'schema' is missing"),
    ],
)
def test_what_is_no_policy_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    path = tmp_path / "policy.yaml"
    path.write_text(text)
    with pytest.raises(UserError, match=sentence):
        load_policy(path)


def test_rules_that_meet_at_an_edge_do_not_contradict() -> None:
    assert len(policy(rules=overlapping(8_192)).rules) == 2

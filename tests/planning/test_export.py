"""What other routers are told is what the policy does, and what they cannot be told is said."""

from typing import Any

import pytest
import yaml

from greenbench.contract.errors import UserError
from greenbench.contract.policy import Policy, PoolState, Request, choose
from planning.export import LONGEST, gateway_api, kubernetes_name, llm_d, production_stack, spans


def rule(name: str, pool: str, low: int, high: int | None, **more: Any) -> dict[str, Any]:
    when = {"uncached_prompt_tokens": {"at_least": low, "below": high}} | more.pop("when", {})
    return {"name": name, "pool": pool, "when": when, **more}


def policy(*rules: dict[str, Any], **changed: Any) -> Policy:
    raw = {
        "schema": 1,
        "objective": "e2e",
        "model": {"name": "m"},
        "default": "short",
        "pools": {"short": {"backend": "a"}, "long": {"backend": "b", "url": "http://b:1"}},
        "rules": list(rules),
    }
    return Policy.model_validate(raw | changed)


TWO = policy(rule("low", "short", 1024, 8192), rule("high", "long", 8192, 65_537))


def labels(made: Policy) -> dict[str, str]:
    found = list(yaml.safe_load_all(llm_d(made).text))
    return {
        patch["metadata"]["name"]: patch["spec"]["template"]["metadata"]["labels"].get(
            "llm-d.ai/context-length-range", ""
        )
        for patch in found[1:]
    }


def taker(ranges: dict[str, str], tokens: int) -> set[str]:
    """By the filter's rule: both ends of ``min-max`` included; a pod without the label takes all."""
    found: set[str] = set()
    for pool, text in ranges.items():
        low, _, high = text.partition("-")
        if not text or int(low) <= tokens <= int(high):
            found.add(pool)
    return found


@pytest.mark.parametrize("tokens", [1, 1023, 1024, 8191, 8192, 65_536])
def test_the_filter_leaves_the_pool_that_the_policy_chooses(tokens: int) -> None:
    states = [PoolState(name, up=True) for name in TWO.pools]
    assert taker(labels(TWO), tokens) == {choose(TWO, Request(tokens), states).pool}


def test_every_length_has_a_taker() -> None:
    assert spans(TWO) == [(0, 8191, "short"), (8192, LONGEST, "long")]
    assert "prompts of 65,537 tokens and more go to long" in " ".join(llm_d(TWO).cannot)


def test_what_may_not_serve_beyond_is_not_sent_beyond() -> None:
    barred = [{"prompt_tokens": {"at_least": 32_769}, "why": "not tested"}]
    pools = {"short": {"backend": "a"}, "long": {"backend": "b", "barred": barred}}
    made = policy(rule("high", "long", 8192, 32_769), pools=pools)
    assert spans(made)[-1] == (32_769, LONGEST, "short")
    assert labels(made) == {"short": "", "long": "8192-32768"}
    assert "short takes 2 ranges of lengths, a label holds one" in " ".join(llm_d(made).cannot)


def test_the_picker_filters_by_the_label_that_the_pods_carry() -> None:
    config = next(yaml.safe_load_all(llm_d(TWO).text))
    named = [plugin["type"] for plugin in config["plugins"]]
    used = [plugin["pluginRef"] for plugin in config["schedulingProfiles"][0]["plugins"]]
    assert used == named
    assert config["plugins"][0]["parameters"] == {
        "label": "llm-d.ai/context-length-range", "enableFiltering": True,
    }  # fmt: skip


def test_what_a_router_cannot_be_told_is_named() -> None:
    made = policy(
        rule("busy", "long", 0, None, when={"load": {"at_least": 4}}, spill={"short": 1.5}),
        dead_band=1.1,
    )
    for export in (llm_d, production_stack, gateway_api):
        said = " ".join(export(made).cannot)
        assert "range of the load only (busy)" in said
        assert "(spill)" in said and "dead band of 1.1" in said and "uncached" in said


def test_llm_d_cannot_be_told_the_tokens_of_a_text_nor_who_takes_over() -> None:
    said = " ".join(llm_d(TWO).cannot)
    assert "a quarter of its bytes" in said and "who takes over from a pool that is down" in said


def test_production_stack_has_a_model_a_pool() -> None:
    config = yaml.safe_load(production_stack(TWO).text)
    assert config["static_models"]["m-long"]["static_backends"] == ["http://b:1"]
    assert config["static_models"]["m-short"]["static_backends"] == [
        "http://short.default.svc:8000"
    ]
    assert config["static_aliases"] == {"m": "m-short"}
    said = " ".join(production_stack(TWO).cannot)
    assert (
        "where short is: no url" in said
        and "where long is: the router passes over http://b:1" in said
    )


@pytest.mark.parametrize(
    "url", ["http://vllm.pool.svc:8000", "http://10.0.0.1:8000", "https://localhost/x"]
)
def test_addresses_that_production_stack_takes_need_no_word(url: str) -> None:
    pools = {"short": {"backend": "a", "url": url}}
    assert not production_stack(policy(pools=pools)).cannot


def test_names_that_production_stack_would_cut_have_no_alias() -> None:
    """It joins models by ',' and aliases by ':', and cuts them again there."""
    made = production_stack(policy(model={"name": "org/m:8b,x"}))
    config = yaml.safe_load(made.text)
    assert list(config["static_models"]) == ["org/m-8b-x-short", "org/m-8b-x-long"]
    assert "static_aliases" not in config and "an alias for 'org/m:8b,x'" in " ".join(made.cannot)


def test_label_values_are_at_most_63_long() -> None:
    long = "A_b." + "x" * 80
    made = policy(default=long, pools={long: {"backend": "a"}})
    pool, route = yaml.safe_load_all(gateway_api(made).text)
    assert pool["spec"]["selector"]["matchLabels"] == {"greenbench.io/pool": "a-b-" + "x" * 59}
    assert route["spec"]["rules"][0]["backendRefs"][0]["name"] == "a-b-" + "x" * 59


def test_two_pools_of_one_name_in_kubernetes_are_refused() -> None:
    made = policy(default="a.b", pools={"a.b": {"backend": "a"}, "a_b": {"backend": "b"}})
    for export in (llm_d, gateway_api):
        with pytest.raises(UserError, match="would both be called 'a-b'"):
            export(made)


def test_the_route_leads_by_header_and_else_to_the_default() -> None:
    *pools, route = yaml.safe_load_all(gateway_api(TWO).text)
    assert [pool["metadata"]["name"] for pool in pools] == ["short", "long"]
    by_header, otherwise = route["spec"]["rules"]
    assert by_header["matches"][0]["headers"][0]["value"] == "long"
    assert by_header["backendRefs"][0]["name"] == "long"
    assert "matches" not in otherwise and otherwise["backendRefs"][0]["name"] == "short"


def test_no_policy_sends_all_to_one_pool() -> None:
    alone = policy(decided=False, pools={"short": {"backend": "a"}})
    assert labels(alone) == {"short": f"0-{LONGEST}"} and llm_d(alone).cannot == ()
    assert len(list(yaml.safe_load_all(gateway_api(alone).text))) == 2


def test_names_are_those_that_kubernetes_takes() -> None:
    assert kubernetes_name("Flash_attn3-kv.fp8") == "flash-attn3-kv-fp8"

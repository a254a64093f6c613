"""The rules of a policy for other routers, as far as each can say them, and sentences for what it cannot."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import groupby, pairwise
from typing import Any

import yaml

from greenbench.contract.errors import UserError
from greenbench.contract.policy import Policy
from greenbench.contract.yaml_text import Dumper

POOL_LABEL = "greenbench.io/pool"
POOL_HEADER = "x-greenbench-pool"
LENGTH_LABEL = "llm-d.ai/context-length-range"
LONGEST = 2**31 - 1  # tokens: no end
PORT = 8000
PICKER_PORT = 9002
# production-stack's router passes over other addresses with a warning, and its lists of models and addresses
# are then of different length
ROUTER_TAKES = re.compile(
    r"https?://([\w-]+(\.[\w-]+)*\.[a-zA-Z]{2,}|localhost|\d+(\.\d+){3})(:\d+)?(/.*)?"
)
CUTS = re.compile("[:,]")  # it writes its lists with these between


@dataclass(frozen=True)
class Export:
    """``text``: one or several YAML documents. ``cannot``: what they leave out."""

    text: str
    cannot: tuple[str, ...]


def documents(*each: Mapping[str, Any], about: str) -> str:
    """YAML documents under comment lines."""
    head = "".join(f"# {line}\n" for line in about.splitlines())
    texts = [yaml.dump(dict(one), Dumper=Dumper, sort_keys=False, width=100) for one in each]
    return head + "---\n".join(texts)


def cannot_anywhere(policy: Policy) -> list[str]:
    """What none of the three can say."""
    said: list[str] = []
    if policy.rules:
        said.append(
            "rules go by uncached prompt tokens; a router goes by the whole prompt, so that a long prompt in "
            "the prefix cache counts as long"
        )
    for key, words in (
        ("load", "the load"),
        ("free_kv_tokens", "free KV tokens"),
        ("expected_output_tokens", "the expected output"),
    ):
        names = [rule.name for rule in policy.rules if key in rule.model_dump()["when"]]
        if names:
            said.append(f"that rules hold for a range of {words} only ({', '.join(names)})")
    if any(rule.spill for rule in policy.rules):
        said.append("from which load on a request goes to another pool (spill)")
    if policy.dead_band > 1:
        said.append(f"the dead band of {policy.dead_band:g} in which a conversation stays")
    return said


# llm-d

_LLM_D_LEAVES = (
    "how long a text is in tokens: llm-d-router takes a quarter of its bytes unless its token-producer asks "
    "a vLLM (token ids it counts); where that fails each prompt is 0 tokens long",
    "who takes over from a pool that is down: the filter leaves nobody for its lengths, and they fail",
)


def spans(policy: Policy) -> list[tuple[int, int, str]]:
    """(first token, last token, pool) from 0 on without a gap: who takes a prompt of that length in every
    rule that covers it; the default where rules differ by load or output, and where there is none.
    """
    whens = [(rule.when.uncached_prompt_tokens, rule.pool) for rule in policy.rules]
    ends = {e for w, _ in whens for e in (w.low, w.high) if 0 < e < math.inf}
    edges = [0, *sorted(math.ceil(e) for e in ends), LONGEST + 1]
    pieces: list[tuple[int, int, str]] = []
    for low, high in pairwise(edges):
        pools = {pool for when, pool in whens if when.low <= low < when.high}
        one = pools.pop() if len(pools) == 1 else policy.default
        pieces.append((low, high - 1, one))
    joined: list[tuple[int, int, str]] = []
    for pool, members in groupby(pieces, key=lambda piece: piece[2]):
        held = list(members)
        joined.append((held[0][0], held[-1][1], pool))
    return _open_end(policy, joined)


def _open_end(policy: Policy, found: list[tuple[int, int, str]]) -> list[tuple[int, int, str]]:
    """What lies beyond the last rule goes on with its pool, unless that may not serve it: one range a pool is
    all that a label holds.
    """
    if len(found) < 2 or found[-1][2] != policy.default:
        return found
    low, _, pool = found[-2]
    barred = policy.pools[pool].barred
    if any(b.prompt_tokens.high > found[-1][0] for b in barred):
        return found
    return [*found[:-2], (low, LONGEST, pool)]


def llm_d(policy: Policy) -> Export:
    """An EndpointPickerConfig, and for each pool a patch of its Deployment with the labels of its pods."""
    _refuse_equal_names(policy)
    cannot = cannot_anywhere(policy)
    if policy.rules:
        cannot += _LLM_D_LEAVES
    ranges: dict[str, tuple[int, int]] = {}
    every = spans(policy)
    for pool in policy.pools:
        mine = [(low, high) for low, high, name in every if name == pool]
        if len(mine) > 1:
            cannot.append(
                f"{pool} takes {len(mine)} ranges of lengths, a label holds one: "
                + (
                    "it has no label and competes everywhere"
                    if pool == policy.default
                    else "it has the widest"
                )
            )
        if len(mine) == 1 or (mine and pool != policy.default):
            ranges[pool] = max(mine, key=lambda one: one[1] - one[0])
    last = max((r.when.uncached_prompt_tokens.high for r in policy.rules), default=0.0)
    if policy.rules and last < math.inf and every[-1][2] != policy.default:
        cannot.append(
            f"prompts of {last:,.0f} tokens and more go to {every[-1][2]}; in the policy no rule holds there"
        )
    for name, pool in policy.pools.items():
        low, high = ranges.get(name, (0, LONGEST))
        for barred in pool.barred:
            if barred.prompt_tokens.low <= high and barred.prompt_tokens.high > low:
                cannot.append(
                    f"{name} may not serve some lengths of its range ({barred.why}), and the filter lets "
                    "them through"
                )
    config = {
        "apiVersion": "llm-d.ai/v1alpha1",
        "kind": "EndpointPickerConfig",
        "plugins": [
            {
                "type": "context-length-aware",
                "parameters": {"label": LENGTH_LABEL, "enableFiltering": True},
            },
            {"type": "load-aware-scorer"},
            {"type": "max-score-picker"},
        ],
        "schedulingProfiles": [
            {
                "name": "default",
                "plugins": [
                    {"pluginRef": "context-length-aware", "weight": 1},
                    {"pluginRef": "load-aware-scorer", "weight": 1},
                    {"pluginRef": "max-score-picker"},
                ],
            }
        ],
    }
    patches = [_pod_labels(pool, ranges.get(pool)) for pool in policy.pools]
    about = (
        "For llm-d-router: the endpoint picker's configuration, then a patch of each pool's Deployment with\n"
        "the prompt lengths (tokens, both ends included) that its pods take."
    )
    return Export(documents(config, *patches, about=about), tuple(cannot))


def _pod_labels(pool: str, span: tuple[int, int] | None) -> dict[str, Any]:
    labels = {POOL_LABEL: kubernetes_name(pool)}
    if span is not None:
        labels[LENGTH_LABEL] = f"{span[0]}-{span[1]}"
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": kubernetes_name(pool)},
        "spec": {"template": {"metadata": {"labels": labels}}},
    }


def kubernetes_name(pool: str) -> str:
    """A DNS label: lower case letters, digits and hyphens, at most 63. A label's value may be one too."""
    return pool.lower().replace("_", "-").replace(".", "-")[:63].strip("-")


def _refuse_equal_names(policy: Policy) -> None:
    named: dict[str, str] = {}
    for pool in policy.pools:
        other = named.setdefault(kubernetes_name(pool), pool)
        if other != pool:
            raise UserError(
                f"pools '{other}' and '{pool}' would both be called '{kubernetes_name(pool)}' in Kubernetes; "
                "rename one of them in the policy"
            )


# vLLM production-stack


def production_stack(policy: Policy) -> Export:
    """The router's dynamic configuration: each pool as a model of its own, for it picks by nothing else."""
    cannot = cannot_anywhere(policy)
    if policy.rules:
        cannot.insert(
            0,
            "which pool takes a length: its routing logics go by turns, sessions, prefixes and the KV cache. "
            "Here each pool is a model name of its own, and whoever calls must choose it",
        )
    model = CUTS.sub("-", policy.model.name)
    models: dict[str, Any] = {}
    for name, pool in policy.pools.items():
        if pool.url is None:
            cannot.append(f"where {name} is: no url in the policy, put one for {_somewhere(name)}")
        elif ROUTER_TAKES.fullmatch(pool.url) is None:
            cannot.append(
                f"where {name} is: the router passes over {pool.url}; it wants a host name with a dot, "
                "localhost, or an IPv4 address"
            )
        models[f"{model}-{name}"] = {
            "static_backends": [pool.url or _somewhere(name)],
            "static_model_type": "chat",
        }
    config: dict[str, Any] = {
        "service_discovery": "static",
        "routing_logic": "roundrobin",
        "static_models": models,
    }
    if model == policy.model.name:
        config["static_aliases"] = {model: f"{model}-{policy.default}"}
    else:
        cannot.append(
            f"an alias for '{policy.model.name}': the router cuts names at ':' and ','; whoever calls names "
            "a pool's model"
        )
    about = (
        "For vLLM production-stack's router: --dynamic-config-yaml. Start each pool's vLLM with\n"
        "--served-model-name as named here; the model's own name leads to the default pool."
    )
    return Export(documents(config, about=about), tuple(cannot))


def _somewhere(pool: str) -> str:
    """A Service's address; the router passes over host names without a dot."""
    return f"http://{kubernetes_name(pool)}.default.svc:{PORT}"


# Gateway API


def gateway_api(policy: Policy) -> Export:
    """An InferencePool a pool, and an HTTPRoute that leads to them by the header that our gateway sets."""
    _refuse_equal_names(policy)
    cannot = cannot_anywhere(policy)
    if policy.rules:
        cannot.insert(
            0,
            f"which pool takes a length: a route sees headers, not tokens. Whoever calls must set "
            f"{POOL_HEADER}; without it a request goes to the default pool",
        )
    pools = [
        {
            "apiVersion": "inference.networking.k8s.io/v1",
            "kind": "InferencePool",
            "metadata": {"name": kubernetes_name(name)},
            "spec": {
                "selector": {"matchLabels": {POOL_LABEL: kubernetes_name(name)}},
                "targetPorts": [{"number": PORT}],
                "endpointPickerRef": {
                    "name": f"{kubernetes_name(name)[:58]}-epp",
                    "port": {"number": PICKER_PORT},
                },
            },
        }
        for name in policy.pools
    ]
    by_header = [
        {
            "matches": [{"headers": [{"type": "Exact", "name": POOL_HEADER, "value": name}]}],
            "backendRefs": [_backend(name)],
        }
        for name in policy.pools
        if name != policy.default
    ]
    route = {
        "apiVersion": "gateway.networking.k8s.io/v1",
        "kind": "HTTPRoute",
        "metadata": {"name": "greenbench-policy"},
        "spec": {
            "parentRefs": [
                {
                    "group": "gateway.networking.k8s.io",
                    "kind": "Gateway",
                    "name": "inference-gateway",
                }
            ],
            "rules": [*by_header, {"backendRefs": [_backend(policy.default)]}],
        },
    }
    about = (
        "For the Gateway API inference extension: an InferencePool a pool (its endpoint picker is yours to\n"
        f"deploy), and a route to them by the header {POOL_HEADER}."
    )
    return Export(documents(*pools, route, about=about), tuple(cannot))


def _backend(pool: str) -> dict[str, Any]:
    return {
        "group": "inference.networking.k8s.io",
        "kind": "InferencePool",
        "name": kubernetes_name(pool),
    }


EXPORTS: dict[str, Callable[[Policy], Export]] = {
    "llm-d": llm_d,
    "production-stack": production_stack,
    "gateway-api": gateway_api,
}

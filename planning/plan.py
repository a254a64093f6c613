"""greenbench plan: replicas, limits, latency, energy and cost of every measured candidate for a traffic."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from pydantic import Field

from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.policy import Policy
from greenbench.contract.strict import StrictModel
from greenbench.contract.yaml_files import load_yaml
from greenbench.contract.yaml_text import Dumper
from planning.batches import Timed
from planning.candidates import Measured, measured
from planning.capacity import Need, Seen, need, pools
from planning.demand import Demand

USERS = (1, 4, 16)  # of the sweep that is enough: alone, some, many in a step
CONTEXTS = (2048, 8192, 32768)  # where no traffic says which


class Prices(StrictModel):
    """``per_card_hour``: of a GPU, or of the host where there is none. ``pue``: facility over IT energy."""

    currency: str = "EUR"
    per_card_hour: float = Field(default=0.0, ge=0)
    per_kwh: float = Field(default=0.0, ge=0)
    pue: float = Field(default=1.0, ge=1)


@dataclass(frozen=True)
class Mixed:
    """A policy's pools: replicas of each."""

    replicas: dict[str, int]
    seen: Seen


@dataclass(frozen=True)
class Plan:
    """``needs``: who may serve first, of these those whose answers are in no doubt, then the fewest replicas.
    ``refused``: a sentence for each candidate that is left out.
    """

    device: str
    traffic: str
    slo: SloConfig
    currency: str
    needs: tuple[Need, ...]
    mixed: Mixed | None
    refused: tuple[str, ...]


def plan(
    root: Path,
    demand: Demand,
    slo: SloConfig,
    hardware: str | None,
    prices: Prices | None,
    policy: Policy | None,
    seed: int,
    exact: Mapping[str, Timed] = MappingProxyType({}),
) -> Plan:
    """UserError where nothing can be planned, with what is nearest. ``exact``: forwards by candidate."""
    found, refused, device = measured(root, slo, hardware)
    unknown = [label for label in exact if label not in {one.label for one in found}]
    if unknown:
        known = "; ".join(one.label for one in found)
        raise UserError(f"--forward wants a candidate ({known}), found '{unknown[0]}'")
    found = [one.told(exact[one.label]) if one.label in exact else one for one in found]
    needs: list[Need] = []
    for one in found:
        made = need(one, demand, slo, seed)
        if isinstance(made, str):
            refused.append(made)
        else:
            needs.append(made if prices is None else _priced(made, one, prices))
    if not needs:
        raise UserError(f"{root}: no candidate can serve this traffic: {'; '.join(refused)}")
    asked = demand.traffic(1.0, seed)
    words = (
        f"{demand.rate_per_s:.3g} requests/s, prompts of {asked.prompt_tokens.mean():,.0f} tokens on average "
        f"({asked.prompt_tokens.min():,} to {asked.prompt_tokens.max():,}), "
        f"{asked.output_tokens.mean():,.0f} out"
    )
    return Plan(
        device=device.words,
        traffic=words,
        slo=slo,
        currency="cost" if prices is None else prices.currency,
        needs=tuple(
            sorted(needs, key=lambda n: (n.barred, n.unjudged, n.replicas or 0, -n.most_rate))
        ),
        mixed=None if policy is None else _mixed(root, policy, found, demand, slo, seed),
        refused=tuple(refused),
    )


def _mixed(
    root: Path, policy: Policy, found: Sequence[Measured], demand: Demand, slo: SloConfig, seed: int
) -> Mixed:
    by_label = {one.label: one for one in found}
    missing = [
        label
        for pool in policy.pools.values()
        if (label := pool.label or pool.backend) not in by_label
    ]
    if missing:
        raise UserError(
            f"{root}: the policy has a pool of {missing[0]}, which is not planned here; give its runs"
        )
    made = pools(policy, by_label, demand, slo, seed)
    if made is None:
        raise UserError(f"{root}: the policy's pools meet the SLO with no number of replicas")
    return Mixed(*made)


def _priced(made: Need, one: Measured, prices: Prices) -> Need:
    cards = (made.replicas or 0) * max(1, one.cards) * 24 * prices.per_card_hour
    factor = prices.per_kwh * prices.pue
    said = made.said
    if made.kwh_day is None and factor:
        said = (*said, "cost is without energy")

    def cost(kwh: tuple[float, float]) -> tuple[float, float]:
        return cards + kwh[0] * factor, cards + kwh[1] * factor

    return replace(
        made,
        cost_day=cost(made.kwh_day or (0.0, 0.0)),
        cost_interval=None if made.kwh_interval is None else cost(made.kwh_interval),
        said=said,
    )


def load_prices(path: Path) -> Prices:
    return parse(Prices, load_yaml(path), str(path))


def dump(made: Plan) -> str:
    """JSON; what is not a number there is null."""
    plain = {**asdict(replace(made, slo=SloConfig())), "slo": made.slo.model_dump()}
    return json.dumps(_finite(plain), indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and value != value else value


def what_to_measure(demand: Demand | None, slo: SloConfig, seed: int) -> str:
    """The keys of a sweep whose runs carry a plan: the lengths of the traffic at three loads."""
    contexts = list(CONTEXTS) if demand is None else _contexts(demand, seed)
    plain = {
        "name": "plan",
        "models": ["YOUR-MODEL"],
        "backends": ["YOUR-BACKENDS"],
        "repeats": 3,
        "contexts": contexts,
        "tasks": ["summarize"],
        "loads": [{"kind": "closed", "users": users} for users in USERS],
        "server": {"iteration_log": True},
        "phases": {"warmup_s": 5, "cap_s": 120},
    }
    bounds = {key: value for key, value in slo.model_dump().items() if value is not None}
    return yaml.dump(plain | ({"slo": bounds} if bounds else {}), Dumper=Dumper, sort_keys=False)


def _contexts(demand: Demand, seed: int) -> list[int]:
    tokens = demand.traffic(1.0, seed).prompt_tokens
    low, high = int(tokens.min()), int(tokens.max())
    return sorted({low, round((low * high) ** 0.5), high})

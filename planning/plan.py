"""greenbench plan: replicas, limits, latency, energy and cost of every measured candidate for a traffic."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Self

import numpy as np
import yaml
from pydantic import Field, model_validator

from greenbench.contract.config import SloConfig
from greenbench.contract.counted import ranged
from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.policy import Policy
from greenbench.contract.strict import StrictModel
from greenbench.contract.yaml_files import load_yaml
from greenbench.contract.yaml_text import Dumper
from planning.batches import Timed
from planning.candidates import Measured, left_out, measured
from planning.capacity import Choice, Need, need, needed
from planning.demand import Demand
from planning.side_by_side import side_by_side

MOST_SERVERS = 64  # of a policy's pools that are played, about
USERS = (1, 4, 16)  # of the sweep that is enough: alone, some, many in a step
CONTEXTS = (2048, 8192, 32768)  # where no traffic says which


class Prices(StrictModel):
    """``per_card_hour``: of a GPU, or of the host where there is none. ``pue``: facility over IT energy."""

    currency: str = Field(default="EUR", min_length=1)
    per_card_hour: float = Field(default=0.0, ge=0)
    per_kwh: float = Field(default=0.0, ge=0)
    pue: float = Field(default=1.0, ge=1)

    @model_validator(mode="after")
    def _has_a_price(self) -> Self:
        if not self.per_card_hour and not self.per_kwh:
            raise ValueError(
                "per_card_hour or per_kwh above 0 is wanted; a plan without prices has no cost"
            )
        return self


@dataclass(frozen=True)
class Plan:
    """``needs``: who may serve first, of these those whose answers are in no doubt, then the fewest cards.
    ``mixed``: the policy's pools. ``refused``: a sentence for each candidate that is left out.
    ``assumed``: of the traffic, where it says something else of itself.
    """

    device: str
    traffic: str
    slo: SloConfig
    currency: str
    needs: tuple[Need, ...]
    mixed: Need | None
    refused: tuple[str, ...]
    assumed: tuple[str, ...] = ()


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
    of = None if policy is None else _pooled(root, policy, found)
    each = side_by_side(partial(need, demand=demand, slo=slo, seed=seed), found)
    needs = [priced(made, prices) for made in each if isinstance(made, Need)]
    refused += [
        (one.label, why) for one, why in zip(found, each, strict=True) if isinstance(why, str)
    ]
    mixed: Need | None = None
    if needs and policy is not None and of is not None:
        made = _mixed(policy, of, demand, slo, seed, needs)
        if isinstance(made, str):
            refused.append(("the policy", made))
        else:
            mixed = priced(made, prices)
    if not needs:
        why = "; ".join(left_out(refused))
        raise UserError(f"{root}: no candidate can serve this traffic: {why}")
    asked = demand.traffic(1.0, seed)
    words = (
        f"{_rate(demand.rate_per_s)} requests/s, prompts of {lengths(asked.prompt_tokens)}, "
        f"{asked.output_tokens.mean():,.0f} out"
    )
    if demand.words:
        words += f" ({demand.words})"
    return Plan(
        device=device.whole_words,
        traffic=words,
        slo=slo,
        currency="cost" if prices is None else prices.currency,
        needs=tuple(sorted(needs, key=lambda n: (n.barred, n.unjudged, n.machines, -n.most_rate))),
        mixed=mixed,
        refused=tuple(left_out(refused)),
        assumed=demand.assumed,
    )


def lengths(tokens: np.ndarray) -> str:
    least, most = tokens.min(), tokens.max()
    span = ranged(least, most)
    return f"{span} tokens" if least == most else f"{tokens.mean():,.0f} tokens on average ({span})"


def _rate(per_s: float) -> str:
    return f"{per_s:,.0f}" if per_s >= 1000 else f"{per_s:.3g}"


def _pooled(root: Path, policy: Policy, found: Sequence[Measured]) -> tuple[Measured, ...]:
    """The candidate of each pool, in the policy's order."""
    by_label = {one.label: one for one in found}
    names = [pool.label or pool.backend for pool in policy.pools.values()]
    missing = [label for label in names if label not in by_label]
    if missing:
        raise UserError(
            f"{root}: the policy has a pool of {missing[0]}, which is not planned here; give its runs"
        )
    return tuple(by_label[label] for label in names)


def _mixed(
    policy: Policy,
    of: tuple[Measured, ...],
    demand: Demand,
    slo: SloConfig,
    seed: int,
    needs: Sequence[Need],
) -> Need | str:
    """Its pools take about as many servers as the best alone does, so of many a part is played."""
    _, share = demand.shared(min(one.replicas for one in needs), MOST_SERVERS)
    made = needed(Choice("the policy", of, policy, round(1 / share)), demand, slo, seed)
    if isinstance(made, str):
        return made
    words = " + ".join(f"{n:,} × {pool}" for n, pool in zip(made.pools, policy.pools, strict=True))
    return replace(made, label=f"the policy: {words}")


def priced(made: Need, prices: Prices | None) -> Need:
    if prices is None:
        return made
    cards = made.machines * 24 * prices.per_card_hour
    factor = prices.per_kwh * prices.pue
    said = made.said
    if made.kwh_day is None and factor:
        said = (*said, "cost is without energy, and so without an interval")
    if not prices.per_card_hour:
        said = (*said, "cost is of energy alone: the prices have no per_card_hour")
    elif not prices.per_kwh:
        said = (*said, "cost is without energy: the prices have no per_kwh")

    def cost(kwh: tuple[float, float]) -> tuple[float, float]:
        return cards + kwh[0] * factor, cards + kwh[1] * factor

    interval = None if made.kwh_interval is None else cost(made.kwh_interval)
    if not factor and made.replicas_interval is not None:
        interval = cards, cards
    return replace(
        made,
        cost_day=cost(made.kwh_day or (0.0, 0.0)),
        cost_interval=interval,
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

"""A policy and its rivals at one truth, each with as many servers."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.runs.identity import Candidate
from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.policy import Policy, PolicyObjective, Pool, compile
from planning.curves import Curves, curves, paces
from planning.evidence import Evidence
from planning.policy import pool_of
from planning.requests import Traffic
from planning.routers import able, at_random, by_policy, foreseeing, least_open, oracle
from planning.score import WHO, Who, values
from planning.simulate import Outcome, Router, Server, server, simulate

MOST_OPEN = 256
OTHERS = (0.0, 0.25, 1.0)  # how much an oracle minds whom it holds up; see ``routers.oracle``
BUSY = 0.7  # of generated traffic
Truth = Mapping[str, Curves]  # by pool


@dataclass(frozen=True)
class Fold:
    """A policy and the truth that it is played against. ``alone``: candidates without a pool that may serve
    all that the default may; the truth has them too.
    """

    policy: Policy
    truth: Truth
    alone: Mapping[str, Pool] = field(default_factory=dict[str, Pool])

    def pool(self, name: str) -> Pool:
        return self.policy.pools.get(name) or self.alone[name]


def fold_of(policy: Policy, evidence: Evidence) -> Fold:
    """The policy, and of every pool and rival the curves over all repeats. UserError where one has none."""
    rivals = rivals_of(policy, evidence)
    truth = _curves_of(evidence, candidates_of(policy, evidence) | rivals)
    return Fold(policy, truth, alone_of(rivals, policy, evidence))


def alone_of(
    rivals: Mapping[str, Candidate], policy: Policy, evidence: Evidence
) -> dict[str, Pool]:
    default = candidates_of(policy, evidence)[policy.default]
    return {name: pool_of(evidence, c, [default, c]) for name, c in rivals.items()}


def rivals_of(policy: Policy, evidence: Evidence) -> dict[str, Candidate]:
    """Candidates without a pool that may serve wherever the default may, by their labels."""
    pools = candidates_of(policy, evidence)
    default = pools[policy.default]
    places = [place for place in evidence.places if evidence.able(default, place)]
    return {
        evidence.labels[c]: c
        for c in evidence.candidates
        if c not in pools.values() and all(evidence.fit_for(c, place) for place in places)
    }


def _curves_of(evidence: Evidence, candidates: Mapping[str, Candidate]) -> Truth:
    truth: dict[str, Curves] = {}
    for name, candidate in candidates.items():
        found = curves(evidence, candidate)
        if found is None:
            raise UserError(
                f"{evidence.root}: pool '{name}' has no times per token here; give runs of a streamed task"
            )
        truth[name] = found
    return truth


def candidates_of(policy: Policy, evidence: Evidence) -> dict[str, Candidate]:
    by_label = {label: c for c, label in evidence.labels.items() if c in evidence.candidates}
    found: dict[str, Candidate] = {}
    for name, pool in policy.pools.items():
        label = pool.label or pool.backend
        if label not in by_label:
            raise UserError(
                f"{evidence.root}: pool '{name}' is '{label}', of which there is no usable run here; "
                f"{nearest(label, by_label)}"
            )
        found[name] = by_label[label]
    return found


def play(
    fold: Fold,
    traffic: Traffic,
    servers: int,
    objective: PolicyObjective,
    slo: SloConfig,
    seed: int,
    whom: Sequence[Who] = WHO,
) -> dict[Who, tuple[Outcome, list[str]]]:
    """Outcome of each of ``whom``, with the pool of each server. A policy of fewer pools than ``servers`` has
    the rest as further servers of its default. Best single: as many servers of whichever pool or rival does
    best alone on this traffic, in hindsight; only of those that may serve all that the default may. The
    oracle is the best of OTHERS in hindsight.
    """
    policy = fold.policy
    mixed = [*policy.pools, *[policy.default] * (servers - len(policy.pools))]
    chooser = compile(policy)
    ready = {pool: _server(fold, pool, traffic) for pool in (*policy.pools, *fold.alone)}
    may = able(policy, traffic)
    own = np.array([policy.default in each for each in may])
    singles = [
        *(p for p in policy.pools if all(p in m for m in may if policy.default in m)),
        *fold.alone,
    ]
    rng = np.random.default_rng(seed)

    def served(pools: list[str], route: Router) -> tuple[Outcome, list[str]]:
        return simulate(traffic, [ready[pool].emptied() for pool in pools], route), pools

    sign = 1 if objective == "capacity" else -1

    def mean(done: tuple[Outcome, list[str]]) -> float:
        return sign * float(np.nanmean(values(done[0], traffic.output_tokens, objective, slo)))

    def alone(pool: str) -> tuple[Outcome, list[str]]:
        here = [frozenset({pool} if mine else ()) for mine in own]
        return served([pool] * servers, least_open(here))

    def knowing() -> tuple[Outcome, list[str]]:
        routes = (oracle(traffic, may, objective, slo, weight) for weight in OTHERS)
        return max((served(mixed, route) for route in routes), key=mean)

    each: dict[Who, Callable[[], tuple[Outcome, list[str]]]] = {
        "foreseeing": lambda: served(mixed, foreseeing(traffic, may, objective, slo)),
        "oracle": knowing,
        "policy": lambda: served(mixed, by_policy(chooser, traffic)),
        "best single": lambda: max(map(alone, singles), key=mean),
        "random": lambda: served(mixed, at_random(may, rng)),
    }
    return {who: each[who]() for who in whom}


def _server(fold: Fold, name: str, traffic: Traffic) -> Server:
    of, pool = paces(fold.truth[name], traffic.prompt_tokens, MOST_OPEN), fold.pool(name)
    seqs = pool.settings.get("max_num_seqs")
    return server(name, of, pool.total_kv_tokens, seqs if isinstance(seqs, int) else None)


def usual_rate(of: Curves, traffic: Traffic, servers: int, busy: float = BUSY) -> float:
    """Requests/s of which so many servers of one pool are ``busy`` for that share of the time, by their
    throughput at the highest measured load.
    """
    most = max(of.ttft_s.loads)
    at = paces(of, traffic.prompt_tokens, math.ceil(most))
    e2e_s = at.ttft_s[:, -1] + at.tpot_s[:, -1] * (traffic.output_tokens - 1)
    return busy * servers * most / float(e2e_s.mean())

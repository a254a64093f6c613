"""Who sends a request where: the policy, the least loaded of equal servers, chance, and two who know more."""

from collections.abc import Callable, Sequence

import numpy as np

from greenbench.contract.config import SloConfig
from greenbench.contract.policy import (
    Chooser,
    Policy,
    PolicyObjective,
    PoolState,
    Request,
    choose,
    compile,
)
from greenbench.contract.slo import is_good
from planning.requests import Traffic
from planning.simulate import Holder, Job, Router, Server, arrivals_of, run

AHEAD = 10  # requests


def requests_of(traffic: Traffic, cached: float = 0.0) -> list[Request]:
    """``cached``: share of each prompt that every pool is expected to hold in its prefix cache."""
    return [
        Request(int(prompt), int(cached * prompt), int(output))
        for prompt, output in zip(traffic.prompt_tokens, traffic.output_tokens, strict=True)
    ]


def able(policy: Policy, traffic: Traffic) -> list[frozenset[str]]:
    """Of each request the pools that may take it at all."""
    chooser = compile(policy)
    names = list(policy.pools)
    return [
        frozenset(
            name
            for name in names
            if choose(chooser, request, [PoolState(name, up=True)]).pool == name
        )
        for request in requests_of(traffic)
    ]


def by_policy(
    chooser: Chooser, traffic: Traffic, cached: float = 0.0
) -> Callable[[int, Sequence[Holder]], int | None]:
    """As the gateway, whose rules are by the tokens that are not cached."""
    requests = requests_of(traffic, cached)

    def route(number: int, servers: Sequence[Holder]) -> int | None:
        pools: dict[str, list[int]] = {}
        for index, one in enumerate(servers):
            pools.setdefault(one.pool, []).append(index)
        states = [_state(name, [servers[i] for i in at]) for name, at in pools.items()]
        chosen = choose(chooser, requests[number], states).pool
        if chosen is None:
            return None
        return min(pools[chosen], key=lambda i: servers[i].open)

    return route


def _state(name: str, servers: Sequence[Holder]) -> PoolState:
    """Of a pool's servers the one that the next request would meet."""
    one = min(servers, key=lambda s: s.open)
    return PoolState(
        name,
        up=True,
        running=len(one.running),
        waiting=len(one.waiting),
        free_kv_tokens=one.free_kv_tokens,
        total_kv_tokens=one.total_kv_tokens,
    )


def least_open(able: Sequence[frozenset[str]]) -> Router:
    def route(number: int, servers: Sequence[Server]) -> int | None:
        may = [i for i, one in enumerate(servers) if one.pool in able[number]]
        return min(may, key=lambda i: servers[i].open, default=None)

    return route


def at_random(able: Sequence[frozenset[str]], rng: np.random.Generator) -> Router:
    def route(number: int, servers: Sequence[Server]) -> int | None:
        may = [i for i, one in enumerate(servers) if one.pool in able[number]]
        return may[int(rng.integers(len(may)))] if may else None

    return route


def oracle(
    traffic: Traffic,
    able: Sequence[frozenset[str]],
    objective: PolicyObjective,
    slo: SloConfig,
    others: float,
) -> Router:
    """Knows the true curves and how far every open request is: the server that the objective suffers least
    at. ``others``: weight of how much the requests that are open there are held up.
    """
    outputs = traffic.output_tokens.tolist()

    def route(number: int, servers: Sequence[Server]) -> int | None:
        may = [i for i, one in enumerate(servers) if one.pool in able[number]]
        return min(
            may,
            key=lambda i: _harm(servers[i], number, outputs[number], objective, slo, others),
            default=None,
        )

    return route


def foreseeing(
    traffic: Traffic, able: Sequence[frozenset[str]], objective: PolicyObjective, slo: SloConfig
) -> Router:
    """Knows also the next AHEAD requests: plays them on from each server that may take this one, and takes
    that after which all that was open and came was served best.
    """
    arrivals = arrivals_of(traffic)
    onward = oracle(traffic, able, objective, slo, 0.0)

    def route(number: int, servers: Sequence[Server]) -> int | None:
        may = [i for i, one in enumerate(servers) if one.pool in able[number]]
        if len(may) < 2:
            return may[0] if may else None
        return min(may, key=lambda i: after(number, servers, i))

    def after(number: int, servers: Sequence[Server], chosen: int) -> float:
        copies = [one.copy() for one in servers]
        for one in copies:
            one.advance(arrivals.at_s[number])
        copies[chosen].take(arrivals.job(number, chosen), arrivals.at_s[number])
        upto = min(len(traffic), number + 1 + AHEAD)
        done = run(arrivals, copies, onward, number + 1, upto)
        return sum(_suffered(job, arrivals.at_s[job.request], objective, slo) for job in done)

    return route


def _suffered(job: Job, at_s: float, objective: PolicyObjective, slo: SloConfig) -> float:
    """By the objective, of a request that was served."""
    ttft, e2e = job.first_s - at_s, job.end_s - at_s
    tpot = (job.end_s - job.first_s) / (job.output_tokens - 1) if job.output_tokens > 1 else 0.0
    if objective == "capacity":
        return 0.0 if is_good(slo, True, ttft, tpot, e2e, job.output_tokens) else 1.0
    return {"ttft": ttft, "tpot": tpot, "e2e": e2e, "energy": job.joules}[objective]


def _harm(
    one: Server,
    number: int,
    output: int,
    objective: PolicyObjective,
    slo: SloConfig,
    others: float,
) -> tuple[float, float]:
    """What the objective suffers by one more request at the server; ties by the time it takes."""
    n = one.open
    at = min(n + 1, one.most_open) - 1
    ttft, tpot = one.ttft[number][at], one.tpot[number][at]
    e2e = ttft + tpot * (output - 1)
    slowed = others and others * sum(_slowed(one, job, n, objective) for job in one.running)
    if objective == "ttft":
        return ttft + slowed, e2e
    if objective == "tpot":
        return tpot + slowed, e2e
    if objective == "energy" and one.watts is not None:
        return one.watts[number][at] * e2e, e2e
    if objective == "capacity":
        met = bool(is_good(slo, True, ttft, tpot, e2e, output))
        return 0.0 if met else 1.0, e2e + slowed
    return e2e + slowed, e2e


def _slowed(one: Server, job: Job, n: int, objective: PolicyObjective) -> float:
    """Seconds (of TPOT: a token) that an open request is held up by one more."""
    more = job.left * (one.stage_s(job, n + 1) - one.stage_s(job, n))
    if objective == "ttft":
        return 0.0 if job.decoding else more
    if objective == "tpot":
        return more / max(1, job.output_tokens - 1) if job.decoding else 0.0
    if job.decoding:
        return more
    row = one.tpot[job.request]
    top = one.most_open
    return more + (job.output_tokens - 1) * (row[min(n + 1, top) - 1] - row[min(n, top) - 1])

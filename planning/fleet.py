"""A fleet of servers under a traffic: played, held against an SLO, what it did and what bound it.

A fleet meets an SLO when at least ``ATTAINED`` of the requests do, in the whole stretch and in its second
half, so that a queue that only grows does not pass; of several pools in each. It may be asked within what was
measured, and up to ``BEYOND`` times beyond, marked as extrapolated; a fleet whose steps hold more sequences
is not a fleet.
"""

import contextlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from greenbench.contract.config import SloConfig
from greenbench.contract.policy import Policy, compile
from greenbench.contract.slo import is_good
from planning.candidates import Measured
from planning.demand import Demand
from planning.evidence import ATTAINED
from planning.front import Front
from planning.regions import BEYOND
from planning.requests import Traffic
from planning.routers import by_policy
from planning.simulator import (
    Costs,
    Engine,
    Floats,
    Job,
    Played,
    Stopped,
    costs,
    least_open,
    play,
)

SHARED = 16  # servers that stand for a larger fleet of equal ones, with their share of the requests
A_FEW_MORE = 1.05
APART = 0.1  # of the prompts' tokens: a share in the prefix cache so far off was not measured
WAITED = 0.2  # of the time with a queue before a limit, from which the limit binds
PERCENTILES = (50, 90, 99)
Counts = tuple[int, ...]  # servers of each pool
Binds = Literal[
    "compute",
    "bandwidth",
    "KV capacity",
    "max_num_seqs",
    "host",
    "small kernels",
    "host or small kernels",  # where it is not known how long no kernel ran
    "host or weights",  # where the card's bandwidth is not known
    "measured loads",
]


@dataclass(frozen=True)
class Use:
    """Of a pool: the share of its servers' time in steps, and of that the share in steps with a prompt."""

    utilisation: float
    prefilling: float


@dataclass(frozen=True)
class Seen:
    """What a fleet did with a traffic. Seconds at ``PERCENTILES``."""

    good: float
    meets: bool
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    e2e_s: tuple[float, ...]
    utilisation: float
    computing: float  # of the busy time
    uses: tuple[Use, ...]  # by pool
    sequences: int  # in a step, 99th percentile of the time
    kv_share: float | None  # of the cache, the most held
    binds: Binds
    reach: float  # the larger of sequences and lengths over the measured ones


@dataclass(frozen=True)
class Fleet:
    """Servers of each of ``of``, under one traffic: the least loaded first, or the pools of ``policy`` by its
    own ``choose``.

    No fleet does better than one with as many servers or more in each pool, each with as much to do or less.
    So a verdict that follows from one that is known is not played. ``unit``: servers of pools that one played
    stands for.
    """

    of: tuple[Measured, ...]
    costs: tuple[Costs, ...]
    demand: Demand
    slo: SloConfig
    seed: int
    policy: Policy | None = None
    unit: int = 1
    verdicts: dict[tuple[Counts, float], bool] = field(
        default_factory=dict[tuple[Counts, float], bool]
    )
    plays: dict[tuple[Counts, float], Seen] = field(
        default_factory=dict[tuple[Counts, float], Seen]
    )

    def meets(self, counts: Counts, factor: float) -> bool:
        """Whether they meet the SLO at ``factor`` times the rate; played no further than to the request that
        decides it.
        """
        found = self._follows(counts, factor)
        if found is None:
            try:
                found = self._seen(counts, factor, early=True).meets
            except Stopped:
                found = self.verdicts[counts, factor] = False
        return found

    def seen(self, counts: Counts, factor: float) -> Seen:
        """Played once for each number of servers and factor."""
        found = self.plays.get((counts, factor))
        return self._seen(counts, factor) if found is None else found

    def busy(self, counts: Counts) -> tuple[float, ...]:
        """Seconds in steps a server of each pool, up to the request that decides whether they meet."""
        servers = self._servers(counts)
        with contextlib.suppress(Stopped):
            self._play(servers, 1.0, 1 / self.unit, early=True)
        names = self._names
        return tuple(
            sum(e.busy_s for e, _ in servers if e.pool == name) / n
            for name, n in zip(names, counts, strict=True)
        )

    def _follows(self, counts: Counts, factor: float) -> bool | None:
        for (others, at), met in self.verdicts.items():
            better, worse = (counts, factor), (others, at)
            if not met:
                better, worse = worse, better
            if _no_worse(*better, *worse):
                return met
        return None

    @property
    def _names(self) -> tuple[str, ...]:
        return ("",) if self.policy is None else tuple(self.policy.pools)

    def _shared(self, counts: Counts) -> tuple[Counts, float]:
        """The servers that are played, and the share of the requests that is theirs. Of equal servers at most
        ``SHARED``, so that a play does not grow with the rate: the least loaded of fewer is no better.
        """
        if len(self.of) > 1:
            return counts, 1 / self.unit
        servers, share = self.demand.shared(sum(counts), SHARED)
        return (servers,), share

    def _servers(self, counts: Counts) -> list[tuple[Engine, Measured]]:
        return [
            (Engine(name, one.settings, own), one)
            for name, one, own, n in zip(self._names, self.of, self.costs, counts, strict=True)
            for _ in range(n)
        ]

    def _seen(self, counts: Counts, factor: float, early: bool = False) -> Seen:
        played_counts, share = self._shared(counts)
        servers = self._servers(played_counts)
        asked, played = self._play(servers, factor, share, early)
        found = self.plays[counts, factor] = judged(
            played, asked, [one for _, one in servers], self.slo, self.demand.file.cached_share
        )
        self.verdicts[counts, factor] = found.meets
        return found

    def _play(
        self, servers: Sequence[tuple[Engine, Measured]], factor: float, share: float, early: bool
    ) -> tuple[Traffic, Played]:
        """Stopped where ``early`` and more have missed the SLO than may."""
        asked = self.demand.traffic(factor, self.seed, share)
        cached = self.demand.file.cached_share
        route = (
            least_open if self.policy is None else by_policy(compile(self.policy), asked, cached)
        )
        watch = Watch(tuple(one.front for one in self.of), self.slo, len(asked))

        def stops(jobs: Sequence[Job | None], now: float) -> bool:
            return early and watch.missed(jobs, now)

        engines = [engine for engine, _ in servers]
        return asked, play(asked, engines, route, cached, stops=stops)


@dataclass
class Watch:
    """Whether so many of ``whole`` requests missed the SLO already that the fleet will. ``fronts``: of its
    pools, of which each request is let have the shortest. ``bad``: that missed, all and of the second half.
    """

    fronts: tuple[Front, ...]
    slo: SloConfig
    whole: int
    looked: int = 0
    open: list[Job] = field(default_factory=list[Job])
    bad: tuple[int, int] = (0, 0)

    def missed(self, jobs: Sequence[Job | None], now: float) -> bool:
        """``jobs``: all that came until ``now``; None: too long for every server."""
        fresh = range(self.looked, len(jobs))
        self._count([number for number in fresh if jobs[number] is None])
        self.open += [job for number in fresh if (job := jobs[number]) is not None]
        self.looked = len(jobs)
        over = [job for job in self.open if not math.isnan(job.end_s)]
        self.open = [job for job in self.open if math.isnan(job.end_s)]
        if over:
            good = self._good(over)
            self._count([job.number for job, met in zip(over, good, strict=True) if not met])
        limit = math.inf if self.slo.ttft_s is None else self.slo.ttft_s
        late = [job for job in self.open if math.isnan(job.first_s) and now - job.arrived_s > limit]
        half = self.whole // 2
        later = self.bad[1] + sum(job.number >= half for job in late)
        may = 1 - ATTAINED
        return self.bad[0] + len(late) > may * self.whole or later > may * (self.whole - half)

    def _count(self, numbers: Sequence[int]) -> None:
        later = sum(number >= self.whole // 2 for number in numbers)
        self.bad = self.bad[0] + len(numbers), self.bad[1] + later

    def _good(self, jobs: Sequence[Job]) -> npt.NDArray[np.bool_]:
        rows = [(job.arrived_s, job.first_s, job.end_s, job.prompt, job.output) for job in jobs]
        arrived, first, end, prompts, outputs = np.array(rows).T
        ways = min(front.request_s + front.reply_s for front in self.fronts)
        ways = ways + min(front.token_s for front in self.fronts) * prompts
        after = np.where(outputs > 1, outputs - 1, np.nan)
        ttft, e2e = first - arrived + ways, end - arrived + ways
        good = is_good(self.slo, np.isfinite(end), ttft, (end - first) / after, e2e, outputs)
        return np.asarray(good)


def _no_worse(counts: Counts, factor: float, than: Counts, at: float) -> bool:
    """Whether each pool has as many servers, and each server as much to do, or more and less."""
    return all(
        many >= few and factor / many <= at / few for many, few in zip(counts, than, strict=True)
    )


def fleet(one: Measured, demand: Demand, slo: SloConfig, seed: int) -> Fleet:
    return fleet_of((one,), demand, slo, seed, None)


def fleet_of(
    of: tuple[Measured, ...],
    demand: Demand,
    slo: SloConfig,
    seed: int,
    policy: Policy | None,
    unit: int = 1,
) -> Fleet:
    """``of``: each pool's, in the policy's order."""
    asked = demand.traffic(1.0, seed)
    return Fleet(of, tuple(costs_of(one, asked) for one in of), demand, slo, seed, policy, unit)


def costs_of(one: Measured, asked: Traffic) -> Costs:
    terms = one.model.at(asked.prompt_tokens)
    return costs(one.shape, terms, one.settings.max_num_batched_tokens)


def judged(
    played: Played, asked: Traffic, of: Sequence[Measured], slo: SloConfig, cached: float
) -> Seen:
    """``of``: that of each engine. ``cached``: share of each prompt in the prefix cache."""
    front = np.array([m.front.request_s + m.front.reply_s for m in of])[played.server]
    front = front + np.array([m.front.token_s for m in of])[played.server] * asked.prompt_tokens
    ttft, e2e = played.ttft_s + front, played.e2e_s + front
    good = np.asarray(is_good(slo, played.served, ttft, played.tpot_s, e2e, asked.output_tokens))
    engines = played.engines
    pools = np.array([engine.pool for engine in engines])[played.server]
    own = [good[played.served & (pools == name)] for name in sorted({e.pool for e in engines})]
    busy = sum(e.busy_s for e in engines)
    reach = max(_reach(e, m, asked, cached) for e, m in zip(engines, of, strict=True))
    kv = [
        e.most_kv_tokens / e.settings.total_kv_tokens for e in engines if e.settings.total_kv_tokens
    ]
    return Seen(
        good=float(good.mean()),
        meets=reach <= BEYOND and all(map(_attained, [good, *own])),
        ttft_s=_percentiles(ttft),
        tpot_s=_percentiles(played.tpot_s),
        e2e_s=_percentiles(e2e),
        utilisation=played.utilisation,
        computing=sum(e.computing_s for e in engines) / busy if busy else 0.0,
        uses=_uses(played),
        sequences=max(_sequences(e) for e in engines),
        kv_share=max(kv, default=None),
        binds="measured loads" if reach > BEYOND else _binds(played, of),
        reach=reach,
    )


def _attained(good: npt.NDArray[np.bool_]) -> bool:
    later = good[len(good) // 2 :]
    return not len(good) or bool(good.mean() >= ATTAINED and later.mean() >= ATTAINED)


def _uses(played: Played) -> tuple[Use, ...]:
    pools: dict[str, list[Engine]] = {}
    for engine in played.engines:
        pools.setdefault(engine.pool, []).append(engine)
    made: list[Use] = []
    for engines in pools.values():
        busy, whole = sum(e.busy_s for e in engines), played.span_s * len(engines)
        filling = sum(e.filling_s for e in engines)
        made.append(Use(busy / whole if whole else 0.0, filling / busy if busy else 0.0))
    return tuple(made)


def _percentiles(values: Floats) -> tuple[float, ...]:
    known = values[np.isfinite(values)]
    if not len(known):
        return (math.nan,) * len(PERCENTILES)
    return tuple(float(v) for v in np.percentile(known, PERCENTILES))


def _sequences(one: Engine) -> int:
    reached = np.cumsum(one.seconds_running)
    return int(np.searchsorted(reached, 0.99 * reached[-1])) if reached[-1] else 0


def _reach(engine: Engine, one: Measured, asked: Traffic, cached: float) -> float:
    return max(_sequences(engine) / one.hull.sequences, length_reach(one, asked, cached))


def length_reach(one: Measured, asked: Traffic, cached: float) -> float:
    """How far the lengths are beyond the measured ones: 1 within, 2 for twice as long or half as short."""
    return max(prompts_reach(one, asked), whole_reach(one, asked), chunk_reach(one, asked, cached))


def prompts_reach(one: Measured, asked: Traffic) -> float:
    low, high = one.hull.prompts
    return float(max(asked.prompt_tokens.max() / high, low / asked.prompt_tokens.min(), 1.0))


def whole_reach(one: Measured, asked: Traffic) -> float:
    """Of the longest request with its output, whose last tokens read the most of the KV cache. A few tokens
    more are none.
    """
    if one.hull.longest is None:
        return 1.0
    return _beyond((asked.prompt_tokens + asked.output_tokens).max() / one.hull.longest)


def chunk_reach(one: Measured, asked: Traffic, cached: float) -> float:
    """Of the most tokens of one prompt that a step computes: where the prefix cache held nearly all of the
    measured prompts, nothing is known of computing them.
    """
    if one.hull.chunk is None:
        return 1.0
    return _beyond(largest_chunk(one, asked, cached) / max(1, one.hull.chunk))


def largest_chunk(one: Measured, asked: Traffic, cached: float) -> int:
    longest = int(asked.prompt_tokens.max())
    new = longest - one.settings.found(longest, cached)
    return min(new, one.settings.max_num_batched_tokens)


def cached_apart(one: Measured, cached: float) -> bool:
    """Whether far more of each prompt, or far less, is taken to be in the prefix cache than was measured."""
    if one.hull.cached is None:
        return False
    low, high = one.hull.cached
    return not low - APART <= cached <= high + APART


def _beyond(reach: float) -> float:
    return float(reach) if reach > A_FEW_MORE else 1.0


def _binds(played: Played, each: Sequence[Measured]) -> Binds:
    """A limit before which requests stood; else what most of the steps' time went to: compute is the linear
    layers and the prompts' attention; bandwidth what is read, of a dense model's weights as long as the
    memory takes at its best. Of the rest, what a step and a sequence take whatever their lengths, host is as
    long as no kernel ran in measured steps, and small kernels are what is left.
    """
    engines = played.engines
    busy = sum(e.busy_s for e in engines) or 1.0
    waited = {
        why: sum(e.seconds_waiting.get(why, 0.0) for e in engines) / busy
        for why in ("max_num_seqs", "kv")
    }
    if max(waited.values()) >= WAITED:
        return "KV capacity" if waited["kv"] > waited["max_num_seqs"] else "max_num_seqs"
    computing = sum(e.computing_s for e in engines)
    own = [_fixed(e, m) for e, m in zip(engines, each, strict=True)]
    fixed, reading, host = (sum(column) for column in zip(*own, strict=True))
    parts: dict[Binds, float] = {
        "compute": computing,
        "bandwidth": busy - computing - fixed + reading,
    }
    if any(m.weights_s is None for m in each):
        parts["host or weights"] = fixed - reading
    elif any(m.host_s is None for m in each):
        parts["host or small kernels"] = fixed - reading
    else:
        parts["host"], parts["small kernels"] = host, fixed - reading - host
    return max(parts, key=lambda name: parts[name])


def _fixed(engine: Engine, one: Measured) -> tuple[float, float, float]:
    """Seconds that its steps took whatever their lengths; of these, of reading weights and of the host."""
    launches = engine.steps * engine.costs.launch_s
    fixed = launches + engine.sequences_s
    reading = min(engine.steps * (one.weights_s or 0.0), launches)
    return fixed, reading, min(engine.steps * (one.host_s or 0.0), fixed - reading)


def watts(of: Sequence[Measured], seen: Seen, counts: Counts) -> tuple[float, float] | None:
    """Bounds: without a measured idle power it lies between none and that of decoding."""
    low = high = 0.0
    for one, use, servers in zip(of, seen.uses, counts, strict=True):
        power = one.power
        if power is None:
            return None
        busy = power.computing_w * use.prefilling + power.decoding_w * (1 - use.prefilling)
        idle = (0.0, min(busy, power.decoding_w)) if power.idle_w is None else (power.idle_w,) * 2
        own = [servers * (use.utilisation * busy + (1 - use.utilisation) * w) for w in idle]
        low, high = low + own[0], high + own[1]
    return low, high

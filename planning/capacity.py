"""How many replicas a traffic takes under an SLO, what binds, and what it costs: by simulation.

A fleet meets an SLO when at least ``ATTAINED`` of the requests do, in the whole stretch and in its second
half, so that a queue that only grows does not pass. It may be asked within what was measured, and up to
``BEYOND`` times beyond, marked as extrapolated; a fleet whose steps hold more sequences is not a fleet.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from greenbench.contract.config import SloConfig
from greenbench.contract.policy import Policy, compile
from greenbench.contract.slo import is_good
from planning.candidates import Measured
from planning.demand import Demand
from planning.evidence import ATTAINED
from planning.regions import BEYOND
from planning.requests import Traffic
from planning.routers import by_policy
from planning.simulator import (
    Costs,
    Engine,
    Floats,
    Job,
    Played,
    Router,
    Stopped,
    costs,
    least_open,
    play,
)

MOST_REPLICAS = 512
ROUNDS = 7  # of bisection for the highest rate: to 2^(1/2^7) or so
MOST_FACTOR = 64  # of the rate, tried
NEAR, NEAR_ROUNDS = 1.2, 4  # the same of a draw, from the plan's own: to 1.2^(1/2^4)
DRAWS = 20
LONGER = ((1.25, 1.0), (1.0, 1.25))  # prompts, outputs
WAITED = 0.2  # of the time with a queue before a limit, from which the limit binds
PERCENTILES = (50, 90, 99)
Binds = Literal[
    "compute",
    "bandwidth",
    "KV capacity",
    "max_num_seqs",
    "host",
    "host or weights",  # where the card's bandwidth is not known
    "measured loads",
]


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
    prefilling: float  # of the busy time, in steps with a prompt
    sequences: int  # in a step, 99th percentile of the time
    kv_share: float | None  # of the cache, the most held
    binds: Binds
    reach: float  # the larger of sequences and lengths over the measured ones


@dataclass(frozen=True)
class Need:
    """Of one candidate. ``*_interval``: 95 % over resampled server starts, None without two of them; of TTFT
    and E2E of the 90th percentile. All but that of ``replicas`` are of as many replicas as the plan has.

    ``most_rate``: requests/s that these replicas take; ``knee``: (rate, p90 TTFT, utilisation) of them.
    ``longer``: replicas where prompts, or outputs, are a quarter longer, None: no number of them, beyond
    what was measured, or more requests too long for a server. ``watts``: bounds on the mean of all replicas;
    equal where idle power was measured, and else the interval holds the bounds of the draws.
    """

    label: str
    replicas: int | None
    replicas_interval: tuple[int, int] | None
    seen: Seen
    ttft_interval: tuple[float, float] | None
    e2e_interval: tuple[float, float] | None
    most_rate: float
    utilisation_at_slo: float
    utilisation_interval: tuple[float, float] | None
    binds: Binds
    headroom: float
    headroom_interval: tuple[float, float] | None
    longer: tuple[int | None, int | None]
    longer_intervals: tuple[tuple[int, int] | None, tuple[int, int] | None]
    knee: tuple[tuple[float, float, float], ...]
    watts: tuple[float, float] | None
    watts_interval: tuple[float, float] | None
    kwh_day: tuple[float, float] | None
    kwh_interval: tuple[float, float] | None
    cost_day: tuple[float, float] | None
    cost_interval: tuple[float, float] | None
    extrapolated: bool  # at this traffic
    most_extrapolated: bool  # at the highest rate
    barred: bool  # its answers, or its failures, at some measured length
    unjudged: bool  # its answers, which it may change
    said: tuple[str, ...]


@dataclass(frozen=True)
class Fleet:
    """Equal replicas of one candidate, under one traffic."""

    one: Measured
    costs: Costs
    demand: Demand
    slo: SloConfig
    seed: int
    known: dict[tuple[int, float], Seen | None] = field(
        default_factory=dict[tuple[int, float], Seen | None]
    )  # None: it does not meet the SLO

    def meets(self, replicas: int, factor: float) -> bool:
        """Whether they meet the SLO; played no further than to the request that decides it."""
        if (replicas, factor) not in self.known:
            try:
                self.known[replicas, factor] = self._seen(replicas, factor, self._misses)
            except Stopped:
                self.known[replicas, factor] = None
        found = self.known[replicas, factor]
        return found is not None and found.meets

    def seen(self, replicas: int, factor: float) -> Seen:
        """Played once for each pair."""
        found = self.known.get((replicas, factor))
        if found is None:
            found = self.known[replicas, factor] = self._seen(replicas, factor)
        return found

    def _misses(self, jobs: Sequence[Job | None], now: float, whole: int) -> bool:
        """Whether more than may miss the SLO have missed it by now, of so many requests."""
        rows = [
            (job.arrived_s, job.first_s, job.end_s, job.prompt, job.output) for job in jobs if job
        ]
        if not rows:
            return False
        arrived, first, end, prompts, outputs = np.array(rows).T
        front = self.one.front
        ways = front.before_s(prompts) + front.reply_s
        over = np.isfinite(end)
        after = np.where(outputs > 1, outputs - 1, np.nan)
        good = is_good(
            self.slo,
            over,
            first - arrived + ways,
            (end - first) / after,
            end - arrived + ways,
            outputs,
        )
        limit = math.inf if self.slo.ttft_s is None else self.slo.ttft_s
        late = np.isnan(first) & (now - arrived > limit)
        missed = len(jobs) - len(rows) + int((late | (over & ~np.asarray(good))).sum())
        return missed > (1 - ATTAINED) * whole

    def _seen(
        self,
        replicas: int,
        factor: float,
        misses: Callable[[Sequence[Job | None], float, int], bool] | None = None,
    ) -> Seen:
        asked = self.demand.traffic(factor, self.seed)
        engines = [Engine("", self.one.settings, self.costs) for _ in range(replicas)]

        def stops(jobs: Sequence[Job | None], now: float) -> bool:
            return misses is not None and misses(jobs, now, len(asked))

        played = play(asked, engines, least_open, self.demand.file.cached_share, stops=stops)
        return judged(played, asked, [self.one], self.slo)


def fleet(one: Measured, demand: Demand, slo: SloConfig, seed: int) -> Fleet:
    return Fleet(one, costs_of(one, demand.traffic(1.0, seed)), demand, slo, seed)


def costs_of(one: Measured, asked: Traffic) -> Costs:
    terms = one.model.at(asked.prompt_tokens)
    return costs(one.shape, terms, one.settings.max_num_batched_tokens)


def judged(played: Played, asked: Traffic, of: list[Measured], slo: SloConfig) -> Seen:
    """``of``: one candidate, or that of each engine."""
    each = [of[i % len(of)] for i in range(len(played.engines))]
    front = np.array([m.front.request_s + m.front.reply_s for m in each])[played.server]
    front = front + np.array([m.front.token_s for m in each])[played.server] * asked.prompt_tokens
    ttft, e2e = played.ttft_s + front, played.e2e_s + front
    good = np.asarray(is_good(slo, played.served, ttft, played.tpot_s, e2e, asked.output_tokens))
    share, later = float(good.mean()), float(good[len(good) // 2 :].mean())
    engines = played.engines
    busy = sum(e.busy_s for e in engines)
    reach = max(_reach(e, m, asked) for e, m in zip(engines, each, strict=True))
    kv = [
        e.most_kv_tokens / e.settings.total_kv_tokens for e in engines if e.settings.total_kv_tokens
    ]
    return Seen(
        good=share,
        meets=share >= ATTAINED and later >= ATTAINED and reach <= BEYOND,
        ttft_s=_percentiles(ttft),
        tpot_s=_percentiles(played.tpot_s),
        e2e_s=_percentiles(e2e),
        utilisation=played.utilisation,
        computing=sum(e.computing_s for e in engines) / busy if busy else 0.0,
        prefilling=sum(e.filling_s for e in engines) / busy if busy else 0.0,
        sequences=max(_sequences(e) for e in engines),
        kv_share=max(kv, default=None),
        binds="measured loads" if reach > BEYOND else _binds(played, each),
        reach=reach,
    )


def _percentiles(values: Floats) -> tuple[float, ...]:
    known = values[np.isfinite(values)]
    if not len(known):
        return (math.nan,) * len(PERCENTILES)
    return tuple(float(v) for v in np.percentile(known, PERCENTILES))


def _sequences(one: Engine) -> int:
    reached = np.cumsum(one.seconds_running)
    return int(np.searchsorted(reached, 0.99 * reached[-1])) if reached[-1] else 0


def _reach(engine: Engine, one: Measured, asked: Traffic) -> float:
    return max(_sequences(engine) / one.hull.sequences, length_reach(one, asked))


def length_reach(one: Measured, asked: Traffic) -> float:
    """How far the lengths are beyond the measured ones: 1 within, 2 for twice as long or half as short."""
    low, high = one.hull.prompts
    return float(max(asked.prompt_tokens.max() / high, low / asked.prompt_tokens.min(), 1.0))


def _binds(played: Played, each: list[Measured]) -> Binds:
    """A limit before which requests stood; else what most of the steps' time went to: compute is the linear
    layers and the prompts' attention; bandwidth what is read, of a dense model's weights as long as the
    memory takes at its best; host the rest, what a step and a sequence take whatever their lengths.
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
    fixed = sum(e.steps * e.costs.launch_s for e in engines) + sum(e.sequences_s for e in engines)
    told = all(m.weights_s is not None for m in each)
    reading = sum(
        e.steps * min(m.weights_s or 0.0, e.costs.launch_s)
        for e, m in zip(engines, each, strict=True)
    )
    parts: dict[Binds, float] = {
        "compute": computing,
        "host" if told else "host or weights": fixed - reading,
        "bandwidth": busy - computing - fixed + reading,
    }
    return max(parts, key=lambda name: parts[name])


def fewest(meets: Callable[[int], bool], near: int = 1, most: int = MOST_REPLICAS) -> int | None:
    """The least number for which ``meets`` holds, which holds for every larger one; looked for from ``near``
    in strides that double. None above ``most``.
    """
    low, high, stride = 0, near, 1  # it does not hold at low, and does at high
    if meets(near):
        while high > 1 and meets(max(1, high - stride)):
            high, stride = max(1, high - stride), 2 * stride
        low = max(0, high - stride)
    else:
        if not meets(most):
            return None
        low = near
        while low + stride < most and not meets(low + stride):
            low, stride = low + stride, 2 * stride
        high = min(most, low + stride)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def need(
    one: Measured, demand: Demand, slo: SloConfig, seed: int, draws: int = DRAWS
) -> Need | str:
    """A sentence where the traffic is beyond what was measured."""
    far = length_reach(one, demand.traffic(1.0, seed))
    if far > BEYOND:
        low, high = one.hull.prompts
        return (
            f"{one.label} was measured with prompts of {low:,} to {high:,} tokens, and the traffic's are "
            f"up to {far:.1f} times as long or as short; measure those lengths"
        )
    whole = fleet(one, demand, slo, seed)
    replicas = fewest(lambda n: whole.meets(n, 1.0))
    if replicas is None:
        return _cannot(whole)
    seen = whole.seen(replicas, 1.0)
    most, at_slo = most_factor(whole, replicas)
    assert at_slo is not None  # they meet the asked rate
    beyond = whole.seen(replicas, most * 1.1)
    longer = tuple(_if_longer(one, demand, by, slo, seed) for by in LONGER)
    spread = _spread(one, demand, slo, seed, replicas, longer, draws, most)
    power = watts(one, seen, replicas)
    spread_w = spread.watts
    if power is not None:
        spread_w = _held(_held(spread_w, power[0]), power[1])
    return Need(
        label=one.label,
        replicas=replicas,
        replicas_interval=_ranged(spread.replicas, replicas),
        seen=seen,
        ttft_interval=_held(spread.ttft_s, seen.ttft_s[1]),
        e2e_interval=_held(spread.e2e_s, seen.e2e_s[1]),
        most_rate=most * demand.rate_per_s,
        utilisation_at_slo=at_slo.utilisation,
        utilisation_interval=_held(spread.utilisation, at_slo.utilisation),
        binds=beyond.binds,
        headroom=most - 1,
        headroom_interval=_held(spread.headroom, most - 1),
        longer=(longer[0], longer[1]),
        longer_intervals=(
            _ranged(spread.longer[0], longer[0]),
            _ranged(spread.longer[1], longer[1]),
        ),
        knee=tuple(_knee(whole, replicas, most)),
        watts=power,
        watts_interval=spread_w,
        kwh_day=_kwh_day(power),
        kwh_interval=_kwh_day(spread_w),
        cost_day=None,
        cost_interval=None,
        extrapolated=seen.reach > 1,
        most_extrapolated=at_slo.reach > 1,
        barred=bool(one.barred),
        unjudged=one.unjudged is not None,
        said=_said(one, demand.traffic(1.0, seed), not spread.replicas, seen, at_slo),
    )


def _cannot(whole: Fleet) -> str:
    untaken = _untaken(whole.one, whole.demand.traffic(1.0, whole.seed))
    if untaken > 1 - ATTAINED:
        return f"{whole.one.label} cannot serve this traffic: {_too_long(whole.one, untaken)}"
    alone = whole.seen(MOST_REPLICAS, 1.0)
    parts = [
        f"{name} {value:.3g} s (at most {limit:.3g} s)"
        for name, value, limit in (
            ("TTFT", alone.ttft_s[1], whole.slo.ttft_s),
            ("TPOT", alone.tpot_s[1], whole.slo.tpot_s),
            ("E2E", alone.e2e_s[1], whole.slo.e2e_s),
        )
        if limit is not None and value > limit
    ]
    near = (
        f"with {MOST_REPLICAS} its 90th percentile is still {', '.join(parts)}"
        if parts
        else "its loads are not measured"
    )
    return f"{whole.one.label} meets the SLO with no number of replicas: {near}"


def _untaken(one: Measured, asked: Traffic) -> float:
    """Share of the requests that no server of it can hold."""
    tokens = asked.prompt_tokens + asked.output_tokens
    return float(np.mean([not one.settings.takes(int(n)) for n in tokens]))


def _too_long(one: Measured, share: float) -> str:
    limits = [
        n for n in (one.settings.max_model_len, one.settings.total_kv_tokens) if n is not None
    ]
    most = f"{min(limits):,} tokens that a server takes"
    return f"{100 * share:.1f} % of the requests have more than the {most}"


def _held(ends: tuple[float, float] | None, own: float) -> tuple[float, float] | None:
    """The interval with the plan's own figure in it, whose arrivals are none of the draws'."""
    return None if ends is None else (min(ends[0], own), max(ends[1], own))


def _ranged(counts: Sequence[int], own: int | None) -> tuple[int, int] | None:
    """95 % of numbers of replicas, in whole ones, with the plan's own; None without it or without two."""
    if own is None or len(counts) < 2:
        return None
    low, high = np.percentile(counts, [2.5, 97.5])
    return min(math.floor(low), own), max(math.ceil(high), own)


def _kwh_day(watts: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if watts is None else (watts[0] * 0.024, watts[1] * 0.024)


def most_factor(
    whole: Fleet, replicas: int, near: float = 1.0, step: float = 2.0, rounds: int = ROUNDS
) -> tuple[float, Seen | None]:
    """The highest multiple of the rate that still meets, and what is seen at it: looked for from ``near`` by
    factors of ``step``, then halved ``rounds`` times. (0, None) below a 64th of the rate.
    """

    def meets(factor: float) -> bool:
        return whole.meets(replicas, factor)

    low = near
    if meets(near):
        while low < MOST_FACTOR and meets(step * low):
            low *= step
        if low >= MOST_FACTOR:
            return low, whole.seen(replicas, low)
    else:
        least = math.floor(math.log(near * MOST_FACTOR, step))
        down = fewest(lambda n: meets(near / step**n), most=least) if least > 0 else None
        if down is None:
            return 0.0, None
        low = near / step**down
    high = step * low
    for _ in range(rounds):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if meets(middle) else (low, middle)
    return low, whole.seen(replicas, low)


def _if_longer(
    one: Measured, demand: Demand, by: tuple[float, float], slo: SloConfig, seed: int
) -> int | None:
    """None as well where that makes requests too long for a server: without them fewer replicas would do."""
    longer = demand.stretched(*by)
    asked, told = (each.traffic(1.0, seed) for each in (longer, demand))
    if length_reach(one, asked) > BEYOND or _untaken(one, asked) > _untaken(one, told):
        return None
    whole = fleet(one, longer, slo, seed)
    return fewest(lambda n: whole.meets(n, 1.0))


def _knee(whole: Fleet, replicas: int, most: float) -> list[tuple[float, float, float]]:
    found: list[tuple[float, float, float]] = []
    for share in (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1):
        seen = whole.seen(replicas, most * share)
        found.append((most * share * whole.demand.rate_per_s, seen.ttft_s[1], seen.utilisation))
    return found


@dataclass(frozen=True)
class Spread:
    """95 % over the draws; of numbers of replicas each draw's, MOST_REPLICAS where none is enough."""

    replicas: tuple[int, ...] = ()
    longer: tuple[tuple[int, ...], tuple[int, ...]] = ((), ())
    ttft_s: tuple[float, float] | None = None
    e2e_s: tuple[float, float] | None = None
    utilisation: tuple[float, float] | None = None  # at the highest rate
    headroom: tuple[float, float] | None = None
    watts: tuple[float, float] | None = None


def _spread(
    one: Measured,
    demand: Demand,
    slo: SloConfig,
    seed: int,
    replicas: int,
    longer: Sequence[int | None],
    draws: int,
    most: float,
) -> Spread:
    """Server starts drawn with replacement, each with arrivals of its own. ``most``: the plan's factor."""
    if one.blocks < 2:
        return Spread()
    rng = np.random.default_rng(seed)
    counts: list[int] = []
    stretched: tuple[list[int], list[int]] = ([], [])
    ttft: list[float] = []
    e2e: list[float] = []
    busy: list[float] = []
    room: list[float] = []
    power: list[tuple[float, float]] = []
    for draw in range(draws):
        own = one.drawn(rng)
        if own is None:
            continue
        whole = fleet(own, demand, slo, seed + 1 + draw)
        found = fewest(lambda n, f=whole: f.meets(n, 1.0), replicas)
        counts.append(MOST_REPLICAS if found is None else found)
        for by, near, several in zip(LONGER, longer, stretched, strict=True):
            if near is not None:
                slower = fleet(own, demand.stretched(*by), slo, seed + 1 + draw)
                enough = fewest(lambda n, f=slower: f.meets(n, 1.0), near)
                several.append(MOST_REPLICAS if enough is None else enough)
        seen = whole.seen(replicas, 1.0)
        ttft.append(seen.ttft_s[1])
        e2e.append(seen.e2e_s[1])
        own_most, at = most_factor(whole, replicas, most, NEAR, NEAR_ROUNDS)
        room.append(own_most - 1)
        busy.append(0.0 if at is None else at.utilisation)
        if (drawn := watts(own, seen, replicas)) is not None:
            power.append(drawn)
    if len(counts) < 2:
        return Spread()
    return Spread(
        tuple(counts),
        (tuple(stretched[0]), tuple(stretched[1])),
        _ends(ttft),
        _ends(e2e),
        _ends(busy),
        _ends(room),
        (_ends([w for w, _ in power])[0], _ends([w for _, w in power])[1]) if power else None,
    )


def _ends(values: list[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def watts(one: Measured, seen: Seen, replicas: int) -> tuple[float, float] | None:
    """Bounds: without a measured idle power it lies between none and that of decoding."""
    power = one.power
    if power is None:
        return None
    busy = power.computing_w * seen.prefilling + power.decoding_w * (1 - seen.prefilling)
    idle = (0.0, min(busy, power.decoding_w)) if power.idle_w is None else (power.idle_w,) * 2
    low, high = (replicas * (seen.utilisation * busy + (1 - seen.utilisation) * w) for w in idle)
    return low, high


def _said(
    one: Measured, asked: Traffic, no_interval: bool, seen: Seen, at_slo: Seen
) -> tuple[str, ...]:
    untaken, lengths = _untaken(one, asked), length_reach(one, asked)
    said = [*(f"may not serve: {why}" for why in one.barred)]
    if one.unjudged is not None:
        said.append(one.unjudged)
    if untaken:
        said.append(f"{_too_long(one, untaken)}; they are counted as missing the SLO")
    if lengths > 1:
        said.append(
            f"extrapolated: its prompts are up to {lengths:.2f} times as long or as short as the measured"
        )
    if seen.reach > lengths:
        said.append(
            f"extrapolated: {seen.reach:.2f} times as many sequences in a step as were measured"
        )
    elif at_slo.reach > lengths:
        said.append(
            "its headroom is extrapolated: at its highest rate a step holds "
            f"{at_slo.reach:.2f} times as many sequences as were measured"
        )
    if no_interval:
        said.append("no interval: one server start; measure at least 2 repeats")
    if one.power is None:
        said.append(f"no W and kWh: {one.no_power}")
    elif one.power.idle_w is None:
        said.append("idle power was not measured, so W and kWh are bounds")
    if one.exact is not None:
        said.append(f"fitted to {len(one.exact)} batches of `vllm bench forward` as well")
    left = one.model.residuals()
    said.append(
        f"step time off by {100 * left.median:.0f} % (median step), {100 * left.worst_run:.0f} % "
        f"(all steps of the worst run), {left.steps:,} steps"
    )
    return tuple(said)


def pools(
    policy: Policy, by_label: dict[str, Measured], demand: Demand, slo: SloConfig, seed: int
) -> tuple[dict[str, int], Seen] | None:
    """Replicas a pool, added where the servers are busiest until the SLO is met; None where it never is."""
    names = list(policy.pools)
    of = {name: by_label[policy.pools[name].label or policy.pools[name].backend] for name in names}
    asked = demand.traffic(1.0, seed)
    ready = {n: costs_of(m, asked) for n, m in of.items()}
    route: Router = by_policy(compile(policy), asked)
    counts = dict.fromkeys(names, 1)
    while sum(counts.values()) <= MOST_REPLICAS:
        order = [name for name in names for _ in range(counts[name])]
        engines = [Engine(name, of[name].settings, ready[name]) for name in order]
        played = play(asked, engines, route, demand.file.cached_share)
        seen = judged(played, asked, [of[name] for name in order], slo)
        if seen.meets:
            return counts, seen
        busy = {n: sum(e.busy_s for e in engines if e.pool == n) / counts[n] for n in names}
        busiest = max(names, key=lambda name: busy[name])
        counts[busiest] += max(1, counts[busiest] // 4)
    return None

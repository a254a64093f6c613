"""How many replicas a traffic takes under an SLO, what binds, and what it costs: by simulation."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from greenbench.contract.config import SloConfig
from greenbench.contract.counted import ranged
from greenbench.contract.policy import Policy
from planning.candidates import Measured
from planning.demand import Demand, cached_words
from planning.evidence import ATTAINED
from planning.fleet import (
    Binds,
    Counts,
    Fleet,
    Seen,
    cached_apart,
    chunk_reach,
    fleet_of,
    largest_chunk,
    length_reach,
    prompts_reach,
    watts,
    whole_reach,
)
from planning.regions import BEYOND
from planning.requests import Traffic

MOST_REPLICAS = 1 << 40
MOST_PLAYED = 512  # of pools
ROUNDS = 7  # the highest rate is known to 2^(1/2^7)
MOST_FACTOR = 64  # of the rate, tried
CAPPED = 0.99 * MOST_FACTOR
NEAR, NEAR_ROUNDS = 1.2, 4  # the same of a draw: to 1.2^(1/2^4) times the plan's own
DRAWS = 20
LONGER = {"prompts +25 %": (1.25, 1.0), "outputs +25 %": (1.0, 1.25)}  # factors on prompts, outputs


@dataclass(frozen=True)
class Need:
    """Of one candidate. ``*_interval``: 95 % over resampled server starts, None without two of them; of TTFT
    and E2E of the 90th percentile. All but that of ``replicas`` are of as many replicas as the plan has.

    ``most_rate``: requests/s that these replicas take; ``knee``: (rate, p90 TTFT, utilisation) of them.
    ``longer``: replicas where prompts, or outputs, are a quarter longer, None: ``said`` has why.
    ``watts``: bounds on the mean of all replicas; equal where idle power was measured, and else the interval
    holds the bounds of the draws.
    """

    label: str
    pools: Counts
    replicas: int
    cards: int
    replicas_interval: tuple[int, int | None] | None
    seen: Seen
    ttft_interval: tuple[float, float] | None
    e2e_interval: tuple[float, float] | None
    most_rate: float
    most_rate_interval: tuple[float, float] | None
    utilisation_at_slo: float
    utilisation_interval: tuple[float, float] | None
    binds: Binds
    headroom: float
    headroom_interval: tuple[float, float] | None
    longer: tuple[int | None, int | None]
    longer_intervals: tuple[tuple[int, int | None] | None, tuple[int, int | None] | None]
    knee: tuple[tuple[float, float, float], ...]
    watts: tuple[float, float] | None
    watts_interval: tuple[float, float] | None
    kwh_day: tuple[float, float] | None
    kwh_interval: tuple[float, float] | None
    cost_day: tuple[float, float] | None
    cost_interval: tuple[float, float] | None
    extrapolated: bool  # at this traffic
    most_extrapolated: bool  # at the highest rate
    most_capped: (
        bool  # it, the headroom and the utilisation are at least this: no higher rate was tried
    )
    barred: bool  # its answers, or its failures, at some measured length
    unjudged: bool  # its answers, which it may change
    said: tuple[str, ...]

    @property
    def machines(self) -> int:
        """Cards, or hosts where there are none: what is paid for, and what candidates compare by."""
        return max(self.replicas, self.cards)


@dataclass(frozen=True)
class Choice:
    """Who may serve: a candidate, or the pools of a policy, each with its candidate in the policy's order.
    ``unit``: servers that one played stands for.
    """

    label: str
    of: tuple[Measured, ...]
    policy: Policy | None = None
    unit: int = 1

    def fleet(self, demand: Demand, slo: SloConfig, seed: int) -> Fleet:
        return fleet_of(self.of, demand, slo, seed, self.policy, self.unit)

    def servers(self, counts: Counts) -> Counts:
        return tuple(self.unit * n for n in counts)

    def total(self, counts: Counts | None) -> int | None:
        return None if counts is None else sum(self.servers(counts))

    def drawn(self, rng: np.random.Generator) -> "Choice | None":
        made = {one.label: one.drawn(rng) for one in self.of}
        known = [own for one in self.of if (own := made[one.label]) is not None]
        return replace(self, of=tuple(known)) if len(known) == len(self.of) else None

    @property
    def one_start(self) -> bool:
        return min(one.blocks for one in self.of) < 2


def fewest(
    meets: Callable[[int], bool],
    near: int = 1,
    least: int = 1,
    most: int = MOST_REPLICAS,
    stride: int = 1,
) -> int | None:
    """The least number from ``least`` for which ``meets`` holds, which holds for every larger one; looked for
    from ``near`` in strides that double. None above ``most``.
    """
    low, high = least - 1, max(least, min(near, most))  # it does not hold at low, and does at high
    if meets(high):
        while high > low + 1 and meets(max(low + 1, high - stride)):
            high, stride = max(low + 1, high - stride), 2 * stride
        low = max(low, high - stride)
    else:
        low = high
        while low < most and not meets(min(most, low + stride)):
            low, stride = min(most, low + stride), 2 * stride
        if low == most:
            return None
        high = min(most, low + stride)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if meets(middle) else (middle, high)
    return high


def enough(whole: Fleet, near: Counts, least: int = 1) -> Counts | None:
    """The fewest servers that meet the SLO, looked for from ``near``; of pools, added where the servers are
    busiest until it is met, and then as many taken away as none misses.
    """
    if len(near) == 1:
        if not whole.meets(near, 1.0) and not whole.meets((MOST_REPLICAS,), 1.0):
            return None
        found = fewest(lambda n: whole.meets((n,), 1.0), near[0], least)
        return None if found is None else (found,)
    counts = near
    while not whole.meets(counts, 1.0):
        busy = whole.busy(counts)
        at = busy.index(max(busy))
        counts = _changed(counts, at, counts[at] + max(1, counts[at] // 4))
        if sum(counts) > MOST_PLAYED:
            return None
    for at, many in enumerate(counts):
        found = fewest(lambda n, c=counts, i=at: whole.meets(_changed(c, i, n), 1.0), many)
        counts = _changed(counts, at, found or many)
    return counts


def _changed(counts: Counts, at: int, to: int) -> Counts:
    return (*counts[:at], to, *counts[at + 1 :])


def need(
    one: Measured, demand: Demand, slo: SloConfig, seed: int, draws: int = DRAWS
) -> Need | str:
    """A clause that says why not, where the traffic is beyond what was measured."""
    return needed(Choice(one.label, (one,)), demand, slo, seed, draws)


def needed(
    choice: Choice, demand: Demand, slo: SloConfig, seed: int, draws: int = DRAWS
) -> Need | str:
    """``need`` of a candidate, or of the pools of a policy."""
    asked, cached = demand.traffic(1.0, seed), demand.file.cached_share
    for one in choice.of:
        if length_reach(one, asked, cached) > BEYOND:
            of = "" if choice.policy is None else f" with {one.label}"
            return (
                f"{_lengths_beyond(one, asked, cached, of)}, more than {BEYOND:g} times beyond; measure "
                "those lengths"
            )
    whole = choice.fleet(demand, slo, seed)
    counts = enough(whole, (1,) * len(choice.of))
    if counts is None:
        return _cannot(choice, whole)
    seen = whole.seen(counts, 1.0)
    most, at_slo = most_factor(whole, counts, stride=2**ROUNDS)
    assert at_slo is not None  # they meet the asked rate
    beyond = whole.seen(counts, most * 1.1)
    tried = [_if_longer(choice, demand, by, slo, seed, counts) for by in LONGER.values()]
    longer = [None if isinstance(each, str) else each for each in tried]
    spread = _spread(choice, demand, slo, seed, draws, Own(counts, seen, most, tuple(longer)))
    room, rate = _held(spread.headroom, most - 1), demand.rate_per_s
    servers = choice.servers(counts)
    power = watts(choice.of, seen, servers)
    spread_w = spread.watts
    if power is not None:
        spread_w = _held(_held(spread_w, power[0]), power[1])
    totals = [choice.total(each) for each in longer]
    apart = any(cached_apart(one, cached) for one in choice.of)
    return Need(
        label=choice.label,
        pools=servers,
        replicas=sum(servers),
        cards=sum(n * one.cards for n, one in zip(servers, choice.of, strict=True)),
        replicas_interval=_ranged(spread.replicas, sum(servers)),
        seen=seen,
        ttft_interval=_held(spread.ttft_s, seen.ttft_s[1]),
        e2e_interval=_held(spread.e2e_s, seen.e2e_s[1]),
        most_rate=most * demand.rate_per_s,
        most_rate_interval=None if room is None else (rate * (1 + room[0]), rate * (1 + room[1])),
        utilisation_at_slo=at_slo.utilisation,
        utilisation_interval=_held(spread.utilisation, at_slo.utilisation),
        binds=beyond.binds,
        headroom=most - 1,
        headroom_interval=room,
        longer=(totals[0], totals[1]),
        longer_intervals=(
            _ranged(spread.longer[0], totals[0]),
            _ranged(spread.longer[1], totals[1]),
        ),
        knee=tuple(_knee(whole, counts, most)),
        watts=power,
        watts_interval=spread_w,
        kwh_day=_kwh_day(power),
        kwh_interval=_kwh_day(spread_w),
        cost_day=None,
        cost_interval=None,
        extrapolated=apart or seen.reach > 1,
        most_extrapolated=apart or at_slo.reach > 1,
        most_capped=most >= CAPPED,
        barred=any(one.barred for one in choice.of),
        unjudged=any(one.unjudged is not None for one in choice.of),
        said=(
            *_said(choice, asked, cached, spread.none, seen, at_slo, most),
            *_no_number(tried),
        ),
    )


def _cannot(choice: Choice, whole: Fleet) -> str:
    for one in choice.of:
        untaken = _untaken(one, whole.demand.traffic(1.0, whole.seed))
        if untaken > 1 - ATTAINED:
            return _too_long(one, untaken)
    if choice.policy is not None:
        return "no number of replicas of its pools meets the SLO"
    alone = whole.seen((MOST_REPLICAS,), 1.0)
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
        f"however many, its 90th percentile is still {', '.join(parts)}"
        if parts
        else "its loads are not measured"
    )
    return f"no number of replicas meets the SLO: {near}"


def _lengths_beyond(one: Measured, asked: Traffic, cached: float, of: str = "") -> str:
    """What was measured against what is asked, of prompts, whole requests or chunks: what is furthest off."""
    low, high = one.hull.prompts
    least, most = asked.prompt_tokens.min(), asked.prompt_tokens.max()
    prompts, whole = prompts_reach(one, asked), whole_reach(one, asked)
    if chunk_reach(one, asked, cached) > max(prompts, whole):
        return (
            f"steps that computed up to {one.hull.chunk:,} tokens of a prompt were measured{of}, as the "
            f"prefix cache held the rest, and the traffic's compute up to "
            f"{largest_chunk(one, asked, cached):,}"
        )
    if prompts >= whole:
        return (
            f"prompts of {ranged(low, high)} tokens were measured{of}, and the traffic's are of "
            f"{ranged(least, most)}"
        )
    longest = (asked.prompt_tokens + asked.output_tokens).max()
    return (
        f"requests of up to {one.hull.longest:,} tokens with their output were measured{of}, and the "
        f"traffic's have up to {longest:,}"
    )


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


def _ranged(counts: Sequence[int | None], own: int | None) -> tuple[int, int | None] | None:
    """95 % of numbers of replicas with the plan's own, the upper end None where no number is enough; None
    without the plan's or without two.
    """
    if own is None or len(counts) < 2:
        return None
    known = [MOST_REPLICAS + 1 if n is None else n for n in counts]
    low = int(np.percentile(known, 2.5, method="lower"))
    high = int(np.percentile(known, 97.5, method="higher"))
    return min(low, own), None if high > MOST_REPLICAS else max(high, own)


def _kwh_day(watts: tuple[float, float] | None) -> tuple[float, float] | None:
    return None if watts is None else (watts[0] * 0.024, watts[1] * 0.024)


def most_factor(
    whole: Fleet,
    counts: Counts,
    near: float = 1.0,
    step: float = 2.0,
    rounds: int = ROUNDS,
    guess: float = 1.0,
    stride: int = 1,
) -> tuple[float, Seen | None]:
    """The highest multiple of the rate that still meets, and what is seen at it: of ``near`` times the powers
    of the 2^rounds-th root of ``step``, looked for from ``guess``. (0, None) below a 64th of the rate.
    """
    root = step ** (0.5**rounds)
    top, bottom = (math.floor(math.log(MOST_FACTOR / near**sign, root)) for sign in (1, -1))

    def factor(number: int) -> float:
        return near * root ** (top - number)

    start = top - round(math.log(guess / near, root))
    found = fewest(
        lambda n: whole.meets(counts, factor(n - 1)),
        start + 1,
        most=top + bottom + 1,
        stride=stride,
    )
    if found is None:
        return 0.0, None
    return factor(found - 1), whole.seen(counts, factor(found - 1))


def _if_longer(
    choice: Choice, demand: Demand, by: tuple[float, float], slo: SloConfig, seed: int, near: Counts
) -> Counts | str:
    """Why there is no number; also where that makes requests too long for a server: without them fewer
    replicas would do. Longer requests take no fewer than ``near``.
    """
    longer = demand.stretched(*by)
    asked, told = (each.traffic(1.0, seed) for each in (longer, demand))
    for one in choice.of:
        of = "" if choice.policy is None else f" of {one.label}"
        if prompts_reach(one, asked) > BEYOND:
            return (
                f"prompts of up to {asked.prompt_tokens.max():,} tokens are more than {BEYOND:g} times "
                f"as long as those measured{of} (up to {one.hull.prompts[1]:,})"
            )
        most = (asked.prompt_tokens + asked.output_tokens).max()
        if _untaken(one, asked) > _untaken(one, told):
            return f"too long for a server{of}: up to {most:,} tokens against {_limit(one)}"
        if whole_reach(one, asked) > BEYOND:
            return (
                f"requests of up to {most:,} tokens with their output are more than {BEYOND:g} times as long "
                f"as those measured{of} (up to {one.hull.longest:,})"
            )
    found = enough(choice.fleet(longer, slo, seed), near, near[0])
    return "no number of replicas meets the SLO" if found is None else found


def _limit(one: Measured) -> str:
    """The tighter bound on a request's tokens."""
    settings = one.settings
    length, cache = settings.max_model_len, settings.total_kv_tokens
    if length is not None and (cache is None or length <= cache):
        return f"its max_model_len of {length:,}"
    return f"the {cache or 0:,} that its KV cache holds"


def _no_number(tried: Sequence[Counts | str]) -> list[str]:
    """A sentence for each cause."""
    of: dict[str, list[str]] = {}
    for name, found in zip(LONGER, tried, strict=True):
        if isinstance(found, str):
            of.setdefault(found, []).append(name)
    return [f"{' and '.join(names)}: none, {why}" for why, names in of.items()]


def _knee(whole: Fleet, counts: Counts, most: float) -> list[tuple[float, float, float]]:
    found: list[tuple[float, float, float]] = []
    for share in (0.25, 0.5, 0.7, 0.8, 0.9, 1.0, 1.1):
        seen = whole.seen(counts, most * share)
        found.append((most * share * whole.demand.rate_per_s, seen.ttft_s[1], seen.utilisation))
    return found


@dataclass(frozen=True)
class Own:
    """The plan's own figures: servers, what is seen of them, the highest factor, servers if requests are
    longer.
    """

    counts: Counts
    seen: Seen
    most: float
    longer: tuple[Counts | None, ...]


@dataclass(frozen=True)
class Spread:
    """95 % over the draws; of numbers of replicas each draw's, None where none is enough. ``none``: why there
    is no interval.
    """

    replicas: tuple[int | None, ...] = ()
    longer: tuple[tuple[int | None, ...], ...] = ((), ())
    ttft_s: tuple[float, float] | None = None
    e2e_s: tuple[float, float] | None = None
    utilisation: tuple[float, float] | None = None  # at the highest rate
    headroom: tuple[float, float] | None = None
    watts: tuple[float, float] | None = None
    none: str | None = None


@dataclass(frozen=True)
class Draw:
    """The figures of ``Spread`` of one draw."""

    replicas: int | None
    longer: tuple[int | None, ...]
    seen: Seen
    most: float
    utilisation: float | None  # at the highest rate, None: there is none
    watts: tuple[float, float] | None


def _spread(
    choice: Choice, demand: Demand, slo: SloConfig, seed: int, draws: int, plan: Own
) -> Spread:
    """Server starts drawn with replacement, each with arrivals of its own."""
    if choice.one_start:
        return Spread(none="one server start; measure at least 2 repeats")
    rng = np.random.default_rng(seed)
    made: list[Draw] = []
    for number in range(draws):
        own = choice.drawn(rng)
        if own is not None:
            made.append(_draw(own, demand, slo, seed + 1 + number, plan, made))
    if len(made) < 2:
        return Spread(none="a single start tells too little; measure several loads in each")
    power = [one.watts for one in made if one.watts is not None]
    return Spread(
        tuple(one.replicas for one in made),
        tuple(zip(*(one.longer for one in made), strict=True)),
        _ends([one.seen.ttft_s[1] for one in made]),
        _ends([one.seen.e2e_s[1] for one in made]),
        _ends([one.utilisation for one in made if one.utilisation is not None]),
        _ends([one.most - 1 for one in made]),
        (_ends([w for w, _ in power])[0], _ends([w for _, w in power])[1]) if power else None,
    )


def _draw(
    own: Choice, demand: Demand, slo: SloConfig, seed: int, plan: Own, others: Sequence[Draw]
) -> Draw:
    """The highest rate first: most other verdicts follow from it. It is guessed to make the servers as busy,
    by what they are at the asked rate, as the plan's and the other draws' do.
    """
    whole = own.fleet(demand, slo, seed)
    seen = whole.seen(plan.counts, 1.0)
    busy = [
        plan.most * plan.seen.utilisation,
        *(d.most * d.seen.utilisation for d in others if d.most),
    ]
    guess = statistics.median(busy) / seen.utilisation
    most, at = most_factor(whole, plan.counts, plan.most, NEAR, NEAR_ROUNDS, guess)
    found = enough(whole, plan.counts)
    longer: list[int | None] = []
    for by, near in zip(LONGER.values(), plan.longer, strict=True):
        if near is None or found is None:
            longer.append(None)
        else:
            slower = own.fleet(demand.stretched(*by), slo, seed)
            longer.append(own.total(enough(slower, near, found[0])))
    return Draw(
        replicas=own.total(found),
        longer=tuple(longer),
        seen=seen,
        most=most,
        utilisation=None if at is None else at.utilisation,
        watts=watts(own.of, seen, own.servers(plan.counts)),
    )


def _ends(values: Sequence[float]) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)


def _said(
    choice: Choice,
    asked: Traffic,
    cached: float,
    no_interval: str | None,
    seen: Seen,
    at_slo: Seen,
    most: float,
) -> tuple[str, ...]:
    """Of a policy only what is of all its pools; of each there is a row."""
    lengths = max(length_reach(one, asked, cached) for one in choice.of)
    said = list(_of_one(choice.of[0], asked, cached)) if choice.policy is None else []
    if seen.reach > lengths:
        said.append(
            f"extrapolated: {seen.reach:.2f} times as many sequences in a step as were measured"
        )
    elif at_slo.reach > lengths:
        said.append(
            "headroom extrapolated: at the highest rate a step holds "
            f"{at_slo.reach:.2f} times as many sequences as were measured"
        )
    if most >= CAPPED:
        said.append(
            f"headroom and busy at the SLO are at least this: {MOST_FACTOR} times the rate is the most that "
            "is tried"
        )
    if no_interval is not None:
        said.append(f"no interval: {no_interval}")
    return tuple(said)


def _of_one(one: Measured, asked: Traffic, cached: float) -> Iterator[str]:
    for why in one.barred:
        yield f"may not serve: {why}"
    if one.unjudged is not None and not one.barred:
        yield one.unjudged
    if untaken := _untaken(one, asked):
        yield f"{_too_long(one, untaken)}; they are counted as missing the SLO"
    if (lengths := length_reach(one, asked, cached)) > 1:
        yield f"extrapolated: {_lengths_beyond(one, asked, cached)}, {lengths:.2f} times beyond"
    if one.hull.cached is not None and cached_apart(one, cached):
        low, high = (f"{100 * share:.0f}" for share in one.hull.cached)
        measured = low if low == high else f"{low} to {high}"
        yield (
            f"extrapolated: {cached_words(cached)} is taken to be in the prefix cache, where it held "
            f"{measured} % of the measured prompts; measure prompts that are cached as much"
        )
    if one.power is None:
        yield f"no W and kWh: {one.no_power}"
    elif one.power.idle_w is None:
        yield "idle power was not measured, so W and kWh are bounds"
    if one.exact is not None:
        yield f"fitted to {len(one.exact)} batches of `vllm bench forward` as well"
    left = one.model.residuals()
    yield (
        f"step time off by {100 * left.median:.0f} % (median step), {100 * left.worst_run:.0f} % "
        f"(all steps of the worst run), {left.steps:,} steps"
    )

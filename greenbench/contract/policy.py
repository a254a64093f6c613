"""policy.yaml: which pool of servers should take a request, and the one pure function that says it.

A pool is one or more equal servers: one candidate of a sweep. Rules say where a pool was shown to be better
than the policy's default one. Replay and gateway both call ``choose``, so that they cannot disagree.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, Self, cast

import yaml
from pydantic import Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from greenbench.contract.config import SloConfig
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.explain import parse, shown
from greenbench.contract.strict import StrictModel
from greenbench.contract.yaml_files import load_yaml
from greenbench.contract.yaml_text import Dumper

SCHEMA = 1
ALLOW_UNJUDGED = "--allow-unjudged"
Name = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"  # it stands in HTTP headers, labels and metrics
NO_SPILL: Mapping[str, float] = {}
PolicyObjective = Literal["ttft", "tpot", "e2e", "energy", "capacity"]


class Range(StrictModel):
    """``at_least`` ≤ value < ``below``; an end that is null is open."""

    at_least: int | float | None = Field(default=None, ge=0)
    below: int | float | None = Field(default=None, gt=0)

    @model_validator(mode="after")
    def _holds_something(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"no value is at least {self.at_least} and below {self.below}; 'below' must be larger"
            )
        return self

    @property
    def low(self) -> float:
        return -math.inf if self.at_least is None else self.at_least

    @property
    def high(self) -> float:
        return math.inf if self.below is None else self.below

    def meets(self, other: "Range") -> bool:
        """Whether some value lies in both."""
        return self.low < other.high and other.low < self.high


class When(StrictModel):
    """What a request and the pools must be for a rule to hold; a key that is left out asks nothing.

    ``uncached_prompt_tokens``: of the request's prompt, without what is expected in the prefix cache.
    ``expected_output_tokens``: of the request; where nobody expects a number, a rule that asks does not hold.
    ``free_kv_tokens``: of the rule's own pool, as it last told; unknown does not hold.
    ``load``: requests running and waiting in all pools that can take the request, over the number of these
    pools. So ``n`` means what a sweep's ``n`` users at one server meant.
    """

    uncached_prompt_tokens: Range = Range()
    expected_output_tokens: Range = Range()
    free_kv_tokens: Range = Range()
    load: Range = Range()

    @model_serializer(mode="wrap")
    def _what_it_asks(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        asked = {key for key in When.model_fields if getattr(self, key) != Range()}
        return {key: value for key, value in dump(self).items() if key in asked}

    def meets(self, other: "When") -> bool:
        """Whether some request in some state is in both."""
        return all(getattr(self, key).meets(getattr(other, key)) for key in When.model_fields)


class Gain(StrictModel):
    """How many times better than the default pool, above 1 where better; its 95 % interval, null: unknown."""

    ratio: float = Field(gt=0)
    low: float | None = Field(default=None, gt=0)
    high: float | None = Field(default=None, gt=0)


class Rule(StrictModel):
    """Where ``when`` holds, ``pool`` takes the request.

    ``gain``: null where the rule keeps to the default pool, or where the default may not serve there.
    ``spill``: pool → how many times as loaded (requests + 1) this rule's pool may be before the request goes
    to that one instead. ``measured``: prompt tokens between which ``gain`` was measured; what the rule covers
    beyond is extrapolated. ``runs``: ids of the runs behind it.
    """

    name: str = Field(pattern=Name)
    pool: str
    when: When = When()
    gain: Gain | None = None
    spill: dict[str, float] = Field(default_factory=dict[str, float])
    measured: Range | None = None
    why: str | None = None
    runs: list[str] = Field(default_factory=list[str])

    @model_validator(mode="after")
    def _spills_by_ratios(self) -> Self:
        for pool, ratio in self.spill.items():
            if ratio < 1:
                raise ValueError(f"spill.{pool}: a ratio of at least 1 is wanted, found {ratio}")
        return self


class Barred(StrictModel):
    """Prompt lengths (tokens, cached ones counted) that a pool may not serve, and why."""

    prompt_tokens: Range
    why: str


class Pool(StrictModel):
    """A candidate of the sweep. ``settings``: of its server, those in which the pools differ.

    ``restart_s``: measured seconds from its start until it was ready. ``unjudged``: measured lengths that it
    may serve though its answers are not judged there, and why they are not. ``url``: where its server is,
    for a gateway; a sweep does not know.
    """

    backend: str
    label: str | None = None
    settings: dict[str, Any] = Field(default_factory=dict[str, Any])
    vllm_version: str | None = None
    total_kv_tokens: int | None = Field(default=None, gt=0)
    max_model_len: int | None = Field(default=None, gt=0)
    restart_s: float | None = Field(default=None, ge=0)
    barred: list[Barred] = Field(default_factory=list[Barred])
    unjudged: dict[int, str] = Field(default_factory=dict[int, str])
    url: str | None = None


class Restart(StrictModel):
    """A server of pool ``of`` started anew as one of ``to``: vLLM fixes backend, chunk size and KV dtype at
    the start. Break-even figures hold while all requests are within ``rule``; null: ``said`` says why.

    ``break_even_requests``: served after the restart until what it cost is won back. ``break_even_s``:
    seconds that this takes at the measured rate.
    """

    of: str
    to: str
    rule: str
    changes: list[str] = Field(default_factory=list[str])
    boot_s: float | None = Field(default=None, ge=0)
    break_even_requests: int | None = Field(default=None, ge=0)
    break_even_s: float | None = Field(default=None, ge=0)
    said: str | None = None


class PolicyModel(StrictModel):
    """The model that all pools serve. ``revision``: null where the runs do not say."""

    name: str
    path: str | None = None
    revision: str | None = None


class Provenance(StrictModel):
    """What the policy was made of. ``runs``: folders; ``runs_hash``: sha256 over the ids of the runs used.

    ``repeats``: blocks of server starts the rules rest on.
    """

    runs: list[str] = Field(default_factory=list[str])
    runs_hash: str | None = None
    repeats: int | None = Field(default=None, ge=0)
    made_unix_ns: int | None = None
    greenbench: str | None = None


class Policy(StrictModel):
    """policy.yaml. ``default``: the best single pool, which takes what no rule says.

    ``decided`` false: "no policy", the default pool serves all. ``gain``: over the default pool alone, mean
    over the measured lengths and loads. ``allow_unjudged``: pools that may change answers (approximate
    by design, quantised KV) may serve where nobody judged them. ``dead_band``: factor about a rule's edge
    within which a conversation stays where it was. ``said``: sentences for people; why there is no policy,
    what is not known.
    """

    version: Literal[1] = Field(alias="schema")
    decided: bool = True
    objective: PolicyObjective
    slo: SloConfig = SloConfig()
    model: PolicyModel
    device: str | None = None
    default: str
    gain: Gain | None = None
    allow_unjudged: bool = False
    dead_band: float = Field(default=1.0, ge=1)
    pools: dict[str, Pool] = Field(min_length=1)
    rules: list[Rule] = Field(default_factory=list[Rule])
    restarts: list[Restart] = Field(default_factory=list[Restart])
    provenance: Provenance = Provenance()
    said: list[str] = Field(default_factory=list[str])

    @model_validator(mode="after")
    def _names_known_pools(self) -> Self:
        named = [("default", self.default)]
        for index, rule in enumerate(self.rules):
            named.append((f"rules.{index}.pool", rule.pool))
            named += [(f"rules.{index}.spill", pool) for pool in rule.spill]
        for where, pool in named:
            if pool not in self.pools:
                raise ValueError(f"{where}: no pool '{pool}'; {nearest(pool, self.pools)}")
        return self

    @model_validator(mode="after")
    def _rules_agree(self) -> Self:
        if self.rules and not self.decided:
            raise ValueError("'decided: false' means that there is no policy, yet there are rules")
        for a, b in combinations(self.rules, 2):
            if a.name == b.name:
                raise ValueError(f"two rules are called '{a.name}'; give each a name of its own")
            if a.pool != b.pool and a.when.meets(b.when):
                raise ValueError(
                    f"rules '{a.name}' and '{b.name}' hold for the same requests and name different pools "
                    f"({a.pool}, {b.pool}); make their ranges end where the other's start"
                )
        return self


def load_policy(path: Path) -> Policy:
    """UserError, one sentence, for what is no policy of this schema."""
    data: object = load_yaml(path)
    if isinstance(data, dict):
        _refuse_other_schema(cast("dict[str, Any]", data), path)
    return parse(Policy, cast("object", data), str(path))


def _refuse_other_schema(data: dict[str, Any], path: Path) -> None:
    if "schema" not in data:
        raise UserError(
            f"{path}: 'schema' is missing, so it is no policy that this program knows; "
            "`greenbench policy` writes one"
        )
    version = data["schema"]
    if isinstance(version, bool) or not isinstance(version, int):
        raise UserError(f"{path}: schema: the number {SCHEMA} is wanted, found {shown(version)}")
    if version > SCHEMA:
        raise UserError(
            f"{path}: a policy of schema {version}, this program reads {SCHEMA}; use the version of "
            "greenbench that wrote it, or a newer one"
        )
    if version < SCHEMA:
        raise UserError(
            f"{path}: a policy of schema {version}, this program reads {SCHEMA}; make it anew with "
            "`greenbench policy`"
        )


def dump_policy(policy: Policy) -> str:
    """The text of policy.yaml."""
    plain = policy.model_dump(mode="json", by_alias=True)
    return yaml.dump(plain, Dumper=Dumper, sort_keys=False, width=100, allow_unicode=True)


@dataclass(frozen=True, slots=True)
class Request:
    """A request before it is sent. ``cached_tokens``: of its prompt, what a prefix cache is expected to hold.
    ``expected_output_tokens``: null where nobody knows.
    """

    prompt_tokens: int
    cached_tokens: int = 0
    expected_output_tokens: int | None = None

    @property
    def uncached_tokens(self) -> int:
        return max(0, self.prompt_tokens - self.cached_tokens)


@dataclass(frozen=True, slots=True)
class PoolState:
    """What a pool last told of itself; KV tokens null where it does not tell."""

    name: str
    up: bool
    running: int = 0
    waiting: int = 0
    free_kv_tokens: int | None = None
    total_kv_tokens: int | None = None
    draining: bool = False


@dataclass(frozen=True, slots=True)
class Choice:
    """``pool`` None: no pool can take the request, ``reason`` says why. ``rule``: the one that held."""

    pool: str | None
    rule: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class _Ready:
    """A rule with its bounds as numbers."""

    name: str
    pool: str
    prompt: tuple[float, float]
    load: tuple[float, float]
    output: tuple[float, float] | None  # None: not asked
    free_kv: tuple[float, float] | None
    spill: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class _Limits:
    """What a pool can hold."""

    name: str
    total_kv_tokens: int | None
    max_model_len: int | None
    barred: tuple[tuple[float, float, str], ...]


@dataclass(frozen=True, slots=True)
class Chooser:
    """A policy made ready for ``choose``: what does not change from request to request."""

    default: str
    dead_band: float
    rules: tuple[_Ready, ...]
    pools: tuple[_Limits, ...]  # the default first: it wins ties


def compile(policy: Policy) -> Chooser:
    """Once a policy, so that ``choose`` takes microseconds."""
    names = sorted(policy.pools, key=lambda name: name != policy.default)
    return Chooser(
        default=policy.default,
        dead_band=policy.dead_band,
        rules=tuple(map(_ready, policy.rules)),
        pools=tuple(_limits(name, policy.pools[name]) for name in names),
    )


def _ready(rule: Rule) -> _Ready:
    def ends(one: Range) -> tuple[float, float]:
        return one.low, one.high

    def asked(one: Range) -> tuple[float, float] | None:
        return None if one.at_least is None and one.below is None else ends(one)

    return _Ready(
        name=rule.name,
        pool=rule.pool,
        prompt=ends(rule.when.uncached_prompt_tokens),
        load=ends(rule.when.load),
        output=asked(rule.when.expected_output_tokens),
        free_kv=asked(rule.when.free_kv_tokens),
        spill=rule.spill,
    )


def _limits(name: str, pool: Pool) -> _Limits:
    barred = tuple((b.prompt_tokens.low, b.prompt_tokens.high, b.why) for b in pool.barred)
    return _Limits(name, pool.total_kv_tokens, pool.max_model_len, barred)


def choose(
    policy: Policy | Chooser,
    request: Request,
    states: Iterable[PoolState],
    last: Choice | None = None,
) -> Choice:
    """The pool that should take ``request`` now. Pure: the same arguments, the same choice.

    A pool is passed over that is down, draining, unknown, barred at that prompt length, or too small for the
    request; one whose free KV cache does not hold it, while another's does. Of the rest the rule's pool takes
    it, without a rule the default, unless its load is beyond the rule's ``spill``; where that pool is passed
    over, the least loaded. ``last``: where the conversation's previous request went; it stays there within
    the dead band of a rule's edge.
    """
    ready = policy if isinstance(policy, Chooser) else compile(policy)
    told = {state.name: state for state in states}
    able: dict[str, PoolState] = {}
    out: dict[str, str] = {}
    for pool in ready.pools:
        state = told.get(pool.name)
        why = _unable(pool, state, request)
        if why is None and state is not None:
            able[pool.name] = state
        else:
            out[pool.name] = why or ""
    if not able:
        said = "; ".join(f"{name} {why}" for name, why in out.items())
        return Choice(None, None, f"no pool can take it: {said}")
    load = sum(s.running + s.waiting for s in able.values()) / len(able)
    tokens = request.uncached_tokens
    rule = _holding(ready, tokens, load, request, told)
    wanted = ready.default if rule is None else rule.pool
    reason = "no rule holds: the default pool" if rule is None else f"rule {rule.name}"
    if last is not None and last.pool != wanted and last.pool in able and ready.dead_band > 1:
        for factor in (ready.dead_band, 1 / ready.dead_band):
            near = _holding(ready, tokens * factor, load, request, told)
            if (ready.default if near is None else near.pool) == last.pool:
                rule, wanted = near, last.pool
                reason = f"within the dead band of {reason}: stays at {wanted}"
                break
    held = None if rule is None else rule.name
    spill = NO_SPILL if rule is None else rule.spill
    need = tokens + (request.expected_output_tokens or 0)
    roomy = [s for s in able.values() if s.free_kv_tokens is None or s.free_kv_tokens >= need]
    if wanted not in able or (roomy and able[wanted] not in roomy):
        why = out.get(wanted) or f"has {able[wanted].free_kv_tokens} KV tokens free of {need}"
        taker = min(roomy or able.values(), key=lambda s: _weighed(s, spill))
        return Choice(taker.name, held, f"{reason}, but {wanted} {why}: {taker.name} instead")
    if spill:
        limit = _weighed(able[wanted], NO_SPILL)
        for state in roomy:
            if state.name in spill and state.name != wanted and limit > _weighed(state, spill):
                taker = min((s for s in roomy if s.name in spill), key=lambda s: _weighed(s, spill))
                n = able[wanted].running + able[wanted].waiting
                open_there = counted(n, "request")
                return Choice(taker.name, held, f"{reason}, but {wanted} has {open_there} open")
    return Choice(wanted, held, reason)


def _weighed(state: PoolState, spill: Mapping[str, float]) -> float:
    return (state.running + state.waiting + 1) * spill.get(state.name, 1.0)


def _unable(pool: _Limits, state: PoolState | None, request: Request) -> str | None:
    """A clause that says why a pool cannot take the request, else None."""
    if state is None:
        return "is not known"
    if not state.up:
        return "is down"
    if state.draining:
        return "is draining"
    prompt = request.prompt_tokens
    whole = prompt + (request.expected_output_tokens or 1)
    total = pool.total_kv_tokens if state.total_kv_tokens is None else state.total_kv_tokens
    if total is not None and whole > total:
        return f"holds {total} KV tokens, the request takes {whole}"
    if pool.max_model_len is not None and whole > pool.max_model_len:
        return f"takes {pool.max_model_len} tokens a request, this one has {whole}"
    for low, high, why in pool.barred:
        if low <= prompt < high:
            return f"may not serve {prompt} tokens ({why})"
    return None


def _holding(
    ready: Chooser,
    tokens: float,
    load: float,
    request: Request,
    told: Mapping[str, PoolState],
) -> _Ready | None:
    """The first rule that holds."""
    output = request.expected_output_tokens
    for rule in ready.rules:
        if not rule.prompt[0] <= tokens < rule.prompt[1]:
            continue
        if not rule.load[0] <= load < rule.load[1]:
            continue
        if rule.output is not None and (
            output is None or not rule.output[0] <= output < rule.output[1]
        ):
            continue
        if rule.free_kv is not None:
            state = told.get(rule.pool)
            free = None if state is None else state.free_kv_tokens
            if free is None or not rule.free_kv[0] <= free < rule.free_kv[1]:
                continue
        return rule
    return None

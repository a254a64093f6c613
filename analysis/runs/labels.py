"""Labels of identities for people: the shortest words that still tell apart what is apart.

A label is some base words (backend, task, load) and the words of every further field in which values with the
same base words differ; of candidates, every setting in which any two of one model do, but for the words that
more than half of them share, three or more.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from analysis.runs.identity import Candidate, DeviceKind, Fields, Scenario, Workload
from greenbench.contract.config import LoadConfig, PhaseConfig, SloConfig
from greenbench.contract.counted import counted

Facts = Mapping[str, str]  # name -> words
Value = TypeVar("Value")
MARK = " · "


@dataclass(frozen=True)
class Labels:
    """Words for each candidate, and of each scenario for its task and for its load.

    A scenario's load words hold execution and device too where the study has more than one of them.
    ``devices``: words of each kind, with its processors where the card's alone name two kinds.
    ``differs``: settings other than backend and model in which candidates differ, with their words;
    ``usual``: those words that most share, which their labels leave out.
    """

    candidates: dict[Candidate, str]
    tasks: dict[Scenario, str]
    loads: dict[Scenario, str]
    devices: dict[DeviceKind, str]
    differs: dict[str, tuple[str, ...]]
    usual: tuple[str, ...]


def device_words(devices: Iterable[DeviceKind]) -> dict[DeviceKind, str]:
    kinds = set(devices)
    alike = Counter(kind.words for kind in kinds)
    return {kind: kind.whole_words if alike[kind.words] > 1 else kind.words for kind in kinds}


def apart_words(devices: Iterable[DeviceKind]) -> dict[DeviceKind, str]:
    """Beside a load: no more than what tells the devices of one study apart, ``16 CPU cores``."""
    kinds = set(devices)
    if len({kind.words for kind in kinds}) > 1:
        return device_words(kinds)
    one_cpu = len({kind.cpu for kind in kinds}) == 1
    return {kind: f"{kind.cores} CPU cores" if one_cpu else kind.host_words for kind in kinds}


def labels(
    candidates: Iterable[Candidate],
    scenarios: Iterable[Scenario],
    across: bool = False,
    names: Mapping[Candidate, str] = {},
) -> Labels:
    """Of all points of a study at once: whether a field must be said hangs on the others.

    ``across``: executions are compared, so they are part of a candidate's label. ``names``: what a sweep
    calls a candidate, which is its label unless another one has it too.
    """
    who = list(dict.fromkeys(candidates))
    where = list(dict.fromkeys(scenarios))
    facts = {c: _candidate_facts(c, across) for c in who}
    differs = _differing(who, facts)
    tasks = told_apart(where, lambda p: (p.workload.task,), lambda p: _task_facts(p.workload))
    loads = told_apart(
        where, lambda p: (_load_base(p.workload.load), tasks[p]), lambda p: _load_facts(p.workload)
    )
    alike = {  # but for their prompts; those of two contexts always differ
        p: (words, tasks[p], p.context_tokens, p.execution, p.device, p.model)
        for p, words in loads.items()
    }
    loads = told_apart(where, alike.__getitem__, _prompt_facts(alike))
    executions, devices = {p.execution for p in where}, {p.device for p in where}
    told, apart = device_words(devices), apart_words(devices)
    usual = _usual(facts, differs)
    words = _candidate_words(facts, differs, names, usual)
    if len(set(words.values())) < len(words):  # a given name can be what is left of another's
        usual = {}
        words = _candidate_words(facts, differs, names, usual)
    return Labels(
        candidates=words,
        tasks=tasks,
        devices=told,
        loads={
            p: MARK.join(
                [
                    words,
                    *([p.execution] if p.execution and len(executions) > 1 else []),
                    *([apart[p.device]] if len(devices) > 1 else []),
                ]
            )
            for p, words in loads.items()
        },
        differs={n: tuple(dict.fromkeys(facts[c][n] for c in who)) for n in differs},
        usual=tuple(dict.fromkeys(v for n in differs for of in usual.values() if (v := of.get(n)))),
    )


def _candidate_words(
    facts: Mapping[Candidate, Facts],
    differs: Sequence[str],
    names: Mapping[Candidate, str],
    usual: Mapping[str, Facts],
) -> dict[Candidate, str]:
    """A name that one alone was given; else the backend and what differs, without the ``usual`` words."""
    who = list(facts)
    several = len({c.model for c in who}) > 1
    given = Counter((names.get(c), c.model if several else None) for c in who)

    def words(c: Candidate) -> str:
        if c in names and given[names[c], c.model if several else None] == 1:
            return _named(c, names[c], several)
        own, unsaid = facts[c], usual.get(c.model, {})
        told = [own[name] for name in differs if own[name] != unsaid.get(name)]
        return MARK.join([_base(c, who, several), *told])

    return {c: words(c) for c in who}


def _usual(facts: Mapping[Candidate, Facts], differs: Sequence[str]) -> dict[str, Facts]:
    """By model, of what its candidates differ in, the words that more than half share, three or more."""
    out: dict[str, Facts] = {}
    for model in dict.fromkeys(c.model for c in facts):
        own = [each for c, each in facts.items() if c.model == model]
        common = {name: Counter(f[name] for f in own).most_common(1)[0] for name in differs}
        out[model] = {
            name: value for name, (value, n) in common.items() if n > max(len(own) / 2, 2)
        }
    return out


def _prompt_facts(alike: Mapping[Scenario, tuple[Any, ...]]) -> Callable[[Scenario], Facts]:
    """Prompts by the seed that drew them, the same words at each context, where that tells them apart; else
    by their hash.
    """
    sets: dict[tuple[Any, ...], list[Workload]] = {}
    for scenario, key in alike.items():
        sets.setdefault(key, []).append(scenario.workload)
    by_seed = all(
        None not in (seeds := {each.seed for each in members})
        and len(seeds) == len({each.prompts for each in members})
        for members in sets.values()
    )
    if by_seed:
        return lambda p: {"prompts": f"prompts of seed {p.workload.seed}"}
    return lambda p: {"prompts": f"prompts {p.workload.prompts[:8]}"}


def _named(candidate: Candidate, name: str, several_models: bool) -> str:
    return f"{candidate.model}{MARK}{name}" if several_models else name


def _base(candidate: Candidate, among: Sequence[Candidate], several_models: bool) -> str:
    """The backend; over several models the model, and the backend where that model ran on more than one."""
    if not several_models:
        return candidate.backend_label
    backends = {c.backend_label for c in among if c.model == candidate.model}
    if len(backends) == 1:
        return candidate.model
    return f"{candidate.model}{MARK}{candidate.backend_label}"


def _candidate_facts(candidate: Candidate, across_executions: bool) -> Facts:
    facts = {
        "weights": f"{candidate.weights} weights",
        "model_source": f"model from {candidate.model_source}",
        "dtype": candidate.dtype,
        "kv_cache_dtype": f"KV {candidate.kv_cache_dtype}",
        "tensor_parallel": f"TP {candidate.tensor_parallel}",
        "vllm_version": f"vLLM {candidate.vllm_version or 'unknown'}",
    }
    if across_executions:
        facts["execution"] = candidate.execution
    return facts | {name: f"{name} {_said(value)}" for name, value in candidate.settings}


def _said(value: object) -> str:
    if isinstance(value, tuple):
        return " ".join(map(str, value)) or "none"
    return "unset" if value is None else str(value)


def _differing(candidates: Sequence[Candidate], facts: Mapping[Candidate, Facts]) -> list[str]:
    """Names in which candidates of one model differ, other than by their backend."""
    names: list[str] = []
    for model in dict.fromkeys(c.model for c in candidates):
        own = [facts[c] for c in candidates if c.model == model]
        names += [n for n in own[0] if len({f[n] for f in own}) > 1 and n not in names]
    if "vllm" in names and _told_by("vllm_version", "vllm", facts.values()):
        names.remove("vllm")
    return names


def _told_by(name: str, other: str, facts: Iterable[Facts]) -> bool:
    """Whether candidates that differ in ``other`` differ in ``name`` too."""
    pairs = {(each[name], each[other]) for each in facts}
    return len(pairs) == len({told for told, _ in pairs})


def told_apart(
    values: Sequence[Value],
    base: Callable[[Value], tuple[Any, ...]],
    facts: Callable[[Value], Facts],
) -> dict[Value, str]:
    """The first of the base and, among values whose base is equal, every fact in which they differ."""
    groups: dict[tuple[Any, ...], list[Value]] = {}
    for value in values:
        groups.setdefault(base(value), []).append(value)
    out: dict[Value, str] = {}
    for (words, *_), members in groups.items():
        known = {member: facts(member) for member in members}
        names = list(dict.fromkeys(name for each in known.values() for name in each))
        apart = [n for n in names if len({each.get(n) for each in known.values()}) > 1]
        for member in members:
            said = [known[member][name] for name in apart if known[member].get(name)]
            out[member] = MARK.join([words, *said])
    return out


def task_facts(params: Fields, output_tokens: int | None) -> Facts:
    length = f"{counted(output_tokens, 'token')} out" if output_tokens else "the task's own length"
    return {**{name: f"{name} {value}" for name, value in params}, "output_tokens": length}


def _task_facts(workload: Workload) -> Facts:
    count = counted(workload.requests, "request") if workload.requests else "by time"
    return {**task_facts(workload.params, workload.output_tokens), "requests": count}


def _load_base(load: LoadConfig) -> str:
    """``4 users``, ``4 users × 3 turns``, ``2.5 requests/s``, ``trace conversations``."""
    if load.users is not None:  # closed
        words = counted(load.users, "user")
        return f"{words} × {load.turns} turns" if load.turns > 1 else words
    if load.trace is not None:
        return f"trace {load.trace.rsplit('/', 1)[-1].split('.')[0]}"
    return f"{load.rate_per_s:g} requests/s"


def _load_facts(workload: Workload) -> Facts:
    """Every field that can differ behind the same base words; the prompts' own length is no load."""
    load = workload.load
    facts = {
        "arrivals": _arrival_words(load),
        "ramp": f"up to {load.ramp_to_per_s:g}/s in {load.ramp_s:g} s" if load.ramp_s else "steady",
        "pause": f"{load.turn_pause_s:g} s between turns",
        "trace": f"{load.trace}" if load.trace else "",
        "speed": f"{load.trace_speed:g} times as fast",
        "format": load.trace_format,
        "clip": "prompts cut to the context" if load.trace_clip else "prompts whole",
    }
    return {**facts, **_phase_facts(workload.phases), **_slo_facts(workload.slo)}


def _arrival_words(load: LoadConfig) -> str:
    return f"gamma {load.burstiness:g}" if load.arrivals == "gamma" else load.arrivals


def _phase_facts(phases: PhaseConfig | None) -> Facts:
    if phases is None:
        return {"phases": "imported"}
    return {
        "warmup": f"{phases.warmup_s:g} s of warm-up",
        "measure": _measured_words(phases),
        "drain": f"drained for {phases.drain_s:g} s",
        "count": counted(phases.requests, "request") if phases.requests else "by time",
        "timeout": f"requests cut at {phases.request_timeout_s:g} s",
    }


def _measured_words(phases: PhaseConfig) -> str:
    if phases.measure_s is None:
        return f"measured until p{phases.percentile} is known"
    return f"measured for {phases.measure_s:g} s"


def _slo_facts(slo: SloConfig) -> Facts:
    bounds = {name: limit for name, limit in slo.model_dump().items() if limit is not None}
    said = ", ".join(
        f"{name.removesuffix('_s').upper()} {limit:g} s" for name, limit in bounds.items()
    )
    return {"slo": f"SLO {said}" if said else "no SLO"}

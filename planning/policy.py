"""A policy out of a study: rules where a candidate is shown to beat the best single one, or "no policy".

Whatever is not known is null in the file, and a sentence says so.
"""

import hashlib
import math
import re
import statistics
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.objectives import objective
from analysis.runs.identity import SNAPSHOT, Candidate
from greenbench import __version__
from greenbench.contract.config import SloConfig
from greenbench.contract.policy import (
    Barred,
    Gain,
    Policy,
    PolicyModel,
    Pool,
    Provenance,
    Range,
    Restart,
    Rule,
    When,
)
from greenbench.contract.run_dir import slug
from planning.evidence import Evidence, Place
from planning.regions import Draft, Region
from planning.sentences import sentences

NAME_CHARS = 48  # of a pool; a label of Kubernetes has 63
WIDEST_BAND = 2.0  # of a dead band


def written(made: Draft) -> Policy:
    evidence, default = made.evidence, made.default
    used = _used(made)
    names = pool_names([(c.backend_label, evidence.labels[c]) for c in used])
    pools = dict(zip(used, names, strict=True))
    rules = _rules(made, pools) if made.decided else []
    restarts = _restarts(made, rules, pools) if made.decided else []
    return Policy(
        schema=1,
        decided=made.decided,
        objective=evidence.asked,
        slo=_slo(evidence),
        model=_model(evidence, default),
        device=evidence.usable[0].identity.device.kind.words,
        default=pools[default],
        gain=_whole_gain(made),
        allow_unjudged=evidence.allow_unjudged,
        dead_band=_dead_band(made) if made.decided else 1.0,
        pools={pools[c]: pool_of(evidence, c, used) for c in used},
        rules=rules,
        restarts=restarts,
        provenance=_provenance(evidence),
        said=sentences(made, used),
    )


def _used(made: Draft) -> list[Candidate]:
    """The default, and in a policy whoever takes a region."""
    chosen = [r.candidate for r in made.regions] if made.decided else []
    return list(dict.fromkeys([made.default, *chosen]))


def pool_names(called: Sequence[tuple[str, str]]) -> list[str]:
    """Of (backend, label) the backend where no other has it, else the label, as a name that may stand in a
    header; equal ones numbered.
    """
    backends = Counter(backend for backend, _ in called)
    found: list[str] = []
    for backend, whole in called:
        label = backend if backends[backend] == 1 else whole
        name = base = re.sub(r"[-.]{2,}", "-", slug(label))[:NAME_CHARS].strip("-._") or "pool"
        number = 2
        while name in found:
            name, number = f"{base}-{number}", number + 1
        found.append(name)
    return found


def _whole_gain(made: Draft) -> Gain | None:
    if not made.decided or made.gain is None or made.gain.ratio is None:
        return None
    return _gain(made.gain.ratio, made.gain.low, made.gain.high)


def _gain(ratio: float, low: float | None, high: float | None) -> Gain:
    """To the digits that mean something."""
    ends = [None if end is None else round(end, 4) for end in (low, high)]
    return Gain(ratio=round(ratio, 4), low=ends[0], high=ends[1])


def _slo(evidence: Evidence) -> SloConfig:
    """What was asked for; for capacity, that of the runs."""
    if evidence.slo is not None:
        return evidence.slo
    if evidence.asked != "capacity":
        return SloConfig()
    return evidence.usable[0].scenario.workload.slo


def _model(evidence: Evidence, default: Candidate) -> PolicyModel:
    found = SNAPSHOT.search(default.model_path)
    return PolicyModel(
        name=default.model, path=default.model_path, revision=found[1] if found else None
    )


def _provenance(evidence: Evidence) -> Provenance:
    ids = sorted(point.run_id for point in evidence.usable)
    return Provenance(
        runs=[str(evidence.root.resolve())],
        runs_hash=runs_hash(ids),
        repeats=len(evidence.blocks),
        made_unix_ns=time.time_ns(),
        greenbench=__version__,
    )


def runs_hash(run_ids: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(sorted(run_ids)).encode()).hexdigest()


# Pools


def pool_of(evidence: Evidence, candidate: Candidate, among: Sequence[Candidate]) -> Pool:
    servers = evidence.servers[candidate]
    kv = [s.kv_cache_tokens for s in servers if s.kv_cache_tokens]
    longest = [s.max_model_len for s in servers if s.max_model_len]
    boots = list({s.server_id: s.ready_s for s in servers if s.ready_s is not None}.values())
    return Pool(
        backend=candidate.backend_label,
        label=evidence.labels[candidate],
        settings=differing(candidate, among),
        vllm_version=candidate.vllm_version,
        total_kv_tokens=min(kv, default=None),
        max_model_len=min(longest, default=None),
        restart_s=round(statistics.median(boots), 1) if boots else None,
        barred=_barred(evidence, candidate),
        unjudged=evidence.serves_unjudged(candidate),
    )


def _facts(candidate: Candidate) -> dict[str, Any]:
    named = ("dtype", "kv_cache_dtype", "execution", "tensor_parallel", "vllm_version")
    return {name: getattr(candidate, name) for name in named} | dict(candidate.settings)


def differing(candidate: Candidate, among: Sequence[Candidate]) -> dict[str, Any]:
    """The candidate's server settings in which some two of ``among`` differ."""
    facts = [_facts(each) for each in among]
    own = _facts(candidate)
    return {
        name: _plain(value)
        for name, value in own.items()
        if any(each.get(name) != value for each in facts)
    }


def _plain(value: Any) -> Any:
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def _barred(evidence: Evidence, candidate: Candidate) -> list[Barred]:
    """Lengths it may not serve: from the last measured one where it may to the next; of a backend that is
    approximate by design also everything beyond.
    """
    why_not: dict[int, str | None] = {}
    for place in evidence.places:
        reason = evidence.standing(candidate, place)
        why_not[place.context] = why_not.get(place.context) or reason
    found: list[Barred] = []
    contexts = sorted(why_not)
    for number, context in enumerate(contexts):
        why = why_not[context]
        if why is None:
            continue
        after = contexts[number + 1] if number + 1 < len(contexts) else None
        low = contexts[number - 1] + 1 if number else 0
        if number and why_not[contexts[number - 1]] is not None:
            low = context
        found.append(Barred(prompt_tokens=Range(at_least=low, below=after), why=why))
    last = contexts[-1]
    if why_not[last] is None and any(s.exactness == 0 for s in evidence.servers[candidate]):
        why = f"approximate by design, and its answers were not tested beyond {last:,} tokens"
        found.append(Barred(prompt_tokens=Range(at_least=last + 1), why=why))
    return found


# Rules


def _rules(made: Draft, pools: Mapping[Candidate, str]) -> list[Rule]:
    evidence = made.evidence
    loads = sorted({r.load for r in made.regions})
    outputs = sorted({r.output_tokens for r in made.regions})
    rules: list[Rule] = []
    for region in made.regions:
        low, high = _unbarred(region, _barred(evidence, region.candidate))
        when = When(
            uncached_prompt_tokens=Range(at_least=low, below=high),
            expected_output_tokens=_between(region.output_tokens, outputs),
            load=_between(region.load, loads),
        )
        own = [pick.place.context for pick in region.own]
        rules.append(
            Rule(
                name=_rule_name(region, pools, len(loads) > 1, len(outputs) > 1),
                pool=pools[region.candidate],
                when=when,
                gain=_shown_gain(region),
                spill=_spill(evidence, region, pools),
                measured=Range(at_least=min(own), below=max(own) + 1) if own else None,
                why=_why(made, region),
                runs=_runs(evidence, region, made.default),
            )
        )
    return rules


def _unbarred(region: Region, barred: Sequence[Barred]) -> tuple[int, int]:
    """The region's tokens about its measured place that the candidate may serve."""
    low, high = region.low, region.high
    for pick in region.own:
        at = pick.place.context
        for each in barred:
            if each.prompt_tokens.low > at:
                high = min(high, math.ceil(each.prompt_tokens.low))
            if each.prompt_tokens.high <= at:
                low = max(low, math.ceil(each.prompt_tokens.high))
    return low, high


def _rule_name(
    region: Region, pools: Mapping[Candidate, str], by_load: bool, by_output: bool
) -> str:
    parts = [pools[region.candidate], f"from-{region.low}"]
    parts += [f"at-load-{region.load:g}"] if by_load else []
    parts += [f"out-{region.output_tokens}"] if by_output else []
    return "-".join(parts)


def _between(value: float, measured: Sequence[float]) -> Range:
    """To the geometric mean with each neighbour; open beyond the last ones."""
    number = measured.index(value)
    low = math.sqrt(measured[number - 1] * value) if number else None
    high = math.sqrt(value * measured[number + 1]) if number + 1 < len(measured) else None
    return Range(
        at_least=None if low is None else round(low, 2),
        below=None if high is None else round(high, 2),
    )


def _shown_gain(region: Region) -> Gain | None:
    gain = next((pick.gain for pick in region.own), None)
    return None if gain is None else _gain(gain.ratio, gain.low, gain.high)


def _spill(evidence: Evidence, region: Region, pools: Mapping[Candidate, str]) -> dict[str, float]:
    """By the measured costs: a pool of twice the cost is as good once twice the requests are before it.

    Not for energy, which a queue does not change: there the pool keeps its requests while they fit.
    """
    if evidence.asked == "energy":
        return {}
    found: dict[str, float] = {}
    for candidate, name in pools.items():
        places = [pick.place for pick in region.picks]
        if candidate == region.candidate or not all(evidence.able(candidate, p) for p in places):
            continue
        gaps = [_gap(evidence, candidate, region.candidate, place) for place in places]
        found[name] = round(max(1.0, math.exp(statistics.fmean(gaps))), 3)
    return found


def _gap(evidence: Evidence, a: Candidate, b: Candidate, place: Place) -> float:
    return (evidence.cost(a, place) or 0.0) - (evidence.cost(b, place) or 0.0)


def _why(made: Draft, region: Region) -> str | None:
    label = made.evidence.labels[made.default]
    if region.candidate != made.default:
        return next((pick.why for pick in region.own if pick.why), None)
    if not region.own:
        return f"between two measured lengths, and neither is shown to be better than {label}"
    return f"no other is shown to be better than {label}"


def _runs(evidence: Evidence, region: Region, default: Candidate) -> list[str]:
    scenarios = {s for pick in region.picks for s in pick.place.scenarios}
    return sorted(
        point.run_id
        for point in evidence.usable
        if point.scenario in scenarios and point.candidate in (default, region.candidate)
    )


def _dead_band(made: Draft) -> float:
    """The widest crossover's interval as a factor."""
    widths = [high / low for region in made.regions for low, high in region.edges]
    return round(min(WIDEST_BAND, max(widths, default=1.0)), 3)


# Restarts


def _restarts(made: Draft, rules: Sequence[Rule], pools: Mapping[Candidate, str]) -> list[Restart]:
    """One a rule that names another pool than the default."""
    found = zip(made.regions, rules, strict=True)
    return [
        _restart(made, region, rule, pools)
        for region, rule in found
        if region.candidate != made.default and rule.gain is not None
    ]


def _restart(made: Draft, region: Region, rule: Rule, pools: Mapping[Candidate, str]) -> Restart:
    evidence, new = made.evidence, region.candidate
    boot = pool_of(evidence, new, [new]).restart_s
    even, said = _break_even(made, region, boot)
    return Restart(
        of=pools[made.default],
        to=pools[new],
        rule=rule.name,
        changes=_changes(made.default, new),
        boot_s=boot,
        break_even_requests=even[0] if even else None,
        break_even_s=even[1] if even else None,
        said=said,
    )


def _changes(old: Candidate, new: Candidate) -> list[str]:
    """What the next start must have otherwise, as ``kv_cache_dtype: auto → fp8``."""
    before = {"backend": old.backend_label} | differing(old, (old, new))
    after = {"backend": new.backend_label} | differing(new, (old, new))
    names = [name for name in after if before.get(name) != after[name]]
    return [f"{name}: {before.get(name)} → {after[name]}" for name in names]


def _break_even(
    made: Draft, region: Region, boot_s: float | None
) -> tuple[tuple[int, float] | None, str | None]:
    """(requests, seconds) after the restart until it is won back, or a sentence on why it is not known."""
    evidence = made.evidence
    if boot_s is None:
        return None, "the runs do not say how long the server took to start"
    if evidence.asked == "energy":
        return None, "the energy of a start was not recorded"
    places = [pick.place for pick in region.own]
    rates = evidence.figures(objective("requests"))
    values = evidence.values

    def mean(of: Mapping[Any, Mapping[Any, float]], candidate: Candidate) -> float | None:
        each = [of.get((s, candidate)) for place in places for s in place.scenarios]
        found = [statistics.fmean(v.values()) for v in each if v]
        return statistics.fmean(found) if len(found) == len(each) and found else None

    old, new = mean(values, made.default), mean(values, region.candidate)
    rate = mean(rates, region.candidate)
    if old is None or new is None or rate is None:
        return None, "a rate is not known for every length of the rule"
    if evidence.asked == "capacity":  # requests lost while it starts, then more a second
        seconds = boot_s * old / (new - old)
        return (math.ceil(new * seconds), round(seconds, 1)), None
    # as many requests as are open wait for the start; each one served then saves so much
    per_request = (old - new) * (region.output_tokens - 1 if evidence.asked == "tpot" else 1)
    requests = math.ceil(region.load * boot_s / per_request)
    return (requests, round(requests / rate, 1)), None

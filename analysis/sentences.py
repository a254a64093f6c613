"""The report's findings in words, for a person who must choose a backend."""

from collections.abc import Iterable

from analysis.decisions import Decision, Place
from analysis.differences import OBJECTIVES, Difference
from analysis.formats import count, times
from analysis.points import Point
from analysis.study import Study

# objective -> what the better backend does, and of what
CLAIMS: dict[str, tuple[str, str]] = {
    "output": ("serves", "the output tokens/s of"),
    "total": ("serves", "the total tokens/s of"),
    "ttft": ("gives the first token", "as fast as"),
    "itl": ("gives each further token", "as fast as"),
    "e2e": ("ends a request", "as fast as"),
    "energy": ("needs", "fewer joules per output token than"),
}
HEADLINES = ("output", "total", "ttft", "itl", "e2e")


def place_words(place: Place, many_models: bool) -> str:
    model, task, context, load = place
    of_model = f" of {model}" if many_models else ""
    return f"At {count(context)} tokens of context ({task}, {load_words(load)}{of_model})"


def load_words(load: str) -> str:
    """``closed4`` → "4 users", ``open2.5`` → "2.5 requests/s"."""
    if load.startswith("closed"):
        users = load.removeprefix("closed")
        return f"{users} user{'' if users == '1' else 's'}"
    return f"{load.removeprefix('open')} requests/s"


def summary_sentences(whole: Study) -> list[str]:
    """What a reader should take away, most useful first; never more than a screenful."""
    return [
        *_scope(whole),
        *_winners(whole),
        *_barred(whole),
        *_answers(whole.points),
        *_energy(whole.usable),
        *_excluded(whole.points),
    ]


def _scope(whole: Study) -> list[str]:
    usable = whole.usable
    if not usable:
        return [f"None of the {len(whole.points)} points can be used; the reasons stand below."]
    backends = sorted({p.backend for p in usable})
    contexts = sorted({p.context_tokens for p in usable})
    span = (
        count(contexts[0])
        if len(contexts) == 1
        else f"{count(contexts[0])} to {count(contexts[-1])}"
    )
    models = sorted({p.model for p in usable})
    gpus = sorted({gpu.name for run in whole.runs for gpu in run.manifest.host.gpus})
    where = ", ".join(gpus) if gpus else f"the CPU ({whole.runs[0].manifest.host.cpu.strip()})"
    return [
        f"{_list(backends)} on {_list(models)}, {span} tokens of context, on {where}: "
        f"{len(usable)} usable points of {len([p for p in whole.points if p.status != 'superseded'])}."
    ]


def _list(names: Iterable[str]) -> str:
    words = [f"`{name}`" for name in names]
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _winners(whole: Study) -> list[str]:
    """Per model, task and load: the longest context, the shortest where it says something else, and
    whether the answer changes in between."""
    groups: dict[tuple[str, str, str], dict[int, list[Decision]]] = {}
    for decision in whole.decisions:
        model, task, context, load = decision.place
        groups.setdefault((model, task, load), {}).setdefault(context, []).append(decision)
    many = len({model for model, _, _ in groups}) > 1
    found: list[str] = []
    for (model, task, load), by_context in groups.items():
        ends = sorted(by_context)
        shown: str | None = None
        for context in dict.fromkeys((ends[-1], ends[0])):
            sentence, gist = _place_sentence(by_context[context], whole, many)
            if sentence and gist != shown:
                found.append(sentence)
                shown = gist
        found += _crossings(whole, (model, task, load))
    return found


def _place_sentence(
    here: list[Decision], whole: Study, many_models: bool
) -> tuple[str | None, str]:
    clauses: list[str] = []
    gists: list[str] = []
    for name in HEADLINES:
        decision = next((d for d in here if d.objective == name), None)
        if (
            decision is None
            or not (decision.tied or decision.beaten)
            or (name == "total" and clauses)
        ):
            continue
        clause, gist = _clause(decision, whole.differences)
        clauses.append(clause)
        gists.append(gist)
    if not clauses:
        return None, ""
    untested = any(not d.tested for d in here if d.tied or d.beaten)
    caution = " One server start each, so nothing of this is tested." if untested else ""
    held = _held_back(here[0].place, whole)
    words = f"{place_words(here[0].place, many_models)}: {'; '.join(clauses)}.{caution}{held}"
    return words, "|".join(gists)


def _clause(decision: Decision, found: list[Difference]) -> tuple[str, str]:
    """One objective at one place against every rival, and its gist without the figures."""
    title = next(o.title for o in OBJECTIVES if o.name == decision.objective)
    verb, of = CLAIMS.get(decision.objective, ("is better", "than"))
    rivals = [*decision.tied, *decision.beaten]
    if decision.tested and decision.tied:
        names = _list([decision.best, *decision.tied])
        behind = f", ahead of {_list(decision.beaten)}" if decision.beaten else ""
        return f"{title} is a tie between {names}{behind}", f"tie {decision.objective}"
    parts: list[str] = []
    for number, rival in enumerate(rivals):
        ratio, interval = _against(decision, rival, found)
        parts.append(f"{times(ratio)}{interval} {of if number == 0 else _again(of)} `{rival}`")
    gist = f"{decision.best}{'>' if decision.winner else '?'}{decision.objective}"
    return f"`{decision.best}` {verb} {' and '.join(parts)}", gist


def _again(of: str) -> str:
    """The second time, "those of" stands for "the output tokens/s of"."""
    return "those of" if of.endswith("of") else of


def _held_back(place: Place, whole: Study) -> str:
    """What bounds the backends at this place, in one short sentence."""
    here = [p for p in whole.usable if p.place == place and p.run_id in whole.bottlenecks]
    words: dict[str, str] = {}
    for point in here:
        found = whole.bottlenecks[point.run_id]
        phases = [f"{v.phase} {v.bound}" for v in found.phases if v.bound != "undetermined"]
        if found.bound not in ("engine", "undetermined"):
            words[point.backend] = f"{found.bound}-bound"
        elif phases:
            words[point.backend] = f"{', '.join(phases)}-bound"
    if not words:
        return ""
    if len(words) > 1 and len(set(words.values())) == 1:
        return f" All are {next(iter(words.values()))}."
    return " " + "; ".join(f"`{name}` is {word}" for name, word in sorted(words.items())) + "."


def _crossings(whole: Study, group: tuple[str, str, str]) -> list[str]:
    """Crossovers by name; where there are none, one sentence for all."""
    here = [
        c
        for c in whole.crossings
        if (c.model, c.task, c.load) == group and c.cost.name != "sequence"
    ]
    if not here:
        return []
    _, task, load = group
    lead = f"{task}, {load_words(load)}"
    crossed = [
        f"{lead}, {c.cost.title.lower()}: {c.found.sentence}."
        for c in here
        if c.found.verdict == "crossover"
    ]
    settled = [c for c in here if c.found.verdict == "none"]
    if crossed or len(settled) < len(here):
        return crossed
    low, high = min(min(c.contexts) for c in here), max(max(c.contexts) for c in here)
    return [f"{lead}: no crossover between {count(low)} and {count(high)} tokens."]


def _against(decision: Decision, rival: str, found: list[Difference]) -> tuple[float, str]:
    """How many times better, at least 1, and its interval in words."""
    for d in found:
        place = (d.model, d.task, d.context_tokens, d.load)
        if place != decision.place or d.objective != decision.objective:
            continue
        if {d.a, d.b} != {decision.best, rival}:
            continue
        flip = d.ratio.ratio < 1
        ratio = 1 / d.ratio.ratio if flip else d.ratio.ratio
        if d.ratio.low is None or d.ratio.high is None:
            return ratio, ""
        low, high = (1 / d.ratio.high, 1 / d.ratio.low) if flip else (d.ratio.low, d.ratio.high)
        return ratio, f" [{low:.3g}, {high:.3g}]"
    return 1.0, ""


def _barred(whole: Study) -> list[str]:
    """Backends that may not be chosen, with the lengths."""
    out: dict[str, list[int]] = {}
    for (_, context), backends in whole.barred.items():
        for backend in backends:
            out.setdefault(backend, []).append(context)
    return [
        f"`{backend}` is barred at {', '.join(count(c) for c in sorted(contexts))} tokens: "
        "its answers are worse than the reference's (see Answers)."
        for backend, contexts in sorted(out.items())
    ]


def _answers(points: list[Point]) -> list[str]:
    usable = [p for p in points if p.usable]
    graded = [p for p in usable if p.answers and p.answers.get("correct_share") is not None]
    random_weights = any(p.weights == "random" for p in usable)
    warning = (
        ["The weights are random: speed and memory stand, what the model says means nothing."]
        if random_weights
        else []
    )
    if not graded:
        return warning
    shares: dict[str, list[float]] = {}
    for point in graded:
        shares.setdefault(point.backend, []).append((point.answers or {})["correct_share"])
    words = ", ".join(
        f"`{backend}` {sum(values) / len(values):.0%}" for backend, values in sorted(shares.items())
    )
    verdict = (
        " The model fails its task with every backend."
        if all(max(values) < 0.05 for values in shares.values())
        else ""
    )
    return [*warning, f"Right answers over all graded prompts: {words}.{verdict}"]


def _energy(usable: list[Point]) -> list[str]:
    if not usable or any((p.energy or {}).get("status") == "measured" for p in usable):
        return []
    reasons = sorted({why for p in usable for why in (p.energy or {}).get("explain", [])})
    return [f"No joules: {'; '.join(reasons) or 'no energy source was recorded'}."]


def _excluded(points: list[Point]) -> list[str]:
    out = [p for p in points if p.status in ("failed", "invalid", "interrupted")]
    if not out:
        return []
    kinds = sorted({p.status for p in out})
    words = ", ".join(f"{sum(p.status == kind for p in out)} {kind}" for kind in kinds)
    return [f"Left out: {words}; each with its reason under Excluded points."]

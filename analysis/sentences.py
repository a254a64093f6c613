"""The report's findings in words, for a person who must choose a backend."""

from collections.abc import Iterable

from analysis.barring import Barred
from analysis.crossings import Crossing
from analysis.decisions import Decision, Place
from analysis.differences import OBJECTIVES, Difference
from analysis.formats import count, load_words, percent, significant, times
from analysis.gates import Gate
from analysis.left_out import LeftOut
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
LEVEL = 1.05  # without a test, backends nearer than this are called level
MOST_RIVALS = 3  # named in one clause


def place_words(place: Place, many_models: bool) -> str:
    model, task, context, load = place
    of_model = f" of {model}" if many_models else ""
    return f"At {count(context)} tokens of context ({task}, {load_words(load)}{of_model})"


def summary_sentences(whole: Study) -> list[str]:
    """What a reader should take away, most useful first; never more than a screenful."""
    return [
        *_verdict(whole),
        *_barred(whole),
        *_winners(whole),
        *_answers(whole.points),
        *_energy(whole.usable),
        *_scope(whole),
        *_executions(whole),
        *_excluded(whole.points, whole.left_out),
    ]


def _verdict(whole: Study) -> list[str]:
    """The backend to take, by length where it changes, and how surely."""
    made = [
        d for d in whole.decisions if d.objective in HEADLINES and (d.tied or d.beaten or d.barred)
    ]
    if not made:
        return []
    lead = _lead(made, whole.differences)
    compared = [d for d in made if d.tied or d.beaten]
    won = sum(d.winner is not None for d in compared)
    if not any(d.tested for d in compared):
        surety = (
            "every backend was started once, so this is a hint and no claim "
            "(`repeats: 3` in the sweep would test it)"
        )
    else:
        surety = (
            f"{won} of {len(compared)} comparisons have a winner beyond noise, the others are ties"
        )
    return [f"**{lead}** Of speed (tokens/s and latencies): {surety}."]


def _lead(made: list[Decision], found: list[Difference]) -> str:
    """One choice where all loads agree; else each with the loads that it holds for."""
    settings: dict[tuple[str, str], list[Decision]] = {}
    for decision in made:
        model, _, _, load = decision.place
        settings.setdefault((model, load), []).append(decision)
    choices: dict[str, list[tuple[str, str]]] = {}
    for setting, here in settings.items():
        choices.setdefault(_choice(here, found), []).append(setting)
    if len(choices) == 1:
        (choice,) = choices
        return f"{choice[0].upper()}{choice[1:]}."
    many = len({model for model, _ in settings}) > 1
    parts = [
        f"{' and '.join(_setting_words(setting, many) for setting in held)}, {choice}"
        for choice, held in choices.items()
    ]
    return f"It depends on the {'model and the ' if many else ''}load: {'; '.join(parts)}."


def _choice(here: list[Decision], found: list[Difference]) -> str:
    """What to take under one load, by length where it changes."""
    by_context: dict[int, list[Decision]] = {}
    for decision in here:
        by_context.setdefault(decision.place[2], []).append(decision)
    spans: list[tuple[str | None, list[int]]] = []
    for context in sorted(by_context):
        leader = _leader(by_context[context], found)
        if spans and spans[-1][0] == leader:
            spans[-1][1].append(context)
        else:
            spans.append((leader, [context]))
    if all(leader is None for leader, _ in spans):
        return "no backend leads"
    parts = [
        (f"`{leader}`" if leader else "whichever you like") + f" {_lengths(contexts)}"
        for leader, contexts in spans
    ]
    return f"take {', then '.join(parts)}"


def _setting_words(setting: tuple[str, str], many_models: bool) -> str:
    model, load = setting
    return f"with {load_words(load)}{f' of {model}' if many_models else ''}"


def _leader(here: list[Decision], found: list[Difference]) -> str | None:
    """Who is ahead in most comparisons of one length; None when nobody is, or two equally often."""
    counts: dict[str, int] = {}
    for decision in here:
        if _ahead(decision, found):
            counts[decision.best] = counts.get(decision.best, 0) + 1
    ranked = sorted(counts, key=lambda name: -counts[name])
    if not ranked or (len(ranked) > 1 and counts[ranked[0]] == counts[ranked[1]]):
        return None
    return ranked[0]


def _ahead(decision: Decision, found: list[Difference]) -> bool:
    """Shown to be better; or, where nothing is tested, ahead of every rival by more than LEVEL."""
    if decision.tested:
        return decision.winner is not None
    rivals = [*decision.tied, *decision.beaten]
    return all(_against(decision, rival, found)[0] > LEVEL for rival in rivals)


def _lengths(contexts: list[int]) -> str:
    if len(contexts) == 1:
        return f"at {count(contexts[0])} tokens"
    return f"from {count(contexts[0])} to {count(contexts[-1])} tokens"


def _scope(whole: Study) -> list[str]:
    usable = whole.usable
    if not usable:
        return [f"None of the {len(whole.points)} points can be used; the reasons stand below."]
    backends = sorted({p.of_backend for p in usable})
    contexts = sorted({p.context_tokens for p in usable})
    span = (
        count(contexts[0])
        if len(contexts) == 1
        else f"{count(contexts[0])} to {count(contexts[-1])}"
    )
    models = sorted({p.of_model for p in usable})
    gpus = sorted({gpu.name for run in whole.runs for gpu in run.manifest.host.gpus})
    cpus = sorted({run.manifest.host.cpu.strip() for run in whole.runs} - {"unknown", ""})
    where = ", ".join(gpus) or (f"the CPU ({', '.join(cpus)})" if cpus else "an unknown host")
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
    held = _held_back(here[0].place, whole)
    words = f"{place_words(here[0].place, many_models)}: {'; '.join(clauses)}.{held}"
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
    against = {rival: _against(decision, rival, found) for rival in rivals}
    if not decision.tested and all(ratio < LEVEL for ratio, _ in against.values()):
        return f"{title} is level (within {LEVEL * 100 - 100:.0f} %)", f"level {decision.objective}"
    parts = [
        f"{times(ratio)}{interval} {of if number == 0 else _again(of)} `{rival}`"
        for number, (rival, (ratio, interval)) in enumerate(list(against.items())[:MOST_RIVALS])
    ]
    if len(rivals) > MOST_RIVALS:
        parts.append(f"more against {len(rivals) - MOST_RIVALS} others")
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
        if (c.model, c.task, c.load) == group
        and c.cost.name != "sequence"
        and not barred_in(c, whole.barred)
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
    """Backends that may not be chosen, with the lengths, what they lose, and what that would have bought."""
    out: dict[str, list[int]] = {}
    for (_, context), backends in sorted(whole.barred.items()):
        for backend in backends:
            out.setdefault(backend, []).append(context)
    found: list[str] = []
    for backend, contexts in sorted(out.items()):
        lost = [g for g in whole.gates if g.barred and g.backend == backend and g.kind == "answers"]
        failed = [v for v in whole.verifications if v.backend == backend and v.verdict == "fail"]
        if lost:
            worst = max(lost, key=lambda g: (g.worse_by or 0, g.context_tokens))
            why = (
                f"at {count(worst.context_tokens)} tokens ({worst.task}) it answers {worst.backend_right} "
                f"of {worst.prompts} prompts right, `{worst.reference}` {worst.reference_right}"
            )
        elif failed:
            why = f"it fails verification against `{failed[0].reference}`"
        else:
            why = "what it computes drifts from the reference (see Answers)"
        found.append(
            f"**`{backend}` is barred at {', '.join(count(c) for c in contexts)} tokens**: "
            f"{why}{_though(whole, backend, contexts[-1])}.{_equal(whole.gates, backend, contexts)}"
        )
    return found


def _though(whole: Study, backend: str, context: int) -> str:
    """The speed that the barred backend would have bought at its longest barred length."""
    gains: list[tuple[float, str]] = []
    for d in whole.differences:
        if d.context_tokens != context or d.objective != "total" or backend not in (d.a, d.b):
            continue
        other = d.b if d.a == backend else d.a
        ratio = d.ratio.ratio if d.a == backend else 1 / d.ratio.ratio
        gains.append((ratio, other))
    if not gains or min(gains)[0] <= 1.05:
        return ""
    ratio, other = min(gains)
    return f", though it serves {times(ratio)} the tokens/s of `{other}` there"


def _equal(found: list[Gate], backend: str, out: list[int]) -> str:
    same = sorted(
        {
            g.context_tokens
            for g in found
            if g.backend == backend and g.verdict == "no worse" and g.context_tokens not in out
        }
    )
    return f" At {', '.join(map(count, same))} tokens its answers are no worse." if same else ""


def barred_in(crossing: Crossing, barred: Barred) -> dict[str, str]:
    """Backends of a crossing that may not be chosen at some of its lengths, with those lengths."""
    found: dict[str, str] = {}
    for name in (crossing.a, crossing.b):
        out = [c for c in crossing.contexts if name in barred.get((crossing.model, c), {})]
        if out:
            found[name] = ", ".join(map(count, out))
    return found


def _answers(points: list[Point]) -> list[str]:
    usable = [p for p in points if p.usable]
    graded = [p for p in usable if p.answers and p.answers.get("correct_share") is not None]
    if not graded:
        return []
    shares: dict[str, list[tuple[float, int]]] = {}
    for point in graded:
        found = point.answers or {}
        shares.setdefault(point.backend, []).append((found["correct_share"], found["prompts"]))
    words = ", ".join(
        f"`{backend}` {percent(sum(s * n for s, n in held) / sum(n for _, n in held))}"
        for backend, held in sorted(shares.items())
    )
    verdict = (
        " The model fails its task with every backend."
        if all(share < 0.05 for held in shares.values() for share, _ in held)
        else ""
    )
    return [f"Right answers over all tasks and lengths: {words}.{verdict}"]


def _energy(usable: list[Point]) -> list[str]:
    held = [p.energy or {} for p in usable]
    if not usable:
        return []
    measured = sum(e.get("status") == "measured" for e in held)
    refused = sum(e.get("status") == "invalid" for e in held)
    if measured or refused:
        return [
            f"GPU energy stands for {measured} of {len(usable)} points; {refused} windows were refused, "
            "each with its reason under Energy."
        ] * bool(refused)
    reasons = sorted({why for e in held for why in e.get("explain", [])})
    estimates = [(e.get("cpu") or {}).get("estimate") for e in held]
    watts = [
        (e["low_j"] / p.window["duration_s"], e["high_j"] / p.window["duration_s"])
        for e, p in zip(estimates, usable, strict=True)
        if e and p.window
    ]
    guess = (
        f" For the CPU there is an estimate only, {significant(min(w[0] for w in watts))} to "
        f"{significant(max(w[1] for w in watts))} W."
        if watts
        else ""
    )
    return [
        f"No joules were measured: {'; '.join(reasons) or 'no energy source was recorded'}.{guess}"
    ]


def _executions(whole: Study) -> list[str]:
    if len(whole.executions) < 2:
        return []
    found = ", ".join(whole.executions)
    if whole.across_executions:
        return [
            f"Execution differs ({found}) within one ranking, as was asked for: a difference may be the "
            "CUDA graphs' and not the backend's."
        ]
    return [
        f"Execution differs ({found}): each is ranked by itself. `--across-executions` compares them."
    ]


def _excluded(points: list[Point], servers: list[LeftOut]) -> list[str]:
    out = [p.status for p in points if p.status in ("failed", "invalid", "interrupted")]
    words = [f"{out.count(kind)} {kind}" for kind in sorted(set(out))]
    words += [f"`{server.label}` ({server.status})" for server in servers]
    return [f"Left out: {', '.join(words)}; each with its reason under Excluded."] if words else []

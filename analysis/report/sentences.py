"""The report's findings in words, for a person who must choose a backend.

Every sentence reads the decisions and differences that the tables show, and nothing else. From one start of
each candidate there are figures and no claims: nothing bold, no imperative, no length of a crossover.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from analysis.compare.cells import Cell, load_order
from analysis.compare.decisions import Decision
from analysis.compare.differences import Difference
from analysis.objectives import BY_NAME, FALLBACK, Objective
from analysis.point.point import Point
from analysis.report.formats import count, factor, percent, seconds, significant
from analysis.runs.identity import Place
from analysis.runs.unmeasured import LeftOut
from analysis.study import Study

ALSO = ("output", "ttft", "tpot", "e2e", "energy")  # told where a candidate is shown to win
MOST = 6  # sentences of one kind
LIMITS = {  # bounds of a point that are not the engine's own pace
    "client": "the load generator",
    "kv-capacity": "the KV pool",
    "scheduler-limit": "the scheduler's limits",
    "load": "the load that was offered",
    "host": "the host",
}
MOST_RIVALS = 3  # named in one clause


@dataclass(frozen=True)
class Group:
    """Decisions by one objective at one task and load, by context."""

    objective: Objective
    task: str
    load: str
    model: str
    decisions: tuple[Decision, ...]

    @property
    def compared(self) -> list[Decision]:
        return [d for d in self.decisions if d.outcome != "alone" or d.out]


def summary_sentences(whole: Study) -> list[str]:
    """What a reader should take away, most useful first; never more than a screenful."""
    return [
        *headline(whole),
        *_costs(whole),
        *_gated(whole),
        *_also(whole),
        *_crossings(whole),
        *_held_back(whole),
        *_two_peaks(whole),
        *_answers(whole),
        *_energy(whole.usable),
        *_scope(whole),
        *_what_differs(whole),
        *_not_compared(whole),
        *_missing_lengths(whole),
        *_excluded(whole),
    ]


def headline(whole: Study) -> list[str]:
    """By the objective that was chosen: the candidate to take, by length, and how surely."""
    groups = [group for group in _groups(whole, whole.objective) if group.compared]
    if whole.asked and whole.usable and not _groups(whole, whole.objective):
        return [
            f"{whole.objective.title}: no candidate has a value of it, so nothing is chosen by it."
        ]
    choices: dict[str, list[Group]] = {}
    for group in groups:
        choices.setdefault(_choice(whole, group), []).append(group)
    found: list[str] = []
    for choice, held in choices.items():
        same = len(held) == len(groups) and len(groups) > 1
        where = "every task and load" if same else "; ".join(map(_where, held[:MOST]))
        found.append(f"{_title(held)}, {where}: {choice}.")
    starts = [c.starts for g in groups for d in g.decisions for c in d.contenders]
    if starts and max(starts) == 1:
        found.append(
            "One start per candidate: leaders are not statistically tested, so all of this is indicative "
            "(`repeats: 3` or more in the sweep tests it)."
        )
    return found


def _groups(whole: Study, chosen: Objective) -> list[Group]:
    """One a task and load; by FALLBACK where no candidate has a value of the chosen objective."""
    families: dict[Place, list[Decision]] = {}
    for decision in whole.decisions:
        families.setdefault(decision.place.family, []).append(decision)
    groups: list[Group] = []
    for members in families.values():
        # one candidate's value alone compares nobody: then the fallback, as for the error rate
        names = {d.objective for d in members if len(d.contenders) > 1}
        keep = chosen.name in names or (whole.asked and chosen is whole.objective)
        objective = chosen if keep else BY_NAME[FALLBACK]
        own = sorted(
            (d for d in members if d.objective == objective.name),
            key=lambda d: d.place.context_tokens,
        )
        if own:
            first = own[0].place
            named = whole.labels
            groups.append(
                Group(objective, named.tasks[first], named.loads[first], first.model, tuple(own))
            )
    return sorted(groups, key=lambda g: (g.task, load_order(g.decisions[0].place), g.load))


def _title(groups: Sequence[Group]) -> str:
    return " or ".join(dict.fromkeys(group.objective.title for group in groups))


def _where(group: Group) -> str:
    return f"{group.task} with {group.load}"


def _choice(whole: Study, group: Group) -> str:
    """``take `a` from 512 to 2,048 tokens (…), no clear winner at 4,096 tokens``."""
    spans: list[list[Decision]] = []
    for decision in group.decisions:
        if spans and _outcome(spans[-1][-1]) == _outcome(decision):
            spans[-1].append(decision)
        else:
            spans.append([decision])
    return "; ".join(_span(whole, span) for span in spans)


def _outcome(decision: Decision) -> tuple[str, tuple[str, ...]]:
    return ("nobody", ()) if _nobody(decision) else (decision.outcome, decision.front)


def _span(whole: Study, span: Sequence[Decision]) -> str:
    last = span[-1]
    peaked = any(_peaked(whole, each) for each in last.against)
    by = "its median lies between two peaks, no ratio is told" if peaked else _by(last)
    at = _lengths([d.place.context_tokens for d in span])
    if last.outcome == "winner":
        return f"**take {_marked(last, last.front[0])} {at}** ({by})"
    if last.outcome == "indicative":
        return f"{_marked(last, last.front[0])} was ahead {at} ({by}; indicative)"
    if _nobody(last):
        return f"no candidate met the SLO {at}"
    if last.outcome == "alone" and last.front:
        others = "every other may not win or has no value" if last.out else "no other has a value"
        return f"{_marked(last, last.front[0])} {at}, where {others}"
    if last.outcome == "alone":
        return f"no candidate may be recommended {at}"
    if last.outcome == "not comparable":
        return f"not comparable {at} ({last.against[0].reason if last.against else 'no pair'})"
    return f"no clear winner {at} ({_list(_marked(last, name) for name in last.front)})"


def _nobody(decision: Decision) -> bool:
    return decision.objective == "goodput" and all(c.value == 0 for c in decision.contenders)


def _marked(decision: Decision, label: str) -> str:
    mark = next((c.eligible.mark for c in decision.contenders if c.label == label), None)
    return f"`{label}` ({mark})" if mark else f"`{label}`"


def _by(decision: Decision) -> str:
    """By how much the leader is ahead of its rivals at that decision's context, nearest rival first."""
    nearest = sorted(decision.against, key=lambda d: d.gain or float("inf"))
    parts = [difference_words(each) for each in nearest[:MOST_RIVALS]]
    if len(nearest) > MOST_RIVALS:
        parts.append(f"more than {len(nearest) - MOST_RIVALS} others by more")
    return f"{', '.join(parts)} at {count(decision.place.context_tokens)} tokens"


def difference_words(difference: Difference) -> str:
    """``1.31× [1.20, 1.42] higher goodput than `alpha```, said of the better one."""
    objective = BY_NAME[difference.objective]
    gain = difference.gain
    if gain is None:
        values = " against ".join(significant(value) for value in difference.values)
        return f"{values} {objective.unit} of `{difference.b}`"
    interval = difference.gain_interval if difference.tested else None
    return f"{factor(gain, interval)} {objective.better} than `{difference.b}`"


def _lengths(contexts: Sequence[int]) -> str:
    if len(contexts) == 1:
        return f"at {count(contexts[0])} tokens"
    return f"from {count(contexts[0])} to {count(contexts[-1])} tokens"


def _costs(whole: Study) -> list[str]:
    """What the winners of the headline are shown to cost by the other objectives."""
    found: list[str] = []
    for group in _groups(whole, whole.objective):
        for decision in group.decisions:
            winner = decision.winner
            if winner is None:
                continue
            rivals = {c.label for c in decision.contenders if c.eligible.may_win}
            worse = [
                each
                for each in _at(whole, decision.place, winner)
                if each.verdict == "worse" and each.b in rivals and not _peaked(whole, each)
            ]
            if worse:
                told = ", ".join(map(_cost_words, worse[: MOST_RIVALS + 1]))
                where = f"{_where(group)}, {count(decision.place.context_tokens)} tokens"
                found.append(f"What `{winner}` costs ({where}): {told}.")
    return found[:MOST]


def _cost_words(difference: Difference) -> str:
    objective, gain = BY_NAME[difference.objective], difference.gain
    if gain is None:
        values = " against ".join(significant(value) for value in difference.values)
        return f"{objective.title} {values} {objective.unit} of `{difference.b}`"
    turned = difference.turned.gain_interval
    return f"{factor(1 / gain, turned)} {objective.worse} than `{difference.b}`"


def _at(whole: Study, place: Place, label: str) -> list[Difference]:
    """Differences of one candidate at a place by the objectives that have a column, said of it."""
    return [
        d if d.a == label else d.turned
        for d in whole.differences
        if d.place == place and label in (d.a, d.b) and BY_NAME[d.objective].shown
    ]


def _also(whole: Study) -> list[str]:
    """Winners by other objectives, at the longest context that has one."""
    told = {
        (group.decisions[0].place.family, group.objective.name)
        for group in _groups(whole, whole.objective)
    }
    found: list[str] = []
    for name in ALSO:
        for group in _groups(whole, BY_NAME[name]):
            family = group.decisions[0].place.family
            if group.objective.name != name or (family, name) in told:
                continue
            won = [d for d in group.decisions if d.winner is not None]
            won = [d for d in won if not any(_peaked(whole, each) for each in d.against)]
            if won:
                found.append(f"Also shown ({_where(group)}): `{won[-1].winner}`, {_by(won[-1])}.")
    return found[:MOST]


def _peaked(whole: Study, difference: Difference) -> bool:
    """Whether the median of one of the two is that of a distribution with two peaks."""
    return any(
        difference.objective in point.bimodal
        for point in whole.usable
        if point.place == difference.place and point.candidate in difference.of
    )


def _two_peaks(whole: Study) -> list[str]:
    """Medians between two peaks are nobody's time: said, and quoted as no ratio."""
    found: dict[tuple[str, str, str], str] = {}
    for point in whole.usable:
        for name, peaks in point.bimodal.items():
            where = f"{point.task} with {point.load}, {count(point.context_tokens)} tokens"
            title = BY_NAME[name].title.removesuffix(" p50")
            told = (
                f"{percent(1 - peaks.share_high)} of its requests near {seconds(peaks.low)}, the others "
                f"near {seconds(peaks.high)}"
            )
            found.setdefault(
                (name, where, point.backend),
                f"{title} of `{point.backend}` has two peaks ({where}): {told}. Its median says little.",
            )
    return list(found.values())[:MOST]


def _gated(whole: Study) -> list[str]:
    """Candidates that may not win, or whose answers are undecided, with the lengths and why."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    labels = {(p.place, p.candidate): p.backend for p in whole.points}
    for key, eligible in whole.eligible.items():
        label = labels.get(key)
        if label is not None and eligible.mark and eligible.why_not:
            found.setdefault((label, eligible.mark), []).append(
                (key[0].context_tokens, eligible.why_not)
            )
    out: list[str] = []
    for (label, mark), held in sorted(found.items()):
        contexts = sorted({context for context, _ in held})
        _, why = max(held, key=lambda each: each[0])
        verb = "is disqualified" if mark == "disqualified" else f"is not recommended ({mark})"
        at = f"at {count(contexts[-1])} tokens, " if len(contexts) > 1 else ""
        words = f"`{label}` {verb} at {', '.join(map(count, contexts))} tokens: {at}{why}"
        fast = _though(whole, label, contexts[-1])
        out.append(f"{words}{fast}.")
    return out


def _though(whole: Study, label: str, context: int) -> str:
    """The speed that it would have bought at its longest length, against the best that may win."""
    for decision in whole.decisions:
        if decision.objective != "total" or decision.place.context_tokens != context:
            continue
        able = next((c.label for c in decision.contenders if c.eligible.may_win), None)
        if able is None or label not in {c.label for c in decision.contenders}:
            continue
        for each in _at(whole, decision.place, label):
            fast = each.objective == "total" and each.b == able
            if fast and each.gain is not None and each.verdict in ("better", "indicative"):
                if each.gain <= 1 + BY_NAME["total"].margin:
                    return ""
                return f", though it has {difference_words(each)} there"
    return ""


def _crossings(whole: Study) -> list[str]:
    """Lengths that are shown; none of a candidate that may not win at one of them."""
    found: list[str] = []
    for crossing in whole.crossings:
        if crossing.found.verdict not in ("crossover", "none") or not crossing.objective.shown:
            continue
        if gated_in(whole, crossing.places, (crossing.a, crossing.b)):
            continue
        lead = f"{crossing.objective.title} of {crossing.task} with {crossing.load}"
        found.append(f"{lead}: {crossing.found.sentence}.")
    return found[:MOST]


def gated_in(whole: Study, places: Iterable[Place], labels: Iterable[str]) -> dict[str, str]:
    """Of these candidates, those that may not win at some of these places, with the lengths."""
    wanted = set(labels)
    found: dict[str, list[str]] = {}
    for place in places:
        for point in whole.usable:
            if point.place != place or point.backend not in wanted:
                continue
            eligible = whole.eligible.get((place, point.candidate))
            length = count(place.context_tokens)
            if eligible and not eligible.may_win and length not in found.get(point.backend, []):
                found.setdefault(point.backend, []).append(length)
    return {label: ", ".join(lengths) for label, lengths in found.items()}


def _held_back(whole: Study) -> list[str]:
    """What bounds the candidates at the longest context of each task and load, in one short sentence."""
    found: list[str] = []
    for group in _groups(whole, whole.objective):
        place = group.decisions[-1].place
        words: dict[str, str] = {}
        for point in whole.usable:
            if point.place != place or point.run_id not in whole.bottlenecks:
                continue
            bottleneck = whole.bottlenecks[point.run_id]
            phases = [
                f"{v.phase} {v.bound}" for v in bottleneck.phases if v.bound != "undetermined"
            ]
            if bottleneck.bound in LIMITS:
                words[point.backend] = f"held back by {LIMITS[bottleneck.bound]}"
            elif phases:
                words[point.backend] = f"{', '.join(phases)}-bound"
        if words:
            told = "; ".join(f"`{name}` is {word}" for name, word in sorted(words.items()))
            if len(words) > 1 and len(set(words.values())) == 1:
                told = f"all are {next(iter(words.values()))}"
            found.append(
                f"What limits it ({_where(group)}, {count(place.context_tokens)} tokens): {told}."
            )
    return found[:MOST]


def _answers(whole: Study) -> list[str]:
    graded = [p for p in whole.points if p.answers and p.answers.get("correct_share") is not None]
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
        " The model fails its task with every candidate."
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


def _scope(whole: Study) -> list[str]:
    usable = whole.usable
    if not usable:
        return [f"None of the {len(whole.points)} points can be used; the reasons stand below."]
    backends = sorted({p.candidate.backend_label for p in usable})
    contexts = sorted({p.context_tokens for p in usable})
    models = sorted({p.model for p in usable})
    devices = list(dict.fromkeys(p.place.device.words for p in usable))
    counted = [p for p in whole.points if p.status != "superseded"]
    return [
        f"{_list(f'`{b}`' for b in backends)} on {_list(f'`{m}`' for m in models)}, "
        f"{_lengths(contexts).removeprefix('at ').removeprefix('from ')} of context, on "
        f"{'; '.join(devices)}: {len(usable)} usable points of {len(counted)}."
    ]


def _what_differs(whole: Study) -> list[str]:
    """Settings other than the backend in which candidates differ: named, since they may be the reason."""
    told: list[str] = []
    if whole.labels.differs:
        words = "; ".join(" / ".join(values) for values in whole.labels.differs.values())
        one = len({p.candidate.backend_label for p in whole.usable}) == 1
        told.append(
            f"Compared are settings of one backend: {words}."
            if one
            else f"Candidates differ in more than the backend: {words}. A difference may be that one's."
        )
    devices = list(dict.fromkeys(p.place.device.words for p in whole.usable))
    if len(devices) > 1:
        told.append(
            f"Measured on different devices ({'; '.join(devices)}): figures of two devices are not compared."
        )
    if len(whole.executions) > 1:
        ran = ", ".join(whole.executions)
        told.append(
            f"Execution differs ({ran}) within one ranking, as was asked for: a difference may be the CUDA "
            "graphs' and not the backend's."
            if whole.across_executions
            else f"Execution differs ({ran}): each is ranked by itself. `--across-executions` compares them."
        )
    return told


def _not_compared(whole: Study) -> list[str]:
    """Candidates that met no other, where there are others: what they ran was not the same."""
    met: dict[Place, set[str]] = {}
    for point in whole.usable:
        met.setdefault(point.place, set()).add(point.backend)
    everyone = {label for labels in met.values() for label in labels}
    alone = {
        (next(iter(labels)), f"{whole.labels.tasks[place]} with {whole.labels.loads[place]}")
        for place, labels in met.items()
        if len(labels) == 1
    }
    together = {label for labels in met.values() if len(labels) > 1 for label in labels}
    lonely = sorted((label, where) for label, where in alone if label not in together)
    if len(everyone) < 2 or not lonely:
        return []
    told = "; ".join(f"`{label}`: {where}" for label, where in lonely[:MOST])
    return [f"Not compared, since no other candidate was asked the same: {told}."]


def _missing_lengths(whole: Study) -> list[str]:
    """Lengths at which a candidate has no usable point though another has."""
    found: dict[tuple[str, str], list[tuple[int, str]]] = {}
    rows: dict[Place, dict[str, Cell]] = {}
    for cell in whole.cells:
        rows.setdefault(cell.place, {})[cell.backend] = cell
    families: dict[Place, set[str]] = {}
    for place, cells in rows.items():
        families.setdefault(place.family, set()).update(cells)
    for place, cells in rows.items():
        if not any(cell.starts for cell in cells.values()):
            continue
        for label in sorted(families[place.family]):
            cell = cells.get(label)
            if cell is None or not cell.starts:
                why = "not measured" if cell is None else _why_unusable(cell)
                where = f"{whole.labels.tasks[place]} with {whole.labels.loads[place]}"
                found.setdefault((label, where), []).append((place.context_tokens, why))
    return [
        f"`{label}` has no usable point ({where}): "
        + "; ".join(f"{count(context)} tokens, {why}" for context, why in sorted(held))
        + "."
        for (label, where), held in sorted(found.items())
    ][:MOST]


def _why_unusable(cell: Cell) -> str:
    last = cell.points[-1]
    return f"{last.status}: {last.reasons[0]}" if last.reasons else last.status


def _list(names: Iterable[str]) -> str:
    words = list(names)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _excluded(whole: Study) -> list[str]:
    out = [p.status for p in whole.points if p.status in ("failed", "invalid", "interrupted")]
    words = [f"{out.count(kind)} {kind}" for kind in sorted(set(out))]
    servers: list[LeftOut] = whole.left_out
    words += [f"`{server.label}` ({server.status})" for server in servers]
    return [f"Left out: {', '.join(words)}; each with its reason under Excluded."] if words else []

"""The report's findings in words, for a person who must choose a backend.

Every sentence reads the decisions and differences that the tables show, and nothing else. From one start of
each candidate there are figures and no claims: nothing bold, no imperative, no length of a crossover.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from analysis.compare.cells import Cell, load_order
from analysis.compare.decisions import Decision, Eligible
from analysis.compare.differences import Difference
from analysis.objectives import OBJECTIVES, SPEED, Objective, shown
from analysis.point.point import Point
from analysis.report.energy_section import estimate_w
from analysis.report.formats import count, factor, percent, seconds, significant
from analysis.runs.identity import Scenario
from analysis.study import Study

MOST = 6  # sentences of one kind
FAILS = 0.05  # share of right answers below which a model does not do its task
LIMITS = {  # bounds of a point that are not the engine's own pace
    "client": "the load generator",
    "kv-capacity": "the KV pool",
    "scheduler-limit": "the scheduler's limits",
    "load": "the offered load",
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
        *_may_not_win(whole),
        *_also(whole),
        *_crossings(whole),
        *_limits(whole),
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
    everywhere = _headline_groups(whole)
    groups = [group for group in everywhere if group.compared]
    if whole.asked and whole.usable and not groups:
        who = (
            "no two candidates have a value to compare"
            if everywhere
            else "no candidate has a value"
        )
        return [f"{whole.objective.title}: {who}, so there is no headline."]
    choices: dict[str, list[Group]] = {}
    for group in groups:
        choices.setdefault(_choice(whole, group), []).append(group)
    said: list[str] = []
    for choice, held in choices.items():
        same = len(held) == len(groups) and len(groups) > 1
        where = "every task and load" if same else "; ".join(map(_where, held[:MOST]))
        said.append(f"{_title(held)}, {where}: {choice}.")
    starts = [c.starts for g in groups for d in g.decisions for c in d.contenders]
    if starts and max(starts) == 1:
        said.append(
            "One start per candidate: leaders are not statistically tested, so all of this is indicative "
            "(`repeats: 3` or more in the sweep tests it)."
        )
    return said + _unproven(groups)


def _unproven(groups: Sequence[Group]) -> list[str]:
    """A name in the headline is what a server was asked for; whether it ran that is said here."""
    contenders = [c for g in groups for d in g.decisions for c in d.contenders]
    marks = {c.label: c.eligible.mark or "" for c in contenders}
    unproven = sorted(label for label, mark in marks.items() if "unproven" in mark)
    if not unproven:
        return []
    return [
        f"Unproven: nothing shows that the server of {_list(f'`{name}`' for name in unproven)} ran the "
        "attention class of that name."
    ]


def _headline_groups(whole: Study) -> list[Group]:
    """One a task and load, by the objective that its headline goes by."""
    return _groups(whole, whole.headlines)


def _groups(whole: Study, by: Mapping[Scenario, Objective]) -> list[Group]:
    """One a task and load in which an objective is given (by family of scenarios) and has decisions."""
    families: dict[Scenario, list[Decision]] = {}
    for decision in whole.decisions:
        if by.get(decision.scenario.family) is decision.objective:
            families.setdefault(decision.scenario.family, []).append(decision)
    groups: list[Group] = []
    for family, members in families.items():
        members.sort(key=lambda d: d.scenario.context_tokens)
        first, named = members[0].scenario, whole.labels
        groups.append(
            Group(by[family], named.tasks[first], named.loads[first], first.model, tuple(members))
        )
    return sorted(groups, key=lambda g: (g.task, load_order(g.decisions[0].scenario), g.load))


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
    return ("nobody", ()) if _all_zero(decision) else (decision.outcome, decision.front)


def _span(whole: Study, span: Sequence[Decision]) -> str:
    last = span[-1]
    peaked = any(_peaked(whole, each) for each in last.against)
    ahead = _ahead_words(last) if len(span) == 1 else _by(last)
    by = "its times have two peaks, so no ratio is given" if peaked else ahead
    at = _lengths([d.scenario.context_tokens for d in span])
    if last.outcome == "winner":
        return f"**take {_marked(last, last.front[0])} {at}** ({by})"
    if last.outcome == "indicative":
        return f"{_marked(last, last.front[0])} was ahead {at} ({by}; indicative)"
    if _all_zero(last):
        return f"{last.objective.all_zero} {at}"
    if last.outcome == "alone" and last.front:
        others = "no other may win" if last.out else "no other has a value"
        return f"{_marked(last, last.front[0])} {at}, where {others}"
    if last.outcome == "alone":
        return f"no candidate can be recommended {at}"
    if last.outcome == "not comparable":
        return f"not comparable {at} ({last.against[0].reason if last.against else 'no pair'})"
    if last.among_all and len(last.front) > MOST:
        return f"no clear winner {at} among all {len(last.front)} that may win"
    return f"no clear winner {at} ({_list(_marked(last, name) for name in last.front)})"


def _all_zero(decision: Decision) -> bool:
    said = decision.objective.all_zero is not None
    return said and all(c.value == 0 for c in decision.contenders)


def _marked(decision: Decision, label: str) -> str:
    mark = next((c.eligible.mark for c in decision.contenders if c.label == label), None)
    return f"`{label}` ({mark})" if mark else f"`{label}`"


def _by(decision: Decision) -> str:
    return f"{_ahead_words(decision)} at {count(decision.scenario.context_tokens)} tokens"


def _ahead_words(decision: Decision) -> str:
    """By how much the leader is ahead of its rivals, nearest rival first."""
    nearest = sorted(decision.against, key=lambda d: d.gain or float("inf"))
    parts = [difference_words(each) for each in nearest[:MOST_RIVALS]]
    if len(nearest) > MOST_RIVALS:
        parts.append(f"ahead of {len(nearest) - MOST_RIVALS} others by more")
    return ", ".join(parts)


def difference_words(difference: Difference) -> str:
    """``1.31× [1.20, 1.42] higher goodput than `alpha```, said of the better one."""
    objective, gain = difference.objective, difference.gain
    if gain is None:
        values = " against ".join(significant(value) for value in difference.values)
        return f"{values} {objective.unit} of `{difference.b}`"
    interval = difference.gain_interval if difference.tested else None
    return f"{factor(gain, interval)} {objective.better} than `{difference.b}`"


def _lengths(contexts: Sequence[int]) -> str:
    """``at 512 tokens``, ``from 512 to 4,096 tokens``."""
    return f"{'at' if len(contexts) == 1 else 'from'} {_range(contexts)}"


def _range(contexts: Sequence[int]) -> str:
    first, last = count(contexts[0]), count(contexts[-1])
    return f"{first} tokens" if len(contexts) == 1 else f"{first} to {last} tokens"


def _costs(whole: Study) -> list[str]:
    """What the winners of the headline are shown to cost by the other objectives."""
    said: list[str] = []
    for group in _headline_groups(whole):
        for decision in group.decisions:
            winner = decision.winner
            if winner is None:
                continue
            rivals = {c.label for c in decision.contenders if c.eligible.may_win}
            worse = [
                each
                for each in _at(whole, decision.scenario, winner)
                if each.verdict == "worse" and each.b in rivals and not _peaked(whole, each)
            ]
            if worse:
                told = ", ".join(map(_cost_words, worse[: MOST_RIVALS + 1]))
                where = f"{_where(group)}, {count(decision.scenario.context_tokens)} tokens"
                said.append(f"What `{winner}` costs ({where}): {told}.")
    return said[:MOST]


def _cost_words(difference: Difference) -> str:
    objective, gain = difference.objective, difference.gain
    if gain is None:
        values = " against ".join(significant(value) for value in difference.values)
        return f"{objective.title} {values} {objective.unit} of `{difference.b}`"
    turned = difference.turned.gain_interval
    return f"{factor(1 / gain, turned)} {objective.worse} than `{difference.b}`"


def _at(whole: Study, scenario: Scenario, label: str) -> list[Difference]:
    """Differences of one candidate at a scenario by the objectives that have a column, said of it."""
    return [
        d if d.a == label else d.turned
        for d in whole.differences
        if d.scenario == scenario and label in (d.a, d.b) and "decisions" in d.objective.views
    ]


def _also(whole: Study) -> list[str]:
    """Winners by other objectives, at the longest context that has one."""
    families = {decision.scenario.family for decision in whole.decisions}
    said: list[str] = []
    for objective in shown("summary"):
        untold = {f: objective for f in families if whole.headlines.get(f) is not objective}
        for group in _groups(whole, untold):
            won = [d for d in group.decisions if d.winner is not None]
            won = [d for d in won if not any(_peaked(whole, each) for each in d.against)]
            if won:
                said.append(f"Also shown ({_where(group)}): `{won[-1].winner}`, {_by(won[-1])}.")
    return said[:MOST]


def _peaked(whole: Study, difference: Difference) -> bool:
    """Whether the median of one of the two is that of a distribution with two peaks."""
    return any(
        difference.objective.measure(point).modes is not None
        for point in whole.usable
        if point.scenario == difference.scenario and point.candidate in difference.of
    )


def _two_peaks(whole: Study) -> list[str]:
    """Medians between two peaks are nobody's time: said, and quoted as no ratio."""
    by_figure: dict[tuple[Objective, str, str], str] = {}
    for point in whole.usable:
        where = f"{point.task} with {point.load}, {count(point.context_tokens)} tokens"
        for objective in OBJECTIVES:
            peaks = objective.measure(point).modes
            if peaks is None:
                continue
            told = (
                f"{percent(1 - peaks.share_high)} of its requests near {seconds(peaks.low)}, the others "
                f"near {seconds(peaks.high)}"
            )
            by_figure.setdefault(
                (objective, where, point.backend),
                f"{objective.quantity} of `{point.backend}` has two peaks ({where}): {told}. "
                "The median describes neither.",
            )
    return list(by_figure.values())[:MOST]


def _may_not_win(whole: Study) -> list[str]:
    """Candidates that may not win, or whose answers are undecided, with the lengths and why."""
    groups: dict[tuple[str, str], list[tuple[int, Eligible]]] = {}
    labels = {(p.scenario, p.candidate): p.backend for p in whole.points}
    for key, eligible in whole.eligible.items():
        label = labels.get(key)
        if label is not None and eligible.mark and eligible.why_not:
            groups.setdefault((label, eligible.mark), []).append((key[0].context_tokens, eligible))
    said: list[str] = []
    for (label, mark), held in sorted(groups.items(), key=lambda item: item[0]):
        contexts = sorted({context for context, _ in held})
        _, last = max(held, key=lambda each: each[0])
        verb = "is disqualified" if last.disqualified else f"is not recommended ({mark})"
        at = f"at {count(contexts[-1])} tokens, " if len(contexts) > 1 else ""
        words = f"`{label}` {verb} at {_list(map(count, contexts))} tokens: {at}{last.why_not}"
        said.append(f"{words}{_though(whole, label, contexts[-1])}.")
    return said


def _though(whole: Study, label: str, context: int) -> str:
    """The speed that it would have bought at its longest length, against the best that may win."""
    for decision in whole.decisions:
        if decision.objective is not SPEED or decision.scenario.context_tokens != context:
            continue
        able = next((c.label for c in decision.contenders if c.eligible.may_win), None)
        if able is None or label not in {c.label for c in decision.contenders}:
            continue
        for each in _at(whole, decision.scenario, label):
            fast = each.objective is SPEED and each.b == able
            if fast and each.gain is not None and each.verdict in ("better", "indicative"):
                if each.gain <= 1 + SPEED.margin:
                    return ""
                return f", though it has {difference_words(each)} there"
    return ""


def _crossings(whole: Study) -> list[str]:
    """Lengths that are shown; none of a candidate that may not win at one of them."""
    said: list[str] = []
    for crossing in whole.crossings:
        told = crossing.found.verdict in ("crossover", "none")
        if not told or "decisions" not in crossing.objective.views:
            continue
        if lengths_without_a_chance(whole, crossing.scenarios, (crossing.a, crossing.b)):
            continue
        lead = f"{crossing.objective.title} of {crossing.task} with {crossing.load}"
        said.append(f"{lead}: {crossing.found.sentence}.")
    return said[:MOST]


def lengths_without_a_chance(
    whole: Study, scenarios: Iterable[Scenario], labels: Iterable[str]
) -> dict[str, str]:
    """Of these candidates, those that may not win at some of these scenarios, with the lengths."""
    wanted = set(labels)
    lengths: dict[str, list[str]] = {}
    for scenario in scenarios:
        for point in whole.usable:
            if point.scenario != scenario or point.backend not in wanted:
                continue
            eligible = whole.eligible.get((scenario, point.candidate))
            length = count(scenario.context_tokens)
            if eligible and not eligible.may_win and length not in lengths.get(point.backend, []):
                lengths.setdefault(point.backend, []).append(length)
    return {label: ", ".join(at) for label, at in lengths.items()}


def _limits(whole: Study) -> list[str]:
    """What bounds the candidates at the longest context of each task and load, in one short sentence."""
    said: list[str] = []
    for group in _headline_groups(whole):
        scenario = group.decisions[-1].scenario
        words: dict[str, str] = {}
        for point in whole.usable:
            if point.scenario != scenario or point.run_id not in whole.bottlenecks:
                continue
            bottleneck = whole.bottlenecks[point.run_id]
            phases = [
                f"{v.bound}-bound in {v.phase}"
                for v in bottleneck.phases
                if v.bound != "undetermined"
            ]
            if bottleneck.bound in LIMITS:
                words[point.backend] = f"limited by {LIMITS[bottleneck.bound]}"
            elif phases:
                words[point.backend] = " and ".join(phases)
        if words:
            told = "; ".join(f"`{name}` is {word}" for name, word in sorted(words.items()))
            if len(words) > 1 and len(set(words.values())) == 1:
                told = f"all are {next(iter(words.values()))}"
            said.append(
                f"Bottleneck ({_where(group)}, {count(scenario.context_tokens)} tokens): {told}."
            )
    return said[:MOST]


def _answers(whole: Study) -> list[str]:
    shares: dict[str, list[tuple[float, int]]] = {}
    for point in whole.points:
        if point.answers is not None and point.answers.correct_share is not None:
            graded = point.answers.correct_share, point.answers.prompts
            shares.setdefault(point.backend, []).append(graded)
    if not shares:
        return []
    over_all = {
        backend: sum(s * n for s, n in held) / sum(n for _, n in held)
        for backend, held in sorted(shares.items())
    }
    words = ", ".join(f"`{backend}` {percent(share)}" for backend, share in over_all.items())
    if len(over_all) > MOST:
        least, most = (pick(over_all, key=over_all.__getitem__) for pick in (min, max))
        span = f"{percent(over_all[least])} (`{least}`) to {percent(over_all[most])} (`{most}`)"
        if over_all[least] == over_all[most]:
            span = percent(over_all[least])
        words = f"{span} with {len(over_all)} candidates"
    fails = all(share < FAILS for held in shares.values() for share, _ in held)
    verdict = " The model fails its task with every candidate." if fails else ""
    return [f"Correct answers over all tasks and lengths: {words}.{verdict}"]


def _energy(usable: list[Point]) -> list[str]:
    if not usable:
        return []
    results = [p.energy.result for p in usable if p.energy is not None]
    measured = sum(result.status == "measured" for result in results)
    refused = sum(result.status == "invalid" for result in results)
    if measured or refused:
        return [
            f"GPU energy was measured for {measured} of {len(usable)} points; {refused} "
            f"{'window was' if refused == 1 else 'windows were'} refused, with the reason under Energy."
        ] * bool(refused)
    reasons = sorted({why for result in results for why in result.explain})
    watts = [span for point in usable if (span := estimate_w(point)) is not None]
    guess = (
        f" CPU power is an estimate only: {significant(min(low for low, _ in watts))} to "
        f"{significant(max(high for _, high in watts))} W."
        if watts
        else ""
    )
    why = "; ".join(reasons) or "no energy source was recorded"
    return [f"GPU energy was not measured ({why}).{guess}"]


def _scope(whole: Study) -> list[str]:
    usable = whole.usable
    if not usable:
        return [
            f"None of the {len(whole.points)} points can be used; the reasons are listed below."
        ]
    backends = sorted({p.candidate.backend_label for p in usable})
    contexts = sorted({p.context_tokens for p in usable})
    models = sorted({p.model for p in usable})
    devices = list(dict.fromkeys(p.scenario.device.words for p in usable))
    counted = [p for p in whole.points if p.status != "superseded"]
    return [
        f"{_list(f'`{b}`' for b in backends)} on {_list(f'`{m}`' for m in models)}, "
        f"{_range(contexts)} of context, on "
        f"{'; '.join(devices)}: {len(usable)} usable points of {len(counted)}."
    ]


def _what_differs(whole: Study) -> list[str]:
    """Settings other than the backend in which candidates differ: named, since they may be the reason."""
    told: list[str] = []
    if whole.labels.differs:
        words = "; ".join(" / ".join(values) for values in whole.labels.differs.values())
        one = len({p.candidate.backend_label for p in whole.usable}) == 1
        told.append(
            f"This compares settings of one backend: {words}."
            if one
            else f"Candidates differ in more than the backend: {words}. A difference may come from these."
        )
    devices = list(dict.fromkeys(p.scenario.device.words for p in whole.usable))
    if len(devices) > 1:
        told.append(
            f"Measured on different devices ({'; '.join(devices)}): devices are not compared with each other."
        )
    if len(whole.executions) > 1:
        ran = ", ".join(whole.executions)
        told.append(
            f"Execution differs ({ran}) within one ranking, as requested: a difference may come from CUDA "
            "graphs and not from the backend."
            if whole.across_executions
            else f"Execution differs ({ran}): each is ranked separately. `--across-executions` ranks them "
            "together."
        )
    return told


def _not_compared(whole: Study) -> list[str]:
    """Candidates that met no other, where there are others: what they ran was not the same."""
    met: dict[Scenario, set[str]] = {}
    for point in whole.usable:
        met.setdefault(point.scenario, set()).add(point.backend)
    everyone = {label for labels in met.values() for label in labels}
    alone = {
        (next(iter(labels)), f"{whole.labels.tasks[scenario]} with {whole.labels.loads[scenario]}")
        for scenario, labels in met.items()
        if len(labels) == 1
    }
    together = {label for labels in met.values() if len(labels) > 1 for label in labels}
    lonely = sorted((label, where) for label, where in alone if label not in together)
    if len(everyone) < 2 or not lonely:
        return []
    told = "; ".join(f"`{label}` ({where})" for label, where in lonely[:MOST])
    return [f"Not compared, because no other candidate ran the same workload: {told}."]


def _missing_lengths(whole: Study) -> list[str]:
    """Lengths at which a candidate has no usable point though another has."""
    missing: dict[tuple[str, str], list[tuple[int, str]]] = {}
    rows: dict[Scenario, dict[str, Cell]] = {}
    for cell in whole.cells:
        rows.setdefault(cell.scenario, {})[cell.backend] = cell
    families: dict[Scenario, set[str]] = {}
    for scenario, cells in rows.items():
        families.setdefault(scenario.family, set()).update(cells)
    for scenario, cells in rows.items():
        if not any(cell.starts for cell in cells.values()):
            continue
        for label in sorted(families[scenario.family]):
            cell = cells.get(label)
            if cell is None or not cell.starts:
                why = "not measured" if cell is None else _why_unusable(cell)
                where = f"{whole.labels.tasks[scenario]} with {whole.labels.loads[scenario]}"
                missing.setdefault((label, where), []).append((scenario.context_tokens, why))
    return [
        f"`{label}` lacks usable points ({where}): "
        + "; ".join(f"{count(context)} tokens, {why}" for context, why in sorted(held))
        + "."
        for (label, where), held in sorted(missing.items())
    ][:MOST]


def _why_unusable(cell: Cell) -> str:
    last = cell.points[-1]
    return f"{last.status} because {last.reasons[0]}" if last.reasons else last.status


def _list(names: Iterable[str]) -> str:
    words = list(names)
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _excluded(whole: Study) -> list[str]:
    out = [p.status for p in whole.points if p.status in ("failed", "invalid", "interrupted")]
    words = [f"{out.count(kind)} {kind}" for kind in sorted(set(out))]
    words += [f"`{server.label}` ({server.status})" for server in whole.unmeasured]
    return [f"Not used: {', '.join(words)}; the reasons are under Excluded."] if words else []

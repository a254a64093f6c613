"""The report's findings in words, for a person who must choose a backend.

Every sentence reads the decisions and differences that the tables show, and nothing else. From one start of
each candidate there are figures and no claims: nothing bold, no imperative, no length of a crossover.
"""

from collections.abc import Iterable, Mapping, Sequence

from analysis.bottleneck.classify import Bottleneck
from analysis.compare.cells import Cell
from analysis.compare.decisions import Eligible
from analysis.compare.differences import Difference
from analysis.objectives import OBJECTIVES, SPEED, Objective, shown
from analysis.point.point import Point
from analysis.report.choices import (
    MOST,
    MOST_RIVALS,
    TESTABLE,
    Group,
    by_words,
    choice_words,
    difference_words,
    gap_words,
    groups_by,
    headline_groups,
    listed,
    peaked,
    title_of,
    token_range,
    untested_words,
)
from analysis.report.energy_section import estimate_w
from analysis.report.formats import count, percent, seconds, significant
from analysis.runs.identity import Scenario
from analysis.study import Study

FAILS = 0.05  # share of right answers below which a model does not do its task
LIMITS = {  # bounds of a point that are not the engine's own pace
    "client": "the load generator",
    "kv-capacity": "the KV pool",
    "scheduler-limit": "the scheduler's limits",
    "load": "the offered load",
    "host": "the host",
}


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
    everywhere = headline_groups(whole)
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
        choices.setdefault(choice_words(whole, group), []).append(group)
    said: list[str] = []
    for choice, held in choices.items():
        same = len(held) == len(groups) and len(groups) > 1
        where = "every task and load" if same else "; ".join(group.where for group in held[:MOST])
        said.append(f"{title_of(held)}, {where}: {choice}.")
    why = untested_words(d for group in groups for d in group.decisions)
    if why is not None:
        said.append(
            f"Not tested, so all of this is indicative: {why} (`repeats: {TESTABLE}` or more in the sweep "
            "tests it)."
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
        f"Unproven: nothing shows that the server of {listed(f'`{name}`' for name in unproven)} ran the "
        "attention class of that name."
    ]


def _costs(whole: Study) -> list[str]:
    """What the winners of the headline are shown to cost by the other objectives."""
    said: list[str] = []
    for group in headline_groups(whole):
        for decision in group.decisions:
            winner = decision.winner
            if winner is None:
                continue
            rivals = {c.label for c in decision.contenders if c.eligible.may_win}
            worse = [
                each
                for each in _at(whole, decision.scenario, winner)
                if each.verdict == "worse" and each.b in rivals and not peaked(whole, each)
            ]
            if worse:
                told = ", ".join(map(_cost_words, worse[: MOST_RIVALS + 1]))
                where = f"{group.where}, {count(decision.scenario.context_tokens)} tokens"
                said.append(f"What `{winner}` costs ({where}): {told}.")
    return said[:MOST]


def _cost_words(difference: Difference) -> str:
    objective, gain = difference.objective, difference.gain
    if gain is None:
        values = " against ".join(significant(value) for value in difference.values)
        return f"{objective.title} {values} {objective.unit} of `{difference.b}`"
    return gap_words(difference)


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
        for group in groups_by(whole, untold):
            won = [d for d in group.decisions if d.winner is not None]
            won = [d for d in won if not any(peaked(whole, each) for each in d.against)]
            if won:
                said.append(
                    f"Also shown ({group.where}): `{won[-1].winner}`, {by_words(whole, won[-1])}."
                )
    return said[:MOST]


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
        words = f"`{label}` {verb} at {listed(map(count, contexts))} tokens: {at}{last.why_not}"
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
                return f", though it has {difference_words(whole, each)} there"
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
    """What bounds each candidate at the longest context of a task and load; nothing where none is known."""
    said: list[str] = []
    for group in headline_groups(whole):
        scenario = group.decisions[-1].scenario
        starts: dict[str, list[Bottleneck]] = {}
        for point in whole.usable:
            if point.scenario == scenario and point.run_id in whole.bottlenecks:
                starts.setdefault(point.backend, []).append(whole.bottlenecks[point.run_id])
        words = {label: bound_words(held) for label, held in starts.items()}
        if any(each not in (UNDETERMINED, OWN_PACE) for each in words.values()):
            at = f"{group.where}, {count(scenario.context_tokens)} tokens"
            said.append(f"Bottleneck ({at}): {by_bound(words)}.")
    return said[:MOST]


UNDETERMINED = "undetermined"
OWN_PACE = "limited by the engine's own speed"  # and of no phase is it known why


def bound_words(starts: Sequence[Bottleneck]) -> str:
    """``compute-bound in prefill and undetermined in decode``: what each of a candidate's starts says."""
    words = {_one_bound(each) for each in starts}
    return words.pop() if len(words) == 1 else UNDETERMINED


def _one_bound(found: Bottleneck) -> str:
    if found.bound in LIMITS:
        return f"limited by {LIMITS[found.bound]}"
    if all(each.bound == UNDETERMINED for each in found.phases):
        return OWN_PACE if found.bound == "engine" else UNDETERMINED
    return " and ".join(
        f"{each.bound}{'' if each.bound == UNDETERMINED else '-bound'} in {each.phase}"
        for each in found.phases
    )


def by_bound(words: Mapping[str, str]) -> str:
    """``all are …`` where each candidate is; else each bound with those that have it."""
    who: dict[str, list[str]] = {}
    for label, each in sorted(words.items()):
        who.setdefault(each, []).append(f"`{label}`")
    if len(who) == 1 and len(words) > 1:
        return f"all are {next(iter(who))}"
    last = sorted(who.items(), key=lambda item: item[0] == UNDETERMINED)
    return "; ".join(
        f"{listed(names)} {'is' if len(names) == 1 else 'are'} {each}" for each, names in last
    )


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
    if all(point.candidate.weights == "random" for point in whole.points):
        verdict = " The weights are random: answers prove nothing and are not judged."
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
        n = len(whole.points)
        if n == 1:
            return ["The only point cannot be used; the reasons are listed below."]
        return [f"None of the {n} points can be used; the reasons are listed below."]
    backends = sorted({p.candidate.backend_label for p in usable})
    contexts = sorted({p.context_tokens for p in usable})
    models = sorted({p.model for p in usable})
    devices = list(dict.fromkeys(whole.labels.devices[p.scenario.device] for p in usable))
    counted = [p for p in whole.points if p.status != "superseded"]
    return [
        f"{listed(f'`{b}`' for b in backends)} on {listed(f'`{m}`' for m in models)}, "
        f"{token_range(contexts)} of context, on "
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
    if whole.labels.usual:
        told.append(f"What a candidate's name leaves out: {', '.join(whole.labels.usual)}.")
    devices = list(dict.fromkeys(whole.labels.devices[p.scenario.device] for p in whole.usable))
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


def _excluded(whole: Study) -> list[str]:
    out = [p.status for p in whole.points if p.status in ("failed", "invalid", "interrupted")]
    words = [f"{out.count(kind)} {kind}" for kind in sorted(set(out))]
    words += [f"`{server.label}` ({server.status})" for server in whole.unmeasured]
    return [f"Not used: {', '.join(words)}; the reasons are under Excluded."] if words else []

"""The report in one sentence."""

from collections.abc import Mapping, Sequence
from itertools import pairwise

from analysis.compare.crossovers import Crossing
from analysis.compare.decisions import Decision
from analysis.report.choices import (
    MOST,
    Group,
    absent_words,
    gap_words,
    headline_groups,
    listed,
    lower,
    marked,
    nearest,
    peaked,
    span_words,
    title_of,
    untested_words,
)
from analysis.report.formats import count
from analysis.report.sentences import headline, lengths_without_a_chance
from analysis.study import Study

MOST_CHOICES = 2  # told in one sentence; of more it is said how often which


def answer(whole: Study) -> str:
    """The report in one sentence, by the objective of its headline."""
    if not whole.usable:
        n = len(whole.points)
        none = "the only point cannot" if n == 1 else f"none of the {n} points can"
        return f"**No answer**: {none} be used; the reasons are under Excluded."
    groups = [group for group in headline_groups(whole) if group.compared]
    if not groups:
        told = headline(whole)
        return f"**No answer**: {told[0] if told else 'no two candidates ran the same workload.'}"
    choices: dict[str, list[Group]] = {}
    for group in groups:
        choices.setdefault(_choice(whole, group), []).append(group)
    return f"By {lower(title_of(groups))}{_told(whole, choices)}{_disqualified(whole)}."


def _told(whole: Study, choices: Mapping[str, Sequence[Group]]) -> str:
    everyone = [
        decision for held in choices.values() for group in held for decision in group.decisions
    ]
    why = untested_words(everyone)
    if why is not None and sum(map(len, choices.values())) > 1:
        return f": **no winner is shown**, because {why}. {tally(everyone)}"
    if len(choices) == 1:
        [(choice, groups)] = choices.items()
        where = groups[0].where if len(groups) == 1 else "every task and load"
        return f", {where}: {choice}"
    if len(choices) <= MOST_CHOICES:
        return ": " + "; ".join(
            f"for {listed(group.where for group in groups)}, {choice}"
            for choice, groups in choices.items()
        )
    return f"{counts(everyone)}; enter yours below"


def counts(decided: Sequence[Decision]) -> str:
    """``: it depends on task, load and length: of the 9 cases `a` wins 2, …; `b` was ahead in 1``."""
    won: dict[str, int] = {}
    for decision in decided:
        if decision.winner is not None:
            won[decision.winner] = won.get(decision.winner, 0) + 1
    n, ahead = len(decided), leads(decided)
    untested = f"; {listed(ahead)} (indicative)" if ahead else ""
    if not won:
        shown = "winner is shown" if ahead else "clear winner"
        return f": **no {shown}** in any of the {n} compared cases{untested}"
    most = sorted(won.items(), key=lambda item: (-item[1], item[0]))[:MOST]
    told = listed(f"**`{name}`** wins {times}" for name, times in most)
    rest = sum(each.winner is None and each.outcome != "indicative" for each in decided)
    return (
        f": it depends on task, load and length: of the {n} compared cases {told}"
        f"{f' and {rest} have no clear winner' if rest else ''}{untested}"
    )


def tally(decided: Sequence[Decision]) -> str:
    """``Of 6 compared cases `a` was ahead in 2, `b` in 1 (`c` has no value there)``; untested ones."""
    rest = sum(decision.outcome != "indicative" for decision in decided)
    told = leads(decided) + [f"{rest} {'has' if rest == 1 else 'have'} no clear winner"] * bool(
        rest
    )
    return f"Of {len(decided)} compared cases {listed(told)}; enter yours below"


def leads(decided: Sequence[Decision]) -> list[str]:
    """```a` was ahead in 2`` of each that leads untested, the most first."""
    led: dict[str, list[Decision]] = {}
    for decision in decided:
        if decision.outcome == "indicative":
            led.setdefault(decision.front[0], []).append(decision)
    return [
        f"`{name}` was ahead in {len(held)}{_without(held)}"
        for name, held in sorted(led.items(), key=lambda item: (-len(item[1]), item[0]))
    ]


def _without(held: Sequence[Decision]) -> str:
    absent = sorted({label for decision in held for label in decision.absent})
    lacking = sum(bool(decision.absent) for decision in held)
    if not absent:
        return ""
    at = "there" if lacking == len(held) == 1 else f"in {lacking} of them"
    verb = "has" if len(absent) == 1 else "have"
    return f" ({listed(f'`{label}`' for label in absent)} {verb} no value {at})"


def _choice(whole: Study, group: Group) -> str:
    """``take `a` below 4,100 tokens [3,800, 4,500] and `b` above``; by spans where no length is."""
    crossing = crossing_between_winners(whole, group.decisions)
    if crossing is None:
        why = untested_words(group.decisions)
        warning = f"**no winner is shown**, because {why}: " if why else ""
        untested = "" if warning else "; indicative"
        nobody = "no clear winner" if warning else "**no clear winner**"
        spans = [span_words(whole, span, 1, untested, nobody) for span in group.spans]
        return warning + "; ".join(spans)
    first, last = group.decisions[0], group.decisions[-1]
    found = crossing.found
    low, high = count(found.low), count(found.high)
    ahead = [
        f"{gap_words(nearest(each.against)[0])} at {count(each.scenario.context_tokens)} tokens"
        for each in (first, last)
        if each.against and not any(peaked(whole, d) for d in each.against)
    ]
    why = f" ({', '.join(ahead)})" if ahead else ""
    why += absent_words(group.decisions).replace("; ", ", but ", 1)
    return (
        f"**take {marked(first, first.front[0])} below {count(found.context)} tokens** [{low}, {high}] "
        f"**and {marked(last, last.front[0])} above**{why}"
    )


def crossing_between_winners(whole: Study, decisions: Sequence[Decision]) -> Crossing | None:
    """Of decisions by one objective, by context: the stated length at which the winner at the shortest gives
    way to the winner at the longest.

    None where a third candidate wins between them.
    """
    winners = [decision.winner for decision in decisions]
    if None in (winners[0], winners[-1]) or len({w for w in winners if w}) != 2:
        return None
    return next(
        (
            each
            for each in whole.crossings
            if each.scenarios[0].family == decisions[0].scenario.family
            and each.objective is decisions[0].objective
            and (each.found.short, each.found.long) == (winners[0], winners[-1])
            and each.found.verdict == "crossover"
            and stated(whole, each)
        ),
        None,
    )


def why_no_length(whole: Study, decisions: Sequence[Decision]) -> str | None:
    """Of decisions by one objective, by context: why no length is stated where winners change; None where one
    is, or where none change.
    """
    won = [each for each in decisions if each.winner is not None]
    changes = [(a, b) for a, b in pairwise(won) if a.winner != b.winner]
    if not changes or crossing_between_winners(whole, decisions) is not None:
        return None
    objective = decisions[0].objective
    between = "; ".join(
        f"between {count(a.scenario.context_tokens)} and {count(b.scenario.context_tokens)} tokens"
        for a, b in changes
    )
    why = "no form is fitted to it" if objective.form is None else "the fit does not bear one out"
    return f"No length is given at which {lower(objective.title)} changes hands: {why}. Measure {between}."


def stated(whole: Study, crossing: Crossing) -> bool:
    told = crossing.found.verdict in ("crossover", "none")
    names = crossing.a, crossing.b
    return told and not lengths_without_a_chance(whole, crossing.scenarios, names)


def _disqualified(whole: Study) -> str:
    """``; `z` is disqualified at 4,096 tokens (2 of 30 answers right, `a` 30)``; at the longest context."""
    lengths: dict[str, set[int]] = {}
    for (scenario, candidate), each in whole.eligible.items():
        label = whole.labels.candidates.get(candidate)
        if each.disqualified and label is not None:
            lengths.setdefault(label, set()).add(scenario.context_tokens)
    told: list[str] = []
    for label, held in sorted(lengths.items()):
        at = listed(map(count, sorted(held)))
        told.append(f"`{label}` is disqualified at {at} tokens{_score(whole, label, max(held))}")
    more = f" and {len(told) - MOST} others" if len(told) > MOST else ""
    return "".join(f"; {each}" for each in told[:MOST]) + more


def _score(whole: Study, label: str, context: int) -> str:
    """Of the task in which it lost most."""
    lost = [
        gate
        for gate in whole.gates
        if (gate.backend, gate.context_tokens, gate.verdict) == (label, context, "worse")
        and gate.backend_right is not None
    ]
    if not lost:
        return ""
    worst = max(lost, key=lambda gate: gate.worse_by)
    right = f"{worst.backend_right} of {worst.prompts} answers right"
    return f" ({right}, `{worst.reference}` {worst.reference_right})"

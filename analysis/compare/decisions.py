"""The decision table: per scenario and objective the candidate to take, or why there is none.

It reads the differences and nothing else: who wins, by how much and how surely is theirs to say.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from analysis.compare.differences import Difference, Pairs, by_pair
from analysis.objectives import OBJECTIVES, Objective
from analysis.point.point import Point
from analysis.quality.standings import FAILING, HALF_FAILED, Standing, Standings
from analysis.runs.identity import Candidate, Scenario

Outcome = Literal["winner", "no clear winner", "indicative", "not comparable", "alone"]


@dataclass(frozen=True)
class Eligible:
    """Whether a candidate may win at a scenario, and what must be said beside its name."""

    may_win: bool
    why_not: str | None = None
    mark: str | None = None
    disqualified: bool = False  # its answers are shown to be worse


@dataclass(frozen=True)
class Contender:
    """A candidate with a value at a scenario. ``value``: mean over its starts, as in the numbers table."""

    label: str
    value: float
    starts: int
    eligible: Eligible


@dataclass(frozen=True)
class Decision:
    """``front``: candidates that may win and are shown to be worse than none; of starts too few to test, the
    one ahead, else those that nobody is ahead of.

    ``against``: the winner's or the leader's difference from every other candidate that may win. ``tested``:
    some two of them were compared by more than one pair of starts. ``absent``: candidates without a value
    here that have one at another context.
    """

    scenario: Scenario
    objective: Objective
    outcome: Outcome
    front: tuple[str, ...]
    contenders: tuple[Contender, ...]  # best value first
    tested: bool
    against: tuple[Difference, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def winner(self) -> str | None:
        """The candidate that is shown to be better than every other that may win, else None."""
        return self.front[0] if self.outcome == "winner" else None

    @property
    def leader(self) -> str | None:
        """Who is ahead, shown or not; None where nobody is."""
        return self.front[0] if self.outcome in ("winner", "indicative") else None

    @property
    def among_all(self) -> bool:
        """Whether the front is everyone that may win, and more than two."""
        able = sum(each.eligible.may_win for each in self.contenders)
        return 2 < able == len(self.front)

    @property
    def out(self) -> tuple[Contender, ...]:
        """Those that have a value and may not win."""
        return tuple(each for each in self.contenders if not each.eligible.may_win)


def decisions(
    points: Sequence[Point],
    found: Sequence[Difference],
    eligible: Mapping[tuple[Scenario, Candidate], Eligible],
) -> list[Decision]:
    """One per scenario × objective that at least one candidate has a value for."""
    pairs = by_pair(found)
    by_scenario: dict[Scenario, list[Point]] = {}
    for point in points:
        if point.usable:
            by_scenario.setdefault(point.scenario, []).append(point)
    made: list[Decision] = []
    for scenario, here in by_scenario.items():
        for objective in OBJECTIVES:
            contenders = _contenders(scenario, objective, here, eligible)
            if contenders:
                made.append(_decide(scenario, objective, contenders, pairs))
    return _with_absent(made)


def _with_absent(made: Sequence[Decision]) -> list[Decision]:
    """Who is ahead where another has no value is said beside that other's name."""
    everyone: dict[tuple[Scenario, Objective], set[str]] = {}
    for each in made:
        here = everyone.setdefault((each.scenario.family, each.objective), set())
        here.update(contender.label for contender in each.contenders)
    return [
        replace(
            each,
            absent=tuple(
                sorted(
                    everyone[each.scenario.family, each.objective]
                    - {contender.label for contender in each.contenders}
                )
            ),
        )
        for each in made
    ]


def _contenders(
    scenario: Scenario,
    objective: Objective,
    here: Sequence[Point],
    eligible: Mapping[tuple[Scenario, Candidate], Eligible],
) -> list[Contender]:
    values: dict[Candidate, list[float]] = {}
    names = {point.candidate: point.backend for point in here}
    for point in here:
        value = objective.value(point)
        if value is not None:
            values.setdefault(point.candidate, []).append(value)
    contenders = [
        Contender(
            label=names[candidate],
            value=float(np.mean(each)),
            starts=len(each),
            eligible=eligible.get((scenario, candidate), Eligible(True)),
        )
        for candidate, each in values.items()
    ]
    sign = -1 if objective.higher_is_better else 1
    return sorted(contenders, key=lambda each: (sign * each.value, each.label))


def _decide(
    scenario: Scenario,
    objective: Objective,
    contenders: Sequence[Contender],
    pairs: Pairs,
) -> Decision:
    able = [each.label for each in contenders if each.eligible.may_win]

    def against(label: str) -> list[Difference]:
        return [pairs[scenario, objective, label, rival] for rival in able if rival != label]

    tested = any(each.tested for label in able for each in against(label))

    def decided(outcome: Outcome, front: Sequence[str]) -> Decision:
        said = tuple(against(front[0])) if front else ()
        return Decision(scenario, objective, outcome, tuple(front), tuple(contenders), tested, said)

    if len(able) < 2:
        return decided("alone", able)
    beaten_by_none = sorted(a for a in able if all(d.verdict != "worse" for d in against(a)))
    winner = next((a for a in able if all(d.verdict == "better" for d in against(a))), None)
    if winner is not None:
        return decided("winner", [winner])
    if tested:
        return decided("no clear winner", beaten_by_none)
    ahead = next((a for a in able if all(d.ahead for d in against(a))), None)
    if ahead is not None:
        return decided("indicative", [ahead])
    if not any(d.verdict == "indicative" for a in able for d in against(a)):
        return decided("not comparable", sorted(able))
    in_front = [a for a in able if not any(d.turned.ahead for d in against(a))]
    return decided("no clear winner", sorted(in_front))


def eligible(
    points: Sequence[Point], found: Standings
) -> dict[tuple[Scenario, Candidate], Eligible]:
    """Who may win where, by the standing of its answers at that length, its failed requests and its proof."""
    groups: dict[tuple[Scenario, Candidate], list[Point]] = {}
    for point in points:
        if point.status not in ("superseded", "interrupted"):
            groups.setdefault((point.scenario, point.candidate), []).append(point)
    out: dict[tuple[Scenario, Candidate], Eligible] = {}
    for (scenario, candidate), members in groups.items():
        failed = [point.failures for point in members]
        lost, asked = sum(n for n, _ in failed), sum(n for _, n in failed)
        standings = found.get((candidate.model, scenario.context_tokens), {})
        rivals = {standing.kind for other, standing in standings.items() if other != candidate}
        out[scenario, candidate] = _may_win(
            standings.get(candidate),
            lost / asked if asked else 0.0,
            any(point.proof != "proven" for point in members),
            bool(rivals & {"proven", "reference"}),
        )
    return out


def _may_win(
    standing: Standing | None, failed_share: float, unproven: bool, others_proven: bool
) -> Eligible:
    """Disqualified, or half of its requests failed: it cannot win. Undecided where another's answers are
    proven: it is shown, marked and not recommended. Else it may win, with what is in doubt beside its name.
    """
    if standing is not None and standing.kind == "disqualified":
        return Eligible(False, standing.sentence, "disqualified", disqualified=True)
    failed = f"{failed_share * 100:.0f} % of its requests failed"
    if failed_share >= HALF_FAILED:
        return Eligible(False, failed, "failing")
    undecided = standing is not None and standing.kind == "undecided"
    words = "unproven" if unproven else "answers undecided"
    if standing is not None and undecided and others_proven:
        return Eligible(False, standing.sentence, words)
    marks = [
        *(["unproven"] if unproven else []),
        *([failed] if failed_share > FAILING else []),
    ]
    if standing is not None and standing.doubted and not marks:
        marks = ["answers in doubt"]
    return Eligible(True, None, ", ".join(marks) or None)

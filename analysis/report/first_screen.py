"""What a reader sees first: the answer in one sentence, and of each case that was measured its sentence,
four figures and the points behind them.

A case is a task and load at one context, by one objective. All words and numbers are those of decisions,
differences and cells; nothing is decided here. The page shows one case and looks the others up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from analysis.compare.decisions import Decision
from analysis.compare.differences import by_pair
from analysis.objectives import OBJECTIVES, Objective
from analysis.report.answer import answer, stated, why_no_length
from analysis.report.choices import lower, nearest, span_words
from analysis.report.four_figures import Pair, pair_of
from analysis.report.point_section import anchors
from analysis.runs.identity import Scenario
from analysis.study import Study

LevelUnit = Literal["users", "requests/s"]


@dataclass(frozen=True)
class Family:
    """A task and load. ``level``: users, or requests a second."""

    number: int
    model: str
    task: str
    load: str
    words: str
    unit: LevelUnit
    level: float


@dataclass(frozen=True)
class Case:
    family: Family
    context_tokens: int
    objective: Objective
    sentence: str
    decision: Decision
    pair: int | None  # number among the pairs


@dataclass(frozen=True)
class FirstScreen:
    """``shown``: the case that is open at first; None where nothing was decided."""

    answer: str
    families: tuple[Family, ...]
    objectives: tuple[Objective, ...]
    cases: tuple[Case, ...]
    pairs: tuple[Pair, ...]
    crossings: tuple[tuple[int, Objective, str], ...]  # family, by what, sentence
    shown: Case | None
    no_lengths: Mapping[
        tuple[int, Objective], str
    ]  # by family: why none is stated where winners change

    @property
    def by_chart(self) -> dict[tuple[Family, Objective], list[Decision]]:
        """The decisions of each family by each objective, by context."""
        found: dict[tuple[Family, Objective], list[Decision]] = {}
        for case in sorted(self.cases, key=lambda case: case.context_tokens):
            found.setdefault((case.family, case.objective), []).append(case.decision)
        return found

    def pair(self, case: Case) -> Pair | None:
        return None if case.pair is None else self.pairs[case.pair]


def first_screen(whole: Study) -> FirstScreen:
    families = _families(whole)
    cases, pairs = _cases(whole, families)
    decided = {case.objective for case in cases}
    return FirstScreen(
        answer=answer(whole),
        families=tuple(families.values()),
        objectives=tuple(each for each in OBJECTIVES if each in decided),
        cases=tuple(cases),
        pairs=tuple(pairs),
        crossings=tuple(
            (families[each.scenarios[0].family].number, each.objective, f"{each.found.sentence}.")
            for each in whole.crossings
            if stated(whole, each)
        ),
        shown=_shown(whole, cases),
        no_lengths=_no_lengths(whole, cases),
    )


def _no_lengths(whole: Study, cases: Sequence[Case]) -> dict[tuple[int, Objective], str]:
    charts: dict[tuple[int, Objective], list[Decision]] = {}
    for case in sorted(cases, key=lambda case: case.context_tokens):
        charts.setdefault((case.family.number, case.objective), []).append(case.decision)
    told = {key: why_no_length(whole, decisions) for key, decisions in charts.items()}
    return {key: why for key, why in told.items() if why is not None}


def _families(whole: Study) -> dict[Scenario, Family]:
    """In the order of the tables."""
    found: dict[Scenario, Family] = {}
    for cell in whole.cells:
        family, load = cell.scenario.family, cell.scenario.workload.load
        if family in found or not cell.starts:
            continue
        apart = [cell.model]
        apart += [family.execution] if family.execution else []
        found[family] = Family(
            number=len(found),
            model=cell.model,
            task=cell.task,
            load=cell.load,
            words=f"{cell.task}, {cell.load} ({', '.join(apart)})",
            unit="users" if load.users else "requests/s",
            level=float(load.users or load.rate_per_s or 0),
        )
    return found


def _cases(whole: Study, families: Mapping[Scenario, Family]) -> tuple[list[Case], list[Pair]]:
    by_cell = {(cell.scenario, cell.backend): cell for cell in whole.cells}
    differences, links = by_pair(whole.differences), anchors(whole)
    numbers: dict[tuple[Scenario, str, str | None], int] = {}
    pairs: list[Pair] = []
    cases: list[Case] = []
    for decision in whole.decisions:
        subject = next(iter(decision.front), None)
        pair: int | None = None
        if subject is not None:
            key = decision.scenario, subject, _rival(decision)
            if key not in numbers:
                numbers[key] = len(pairs)
                pairs.append(pair_of(key, by_cell, differences, links))
            pair = numbers[key]
        cases.append(
            Case(
                family=families[decision.scenario.family],
                context_tokens=decision.scenario.context_tokens,
                objective=decision.objective,
                sentence=_sentence(whole, decision),
                decision=decision,
                pair=pair,
            )
        )
    return cases, pairs


def _sentence(whole: Study, decision: Decision) -> str:
    said = span_words(whole, [decision])
    start = 2 if said.startswith("**") else 0
    capital = said[:start] + said[start].upper() + said[start + 1 :]
    return f"{capital}, by {lower(decision.objective.title)}."


def _rival(decision: Decision) -> str | None:
    """Whom the figures are held against: another of the front, else the nearest behind it."""
    if len(decision.front) > 1:
        return decision.front[1]
    return next((each.b for each in nearest(decision.against)), None)


def _shown(whole: Study, cases: Sequence[Case]) -> Case | None:
    """Of the headline: with a winner, else tested, else with somebody ahead; then the first load, the longest
    context.
    """

    def rank(case: Case) -> tuple[bool, bool, bool, int, int]:
        decision = case.decision
        return (
            decision.winner is not None,
            decision.tested,
            decision.leader is not None,
            -case.family.number,
            case.context_tokens,
        )

    heads = [
        case
        for case in cases
        if whole.headlines.get(case.decision.scenario.family) is case.objective
    ]
    return max(heads, key=rank, default=None)

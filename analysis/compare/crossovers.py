"""Crossovers of every pair of candidates, by every objective that has a physical form over context.

A length is stated where the differences themselves (``analysis.compare.differences``, corrected over the
whole report) show one candidate better at the shortest and the other at the longest context; "throughout"
where one is shown better at every context. From one start of each there are curves and no statement.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np

from analysis.compare.cells import Cell
from analysis.compare.crossover_fit import MIN_STARTS, Crossover, Curve, crossover
from analysis.compare.differences import Difference, Pairs, by_pair
from analysis.objectives import OBJECTIVES, Form, Objective
from analysis.point.latency import RequestLatency
from analysis.runs.identity import Block, Scenario


@dataclass(frozen=True)
class Crossing:
    """The crossover of two candidates by one objective over the contexts of one family of scenarios."""

    scenarios: tuple[Scenario, ...]  # by context, ascending
    task: str
    load: str
    objective: Objective
    form: Form
    output_tokens: int | None  # what the whole request includes
    a: str
    b: str
    found: Crossover
    measured: dict[str, list[float]]  # label -> cost at each context, for plotting

    @property
    def model(self) -> str:
        return self.scenarios[0].model

    @property
    def contexts(self) -> list[int]:
        return [scenario.context_tokens for scenario in self.scenarios]


def crossings(cells: Sequence[Cell], found: Sequence[Difference]) -> list[Crossing]:
    """Each pair × objective × (task, load, set of prompts) that shares at least two contexts."""
    groups: dict[Scenario, list[Cell]] = {}
    for cell in cells:
        if cell.starts:
            groups.setdefault(cell.scenario.family, []).append(cell)
    pairs = by_pair(found)
    crossed: list[Crossing] = []
    for members in groups.values():
        for objective in OBJECTIVES:
            form = _form(objective, members[0])
            if form is None:
                continue
            for a, b in combinations(sorted({cell.backend for cell in members}), 2):
                one = _crossing(members, (a, b), objective, form, pairs)
                if one is not None:
                    crossed.append(one)
    return crossed


def _form(objective: Objective, cell: Cell) -> Form | None:
    """Of a load shared by several users another one, where prefills of others stand between two tokens."""
    shared = (cell.scenario.workload.load.users or 2) > 1
    return (objective.shared_form if shared else None) or objective.form


def _crossing(
    members: Sequence[Cell],
    names: tuple[str, str],
    objective: Objective,
    form: Form,
    pairs: Pairs,
) -> Crossing | None:
    own = _asked_alike([_by_scenario(members, name, objective) for name in names], names)
    shared = sorted(own[names[0]])
    if len(shared) < 2:
        return None
    curves = _curves(own, names, shared, objective)
    if curves is None:
        return None
    scenarios = tuple(own[names[0]][context].scenario for context in shared)
    fitted = crossover(names, curves, form)
    held = [pairs.get((scenario, objective, *names)) for scenario in scenarios]
    return Crossing(
        scenarios=scenarios,
        task=members[0].task,
        load=members[0].load,
        objective=objective,
        form=form,
        output_tokens=_output_tokens(members),
        a=names[0],
        b=names[1],
        found=_as_far_as_shown(fitted, held, shared),
        measured={name: curve.centre.tolist() for name, curve in zip(names, curves, strict=True)},
    )


def _by_scenario(members: Sequence[Cell], name: str, objective: Objective) -> dict[Scenario, Cell]:
    """Cells of a candidate with positive values."""
    return {
        cell.scenario: cell
        for cell in members
        if cell.backend == name and (values := cell.values(objective)) and min(values) > 0
    }


def _asked_alike(
    cells: Sequence[Mapping[Scenario, Cell]], names: tuple[str, str]
) -> dict[str, dict[int, Cell]]:
    """By context the cells of both that were given the same prompts: those of the most common starts."""
    first, second = cells
    best: dict[int, Scenario] = {}
    for scenario in first.keys() & second.keys():
        common = min(len(first[scenario].starts), len(second[scenario].starts))
        known = best.get(scenario.context_tokens)
        if known is None or common > min(len(first[known].starts), len(second[known].starts)):
            best[scenario.context_tokens] = scenario
    return {
        name: {context: own[scenario] for context, scenario in best.items()}
        for name, own in zip(names, cells, strict=True)
    }


def _curves(
    own: Mapping[str, Mapping[int, Cell]],
    names: tuple[str, str],
    contexts: Sequence[int],
    objective: Objective,
) -> tuple[Curve, Curve] | None:
    """Over the blocks that both have at every context; the requests of all starts where those are too few."""
    table = {name: {c: _by_block(own[name][c], objective) for c in contexts} for name in names}
    blocks = sorted(set.intersection(*(set(table[n][c]) for n in names for c in contexts)))
    if len(blocks) >= MIN_STARTS:
        first, second = (
            Curve(
                tuple(contexts),
                np.array([[table[name][c][block] for c in contexts] for block in blocks]),
            )
            for name in names
        )
        return first, second
    if objective.latency is None:
        return None
    first, second = (_pooled(own[name], contexts, objective.latency) for name in names)
    return first, second


def _by_block(cell: Cell, objective: Objective) -> dict[Block, float]:
    """Of the first arm only, so that a start counts once."""
    values = {p.block: objective.value(p) for p in cell.starts if p.arm == 0}
    return {block: value for block, value in values.items() if value is not None}


def _pooled(cells: Mapping[int, Cell], contexts: Sequence[int], latency: RequestLatency) -> Curve:
    """One row: the median over the requests of all starts, with those requests to redraw from."""
    requests: list[np.ndarray] = []
    for context in contexts:
        starts = [point.values for point in cells[context].starts if point.values is not None]
        values = np.concatenate([start.of(latency) for start in starts])
        requests.append(values[~np.isnan(values)])
    medians = np.array([[float(np.median(values)) for values in requests]])
    return Curve(tuple(contexts), medians, requests)


def _as_far_as_shown(
    fitted: Crossover, held: Sequence[Difference | None], contexts: Sequence[int]
) -> Crossover:
    """The fit's answer where the differences bear it out, else what is missing."""
    if fitted.verdict not in ("crossover", "none", "within noise"):
        return fitted
    tested = [d for d in held if d is not None and d.tested]
    span = f"between {contexts[0]:,} and {contexts[-1]:,} tokens"
    if len(tested) < len(held) or fitted.unit != "server starts":
        return replace(
            fitted,
            verdict="indicative",
            sentence=f"indicative only: fewer than {MIN_STARTS} starts of each, nothing is claimed {span}",
            context=None,
            low=None,
            high=None,
        )
    better = [
        d.a if d.verdict == "better" else d.b if d.verdict == "worse" else None for d in tested
    ]
    ends = better[0], better[-1]
    borne_out = {
        "crossover": ends == (fitted.short, fitted.long),
        "none": all(name == fitted.short for name in better),
        "within noise": fitted.short is None  # nothing is said to be better
        or (ends == (fitted.short,) * 2 and fitted.long in better),
    }
    if borne_out[fitted.verdict]:
        return fitted
    return replace(
        fitted,
        verdict="within noise",
        sentence=f"not settled {span}: {_shown_words(better, contexts)}",
        context=None,
        low=None,
        high=None,
    )


def _shown_words(better: Sequence[str | None], contexts: Sequence[int]) -> str:
    """``alpha is shown better at 8,192 tokens only``."""
    shown: dict[str, list[str]] = {}
    for name, context in zip(better, contexts, strict=True):
        if name is not None:
            shown.setdefault(name, []).append(f"{context:,}")
    if not shown:
        return "at no length is one shown to be better"
    parts = [f"{name} is shown better at {', '.join(at)} tokens only" for name, at in shown.items()]
    return "; ".join(parts)


def _output_tokens(members: Sequence[Cell]) -> int | None:
    """Tokens a request generated, where all of them generated the same."""
    counts = {
        point.extra.output_tokens_per_request
        for cell in members
        for point in cell.starts
        if point.extra is not None
    }
    return counts.pop() if len(counts) == 1 else None

"""Which figures the report shows, and of which cells."""

from collections.abc import Mapping
from dataclasses import dataclass

from analysis.bottleneck.peaks import Ceiling, run_ceilings
from analysis.bottleneck.roofline import PhaseUse
from analysis.compare.cells import Cell
from analysis.compare.crossovers import Crossing
from analysis.objectives import E2E, SPEED, Objective, shown
from analysis.quality.gate import Gate
from analysis.report import plots
from analysis.report.answer import crossing_between_winners
from analysis.report.figures import Figures
from analysis.report.first_screen import Family, FirstScreen
from analysis.report.point_section import anchors
from analysis.report.sentences import lengths_without_a_chance
from analysis.report.tables import by_task
from analysis.runs.identity import Scenario
from analysis.study import Study


@dataclass(frozen=True)
class ChartGroup:
    """Charts of one task and load. ``figures``: element ids."""

    model: str
    task: str
    load: str
    figures: list[str]


def charts(screen: FirstScreen, drawn: Mapping[str, str]) -> list[ChartGroup]:
    """Per task and load: every objective that has a chart against context length."""
    found: list[ChartGroup] = []
    for family in screen.families:
        keys = [chart_key(family, objective) for objective in shown("chart")]
        ids = [drawn[key] for key in keys if key in drawn]
        if ids:
            found.append(ChartGroup(family.model, family.task, family.load, ids))
    return found


def chart_key(family: Family, objective: Objective) -> str:
    return f"{family.number} {objective.name}"


def bands(whole: Study, screen: FirstScreen, look: plots.Look, figures: Figures) -> dict[str, str]:
    """Each family by each objective that has a chart or is its headline's: ``chart_key`` → figure id."""
    rows: dict[Scenario, list[Cell]] = {}
    for cell in whole.cells:
        rows.setdefault(cell.scenario.family, []).append(cell)
    links, found = anchors(whole), dict[str, str]()
    for (family, objective), decisions in screen.by_chart.items():
        scenario = decisions[0].scenario.family
        if "chart" not in objective.views and whole.headlines.get(scenario) is not objective:
            continue
        crossing = crossing_between_winners(whole, decisions)
        drawn = plots.band_figure(rows[scenario], decisions, crossing, look, links)
        if drawn is not None:
            if len(screen.families) > 1:
                drawn.update_layout(title_text=f"{objective.title}: {family.task}, {family.load}")
            found[chart_key(family, objective)] = figures.add(drawn)
    return found


def paretos(whole: Study, look: plots.Look, figures: Figures) -> list[tuple[str, list[str]]]:
    """Per model and task: latency and, where measured, energy against throughput."""
    unable = {key for key, each in whole.eligible.items() if not each.may_win}
    found: list[tuple[str, list[str]]] = []
    for (model, _, task), rows in by_task(whole.cells).items():
        usable = [cell for cell in rows if cell.starts]
        drawn = [
            plots.pareto_figure(usable, each, SPEED, look, unable) for each in shown("tradeoff")
        ]
        ids = [figures.add(figure) for figure in drawn if figure is not None]
        if ids:
            found.append((f"{task} on {model}", ids))
    return found


def rooflines(whole: Study, look: plots.Look, figures: Figures) -> list[tuple[str, str]]:
    """One figure a model and ceiling: (words, figure id). Empty where no ceiling or step log is known."""
    groups: dict[tuple[str, Ceiling], list[tuple[str, str, PhaseUse]]] = {}
    for point in whole.usable:
        ceilings = run_ceilings(whole.run(point), whole.host_ceilings)
        for use in whole.uses.get(point.run_id, []):
            if ceilings and use.ceiling is not None:
                words = f"{point.backend}, {point.task} {point.context_tokens:,}, {point.load}, {use.phase}"
                groups.setdefault((point.model, ceilings[0]), []).append(
                    (point.backend, words, use)
                )
    return [
        (
            f"{model}: {ceiling.flops_per_s / 1e12:.3g} TFLOP/s and {ceiling.bytes_per_s / 1e9:.3g} GB/s "
            f"({ceiling.kind}: {ceiling.source})",
            figures.add(plots.roofline_figure(uses, ceiling, look)),
        )
        for (model, ceiling), uses in groups.items()
    ]


@dataclass(frozen=True)
class CrossingRow:
    """``answered``: something is stated of it. ``may_not_win``: of the two, with the lengths where it may
    not. ``output_tokens``: what the whole request of an E2E time includes.
    """

    crossing: Crossing
    figure: str | None
    may_not_win: dict[str, str]
    answered: bool
    output_tokens: int | None


ANSWERS = ("crossover", "none", "within noise", "indicative")  # those that state most come first


def crossing_rows(whole: Study, look: plots.Look, figures: Figures) -> list[CrossingRow]:
    """Every answer, those that state something first; a figure where there is a fit to draw."""

    def rank(crossing: Crossing) -> int:
        verdict = crossing.found.verdict
        return ANSWERS.index(verdict) if verdict in ANSWERS else len(ANSWERS)

    return [
        CrossingRow(
            crossing=crossing,
            figure=figures.add(plots.crossover_figure(crossing, look))
            if crossing.found.bands
            else None,
            may_not_win=lengths_without_a_chance(
                whole, crossing.scenarios, (crossing.a, crossing.b)
            ),
            answered=crossing.found.verdict in ANSWERS,
            output_tokens=crossing.output_tokens if crossing.objective is E2E else None,
        )
        for crossing in sorted(whole.crossings, key=rank)
    ]


def drift(found: list[Gate], look: plots.Look, figures: Figures) -> list[tuple[str, str]]:
    """One figure a model: drift of each backend's log-probabilities by position."""
    models = dict.fromkeys(gate.model for gate in found if gate.drift)
    return [
        (m, figures.add(plots.drift_figure([g for g in found if g.drift and g.model == m], look)))
        for m in models
    ]

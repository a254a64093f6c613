"""Which figures the report shows, and of which cells."""

from typing import Any

from analysis.bottleneck.peaks import Ceiling, find_host_ceilings, run_ceilings
from analysis.bottleneck.roofline import PhaseUse
from analysis.compare.cells import Cell
from analysis.objectives import BY_NAME
from analysis.quality.gate import Gate
from analysis.report import plots
from analysis.report.figures import Figures
from analysis.report.sentences import gated_in
from analysis.report.tables import tables
from analysis.runs.identity import Place
from analysis.study import Study

CHARTS = ("goodput", "output", "total", "ttft", "tpot", "e2e", "energy")


PARETO_AXES = ("e2e", "tpot", "energy_total")


def charts(
    cells: list[Cell], look: dict[str, dict[str, str]], figures: Figures
) -> list[dict[str, Any]]:
    """Per task and load: every objective that has a chart against context length."""
    groups: dict[Place, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell.place.family, []).append(cell)
    found: list[dict[str, Any]] = []
    for rows in groups.values():
        drawn = [
            figure
            for name in CHARTS
            if (figure := plots.against_context(rows, BY_NAME[name], look)) is not None
        ]
        if drawn:
            first, ids = rows[0], [figures.add(figure) for figure in drawn]
            found.append(
                {"model": first.model, "task": first.task, "load": first.load, "figures": ids}
            )
    return found


def paretos(
    whole: Study, look: dict[str, dict[str, str]], figures: Figures
) -> list[tuple[str, list[str]]]:
    """Per model and task: latency and, where measured, energy against throughput."""
    found: list[tuple[str, list[str]]] = []
    for table in tables(whole.cells):
        usable = [cell for cell in table.rows if cell.starts]
        out = {key for key, each in whole.eligible.items() if not each.may_win}
        drawn = [
            plots.pareto_figure(usable, BY_NAME[name], BY_NAME["total"], look, out)
            for name in PARETO_AXES
        ]
        ids = [figures.add(figure) for figure in drawn if figure is not None]
        if ids:
            found.append((f"{table.task} on {table.model}", ids))
    return found


def rooflines(
    whole: Study, look: dict[str, dict[str, str]], figures: Figures
) -> list[tuple[str, str]]:
    """One figure a model and ceiling: (words, figure id). Empty where no ceiling or step log is known."""
    groups: dict[tuple[str, Ceiling], list[tuple[str, str, PhaseUse]]] = {}
    for point in whole.usable:
        ceilings = run_ceilings(whole.run(point), find_host_ceilings(whole.root))
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


def crossing_rows(
    whole: Study, look: dict[str, dict[str, str]], figures: Figures
) -> list[dict[str, Any]]:
    """Every answer, those that state something first; a figure where there is a fit to draw; who is
    barred at some of the lengths."""
    ranks = {"crossover": 0, "none": 1, "within noise": 2, "indicative": 3}
    return [
        {
            "crossing": crossing,
            "figure": figures.add(plots.crossover_figure(crossing, look))
            if crossing.found.bands
            else None,
            "barred": gated_in(whole, crossing.places, (crossing.a, crossing.b)),
            "answered": crossing.found.verdict in ranks,
        }
        for crossing in sorted(whole.crossings, key=lambda c: ranks.get(c.found.verdict, 9))
    ]


def drift(
    found: list[Gate], look: dict[str, dict[str, str]], figures: Figures
) -> list[tuple[str, str]]:
    """One figure a model: drift of each backend's log-probabilities by position."""
    models = dict.fromkeys(gate.model for gate in found if gate.drift)
    return [
        (m, figures.add(plots.drift_figure([g for g in found if g.drift and g.model == m], look)))
        for m in models
    ]

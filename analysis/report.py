"""One self-contained HTML file from a Study. Lays out and words; computes no statistics."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from analysis import formats, plots
from analysis.ceilings import Ceiling, find_host_ceilings, run_ceilings
from analysis.cells import Cell, load_order
from analysis.decisions import Decision
from analysis.energy_section import energy_section, span
from analysis.figures import Figures
from analysis.gates import Gate
from analysis.heat_maps import HeatMap
from analysis.identity import Place
from analysis.load import Run
from analysis.memory_section import memory_rows
from analysis.metrics import PERCENTILE_NEEDS
from analysis.objectives import BY_NAME, OBJECTIVES, Objective
from analysis.point_pages import point_sections
from analysis.roofline import PhaseUse
from analysis.sentences import gated_in, summary_sentences
from analysis.study import Study
from greenbench.rundir import write_atomic

TEMPLATES = Path(__file__).parent / "templates"


def write_report(whole: Study, path: Path) -> None:
    """Render ``whole`` to ``path``, replaced atomically. The file needs no network."""
    write_atomic(path, render(whole))


def render(whole: Study) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.filters |= {"code": code, "answer": formats.answer, "breakable": breakable}
    environment.globals |= {"f": formats, "span": span, "objectives": BY_NAME}
    figures = Figures()
    named = [point.backend for point in whole.points] + [gate.backend for gate in whole.gates]
    look = plots.styles(named)
    page = environment.get_template("report.html.j2")
    return page.render(
        title=f"Attention backends: {whole.root.name}",
        runs_name=whole.root.name,
        sentences=summary_sentences(whole),
        provenance=provenance(whole.runs),
        servers=servers(whole),
        weights_random=any(p.weights == "random" for p in whole.usable),
        decisions=decision_rows(whole),
        objective=whole.objective,
        tested=any(d.tested for d in whole.decisions),
        tables=tables(whole.cells),
        charts=charts(whole.cells, look, figures),
        points=point_sections(whole, figures),
        paretos=paretos(whole, look, figures),
        rooflines=rooflines(whole, look, figures),
        beaten=whole.beaten,
        crossings=crossing_rows(whole, look, figures),
        gates=whole.gates,
        gated=any(not each.may_win for each in whole.eligible.values()),
        eligible=whole.eligible,
        verifications=whole.verifications,
        heat_maps=heat_map_groups(whole.heat_maps),
        drift=drift(whole.gates, look, figures),
        energy=energy_section(whole.cells),
        memory=memory_rows(whole.points),
        bounds=bounds(whole),
        excluded=[p for p in whole.points if not p.usable and p.status != "superseded"],
        left_out=whole.left_out,
        superseded=sum(p.status == "superseded" for p in whole.points),
        needs=PERCENTILE_NEEDS,
        figures=figures.json,
        plotlyjs=Markup(get_plotlyjs()),
        css=Markup((TEMPLATES / "report.css").read_text()),
        script=Markup((TEMPLATES / "report.js").read_text()),
    )


def code(text: str) -> Markup:
    """`word` in backticks becomes a code element, **words** strong; everything else is escaped."""
    parts = str(escape(text)).split("`")
    joined = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
    strong = joined.split("**")
    return Markup("".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(strong)))


def breakable(label: str) -> Markup:
    """A backend's label may break before its options, and nowhere else."""
    return Markup(str(escape(label)).replace("(", "<wbr>("))


def provenance(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """What ran where; several values of one thing are all shown."""
    facts: dict[str, list[str]] = {}
    for run in runs:
        m = run.manifest
        gpus = ", ".join(f"{gpu.name} ({formats.size(gpu.memory_bytes)})" for gpu in m.host.gpus)
        dirty = " with uncommitted changes" if m.code.dirty else ""
        why = f": {m.server.dtype_why}" if m.server.dtype_why else ""
        for name, value in (
            ("Model", f"{m.server.model} (weights: {m.server.weights}, {m.server.dtype}{why})"),
            (
                "Processor",
                f"{m.host.cpu.strip()}, {m.host.cores} cores, {formats.size(m.host.ram_bytes)}"
                if m.host.cores
                else "unknown",
            ),
            ("GPU", gpus or "none"),
            ("vLLM", m.server.vllm_version or m.code.packages.get("vllm") or "unknown"),
            ("Execution", f"{m.server.execution}, KV cache {m.server.kv_cache_dtype}"),
            (
                "Code",
                f"{(m.code.git_sha or 'unknown')[:12]}{dirty}, greenbench {m.code.greenbench}",
            ),
            ("Host", f"{m.clock.host}, kernel {m.host.kernel}"),
            ("Sweep", f"{m.sweep}, seed {m.seed}"),
        ):
            values = facts.setdefault(name, [])
            if value not in values:
                values.append(value)
    return [(name, "; ".join(values)) for name, values in facts.items()]


def servers(whole: Study) -> list[dict[str, Any]]:
    """One row a server start: what was asked for, what was observed, and the proof's verdict."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for run in whole.runs:
        server = run.manifest.server
        rows.setdefault(
            (str(run.path.parent), server.server_id),
            {
                "server_id": server.server_id,
                "backend": run.label,
                "observed": server.observed_backend,
                "proof": server.proof,
                "ready_s": server.ready_s,
                "kv_tokens": server.kv_cache_tokens,
                "weights_bytes": server.weights_bytes,
                "repeat": run.point.repeat,
                "argv": " ".join(server.argv),
            },
        )
    return list(rows.values())


@dataclass(frozen=True)
class DecisionRow:
    """One place. ``entries``: by objective of the columns, None where nothing is known of it there."""

    task: str
    load: str
    context_tokens: int
    entries: list[tuple[Objective, Decision | None]]
    out: dict[str, str]  # candidates that may not win here -> why


def decision_rows(whole: Study) -> list[DecisionRow]:
    """One row a place, one entry an objective that has a column and that anything is known of."""
    made = whole.decisions
    columns = [o for o in OBJECTIVES if o.shown and any(d.objective == o.name for d in made)]
    columns.sort(key=lambda o: o is not whole.objective)
    by_key = {(d.place, d.objective): d for d in made}
    rows = [
        DecisionRow(
            task=whole.labels.tasks[place],
            load=whole.labels.loads[place],
            context_tokens=place.context_tokens,
            entries=[(o, by_key.get((place, o.name))) for o in columns],
            out=_out(whole, place),
        )
        for place in sorted(
            dict.fromkeys(d.place for d in made),
            key=lambda p: (p.model, whole.labels.tasks[p], load_order(p), p.context_tokens),
        )
    ]
    return rows


def _out(whole: Study, place: Place) -> dict[str, str]:
    return {
        whole.labels.candidates[candidate]: each.why_not or ""
        for (where, candidate), each in whole.eligible.items()
        if where == place and not each.may_win
    }


@dataclass(frozen=True)
class Table:
    """The cells of one model and task; ``streamed`` decides which columns make sense."""

    model: str
    weights: str
    task: str
    streamed: bool
    rows: list[Cell]


def tables(cells: list[Cell]) -> list[Table]:
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.weights, cell.task), []).append(cell)
    return [
        Table(model, weights, task, any(c.latency["ttft_s"]["n"] for c in rows), rows)
        for (model, weights, task), rows in groups.items()
    ]


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


def heat_map_groups(found: list[HeatMap]) -> list[tuple[str, list[HeatMap]]]:
    """The maps of one model and task side by side, so that a row reads across the backends.

    A model that answers nothing right anywhere has no map: every cell would say the same.
    """
    groups: dict[str, list[HeatMap]] = {}
    for each in found:
        groups.setdefault(f"{each.task} on {each.model}", []).append(each)
    return [
        (words, maps)
        for words, maps in groups.items()
        if any(cell.right for each in maps for row in each.cells for cell in row)
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


def bounds(whole: Study) -> list[dict[str, Any]]:
    """One row a point that is usable, or invalid because its client was late: what held it back."""
    return [
        {"point": point, "bottleneck": whole.bottlenecks[point.run_id]}
        for point in sorted(
            whole.points, key=lambda p: (p.model, p.task, p.load, p.context_tokens, p.backend)
        )
        if point.run_id in whole.bottlenecks
    ]

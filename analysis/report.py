"""One self-contained HTML file from a Study. Lays out and words; computes no statistics."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from analysis import formats, plots
from analysis.barring import Barred
from analysis.ceilings import Ceiling, find_host_ceilings, run_ceilings
from analysis.cells import Cell
from analysis.decisions import Decision
from analysis.differences import OBJECTIVES
from analysis.energy_section import energy_section, span
from analysis.figures import Figures
from analysis.gates import Gate
from analysis.heat_maps import HeatMap
from analysis.load import Run
from analysis.memory_section import memory_rows
from analysis.metrics import PERCENTILE_NEEDS
from analysis.point_pages import point_sections
from analysis.roofline import PhaseUse
from analysis.sentences import barred_in, summary_sentences
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
    environment.globals |= {"f": formats, "span": span, "load_words": formats.load_words}
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
        decisions=decision_rows(whole.decisions),
        tested=any(d.tested for d in whole.decisions),
        tables=tables(whole.cells),
        charts=charts(whole.cells, look, figures),
        points=point_sections(whole, figures),
        paretos=paretos(whole.cells, whole.barred, look, figures),
        rooflines=rooflines(whole, look, figures),
        beaten=whole.beaten,
        crossings=crossing_rows(whole, look, figures),
        gates=whole.gates,
        barred=whole.barred,
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
        for name, value in (
            ("Model", f"{m.server.model} (weights: {m.server.weights}, {m.server.dtype})"),
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


def decision_rows(made: list[Decision]) -> list[dict[str, Any]]:
    """One row a place, one entry an objective that anything is known of there."""
    names = [o for o in OBJECTIVES if any(d.objective == o.name for d in made)]
    places = list(dict.fromkeys(d.place for d in made))
    places.sort(key=lambda place: (place[0], place[1], place[3], place[2]))
    by_key = {(d.place, d.objective): d for d in made}
    return [
        {
            "place": place,
            "entries": [{"objective": o, "decision": by_key.get((place, o.name))} for o in names],
        }
        for place in places
    ]


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


CHARTS: tuple[tuple[str, str, str, str], ...] = (
    ("throughput", "output_tokens_per_s", "Output tokens per second", "tok/s"),
    ("throughput", "total_tokens_per_s", "Input + output tokens per second", "tok/s"),
    ("latency", "ttft_s", "Time to first token, median", "s"),
    ("latency", "itl_s", "Inter-token latency, median", "s"),
    ("latency", "e2e_s", "Whole request, median", "s"),
)


def charts(
    cells: list[Cell], look: dict[str, dict[str, str]], figures: Figures
) -> list[dict[str, Any]]:
    """Per model, task and load: every metric against context length."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.task, cell.load), []).append(cell)
    found: list[dict[str, Any]] = []
    for (model, task, load), rows in groups.items():
        drawn = [
            figure
            for group, name, title, unit in CHARTS
            if (figure := plots.against_context(rows, group, name, title, unit, look)) is not None
        ]
        if drawn:
            ids = [figures.add(figure) for figure in drawn]
            found.append({"model": model, "task": task, "load": load, "figures": ids})
    return found


def paretos(
    cells: list[Cell], barred: Barred, look: dict[str, dict[str, str]], figures: Figures
) -> list[tuple[str, list[str]]]:
    """Per model and task: latency and, where measured, energy against throughput."""
    rate = ("throughput", "total_tokens_per_s", "total tokens/s")
    axes = (
        ("latency", "e2e_s", "whole request, median, s"),
        ("latency", "itl_s", "inter-token latency, median, s"),
        ("energy.gross", "j_per_total_token", "J per total token"),
    )
    found: list[tuple[str, list[str]]] = []
    for table in tables(cells):
        usable = [cell for cell in table.rows if cell.starts]
        drawn = [plots.pareto_figure(usable, x, rate, look, barred) for x in axes]
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
    ranks = {"crossover": 0, "none": 1, "within noise": 2}
    return [
        {
            "crossing": crossing,
            "figure": figures.add(plots.crossover_figure(crossing, look))
            if crossing.found.bands
            else None,
            "barred": barred_in(crossing, whole.barred),
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

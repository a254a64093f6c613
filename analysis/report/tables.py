"""The rows of the report's tables: decisions, cells, server starts, provenance, what bounds each point."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from analysis.compare.cells import Cell, load_order
from analysis.compare.decisions import Decision
from analysis.objectives import OBJECTIVES, Objective
from analysis.quality.depth_map import HeatMap
from analysis.report import formats
from analysis.runs.identity import Place
from analysis.runs.run import Run
from analysis.study import Study


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


def bounds(whole: Study) -> list[dict[str, Any]]:
    """One row a point that is usable, or invalid because its client was late: what held it back."""
    return [
        {"point": point, "bottleneck": whole.bottlenecks[point.run_id]}
        for point in sorted(
            whole.points, key=lambda p: (p.model, p.task, p.load, p.context_tokens, p.backend)
        )
        if point.run_id in whole.bottlenecks
    ]

"""The rows of the report's tables: decisions, cells, server starts, provenance, what bounds each point."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from analysis.bottleneck.classify import Bottleneck
from analysis.compare.cells import Cell, load_order
from analysis.compare.decisions import Decision
from analysis.objectives import ENERGY, MEMORY, TPOT, Objective, shown
from analysis.point.point import Point
from analysis.quality.depth_map import HeatMap
from analysis.report import formats
from analysis.runs.identity import Scenario
from analysis.runs.run import Run
from analysis.statistics.samples import Statistic, needed
from analysis.study import Study
from greenbench.contract.counted import counted


def provenance(runs: Iterable[Run]) -> list[tuple[str, str]]:
    """What ran where; several values of one thing are all shown."""
    facts: dict[str, list[str]] = {}
    for run in runs:
        m = run.manifest
        gpus = _counted(f"{gpu.name} ({formats.size(gpu.memory_bytes)})" for gpu in m.host.gpus)
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


def ran_words(whole: Study) -> str:
    """``llama-3.2-1b · NVIDIA H200 · vLLM 0.32.0``: what the figures are of, in a line."""
    usable = whole.usable
    devices = {
        name: 0 for p in usable for name in p.scenario.device.gpus or (p.scenario.device.cpu,)
    }
    versions = sorted({p.candidate.vllm_version or "unknown" for p in usable})
    models = sorted({f"{p.model}, {p.candidate.weights} weights" for p in usable})
    parts = [", ".join(models), ", ".join(devices), f"vLLM {', '.join(versions)}"]
    return " · ".join(parts) if usable else ""


def _counted(names: Iterable[str]) -> str:
    """``2 × NVIDIA H200 (140 GiB)``."""
    counts = Counter(names)
    return ", ".join(name if n == 1 else f"{n} × {name}" for name, n in counts.items())


@dataclass(frozen=True)
class ServerRow:
    """One server start: what was asked for, what was observed, and the proof's verdict."""

    server_id: str
    backend: str
    observed: str | None
    proof: str
    ready_s: float | None
    kv_tokens: int | None
    weights_bytes: int | None


def servers(whole: Study) -> list[ServerRow]:
    """In order of their first runs."""
    rows: dict[tuple[str, str], ServerRow] = {}
    for run in whole.runs:
        server = run.manifest.server
        rows.setdefault(
            (str(run.path.parent), server.server_id),
            ServerRow(
                server_id=server.server_id,
                backend=run.label,
                observed=server.observed_backend,
                proof=server.proof,
                ready_s=server.ready_s,
                kv_tokens=server.kv_cache_tokens,
                weights_bytes=server.weights_bytes,
            ),
        )
    return list(rows.values())


@dataclass(frozen=True)
class DecisionRow:
    """One scenario. ``entries``: by objective of the columns, None where nothing is known of it there."""

    task: str
    load: str
    context_tokens: int
    entries: list[tuple[Objective, Decision | None]]
    may_not_win: dict[str, str]  # candidates -> why


def decision_rows(whole: Study) -> list[DecisionRow]:
    """One row a scenario, one entry an objective that has a column and that anything is known of."""
    made = whole.decisions
    decided = {decision.objective for decision in made}
    columns = [objective for objective in shown("decisions") if objective in decided]
    columns.sort(key=lambda o: o not in whole.headlines.values())
    by_key = {(d.scenario, d.objective): d for d in made}
    return [
        DecisionRow(
            task=whole.labels.tasks[scenario],
            load=whole.labels.loads[scenario],
            context_tokens=scenario.context_tokens,
            entries=[(o, by_key.get((scenario, o))) for o in columns],
            may_not_win=_may_not_win(whole, scenario),
        )
        for scenario in sorted(
            dict.fromkeys(d.scenario for d in made),
            key=lambda p: (p.model, whole.labels.tasks[p], load_order(p), p.context_tokens),
        )
    ]


def decision_cell(decision: Decision | None) -> str:
    """What stands in a cell of the decision table, on one line."""
    if decision is None:
        return formats.DASH
    front = ", ".join(decision.front)
    if decision.winner is not None:
        return f"**{decision.winner}**"
    if decision.outcome == "alone":
        return f"{front} alone" if front else "none may win"
    if decision.outcome == "indicative":
        return f"{front} (indicative)"
    return decision.outcome + (
        f": all {len(decision.front)}" if decision.among_all else f": {front}"
    )


def _may_not_win(whole: Study, scenario: Scenario) -> dict[str, str]:
    return {
        whole.labels.candidates[candidate]: each.why_not or ""
        for (where, candidate), each in whole.eligible.items()
        if where == scenario and not each.may_win
    }


@dataclass(frozen=True)
class Entry:
    """A figure of a cell with the small lines below it. ``main`` None: ``why`` says why, where anything does.

    ``refused``: percentiles that are missing among the lines, and what they would need.
    """

    main: str | None
    below: tuple[str, ...] = ()
    why: str | None = None
    refused: str = ""
    link: str | None = None  # where the reason is told at length


@dataclass(frozen=True)
class Column:
    """A column of the numbers. ``unit``: of figures that stand there without theirs. ``streamed``: means
    nothing of a task that is not streamed.
    """

    title: str
    unit: str | None
    entry: Callable[[Cell], Entry]
    streamed: bool


@dataclass(frozen=True)
class Table:
    """The cells of one model and task, with the columns that make sense of them."""

    model: str
    weights: str
    task: str
    columns: list[Column]
    rows: list[Cell]

    @property
    def failing(self) -> bool:
        return any(cell.failed for cell in self.rows)


def tables(cells: list[Cell], joules: bool) -> list[Table]:
    """``joules``: some cell has energy of the GPU; without it the column would be empty."""
    columns = number_columns(joules)
    found: list[Table] = []
    for (model, weights, task), rows in by_task(cells).items():
        streamed = any(cell.latency.ttft_s.n for cell in rows)
        fitting = [column for column in columns if streamed or not column.streamed]
        found.append(Table(model, weights, task, fitting, rows))
    return found


def by_task(cells: Iterable[Cell]) -> dict[tuple[str, str, str], list[Cell]]:
    """(model, weights, task) → cells."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        groups.setdefault((cell.model, cell.weights, cell.task), []).append(cell)
    return groups


def number_columns(joules: bool) -> list[Column]:
    """The objectives that have one, and beside TPOT the ITL, by which nothing is compared."""
    columns: list[Column] = []
    for objective in shown("numbers"):
        if joules or objective is not ENERGY:
            title, entry = _title(objective), entry_of(objective)
            bare = objective.unit in formats.BARE and not title.endswith("/s")
            columns.append(
                Column(title, objective.unit if bare else None, entry, objective.streamed)
            )
        if objective is TPOT:
            columns.append(Column("ITL", None, lambda cell: _latency(cell.latency.itl_s), True))
    return columns


def _title(objective: Objective) -> str:
    """A latency's column holds all its percentiles, so none stands in its title."""
    return objective.title if objective.latency is None else objective.quantity


def entry_of(objective: Objective) -> Callable[[Cell], Entry]:
    """How a cell's figure by an objective stands in the numbers table."""
    if objective is MEMORY:
        return _memory
    latency = objective.latency
    if latency is not None:
        return lambda cell: _latency(cell.latency.of(latency))
    return lambda cell: _mean(cell, objective)


def _latency(found: Statistic) -> Entry:
    """Median, tails and n over the pooled requests."""
    refused = "; ".join(found.refused)
    if not found.n:
        return Entry(None)
    if found.p50 is None and found.n >= needed(50):
        return Entry(None, why=refused)
    tails = f"p90 {formats.seconds(found.p90)}", f"p99 {formats.seconds(found.p99)}"
    n = f"n {formats.count(found.n)}"
    return Entry(formats.seconds(found.p50), (*tails, n), refused=refused)


def _mean(cell: Cell, objective: Objective) -> Entry:
    """Over the starts, with their range and the error of the window's edges where it is seen."""
    values = cell.values(objective)
    if not values:
        return _missing(cell, objective)
    low, high = (formats.measured(each(values), objective.unit) for each in (min, max))
    edge = cell.edge(objective)
    lines = (
        f"{low}–{high}" if len(values) > 1 else "",
        counted(len(values), "start"),
        f"edges ± {formats.percent(edge)}" if edge >= LEAST_EDGE_SHOWN else "",
    )
    main = formats.measured(cell.mean(objective), objective.unit)
    return Entry(main, tuple(line for line in lines if line))


def entry_words(entry: Entry) -> str:
    """``60,400 (1 start)``, on one line."""
    if entry.main is None:
        return f"– ({entry.why})" if entry.why else formats.DASH
    below = ", ".join(line for line in entry.below if line)
    return f"{entry.main} ({below})" if below else entry.main


LEAST_EDGE_SHOWN = 0.01


def _missing(cell: Cell, objective: Objective) -> Entry:
    """Why there is no figure; of joules in a word, for the energy section tells it at length."""
    if objective is ENERGY:
        energy = cell.starts[0].energy
        status = "unavailable" if energy is None else energy.result.status
        return Entry(None, why=STATUS_WORDS.get(status, status), link="#energy")
    reasons = (objective.measure(point).reason for point in cell.starts)
    return Entry(None, why=next((reason for reason in reasons if reason), None))


STATUS_WORDS = {"invalid": "refused"}


def _memory(cell: Cell) -> Entry:
    memory = cell.starts[0].memory
    if memory is None:
        return Entry(None, why="not recorded")
    return Entry(formats.size(memory.peak_bytes), (memory.peak_source or "not read",))


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


@dataclass(frozen=True)
class BoundRow:
    point: Point
    bottleneck: Bottleneck


def bounds(whole: Study) -> list[BoundRow]:
    """One row a point that is usable, or invalid because its client was late: what held it back."""
    return [
        BoundRow(point, whole.bottlenecks[point.run_id])
        for point in sorted(
            whole.points,
            key=lambda p: (
                p.model,
                p.task,
                load_order(p.scenario),
                p.load,
                p.context_tokens,
                p.backend,
            ),
        )
        if point.run_id in whole.bottlenecks
    ]

"""Runs that are archived under results/h200, and the figures that its page has of each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from analysis.bottleneck.roofline import PhaseUse
from analysis.compare.differences import Difference
from analysis.objectives import Measurement, objective
from analysis.point.point import Point
from analysis.report.formats import DASH, significant
from analysis.runs.identity import DeviceKind
from analysis.runs.run import Run
from analysis.study import Study, study
from greenbench.contract.config import StrictModel, load_yaml, parse
from greenbench.contract.errors import UserError

USUAL_VLLM, USUAL_CHUNK = "0.32.0", 2048  # a candidate's name has only what is not usual
USUAL = "flash_attn3"  # what the others are compared with
HELD_OUT = "heldout"  # such a folder has a back-test's runs, and is no model
COMPARED = {
    "requests/s": "requests",
    "J/request": "energy_request",
    "TTFT": "ttft",
    "TPOT": "tpot",
    "E2E": "e2e",
}  # figures of a comparison, with the report's name of each


class PlannedModel(StrictModel):
    name: str
    contexts: list[int]
    candidates: list[str]


class PlannedLoad(StrictModel):
    """The closed load of each cell."""

    users: int
    output_tokens: int


class Plan(StrictModel):
    """plan.yaml: what is wanted. ``starts``: of each cell. ``unmeasured``: what no table shows, in words."""

    starts: int
    load: PlannedLoad
    models: list[PlannedModel]
    unmeasured: list[str]


@dataclass(frozen=True)
class Row:
    """One run with what its model's report says of it. ``piece`` and ``link`` are paths from the page."""

    piece: str
    link: str
    point: Point
    run: Run
    uses: dict[str, PhaseUse]
    bounds: dict[str, str]
    kernel_share: float | None  # of the window, by NVML

    @property
    def context(self) -> str:
        return f"{self.point.context_tokens:,}"

    @property
    def candidate(self) -> str:
        """Backend, and what of its server is not usual."""
        who = self.point.candidate
        chunk = dict(who.settings)["max_num_batched_tokens"]
        version = who.vllm_version or "unknown"
        parts = (
            who.backend_label,
            "" if who.kv_cache_dtype == "auto" else f"KV {who.kv_cache_dtype}",
            "" if chunk in (None, USUAL_CHUNK) else f"chunk {chunk}",
            "" if who.tensor_parallel == 1 else f"TP {who.tensor_parallel}",
            "" if version == USUAL_VLLM else f"vLLM {version}",
            "" if who.execution == "full" else who.execution,
        )
        return " · ".join(filter(None, parts))

    @property
    def cached(self) -> bool:
        """Whether prompts come out of the prefix cache."""
        return bool(dict(self.point.candidate.settings)["prefix_caching"])

    @property
    def kind(self) -> DeviceKind:
        return self.point.identity.device.kind

    @property
    def users(self) -> int:
        return self.run.point.load.users or 0

    @property
    def cell(self) -> str:
        """The candidate's name as a link to the run; a further equal start has its number."""
        copy = f" ({self.point.arm + 1})" if self.point.arm else ""
        return f"[{self.candidate}{copy}]({self.link})"


@dataclass(frozen=True)
class Results:
    """All models of a folder, each a study of its own: models are not compared."""

    folder: Path
    plan: Plan
    studies: dict[str, Study]

    @cached_property
    def rows(self) -> list[Row]:
        """By model, in the plan's order, and piece, context, task and candidate."""
        planned = [model.name for model in self.plan.models]

        def order(row: Row) -> tuple[int, str, int, str, str, int]:
            point = row.point
            model = planned.index(point.model) if point.model in planned else len(planned)
            return model, row.piece, point.context_tokens, point.task, row.candidate, point.arm

        found = (
            self._row(whole, point) for whole in self.studies.values() for point in whole.points
        )
        return sorted(found, key=order)

    def of_the_plan(self, row: Row) -> bool:
        """Whether its load is the cells' own: prompts computed, so many users, answers so long."""
        output = row.point.identity.workload.output_tokens
        load = self.plan.load
        return not row.cached and (row.users, output) == (load.users, load.output_tokens)

    def rows_of(self, model: str) -> list[Row]:
        return [row for row in self.rows if row.point.model == model]

    def difference(
        self, model: str, figure: str, a: str, b: str, context: int
    ) -> Difference | None:
        """``a`` over ``b`` where they have the most blocks in common; None where the report has none."""
        if figure not in COMPARED or model not in self.studies:
            raise UserError(f"README.md: no comparison by '{figure}' of '{model}'")
        names = {
            row.point.candidate: row.candidate for row in self.rows_of(model) if not row.cached
        }
        found = [
            each if names[each.of[0]] == a else each.turned
            for each in self.studies[model].differences
            if each.objective is objective(COMPARED[figure])
            and each.scenario.context_tokens == context
            and {names.get(of) for of in each.of} == {a, b}
        ]
        return max(found, key=lambda each: each.ratio.blocks, default=None)

    def _row(self, whole: Study, point: Point) -> Row:
        bound, run = whole.bottlenecks.get(point.run_id), whole.run(point)
        return Row(
            piece=run.path.parent.relative_to(self.folder).as_posix(),
            link=run.path.relative_to(self.folder).as_posix(),
            point=point,
            run=run,
            uses={use.phase: use for use in whole.uses.get(point.run_id, [])},
            bounds={each.phase: each.bound for each in bound.phases} if bound else {},
            kernel_share=bound.evidence.kernel_share if bound else None,
        )


def load_results(folder: Path) -> Results:
    path = folder / "plan.yaml"
    plan = parse(Plan, load_yaml(path), str(path))
    runs = folder.glob("*/*/*/manifest.json")
    models = sorted(
        {run.parents[2] for run in runs if not run.parents[2].name.startswith(HELD_OUT)}
    )
    return Results(folder, plan, {model.name: study(model) for model in models})


# -- figures of a run ---------------------------------------------------------------------------------------

Figure = Callable[[Row], float | None]


def measured(row: Row, name: str) -> Measurement:
    return objective(name).measure(row.point)


def by(name: str, factor: float = 1.0) -> Figure:
    """An objective of the report, in another unit."""

    def value(row: Row) -> float | None:
        found = measured(row, name).value
        return None if found is None else found * factor

    return value


def of_phase(phase: str, get: Callable[[PhaseUse], float | None]) -> Figure:
    return lambda row: get(row.uses[phase]) if phase in row.uses else None


def fits(row: Row) -> float | None:
    memory = row.point.memory
    return None if memory is None else memory.sequences_that_fit.get(row.point.context_tokens)


def above_idle(row: Row) -> float | None:
    energy = row.point.energy
    found = energy.result.above_idle if energy else None
    return None if found is None else found.j_per_request


def watts(row: Row) -> float | None:
    return row.point.energy.result.power_w if row.point.energy else None


def of_card(column: str) -> Figure:
    """Mean of a column of the server's card over the measured phase."""

    def mean(row: Row) -> float | None:
        gpu, (start, end) = row.run.gpu, row.run.manifest.phases["measure"]
        own = gpu[gpu["gpu_uuid"].isin(row.run.sources.facts.own_cards)]
        inside = own[own["unix_ns"].between(start, end)][column].dropna()
        return float(inside.mean()) if len(inside) else None

    return mean


def full_step(quantile: float, part: tuple[float, float] = (0.0, 1.0)) -> Figure:
    """ms of the measured phase's steps that prefill and are as large as the server lets them be, over a part
    of the phase."""

    def of_steps(row: Row) -> float | None:
        steps, (begun, ended) = row.run.steps, row.run.manifest.phases["measure"]
        start, end = (begun + share * (ended - begun) for share in part)
        tokens = steps["prefill_tokens"] + steps["decode_tokens"]
        whole = (steps["prefill_tokens"] > 0) & (
            tokens == row.run.point.server.max_num_batched_tokens
        )
        seconds = steps[whole & steps["unix_ns"].between(start, end)]["elapsed_s"]
        return 1e3 * float(seconds.quantile(quantile)) if len(seconds) else None

    return of_steps


FIGURES: dict[str, Figure] = {
    "requests": by("requests"),
    "output": by("output"),
    "TTFT": by("ttft", 1e3),
    "TTFT p95": by("ttft_p95", 1e3),
    "TPOT": by("tpot", 1e3),
    "E2E": by("e2e"),
    "fits": fits,
    "J/output token": by("energy"),
    "tokens/J": lambda row: 1 / j if (j := measured(row, "energy").value) else None,
    "mJ/token": by("energy_total", 1e3),
    "J/request": by("energy_request"),
    "J/request above idle": above_idle,
    "power": watts,
    "memory power": of_card("power_mem_w"),
    "SM clock": of_card("sm_clock_mhz"),
    "prefill MFU": of_phase("prefill", lambda use: use.mfu),
    "prefill MBU": of_phase("prefill", lambda use: use.mbu),
    "prefill share": of_phase("prefill", lambda use: use.time_share),
    "prefill rate": of_phase("prefill", lambda use: use.prefill_tokens / use.seconds),
    "full step p25": full_step(0.25),
    "full step": full_step(0.5),
    "full step p75": full_step(0.75),
    "full step, first half": full_step(0.5, (0.0, 0.5)),
    "full step, second half": full_step(0.5, (0.5, 1.0)),
    "decode MFU": of_phase("decode", lambda use: use.mfu),
    "decode MBU": of_phase("decode", lambda use: use.mbu),
    "decode step": of_phase("decode", lambda use: 1e3 * use.seconds / use.steps),
    "weights": lambda row: row.run.manifest.server.weights_bytes,
    "busy": lambda row: row.kernel_share,
}


def figure(row: Row, name: str) -> float | None:
    """A figure of a usable run; UserError for a name that is none."""
    if name not in FIGURES:
        raise UserError(f"README.md: no figure '{name}'; there are {', '.join(FIGURES)}")
    return FIGURES[name](row) if row.point.usable else None


def shown(row: Row, name: str) -> str:
    value = figure(row, name)
    if value is None:
        return DASH
    return f"{value:,.0f}" if name == "fits" else significant(value)

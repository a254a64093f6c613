"""Tables and figures of results/h200/README.md, from the runs archived beside it: ``make results``.

    python -m scripts.results                        # rewrites README.md and the reports
    python -m scripts.results --add runs/my-sweep    # archives a sweep as one more piece first

Runs lie in MODEL/PIECE/RUN; a piece is one sweep on one card, a report is of one model. Text between
``<!-- NAME: begin -->`` and its end is one table of TABLES. A number of the prose is a link to its run with
the figure's name as title, as [2.94](model/piece/run "requests"), or a quotient with another run, "requests ÷
c48302af"; it is written anew as well. plan.yaml says what is wanted, so that gaps show.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from math import hypot, log
from pathlib import Path

from analysis.archive import archive, folder_bytes
from analysis.bottleneck.roofline import PhaseUse
from analysis.objectives import Measurement, objective
from analysis.point.point import Point
from analysis.report.document import Library, plotly
from analysis.report.formats import DASH, significant
from analysis.report.page import write_report
from analysis.runs.run import Run, find_runs
from analysis.study import Study, study
from greenbench.contract.config import StrictModel, load_yaml, parse
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import write_atomic

RESULTS = ROOT / "results" / "h200"
PLOTLY = "plotly.min.js"  # once beside the reports, which otherwise carry it each
MIB = 2**20
USUAL_VLLM, USUAL_CHUNK = "0.32.0", 2048  # a candidate's name has only what is not usual
PLACE = re.compile(r"(<!-- (?P<name>[\w-]+): begin -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL)
LINKED = re.compile(r'\[[^\]\n]*\]\((?P<run>[^)\s]+) "(?P<figure>[^"]+)"\)')
QUOTIENT = " ÷ "


class PlannedModel(StrictModel):
    name: str
    contexts: list[int]
    candidates: list[str]


class Plan(StrictModel):
    """plan.yaml: what is wanted. ``starts``: of each cell. ``unmeasured``: what no table shows, in words."""

    starts: int
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
    engine_share: float | None

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
        """By model and piece, context, task and candidate."""

        def order(row: Row) -> tuple[str, int, str, str, int]:
            point = row.point
            return row.piece, point.context_tokens, point.task, row.candidate, point.arm

        found = (
            self._row(whole, point) for whole in self.studies.values() for point in whole.points
        )
        return sorted(found, key=order)

    def _row(self, whole: Study, point: Point) -> Row:
        bound, run = whole.bottlenecks.get(point.run_id), whole.run(point)
        return Row(
            piece=run.path.parent.relative_to(self.folder).as_posix(),
            link=run.path.relative_to(self.folder).as_posix(),
            point=point,
            run=run,
            uses={use.phase: use for use in whole.uses.get(point.run_id, [])},
            bounds={each.phase: each.bound for each in bound.phases} if bound else {},
            engine_share=bound.evidence.engine_share if bound else None,
        )


def load_results(folder: Path) -> Results:
    path = folder / "plan.yaml"
    plan = parse(Plan, load_yaml(path), str(path))
    models = sorted({run.parents[2] for run in folder.glob("*/*/*/manifest.json")})
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


def full_step(quantile: float) -> Figure:
    """ms of the measured phase's steps that prefill and are as large as the server lets them be."""

    def of_steps(row: Row) -> float | None:
        steps, (start, end) = row.run.steps, row.run.manifest.phases["measure"]
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
    "decode MFU": of_phase("decode", lambda use: use.mfu),
    "decode MBU": of_phase("decode", lambda use: use.mbu),
    "decode step": of_phase("decode", lambda use: 1e3 * use.seconds / use.steps),
    "busy": lambda row: row.engine_share,
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


# -- tables -------------------------------------------------------------------------------------------------


def table(head: str, lines: Iterable[Iterable[str]]) -> str:
    """Markdown. ``head`` has ``|`` between its columns, and ``>`` before those of numbers."""
    columns = [name.strip() for name in head.split("|")]
    names = [name.lstrip("> ") for name in columns]
    rule = ["--:" if name.startswith(">") else "---" for name in columns]
    return "".join(f"| {' | '.join(line)} |\n" for line in [names, rule, *lines])


def coverage(results: Results) -> str:
    """Starts of each cell that is wanted, of how many; a further copy in one block is no further start."""
    plan, starts = results.plan, dict[tuple[str, str, int], set[tuple[str, int]]]()
    for row in results.rows:
        if row.point.usable:
            key = (row.point.model, row.candidate, row.point.context_tokens)
            starts.setdefault(key, set()).add((row.piece, row.point.repeat))
    wanted = {
        (model.name, candidate, context): len(starts.get((model.name, candidate, context), ()))
        for model in plan.models
        for candidate in model.candidates
        for context in model.contexts
    }
    contexts = sorted({context for _, _, context in wanted})

    def told(key: tuple[str, str, int]) -> str:
        n = wanted.get(key)
        return "" if n is None else f"{n} of {plan.starts}" if n else "missing"

    lines = [
        [model.name, candidate, *(told((model.name, candidate, each)) for each in contexts)]
        for model in plan.models
        for candidate in model.candidates
    ]
    some, enough = (sum(n >= least for n in wanted.values()) for least in (1, plan.starts))
    said = [
        f"Of {len(wanted)} cells {some} have a start, and {enough} the {plan.starts} that a test of a "
        "difference takes.",
        *(f"Missing as well: {sentence}." for sentence in plan.unmeasured),
    ]
    head = " | ".join(["model", "candidate", *(f"> {context:,}" for context in contexts)])
    return table(head, lines) + "\n" + "".join(f"* {sentence}\n" for sentence in said)


def pieces(results: Results) -> str:
    lines: list[list[str]] = []
    for piece, group in groupby(results.rows, key=lambda row: row.piece):
        own = list(group)
        manifests = [row.run.manifest for row in own]
        facts = (
            {f"{row.point.model}, {row.point.weights} weights" for row in own},
            {f"{sum(row.point.usable for row in own)} of {len(own)}"},
            {f"`{card}`" for row in own for card in row.run.sources.facts.own_cards},
            {each.host.driver or "unknown" for each in manifests},
            {each.server.vllm_version or "unknown" for each in manifests},
            {(each.code.git_sha or "unknown")[:7] for each in manifests},
            {significant(folder_bytes(results.folder / piece) / MIB)},
        )
        lines.append([f"[{piece}]({piece})", *(", ".join(sorted(each)) for each in facts)])
    return table("piece | model | > usable runs | card | driver | vLLM | greenbench | > MiB", lines)


def blocks(results: Results) -> Iterator[tuple[str, list[Row]]]:
    """(title, rows) of each piece and load whose windows are long enough to be compared."""
    rows = [row for row in results.rows if row.point.weights == "random"]
    for (piece, load), group in groupby(rows, key=lambda row: (row.piece, row.point.load)):
        own = list(group)
        tokens = sorted({str(row.point.identity.workload.output_tokens) for row in own})
        cards = sorted({f"`{card}`" for row in own for card in row.run.sources.facts.own_cards})
        starts = {row.point.repeat for row in own}
        yield (
            f"**{own[0].point.model}, random weights**, {load}, {', '.join(tokens)} output tokens; "
            f"[{piece}]({piece}) on {', '.join(cards)}; "
            f"{'one start each: indicative' if len(starts) == 1 else f'{len(starts)} starts'}.\n\n",
            own,
        )


def lines_of(rows: list[Row], columns: Iterable[Callable[[Row], str] | str]) -> list[list[str]]:
    """Context, candidate and columns of each row: a figure by its name, or words."""
    return [
        [
            row.context,
            row.cell,
            *(shown(row, each) if isinstance(each, str) else each(row) for each in columns),
        ]
        for row in rows
    ]


def speed(results: Results) -> str:
    head = (
        "> context | candidate | > requests/s | > output tokens/s | > TTFT p50, ms | > p95 | "
        "> TPOT p50, ms | > E2E p50, s | > sequences that fit"
    )
    names = ("requests", "output", "TTFT", "TTFT p95", "TPOT", "E2E", "fits")
    return "\n".join(title + table(head, lines_of(own, names)) for title, own in blocks(results))


def energy(results: Results) -> str:
    head = (
        "> context | candidate | > J / output token | > mJ / token | > J / request | "
        "> above idle | > W | > of them memory | > SM clock, MHz"
    )
    names = (
        "J/output token", "mJ/token", "J/request", "J/request above idle", "power", "memory power",
        "SM clock",
    )  # fmt: skip
    parts: list[str] = []
    for title, own in blocks(results):
        gaps = [
            f"* {row.context}, {row.cell}: {measured(row, 'energy_request').reason or row.point.status}.\n"
            for row in own
            if figure(row, "J/request") is None
        ]
        parts.append(title + table(head, lines_of(own, names)) + "\n" * bool(gaps) + "".join(gaps))
    return "\n".join(parts)


def limits(results: Results) -> str:
    head = (
        "> context | candidate | prefill | > MFU | > MBU | > share of the time | > ms a full step | "
        "decode alone | > MFU | > MBU | > ms a step | > a kernel ran"
    )
    columns: tuple[Callable[[Row], str] | str, ...] = (
        lambda row: row.bounds.get("prefill", DASH),
        "prefill MFU", "prefill MBU", "prefill share", "full step",
        lambda row: row.bounds.get("decode", DASH),
        "decode MFU", "decode MBU", "decode step", "busy",
    )  # fmt: skip
    return "\n".join(title + table(head, lines_of(own, columns)) for title, own in blocks(results))


def copies(results: Results) -> str:
    """Equal starts of one block: how far they lie apart, beside what each start's own window says."""

    def same(row: Row) -> tuple[str, int, str, str, int]:
        point = row.point
        return row.piece, point.context_tokens, point.task, row.candidate, point.repeat

    usable = sorted((row for row in results.rows if row.point.usable), key=same)
    lines: list[list[str]] = []
    for _, group in groupby(usable, key=same):
        for pair in pairwise(group):
            for name, unit in (("requests", "requests/s"), ("energy_request", "J / request")):
                one, other = (measured(row, name) for row in pair)
                apart = [DASH, DASH]
                if one.value and other.value:
                    error = hypot(*((m.standard_error or 0) / (m.value or 1) for m in (one, other)))
                    ratio = other.value / one.value
                    apart = [f"{(ratio - 1) * 100:+.1f} %", f"{abs(log(ratio)) / error:.1f}"]
                values = (DASH if m.value is None else significant(m.value) for m in (one, other))
                cells = ", ".join(row.cell for row in pair)
                lines.append([pair[0].context, cells, unit, *values, *apart])
    return table(
        "> context | copies | figure | > first | > second | > difference | > in standard errors",
        lines,
    )


def crossovers(results: Results) -> str:
    lines = [
        [
            crossing.model,
            crossing.objective.title,
            f"`{crossing.a}`, `{crossing.b}`",
            ", ".join(f"{context:,}" for context in crossing.contexts),
            crossing.found.sentence,
        ]
        for whole in results.studies.values()
        for crossing in whole.crossings
        if len(crossing.contexts) > 2
    ]
    return table("model | figure | candidates | contexts | found", lines)


def answers(results: Results) -> str:
    lines = [
        [
            row.point.model,
            row.context,
            row.point.task,
            row.cell,
            f"{told.correct_share * told.prompts:.0f} of {told.prompts}",
        ]
        for row in results.rows
        if row.point.weights != "random"
        and (told := row.point.answers) is not None
        and told.correct_share is not None
    ]
    return table("model | > context | task | candidate | > right", lines)


TABLES: dict[str, Callable[[Results], str]] = {
    "coverage": coverage,
    "pieces": pieces,
    "speed": speed,
    "energy": energy,
    "limits": limits,
    "copies": copies,
    "crossovers": crossovers,
    "answers": answers,
}


# -- the page and the reports -------------------------------------------------------------------------------


def written(text: str, results: Results) -> str:
    """The page with its tables and linked figures as the runs have them. UserError for what they lack."""

    def known(link: str) -> Row:
        found = [row for row in results.rows if row.link.endswith(link.strip("/"))]
        if len(found) != 1:
            raise UserError(
                f"README.md: '{link}' names {len(found)} runs; give the end of one's path"
            )
        return found[0]

    def number(match: re.Match[str]) -> str:
        name, _, other = match["figure"].partition(QUOTIENT)
        row = known(match["run"])
        value, beside = figure(row, name), figure(known(other), name) if other else 1.0
        if value is None or beside is None:
            raise UserError(f"README.md: {match[0]}: the runs have no such figure")
        said = significant(value / beside) if other else shown(row, name)
        return f'[{said}]({match["run"]} "{match["figure"]}")'

    def filled(match: re.Match[str]) -> str:
        if match["name"] not in TABLES:
            raise UserError(f"README.md: no table '{match['name']}'; there are {', '.join(TABLES)}")
        return f"{match[1]}{TABLES[match['name']](results)}{match[3]}"

    return LINKED.sub(number, PLACE.sub(filled, text))


def write_reports(results: Results) -> None:
    """One a model; the library that draws lies beside them once."""
    write_atomic(results.folder / PLOTLY, plotly())
    for model, whole in results.studies.items():
        write_report(whole, results.folder / model / "report.html", library=Library(f"../{PLOTLY}"))


def add(runs: Path, folder: Path) -> Path:
    """One more piece, under its model, named by the sweep's folder and the next free number."""
    models = {run.manifest().server.model for run in find_runs(runs)}
    if len(models) != 1:
        raise UserError(f"{runs}: a piece is of one model; found {', '.join(sorted(models))}")
    of_model = folder / models.pop()
    numbered = (of_model / f"{runs.resolve().name}-{n}" for n in range(1, sys.maxsize))
    piece = next(path for path in numbered if not path.exists())
    archive(runs, piece)
    return piece


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--add", type=Path, metavar="RUNS", help="archive this sweep first")
    args = parser.parse_args()
    if args.add:
        print(add(args.add, RESULTS))
    page, results = RESULTS / "README.md", load_results(RESULTS)
    write_atomic(page, written(page.read_text(), results))
    write_reports(results)
    print(f"{page}\n{folder_bytes(RESULTS) / MIB:.1f} MiB in {RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))

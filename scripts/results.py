"""Tables and figures of results/h200/README.md, from the runs archived beside it: ``make results``.

    python -m scripts.results                        # rewrites README.md and the reports
    python -m scripts.results --add runs/my-sweep    # archives a sweep as one more piece first

Runs lie in MODEL/PIECE/RUN, of a sweep over several models in its name's folder in place of MODEL; a piece is
one sweep on one card, a report is of one such folder. Text between
``<!-- NAME: begin -->`` and its end is one table of TABLES. A number of the prose is a link to its run with
the figure's name as title, as [2.94](model/piece/run "requests"), or a quotient with another run, "requests ÷
c48302af", or links to the model's report and is a comparison over blocks, "requests/s of triton ÷ flash_attn3
at 32768"; it is written anew as well. plan.yaml says what is wanted, so that gaps show.
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby, pairwise
from math import hypot, log
from pathlib import Path

import numpy as np

from analysis.archive import archive, folder_bytes
from analysis.compare.crossover_fit import MIN_STARTS
from analysis.compare.differences import Difference
from analysis.report.document import Library, plotly
from analysis.report.formats import DASH, significant
from analysis.report.page import write_report
from analysis.runs.identity import DeviceKind
from analysis.runs.run import find_runs
from analysis.statistics import student_t
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.installation import ROOT
from greenbench.contract.manifest import Code
from greenbench.contract.run_dir import write_atomic
from scripts.backtest_told import section
from scripts.markdown_table import table
from scripts.results_rows import (
    COMPARED,
    USUAL,
    Results,
    Row,
    figure,
    load_results,
    measured,
    shown,
)

RESULTS = ROOT / "results" / "h200"
PLOTLY = "plotly.min.js"  # once beside the reports, which otherwise carry it each
MIB = 2**20
PLACE = re.compile(r"(<!-- (?P<name>[\w-]+): begin -->\n).*?(<!-- (?P=name): end -->)", re.DOTALL)
LINKED = re.compile(r'\[[^\]\n]*\]\((?P<run>[^)\s]+) "(?P<figure>[^"]+)"\)')
QUOTIENT = " ÷ "
OVER_BLOCKS = re.compile(r"(?P<figure>\S+) of (?P<a>.+) ÷ (?P<b>.+) at (?P<context>\d+)")


# -- tables -------------------------------------------------------------------------------------------------


def coverage(results: Results) -> str:
    """Starts of each cell that is wanted, of how many: on one kind of machine and with one set of prompts,
    since no others are pooled. A further copy in one block is no further start.
    """
    plan, on_kind = (
        results.plan,
        dict[tuple[str, str, int], dict[tuple[DeviceKind, str], set[tuple[str, int]]]](),
    )
    for row in results.rows:
        if row.point.usable and results.of_the_plan(row):
            key = (row.point.model, row.candidate, row.point.context_tokens)
            kinds = on_kind.setdefault(key, {})
            pooled = row.kind, row.point.identity.workload.prompts
            kinds.setdefault(pooled, set()).add((row.piece, row.point.repeat))
    starts = {key: max(kinds.values(), key=len) for key, kinds in on_kind.items()}
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
            {_code(each.code) for each in manifests},
            {significant(folder_bytes(results.folder / piece) / MIB)},
        )
        lines.append([f"[{piece}]({piece})", *(", ".join(sorted(each)) for each in facts)])
    return table("piece | model | > usable runs | card | driver | vLLM | greenbench | > MiB", lines)


def _code(code: Code) -> str:
    return (code.git_sha or "unknown")[:7] + (" with uncommitted changes" if code.dirty else "")


def heading(own: list[Row], load: str) -> str:
    """What the rows of one table have in common."""
    piece = own[0].piece
    tokens = sorted({str(row.point.identity.workload.output_tokens) for row in own})
    cards = sorted({f"`{card}`" for row in own for card in row.run.sources.facts.own_cards})
    starts = {row.point.repeat for row in own}
    return (
        f"**{own[0].point.model}, random weights**, {load}, {', '.join(tokens)} output tokens; "
        f"[{piece}]({piece}) on {', '.join(cards)}; "
        f"{'one start each: indicative' if len(starts) == 1 else f'{len(starts)} starts'}.\n\n"
    )


def blocks(results: Results) -> Iterator[tuple[str, list[Row]]]:
    """(heading, rows) of each piece at the plan's load."""
    rows = [row for row in results.rows if results.of_the_plan(row)]
    for (_, load), group in groupby(rows, key=lambda row: (row.piece, row.point.load)):
        own = list(group)
        yield heading(own, load), own


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
    return "\n".join(said + table(head, lines_of(own, names)) for said, own in blocks(results))


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
    for said, own in blocks(results):
        gaps = [
            f"* {row.context}, {row.cell}: {measured(row, 'energy_request').reason or row.point.status}.\n"
            for row in own
            if figure(row, "J/request") is None
        ]
        parts.append(said + table(head, lines_of(own, names)) + "\n" * bool(gaps) + "".join(gaps))
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
    return "\n".join(said + table(head, lines_of(own, columns)) for said, own in blocks(results))


def differences(results: Results) -> str:
    """Each candidate over the usual one, at each context, where they have two blocks or more in common."""
    head = "> context | candidate | " + " | ".join(f"> {each}" for each in COMPARED) + " | > blocks"
    parts: list[str] = []
    for model in results.studies:
        rows = {
            (context, candidate): [
                results.difference(model, figure, candidate, USUAL, context) for figure in COMPARED
            ]
            for context, candidate in sorted(
                {(row.point.context_tokens, row.candidate) for row in results.rows_of(model)}
            )
            if candidate != USUAL
        }
        lines = [
            [
                f"{context:,}",
                f"`{candidate}`",
                *(over_blocks(each) if each and each.tested else DASH for each in found),
                str(max(each.ratio.blocks for each in found if each)),
            ]
            for (context, candidate), found in rows.items()
            if any(each and each.tested for each in found)
        ]
        if lines:
            parts.append(f"**{model}**, each over `{USUAL}`.\n\n" + table(head, lines))
    return "\n".join(parts)


def over_blocks(difference: Difference) -> str:
    """``0.255 (0.253 to 0.257)``; bold where it is claimed."""
    ratio = difference.ratio
    if ratio.ratio is None:
        return DASH
    said = significant(ratio.ratio)
    if ratio.low is not None and ratio.high is not None:
        said += f" ({significant(ratio.low)} to {significant(ratio.high)})"
    return f"**{said}**" if difference.verdict in ("better", "worse") else said


def copies(results: Results) -> str:
    """Equal starts of one block: how far they lie apart, beside what each start's own window says."""

    def same(row: Row) -> tuple[str, str, int, str, str, str, int]:
        point = row.point
        what = point.context_tokens, point.task, point.load
        return row.piece, point.model, *what, row.candidate, point.repeat

    fresh = (row for row in results.rows if row.point.usable and not row.cached)
    usable = sorted(fresh, key=same)
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
    """Of each pair the figures by which the same was found; what indicative means is said once."""
    figures: dict[tuple[str, ...], list[str]] = {}
    for model, whole in results.studies.items():
        own = [row for row in results.rows if row.piece.startswith(f"{model}/")]
        names = {row.point.backend: row.candidate for row in own}
        for crossing in whole.crossings:
            if len(crossing.contexts) > 2:
                found = crossing.found
                row = (
                    crossing.model,
                    str(crossing.scenarios[0].device.cores),
                    f"`{names[crossing.a]}`, `{names[crossing.b]}`",
                    ", ".join(f"{context:,}" for context in crossing.contexts),
                    found.verdict
                    if found.verdict == "indicative"
                    else _with_names(found.sentence, names),
                )
                figures.setdefault(row, []).append(crossing.objective.title)
    lines = [[*row[:-1], ", ".join(titles), row[-1]] for row, titles in figures.items()]
    return (
        f"*indicative*: fewer than {MIN_STARTS} starts of each, nothing is claimed between the contexts.\n\n"
        + table("model | > CPU cores | candidates | contexts | figures | found", lines)
    )


def _with_names(sentence: str, names: Mapping[str, str]) -> str:
    """With this page's names of the candidates in place of the report's."""
    labels = "|".join(re.escape(label) for label in sorted(names, key=len, reverse=True))
    return re.sub(labels, lambda label: names[label[0]], sentence)


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


def decode_alone(results: Results) -> str:
    """Runs whose prompts lie in the prefix cache, so that nearly all steps decode."""
    cached = [row for row in results.rows if row.cached]
    rows = [row for row in cached if row.point.usable]
    measured_at = {(row.candidate, row.context, row.users) for row in rows}
    gaps = "".join(
        unusable(row, row.context)
        for row in cached
        if (row.candidate, row.context, row.users) not in measured_at
    )
    rows.sort(key=lambda row: (row.piece, row.candidate, row.point.context_tokens, -row.users))
    gaps += "".join(
        f"* {of_users(row, row.context)}, no joules: {measured(row, 'energy').reason}.\n"
        for row in rows
        if figure(row, "tokens/J") is None
    )
    head = (
        "> context | candidate | > users | > output tokens/s | > W | > output tokens / J | "
        "> J / output token | > ms a decode step | > decode MBU | > SM clock, MHz"
    )
    columns: tuple[Callable[[Row], str] | str, ...] = (
        lambda row: f"{row.users:,}",
        "output", "power", "tokens/J", "J/output token", "decode step", "decode MBU", "SM clock",
    )  # fmt: skip
    return table(head, lines_of(rows, columns)) + "\n" + gaps + "".join(slopes(rows))


def by_batch(results: Results) -> str:
    """Models at one context and several numbers of users, prompts computed: what a request costs.

    Below each table, what is missing, and windows whose halves differ.
    """
    rows = [
        row
        for row in results.rows
        if row.point.weights == "random" and not row.cached and not results.of_the_plan(row)
    ]
    head = (
        "> users | candidate | > requests/s | > TTFT p50, ms | > TPOT p50, ms | > W | > J / request | "
        "> above idle | > J / output token | > ms a full step | > ms a decode step | > a kernel ran"
    )
    names = (
        "requests", "TTFT", "TPOT", "power", "J/request", "J/request above idle", "J/output token",
        "full step", "decode step", "busy",
    )  # fmt: skip
    parts: list[str] = []
    for (_, _, context), group in groupby(rows, key=_swept):
        every = sorted(group, key=lambda row: row.users)
        lines = [
            [f"{row.users:,}", row.cell, *(shown(row, name) for name in names)]
            for row in every
            if row.point.usable
        ]
        gaps = "".join(unusable(row) for row in every if not row.point.usable)
        gaps += "".join(map(uneven, every))
        parts.append(
            heading(every, f"{context:,} context tokens")
            + table(head, lines)
            + "\n" * bool(gaps)
            + gaps
        )
    return "\n".join(parts)


def of_users(row: Row, *context: str) -> str:
    """Which point a line is about; with ``context`` where the table's heading does not say it."""
    return ", ".join((*context, row.cell, counted(row.users, "user")))


def unusable(row: Row, *context: str) -> str:
    """A line on a point that may not be used, and why."""
    return f"* {of_users(row, *context)}: {'; '.join(row.point.reasons)}.\n"


def uneven(row: Row) -> str:
    """A line on a usable run whose requests took longer in one half of its window; nothing of an even one."""
    window = row.point.window
    pace = window.evidence.pace if window and row.point.usable else None
    if pace is None:
        return ""
    return (
        f"* {of_users(row)}: a request took {significant(pace.early_s)} s in the "
        f"first half of the window and {significant(pace.late_s)} s in the second.\n"
    )


def _swept(row: Row) -> tuple[str, str, int]:
    return row.piece, row.point.model, row.point.context_tokens


def slopes(rows: list[Row]) -> Iterator[str]:
    """Of each candidate: how tokens per joule go with context where each point holds the most that fits.

    The fewest users of a context are left out, where several numbers were measured; of equal points the
    geometric mean stands. A straight line through the logarithms, its interval from the residuals (t, 95 %).
    """
    for (piece, candidate), group in groupby(rows, key=lambda row: (row.piece, row.candidate)):
        at: dict[int, list[Row]] = {}
        for row in group:
            if figure(row, "tokens/J"):
                at.setdefault(row.point.context_tokens, []).append(row)
        full = {
            c: [row for row in own if row.users == max(r.users for r in own)]
            for c, own in at.items()
        }
        x = np.log(
            [c + (own[0].point.identity.workload.output_tokens or 0) / 2 for c, own in full.items()]
        )
        y = [np.mean([log(figure(row, "tokens/J") or 1.0) for row in own]) for own in full.values()]
        if len(x) < 2:
            continue
        told = ", ".join(f"{c:,}" for c in full)
        starts = {row.run.manifest.server.server_id for own in full.values() for row in own}
        yield (
            f"* {candidate} ([{piece}]({piece})): over {told} tokens, tokens per joule go with the mean "
            f"context to the power {power(x, np.array(y))}; "
            f"{'one start' if len(starts) == 1 else f'{len(starts)} starts'} of the server on one card.\n"
        )


def power(x: np.ndarray, y: np.ndarray) -> str:
    """A line's slope in words, with its interval where there are more than two points."""
    if len(x) == 2:
        return f"{(y[1] - y[0]) / (x[1] - x[0]):.2f} (two points, so no interval)"
    slope, error = line_of(x, y)
    half = float(student_t.ppf(np.array(0.975), len(x) - 2)) * error
    return f"{slope:.2f} (95 %: {slope - half:.2f} to {slope + half:.2f})"


def back_test(results: Results) -> str:
    """The last frozen predictions against their runs, as ``scripts/backtest.py score --json`` left them."""
    score = max(results.folder.glob("backtest*.json"), key=_round, default=None)
    if score is None:
        return "No prediction was scored.\n"
    frozen = score.with_name(score.name.replace("backtest", "predictions"))
    said, scored = (json.loads(path.read_text()) for path in (frozen, score))
    return f"[{frozen.name}]({frozen.name}) against [{score.name}]({score.name}):\n\n{section(said, scored)}"


def _round(score: Path) -> int:
    number = score.stem.partition("-")[2]
    return int(number) if number else 1


def line_of(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """Slope of the least-squares line and its standard error."""
    about = x - x.mean()
    slope = float(about @ y / (about @ about))
    rest = y - y.mean() - slope * about
    return slope, float(np.sqrt(rest @ rest / (len(x) - 2) / (about @ about)))


TABLES: dict[str, Callable[[Results], str]] = {
    "coverage": coverage,
    "pieces": pieces,
    "speed": speed,
    "energy": energy,
    "limits": limits,
    "decode": decode_alone,
    "batches": by_batch,
    "differences": differences,
    "copies": copies,
    "crossovers": crossovers,
    "answers": answers,
    "back-test": back_test,
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

    def compared(match: re.Match[str], named: re.Match[str]) -> str:
        model = match["run"].split("/")[0]
        found = results.difference(
            model, named["figure"], named["a"], named["b"], int(named["context"])
        )
        if found is None:
            raise UserError(f"README.md: {match[0]}: the runs have no such comparison")
        return f'[{over_blocks(found).strip("*")}]({match["run"]} "{match["figure"]}")'

    def number(match: re.Match[str]) -> str:
        if named := OVER_BLOCKS.fullmatch(match["figure"]):
            return compared(match, named)
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
    """One more piece, named by the sweep's folder and the next free number: under its model, and of a sweep
    of several under that folder's name, since they are shown together.

    UserError where the page would not show it: of several sweeps, or with a run that is here already.
    """
    found = find_runs(runs)
    models = {run.manifest().server.model for run in found}
    sweeps = sorted({run.path.parent for run in found})
    if [sweep.resolve() for sweep in sweeps] != [runs.resolve()]:
        told = ", ".join(map(str, sweeps))
        raise UserError(
            f"{runs}: a piece is the folder of one sweep, with its runs in it; add {told}"
        )
    here = {path.parent.name: path.parent for path in folder.glob("*/*/*/manifest.json")}
    if known := next((here[run.path.name] for run in found if run.path.name in here), None):
        raise UserError(
            f"{runs}: its run {known.name} is in {known.parent} already; delete that piece to replace it"
        )
    name = runs.resolve().name
    shown_in = folder / (models.pop() if len(models) == 1 else name)
    numbered = (shown_in / f"{name}-{n}" for n in range(1, sys.maxsize))
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

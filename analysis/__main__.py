"""Command line of the analysis.

python -m analysis check [--schema] runs/demo
python -m analysis report runs/demo --out report.html
"""

import argparse
import json
import os
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.runs.check_forms import read_forms
from analysis.runs.fault import Fault
from analysis.runs.run import find_runs, read_runs
from analysis.runs.unmeasured import left_out
from analysis.runs.validity import faults, superseded
from greenbench.contract.command_name import typed_as
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError, exit_on_user_error, system_sentence
from greenbench.contract.installation import results
from greenbench.contract.terminal import visible


def check(args: argparse.Namespace) -> int:
    """One line a fault; 1 when there is any. Points measured again later are passed over."""
    if args.schema:
        return check_forms(args.runs)
    runs, unreadable = read_runs(args.runs)
    replaced = superseded(runs)
    broken = [(run.path.name, Fault("unreadable", run.why)) for run in unreadable]
    for run in runs:
        if run.path not in replaced:
            broken += [(run.manifest.run_id, fault) for fault in faults(run)]
    broken += [
        (each.label, Fault("unreadable", each.why))
        for each in left_out(args.runs)
        if each.status == "unreadable"
    ]
    for run in runs:
        if keys := run.passed_over():
            version = run.manifest.schema_version
            print(f"{run.manifest.run_id}: of schema {version}; not read here: {', '.join(keys)}")
    for name, fault in broken:
        print(visible(f"{name}: {fault.code}: {fault.sentence}"))
    total = len(runs) + len(unreadable)
    print(
        f"{counted(total, 'run')}, {len(replaced)} of them measured again, {counted(len(broken), 'fault')}"
    )
    return 1 if broken else 0


def check_forms(root: Path) -> int:
    """Whether the files have the form of docs/contract.md, not whether they can be believed."""
    reading = read_forms(root)
    for sentence in reading.faults:
        print(visible(sentence))
    print(f"{counted(reading.files, 'file')} read, {counted(len(reading.faults), 'fault')}")
    return 1 if reading.faults else 0


def verdicts(_: argparse.Namespace) -> int:
    """Of the run directories in a JSON list on stdin, which the report would not use, and why."""
    from analysis.point.verdict import verdict

    found: list[dict[str, object]] = []
    for path in json.load(sys.stdin):
        runs, unreadable = read_runs(Path(path))
        broken = [Fault("unreadable", run.why) for run in unreadable]
        said = [*broken, *(fault for run in runs for fault in verdict(run))]
        found.append({"path": path, "faults": [asdict(fault) for fault in said]})
    print(json.dumps(found, indent=1))
    return 0


def enough(_: argparse.Namespace) -> int:
    """Of a run that is being measured, one question (JSON) a line on stdin: whether it has enough by now."""
    from analysis.point.enough import answers

    for answer in answers(sys.stdin):
        print(answer.model_dump_json(), flush=True)
    return 0


def objectives(_: argparse.Namespace) -> int:
    """What a headline can go by, as JSON {name: title}."""
    from analysis.objectives import OBJECTIVES

    print(json.dumps({each.name: each.title for each in OBJECTIVES}, indent=1))
    return 0


def report(args: argparse.Namespace) -> int:
    """One self-contained HTML file, and beside it the same in Markdown and for programs."""
    from analysis.points_csv import write_points
    from analysis.report.page import write_with_twin  # plotly and jinja load slowly
    from analysis.study import study
    from analysis.summary import write_summary

    def progress(done: int, total: int) -> None:
        if sys.stderr.isatty():
            print(f"\r{done}/{total} runs", end="" if done < total else "\n", file=sys.stderr)

    for folder in args.runs:
        find_runs(folder)  # bad input is said before anything is written
    if len(args.runs) > 1:
        return compare(args, progress)
    [runs] = args.runs
    out = report_path(runs, args.out)
    for file in filter(None, (out, args.csv)):
        make_room(file)
    whole = study(runs, progress, args.across_executions, args.objective)
    try:
        write_summary(whole, summary_path(out))
        write_with_twin(whole, out)
        if args.csv:
            write_points(whole, args.csv)
    except OSError as error:
        why = system_sentence(error)
        raise UserError(f"{why}; --out (and --csv) name another place for the report") from error
    print(out)
    return 0


def compare(args: argparse.Namespace, progress: Callable[[int, int], None]) -> int:
    """Two sweeps side by side, as a page and its twin in Markdown."""
    from analysis.report.side_by_side import write_side_by_side
    from analysis.study import study

    if len(args.runs) > 2:
        raise UserError(
            f"{len(args.runs)} folders: a report is of one sweep, or of two side by side"
        )
    if args.csv:
        raise UserError("--csv is of one sweep; leave it out, or name one folder")
    a, b = args.runs
    out = args.out or a / f"beside-{b.resolve().name}.html"
    if out.is_dir():
        out = out / f"{a.resolve().name}-beside-{b.resolve().name}.html"
    make_room(out)
    studies = [study(runs, progress, args.across_executions, args.objective) for runs in (a, b)]
    try:
        write_side_by_side(studies[0], studies[1], out)
    except OSError as error:
        raise UserError(f"{system_sentence(error)}; --out names another place") from error
    print(out)
    return 0


def report_path(runs: Path, out: Path | None) -> Path:
    """report.html in RUNS or in the folder that was named; else the file that was named."""
    if out is None or out.is_dir():
        return (out or runs) / "report.html"
    return out


def summary_path(report: Path) -> Path:
    """summary.json of report.html; of a.html a.summary.json, so that two reports share a folder."""
    if report.name == "report.html":
        return report.with_name("summary.json")
    return report.with_name(f"{report.stem}.summary.json")


def make_room(file: Path) -> None:
    """A folder for the file before the work, so that none is lost to a place without room. UserError."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(
            f"{file.parent}: cannot be made ({error.strerror}); choose another --out"
        ) from error
    if file.is_dir():
        raise UserError(f"{file}: is a folder, where a file is to be; choose another --out")
    if not os.access(file if file.exists() else file.parent, os.W_OK):
        raise UserError(f"{file}: cannot be written; choose another --out")


def archive(args: argparse.Namespace) -> int:
    """A sweep small enough to keep, which the report reads as it is; RUNS stays as it is."""
    from analysis.archive import UNIT_NS, archive

    try:
        kept = archive(args.runs, args.out, prompts=args.prompts)
    except OSError as error:
        why = system_sentence(error)
        raise UserError(f"{why}; --out names another place for the archive") from error
    for run in kept.unreadable:
        print(visible(f"{run.path.name}: left out: {run.why}"))
    mib = 2**20
    print(
        f"{args.out}: {counted(len(kept.runs), 'run')}, "
        f"{kept.bytes / mib:.1f} MiB of {kept.raw_bytes / mib:.1f}; "
        f"times of chunks to {UNIT_NS / 1000:.0f} µs, {'with' if args.prompts else 'without'} prompts"
    )
    if kept.texts_left_out:
        print(
            f"the texts of {kept.texts_left_out:,} answers were left out, since the weights are random and "
            "nobody can grade them; a sha256 and the length of each are kept"
        )
    return 1 if kept.unreadable else 0


def ceilings(args: argparse.Namespace) -> int:
    """Measure matmul and memory streams of this machine; the report's roofline uses them."""
    from analysis.bottleneck.peaks import measure_host

    make_room(args.out)
    measured = measure_host(args.out, lambda line: print(line, file=sys.stderr, flush=True))
    print(measured.model_dump_json(indent=1))
    return 0


def simulate(args: argparse.Namespace) -> int:
    """Table of false claims and of power, by simulated server starts."""
    from analysis.compare.claim_rates import table

    print(table(args.trials))
    return 0


def import_results(args: argparse.Namespace) -> int:
    """Result files of other load generators as run directories, one a measured point."""
    from analysis.importers.convert import read_result, write_all

    points = [point for file in args.files for point in read_result(file)]
    for path in write_all(points, args.backend, args.out):  # one bad file, and nothing is written
        print(path)
    return 0


Commands = Any  # of argparse, whose type for them is private


def add_command(
    commands: Commands, name: str, action: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    """A command whose help is the first line of its action's docstring."""
    said = (action.__doc__ or "").splitlines()[0]
    command: argparse.ArgumentParser = commands.add_parser(
        name, prog=typed_as(f"python -m analysis {name}"), help=said, description=said
    )
    command.set_defaults(action=action)
    return command


def add_check(commands: Commands) -> None:
    command = add_command(commands, "check", check)
    command.add_argument("runs", type=Path, help=RUNS_HELP)
    command.add_argument(
        "--schema",
        action="store_true",
        help="check the files' form against docs/contract.md, not their content",
    )


def add_verdict(commands: Commands) -> None:
    add_command(commands, "verdict", verdicts)


def add_enough(commands: Commands) -> None:
    add_command(commands, "enough", enough)


def add_objectives(commands: Commands) -> None:
    add_command(commands, "objectives", objectives)


def add_report(commands: Commands) -> None:
    command = add_command(commands, "report", report)
    command.add_argument("runs", type=Path, nargs="+", help=f"{RUNS_HELP}; of two, side by side")
    command.add_argument(
        "--out", type=Path, help="file; default: report.html in RUNS. Its summary lies beside it"
    )
    command.add_argument(
        "--csv", type=Path, metavar="FILE", help="also write each point and its figures, one a row"
    )
    command.add_argument(
        "--across-executions",
        action="store_true",
        help="rank eager and CUDA graphs together; default: each separately",
    )
    command.add_argument(
        "--objective",
        metavar="NAME",
        help="what the headline goes by, as ttft or energy (`python -m analysis objectives` names all); "
        "default: the sweep's `objective`, else goodput under its SLO, else E2E",
    )


def add_archive(commands: Commands) -> None:
    command = add_command(commands, "archive", archive)
    command.add_argument("runs", type=Path, help=RUNS_HELP)
    command.add_argument("--out", type=Path, required=True, help="a new folder for the archive")
    command.add_argument(
        "--prompts",
        action="store_true",
        help="keep the prompts, which the report needs only to show the words of a wrong answer",
    )


def add_ceilings(commands: Commands) -> None:
    command = add_command(commands, "ceilings", ceilings)
    command.add_argument(
        "--out",
        type=Path,
        default=results() / "ceilings.json",
        help="file for the measured peaks; default: runs/ceilings.json",
    )


def add_simulate(commands: Commands) -> None:
    command = add_command(commands, "simulate", simulate)
    command.add_argument(
        "--trials", type=int, default=2000, help="simulated sweeps per row; default 2000"
    )


def add_import(commands: Commands) -> None:
    command = add_command(commands, "import", import_results)
    command.add_argument(
        "files",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="per-request result, or the directory that the tool wrote",
    )
    command.add_argument(
        "--backend",
        default="unknown",
        help="the backend that the server was started with; no tool's file names it",
    )
    command.add_argument(
        "--out",
        type=Path,
        default=results() / "imported",
        help="default: runs/imported",
    )


RUNS_HELP = "a run, a sweep, or a folder of sweeps"
COMMANDS = (
    add_check,
    add_verdict,
    add_enough,
    add_objectives,
    add_report,
    add_archive,
    add_ceilings,
    add_simulate,
    add_import,
)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m analysis", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in COMMANDS:
        add(commands)
    args = parser.parse_args()
    return exit_on_user_error(lambda: args.action(args))


if __name__ == "__main__":
    sys.exit(main())

"""The `greenbench` command. Each subcommand is thin: it runs a sweep, or starts the stage that does it."""

import json
import os
import re
import signal
import sys
import time
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console

from greenbench import __version__, points
from greenbench import doctor as doctor_module
from greenbench.choose import Wish, answer, parse_backends, parse_contexts, plan_choice
from greenbench.contract.command_name import TYPED_AS
from greenbench.contract.config import PointConfig, SloConfig, SweepConfig, load_sweep
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError, exit_on_user_error, nearest, say_error
from greenbench.contract.installation import config_file, config_names, plugin_folder, results
from greenbench.contract.slo import parse_slo
from greenbench.contract.terminal import visible
from greenbench.sweep.child_processes import StageError, call, passthrough, python_module
from greenbench.sweep.forewarnings import forewarnings, of_running_server
from greenbench.sweep.plan import (
    Plan,
    dtype_notes,
    environment_notes,
    plan_sweep,
    undecided_quality,
    unknown_shapes,
)
from greenbench.sweep.progress import SweepProgress
from greenbench.sweep.provenance import host, hostname
from greenbench.sweep.runner import Outcome, run_sweep
from greenbench.sweep.stopwatch import Stopwatch
from greenbench.sweep.time_budget import estimate, fitting, is_running, trimmed, whole
from greenbench.vllm_python import vllm_python

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False)
NO_ANSWER = (
    "No answer yet: fewer than two candidates have usable points at one context. Run the same command again "
    "to go on, or give more time with --within."
)
REPORT_S = 20.0  # of the time that is given, kept for the report
CEILINGS_S = 60.0  # left of it, so that the ceilings of the roofline are measured
runs = typer.Typer(
    no_args_is_help=True, help="Points that were measured: list, show, redo, delete."
)
app.add_typer(runs, name="runs")
Point = Annotated[Path, typer.Argument(help="A point's folder, as `runs list` names it.")]
PASS: dict[str, bool | list[str]] = {  # the stage reads these commands' arguments, --help too
    "allow_extra_args": True,
    "ignore_unknown_options": True,
    "help_option_names": [],
}


def _stage(context: typer.Context, module: str, command: str) -> NoReturn:
    """Hand the arguments over to a stage's command, which calls itself what the person typed."""
    os.environ[TYPED_AS] = context.command_path
    raise typer.Exit(passthrough(python_module(module, command, *context.args)))


def _print_version(asked: bool) -> None:
    if asked:
        print(f"greenbench {__version__}")
        raise typer.Exit()


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """Which vLLM attention backend serves long contexts best: speed, energy, memory, right answers."""


def parse_folder(text: str) -> Path:
    """UserError for nothing: `--out "$UNSET"` would strew results about the folder where one stands."""
    if not text.strip():
        raise UserError("--out names no folder; give one, or leave --out away for runs/ here")
    return Path(text)


@app.command()
def run(
    sweep: Annotated[
        Path, typer.Argument(help="A sweep file, or the name of one in configs/sweeps.")
    ],
    out: Annotated[
        Path | None,
        typer.Option(
            parser=parse_folder,
            metavar="FOLDER",
            help="Where results go; default runs/<name> here.",
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option(help="Print every server and point; start none.")
    ] = False,
    skip_refused: Annotated[
        bool, typer.Option(help="Skip backends that this host cannot run.")
    ] = False,
    blocks: Annotated[
        str | None,
        typer.Option(help="Only these repeats, e.g. 0-2 or 1,3: to share a sweep among GPUs."),
    ] = None,
    within: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Measure what fits into this time, e.g. 20m or 1h30m: fewer repeats, then contexts, then "
            "loads, for all candidates alike. Run again to go on.",
        ),
    ] = None,
) -> None:
    """Start each server of a sweep and measure every point that is not complete yet."""
    config = load_sweep(find_sweep(sweep))
    chosen = None if blocks is None else parse_blocks(blocks, config.repeats)
    within_s = None if within is None else parse_duration(within)
    target = (out or results() / config.name).expanduser().resolve()
    if dry_run:
        plans = plan_sweep(config, chosen)
        print_plan(plans)
        print_estimate(config, plans, target, within_s)
        planned = [point for plan in plans for point in plan.start.points]
        ahead = [
            *undecided_quality(config),
            *forewarnings(config, planned, bool(host().gpus)),
            *of_running_server(plans[0].start.request),
        ]
        for sentence in ahead:
            print(f"# {visible(sentence)}")
        return
    outcome = measure(config, target, skip_refused, chosen, within_s)
    print_outcome(outcome, config, target)
    raise typer.Exit(1 if outcome.failures or outcome.pending else 0)


def measure(
    config: SweepConfig,
    target: Path,
    skip_refused: bool,
    blocks: frozenset[int] | None = None,
    within_s: float | None = None,
) -> Outcome:
    """Run the sweep before the person's eyes; Ctrl-C ends with what is kept."""
    console = Console(soft_wrap=not sys.stdout.isatty())  # a log keeps one line a point
    try:
        with SweepProgress(console) as view:
            return run_sweep(config, target, view, skip_refused, blocks, within_s)
    except KeyboardInterrupt:
        print(visible(points.kept_sentence(target)), flush=True)
        raise


@app.command()
def choose(
    model: Annotated[
        str, typer.Argument(help="A hub id, a folder or YAML file, or a name in configs/models.")
    ],
    contexts: Annotated[
        str | None,
        typer.Option(help="Prompt lengths, e.g. 2k,8k,32k; default: those that fit the model."),
    ] = None,
    within: Annotated[
        str, typer.Option(metavar="TIME", help="All of it takes no longer: 30m, 1h30m.")
    ] = "30m",
    objective: Annotated[
        str | None, typer.Option(help="What decides: ttft, tpot, e2e, energy, goodput, …")
    ] = None,
    slo: Annotated[
        str | None, typer.Option(help="Bounds of a good request, e.g. ttft=2,tpot=50ms.")
    ] = None,
    backends: Annotated[
        str | None,
        typer.Option(help="Comma-separated; default: the exact ones that this host can run."),
    ] = None,
    users: Annotated[
        int | None, typer.Option(min=1, help="Requests open at once; default 8, on a CPU 2.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=parse_folder,
            metavar="FOLDER",
            help="Where results go; default runs/choose-<model> here.",
        ),
    ] = None,
    dry_run: Annotated[bool, typer.Option(help="Print the plan; start nothing.")] = False,
) -> None:
    """Which backend should serve this model here? Plans, measures and answers within a time."""
    began_s = time.monotonic()
    within_s = parse_duration(within)
    wish = Wish(
        model=model,
        contexts=None if contexts is None else parse_contexts(contexts),
        backends=None if backends is None else parse_backends(backends),
        objective=objective,
        slo=SloConfig() if slo is None else parse_slo(slo),
        users=users,
    )
    config = plan_choice(wish, bool(host().gpus), print)
    target = (out or results() / config.name).expanduser().resolve()
    if dry_run:
        plans = plan_sweep(config)
        print_plan(plans)
        print_estimate(config, plans, target, within_s)
        return
    left_s = within_s - REPORT_S - (time.monotonic() - began_s)
    outcome = measure(config, target, skip_refused=True, within_s=left_s)
    print_outcome(outcome, config, target)
    if not outcome.complete and not outcome.skipped:
        raise typer.Exit(1)
    if within_s - (time.monotonic() - began_s) >= CEILINGS_S + REPORT_S:
        measure_ceilings(target)
    code = passthrough(python_module("analysis", "report", str(target)))
    if code:
        raise typer.Exit(code)
    said = answer(target / "summary.json")
    print()
    print("\n".join(said or [NO_ANSWER]))
    raise typer.Exit(0 if said else 1)


def measure_ceilings(target: Path) -> None:
    """For the report's roofline, once a folder; what it cannot measure is said and costs no more."""
    path = target / "ceilings.json"
    if path.exists():
        return
    try:
        call(python_module("analysis", "ceilings", "--out", str(path)))
    except (StageError, UserError) as error:
        print(f"the report has no roofline: {error}")


@app.command(context_settings=PASS)
def report(context: typer.Context) -> None:
    """Analyse run directories into report.html, report.md and summary.json: report RUNS [--out FILE]; of two
    sweeps, side by side: report A B.
    """
    _stage(context, "analysis", "report")


@app.command(context_settings=PASS)
def archive(context: typer.Context) -> None:
    """Make a sweep small enough to keep; reports read it as it is: archive RUNS --out DIR."""
    _stage(context, "analysis", "archive")


@app.command(context_settings=PASS)
def check(context: typer.Context) -> None:
    """Check run directories and name every fault: check RUNS [--schema]."""
    _stage(context, "analysis", "check")


@app.command(context_settings=PASS)
def backends(context: typer.Context) -> None:
    """Show each backend, whether this host can run it, and if not why: backends [--json]."""
    _stage(context, "servers", "backends")


@app.command(context_settings=PASS)
def verify(context: typer.Context) -> None:
    """Compare backends' answers with an exact reference on real servers: verify --backends a,b."""
    _stage(context, "servers", "verify")


@app.command(context_settings=PASS)
def policy(context: typer.Context) -> None:
    """Which pool should take which request, from measured runs: policy RUNS | replay | export."""
    named = context.args[:1] if context.args[:1] in (["replay"], ["export"]) else []
    command, args = ("".join(named) or "fit"), context.args[len(named) :]
    os.environ[TYPED_AS] = " ".join([context.command_path, *named])
    raise typer.Exit(passthrough(python_module("planning", command, *args)))


@app.command(context_settings=PASS)
def plan(context: typer.Context) -> None:
    """How many replicas does a traffic take? plan RUNS --traffic FILE --slo ttft=2,tpot=50ms."""
    _stage(context, "planning", "plan")


@app.command("import", context_settings=PASS)
def import_(context: typer.Context) -> None:
    """Read other tools' results into run directories: import FILE… --out RUNS."""
    _stage(context, "analysis", "import")


@app.command(context_settings=PASS)
def ceilings(context: typer.Context) -> None:
    """Measure what this host can reach (matrix product, copy): ceilings [--out FILE]."""
    _stage(context, "analysis", "ceilings")


@app.command("energy-selftest", context_settings=PASS)
def energy_selftest(context: typer.Context) -> None:
    """Test the GPU's energy sensors against known loads: energy-selftest --out DIR [--quick]."""
    _stage(context, "telemetry", "selftest")


@runs.command("list")
def list_(
    folder: Annotated[
        Path | None, typer.Argument(metavar="RUNS", help="A sweep's folder; default runs/ here.")
    ] = None,
) -> None:
    """List the points of a folder: status, name, requests, and why one does not count."""
    for line in points.list_lines(folder or results()):
        print(line)


@runs.command()
def show(point: Point) -> None:
    """Show one point: what ran, whether it counts, its files."""
    for line in points.show_lines(point):
        print(line)


@runs.command()
def redo(point: Point) -> None:
    """Mark a point: the next `greenbench run` of its sweep measures it again."""
    print(visible(points.redo(point)))


@runs.command()
def delete(
    point: Point,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete one point's folder, and nothing outside it."""
    run, manifest = points.deletable(point)
    question = f"delete {manifest.run_id} ({manifest.status}) in {run.path.parent}?"
    if not yes and not typer.confirm(visible(question)):
        raise typer.Exit(1)
    print(visible(points.delete(point)))


@app.command()
def doctor() -> None:
    """Check the installation; say what is missing and how to fix it. Exit code 1 when something is."""
    findings = doctor_module.examine(vllm_python())
    for finding in findings:
        print(finding.line())
    raise typer.Exit(any(finding.state == "missing" for finding in findings))


DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?")


def parse_duration(text: str) -> float:
    """Seconds of ``20m``, ``1h30m`` or ``90s``. UserError for anything else."""
    found = DURATION.fullmatch(text.strip().lower())
    hours, mins, seconds = (int(part or 0) for part in found.groups()) if found else (0, 0, 0)
    total = hours * 3600 + mins * 60 + seconds
    if total == 0:
        raise UserError(f"--within wants a time such as 20m, 1h30m or 90s, found '{text}'")
    return float(total)


def print_estimate(
    config: SweepConfig, plans: list[Plan], target: Path, within_s: float | None
) -> None:
    """What is pending, how long it takes, and what of it fits."""
    here = host()
    watch = Stopwatch(target, hostname(), [gpu.name for gpu in here.gpus])
    work = [(plan.start, plan.start.points) for plan in plans if not plan.launch.refusals]
    basis = "from earlier runs" if watch.times.point_s else "a guess: nothing like it was run here"
    print(f"# all of it takes {estimate(work, watch.times)} ({basis})")
    if within_s is not None:
        scope = fitting(config, work, watch.times, within_s)
        if said := trimmed(whole(config), scope):
            print(f"# {said}")
            print(f"# that takes {estimate(scope.of(work), watch.times)}")


def parse_blocks(text: str, repeats: int) -> frozenset[int]:
    """``0-2`` or ``1,3`` as numbers of repeats; anything else, or one the sweep lacks, raises UserError."""
    chosen: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        numbers = [first, last if dash else first]
        if not all(n.isdecimal() and len(n) < 10 and int(n) < repeats for n in numbers):
            chosen = set()
            break
        chosen |= set(range(int(numbers[0]), int(numbers[1]) + 1))
    if not chosen:
        known = f"0 to {repeats - 1}" if repeats > 1 else "0 alone (repeats: 1)"
        raise UserError(
            f"--blocks wants repeats of the sweep, such as 0-2 or 1,3, found '{text}'; it has {known}"
        )
    return frozenset(chosen)


def find_sweep(sweep: Path) -> Path:
    named = config_file(f"sweeps/{sweep}.yaml")
    sweep = sweep.expanduser()
    if sweep.exists() and not sweep.is_dir():
        return sweep
    if named.is_file():
        return named
    if sweep.is_dir():
        raise UserError(f"{sweep}: a sweep's YAML file is wanted, found a folder; name the file")
    raise UserError(f"No sweep file {sweep}; {nearest(sweep.stem, config_names('sweeps'))}")


def print_plan(plans: list[Plan]) -> None:
    """What ``dtype: auto`` chose, then every server as one pasteable command with its points."""
    for sentence in [*dtype_notes(plans), *unknown_shapes(plans), *environment_notes(plans)]:
        print(f"# {visible(sentence)}")
    for plan in plans:
        print(f"# {visible(plan.start.label)}")
        for refusal in plan.launch.refusals:
            print(f"#   refused on this host: {visible(refusal)}")
        print(_how_it_is_served(plan))
        for point in plan.start.points:
            print(f"  point {describe(point)}")
        print()


def _how_it_is_served(plan: Plan) -> str:
    """The command of its server, to be pasted; of a running server its address."""
    if is_running(plan.start):
        address = plan.start.request.server.base_url
        return visible(f"# measured at {address}, where a server runs; none is started")
    env = " ".join(f"{key}={json.dumps(value)}" for key, value in plan.launch.env.items())
    return f"env -C {plugin_folder()} {env} \\\n  {' '.join(plan.launch.argv)}"


def describe(point: PointConfig) -> str:
    phases = point.phases
    longest = f"<={phases.longest_s:g}s"
    measure = f"until p{phases.percentile}, {longest}" if phases.auto else longest[2:]
    if phases.requests is not None:
        measure = f"{counted(phases.requests, 'request')}, {longest}"
    return (
        f"{point.task.name} context={point.context_tokens} load={point.load.label} "
        f"warmup={phases.warmup_s:g}s measure={measure} drain<={phases.drain_s:g}s"
    )


def print_outcome(outcome: Outcome, config: SweepConfig, target: Path) -> None:
    print(
        f"sweep {config.name}: {counted(outcome.complete, 'point')} measured, {outcome.skipped} already "
        f"complete, {counted(len(outcome.failures), 'failure')}, {outcome.pending} not measured"
    )
    for failure in outcome.failures:
        print(f"  {visible(failure)}")
    if outcome.complete or outcome.skipped:
        print(f"results in {target}; `greenbench report {target}` makes the report")


def main() -> None:
    """Entry point: faults of the input end in one sentence and exit code 2; TERM ends as Ctrl-C does."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(exit_on_user_error(_command))


def _command() -> int:
    try:
        return app()  # ends in SystemExit; typer itself answers a wrong option with exit code 2
    except StageError as error:
        say_error(error)
        return 1

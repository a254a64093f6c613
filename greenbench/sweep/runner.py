"""Run a sweep: one server start after another, every pending point on it, nothing measured twice.

A point whose config hash has a complete run that the report would use is skipped; failed, invalid and
interrupted ones are tried again in a new directory. A server that fails costs its own points and no others.
"""

import json
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Protocol

from greenbench.contract import run_dir
from greenbench.contract.config import (
    PointConfig,
    ServerRequest,
    SweepConfig,
    dump_yaml,
)
from greenbench.contract.errors import UserError, system_sentence
from greenbench.contract.manifest import Manifest, Server
from greenbench.contract.new_run import Prompts, point_hash
from greenbench.contract.prompt_head import prompt_lines_sha256
from greenbench.contract.run_dir import RunDir, write_atomic
from greenbench.sweep import provenance
from greenbench.sweep.child_processes import (
    RecorderStage,
    ServerStage,
    StageError,
    call,
    python_module,
)
from greenbench.sweep.claims import Claim, ClaimLost
from greenbench.sweep.directory import prepare_directory, shortage
from greenbench.sweep.forewarnings import against
from greenbench.sweep.live import Live
from greenbench.sweep.order import ServerStart, prompt_file_name, prompt_request
from greenbench.sweep.orphans import RUNNER_FILE, stop_orphans
from greenbench.sweep.plan import (
    Plan,
    dtype_notes,
    environment_notes,
    plan_sweep,
    split_refused,
    unknown_shapes,
)
from greenbench.sweep.point_run import Origin, run_point
from greenbench.sweep.report_rules import usable_hashes
from greenbench.sweep.stopwatch import Stopwatch, split
from greenbench.sweep.time_budget import estimate, fitting, is_running, trimmed, whole

# what another time may not show again; what the server or its backend did, it may
AGAIN = frozenset({"no_steady_state", "client_bound", "clock_stepped"})


class View(Protocol):
    """What the runner tells whoever watches."""

    def start(self, points: int, skipped: int) -> None: ...
    def server(self, start: ServerStart, state: str) -> None: ...
    def point(self, point: PointConfig) -> None: ...
    def point_done(self, point: PointConfig, manifest: Manifest, run: RunDir) -> None: ...
    def note(self, sentence: str) -> None: ...
    def tick(self) -> None: ...
    def alive(self, point: PointConfig, live: Live) -> None: ...


@dataclass
class Outcome:
    """How a sweep ended. ``failures`` holds one sentence for each server or point that failed."""

    complete: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list[str])
    pending: int = 0


@dataclass(frozen=True)
class Job:
    """What one invocation works with."""

    origin: Origin
    claim: Claim
    view: View
    watch: Stopwatch
    outcome: Outcome


def run_sweep(
    sweep: SweepConfig,
    out: Path,
    view: View,
    skip_refused: bool = False,
    blocks: frozenset[int] | None = None,
    within_s: float | None = None,
) -> Outcome:
    """Measure every pending point of the sweep, or of some repeats, into ``out``.

    Of ``candidates`` and a ``matrix``, those that the host refuses are skipped. ``within_s``: what does not
    fit is left out, for all candidates alike, and said. Raises UserError before any start.
    """
    began_s = time.monotonic()
    may_skip = skip_refused or not sweep.backends
    plans, refused = split_refused(plan_sweep(sweep, blocks), may_skip)
    with Claim(out, blocks) as claim:
        prepare_directory(out)
        for sentence in claim.notes:
            view.note(sentence)
        for label, reasons in refused.items():
            view.note(f"skipped {label}: {'; '.join(reasons)}")
        for sentence in [
            *dtype_notes(plans),
            *unknown_shapes(plans),
            *environment_notes(plans),
            *stop_orphans(out),
        ]:
            view.note(sentence)
        deadline_s = None if within_s is None else began_s + within_s
        return _measure_pending(sweep, plans, refused, claim, view, deadline_s)


Todo = list[tuple[Plan, list[PointConfig]]]


def _write_sweep(out: Path, sweep: SweepConfig, refused: dict[str, list[str]]) -> None:
    write_atomic(out / "refused.json", json.dumps(refused, indent=1) + "\n")
    write_atomic(out / "sweep.yaml", dump_yaml(sweep))


def _measure_pending(
    sweep: SweepConfig,
    plans: list[Plan],
    refused: dict[str, list[str]],
    claim: Claim,
    view: View,
    deadline_s: float | None,
) -> Outcome:
    """Of a folder that is there already, the sweep is another one only when no UserError is raised."""
    out = claim.out
    wanted = {point_hash(point): point for plan in plans for point in plan.start.points}
    caps = {digest: p.phases.cap_s for digest, p in wanted.items() if p.phases.auto}
    done, notes = usable_hashes(out, set(wanted), caps)
    for sentence in notes:
        view.note(sentence)
    todo = [(plan, _pending(plan.start, done)) for plan in plans]
    pending = sum(len(points) for _, points in todo)
    total = sum(len(plan.start.points) for plan in plans)
    outcome = Outcome(skipped=total - pending, pending=pending)
    view.start(pending, outcome.skipped)
    if pending == 0:
        _write_sweep(out, sweep, refused)
        return outcome
    host = provenance.host()
    watch = Stopwatch(out, provenance.hostname(), [gpu.name for gpu in host.gpus])
    if deadline_s is not None:
        fitting(sweep, _work(todo), watch.times, deadline_s - time.monotonic())
    _write_sweep(out, sweep, refused)
    origin = Origin(out, provenance.code(), host, os.getpid(), claim)
    job = Job(origin, claim, view, watch, outcome)
    try:
        with origin.judge:
            if deadline_s is None:
                _measure_all(job, todo)
            else:
                _measure_what_fits(job, sweep, todo, deadline_s)
    except SweepStopped as error:
        outcome.failures.append(str(error))
        view.note(str(error))
    if said := split(watch.file.spent):
        view.note(f"time so far: {said}")
    return outcome


def _measure_all(job: Job, todo: Todo) -> None:
    for index, (plan, points) in enumerate(todo):
        if points:
            job.view.note(estimate(_work(todo[index:]), job.watch.times))
            _may_go_on(job.claim)
            _run_start(job, plan, points)


def _measure_what_fits(job: Job, sweep: SweepConfig, todo: Todo, deadline_s: float) -> None:
    """Again and again the largest part of what is pending that fits; what was measured makes it exact."""
    while any(points for _, points in todo):
        left_s = deadline_s - time.monotonic()
        try:
            scope = fitting(sweep, _work(todo), job.watch.times, left_s)
        except UserError as error:
            job.view.note(f"the time is used up: {error}")
            return
        if said := trimmed(whole(sweep), scope):
            job.view.note(said)
        fits = [(plan, list(filter(scope.holds, points))) for plan, points in todo]
        job.view.note(estimate(_work(fits), job.watch.times))
        at = next(index for index, (_, points) in enumerate(fits) if points)
        plan, points = fits[at]
        _may_go_on(job.claim)
        _run_start(job, plan, points)
        todo = [
            (other, [p for p in own if p not in points] if i == at else own)
            for i, (other, own) in enumerate(todo)
        ]


def _work(todo: Todo) -> list[tuple[ServerStart, list[PointConfig]]]:
    return [(plan.start, points) for plan, points in todo]


class SweepStopped(Exception):
    """Nothing more can be measured by this sweep; its text is one sentence."""


def _may_go_on(claim: Claim) -> None:
    """SweepStopped when the disk is full, or another sweep has taken over."""
    try:
        claim.check()
    except ClaimLost as error:
        raise SweepStopped(str(error)) from error
    if full := shortage(claim.out):
        raise SweepStopped(full)


def _pending(start: ServerStart, done: set[str]) -> list[PointConfig]:
    return [point for point in start.points if point_hash(point) not in done]


def _run_start(job: Job, plan: Plan, points: list[PointConfig]) -> None:
    start, view, watch, out = plan.start, job.view, job.watch, job.origin.sweep_dir
    try:
        view.server(start, "getting the model")
        with watch.spend("model"):
            model_path = build_model(start.request)
        view.server(start, "making prompts")
        with watch.spend("prompts"):
            prompts = make_prompts(out, points, model_path)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        directory = out / run_dir.SERVERS_DIR / f"{start.slug}-{stamp}"
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / RUNNER_FILE, job.claim.runner.model_dump_json() + "\n")
        view.server(start, "connecting" if is_running(start) else "booting")
        booting_s = time.monotonic()
        with ServerStage(start.request, directory) as stage:
            server = stage.start(view.tick)
            watch.booted(start, time.monotonic() - booting_s)
            view.server(start, f"ready, backend {server.proof}")
            for sentence in against(server, start.request):
                view.note(sentence)
            with watch.spend("idle"):
                _record_idle(directory / "idle_before", server, start, view)
            _run_points(job, stage, server, start, points, prompts)
            if stage.alive:
                with watch.spend("idle"):
                    _record_idle(directory / "idle_after", server, start, view)
            left = "left running" if stage.alive else "no longer there"
            view.server(start, left if is_running(start) else "stopping")
            stopping_s = time.monotonic()
        watch.spent("stop", time.monotonic() - stopping_s)
    except StageError as error:
        sentence = f"{start.label}: {error}"
        job.outcome.failures.append(sentence)
        view.note(sentence)
    except ClaimLost as error:
        raise SweepStopped(str(error)) from error
    except OSError as error:
        raise SweepStopped(
            f"{start.label}: {system_sentence(error)}; put it right and run the same command again: "
            "what is complete is kept"
        ) from error


def _run_points(
    job: Job,
    stage: ServerStage,
    server: Server,
    start: ServerStart,
    points: list[PointConfig],
    prompts: dict[str, Prompts],
) -> None:
    origin, view, outcome = job.origin, job.view, job.outcome

    def measured(point: PointConfig) -> Manifest:
        began_s = time.monotonic()
        prompt_file = prompts[point_hash(point)]
        watched = partial(view.alive, point)
        made = run_point(origin, stage, server, point, prompt_file, view.tick, watched)
        job.watch.point(start, point, made, time.monotonic() - began_s)
        return made

    for number, point in enumerate(points):
        _may_go_on(job.claim)
        view.point(point)
        manifest = measured(point)
        if stage.alive and (longer := worth_another_try(point, manifest)) is not None:
            view.note(
                f"{manifest.run_id}: invalid ({manifest.failure}); measured once more, for "
                f"{longer.phases.cap_s:g} s at most"
            )
            _may_go_on(job.claim)
            manifest = measured(longer)
        run = RunDir(origin.sweep_dir / manifest.run_id)
        view.point_done(point, manifest, run)
        outcome.pending -= 1
        if manifest.status == "complete":
            outcome.complete += 1
        else:
            why = manifest.failure or ", ".join(manifest.invalid_reasons)
            outcome.failures.append(f"{manifest.run_id}: {manifest.status}: {why}")
        left = len(points) - number - 1
        if left and not stage.alive:
            raise StageError(f"the server died; {left} of its points were not measured")


def worth_another_try(point: PointConfig, manifest: Manifest) -> PointConfig | None:
    """An auto point with twice its cap, where only its times are not to be believed; else None."""
    if not point.phases.auto or manifest.status != "invalid":
        return None
    if not AGAIN.issuperset(manifest.invalid_reasons):
        return None
    phases = point.phases.with_cap(2 * point.phases.cap_s)
    return point.model_copy(update={"phases": phases})


def build_model(request: ServerRequest) -> str:
    """The folder of the model, built now when the project makes it and it is not there yet."""
    return call(
        python_module("servers", "build", "--request", "-"), request.model_dump(mode="json")
    ).strip()


def make_prompts(sweep_dir: Path, points: list[PointConfig], model_path: str) -> dict[str, Prompts]:
    """Point hash → its prompt file. Files of the same request are made once and kept."""
    requests = {point_hash(point): prompt_request(point, model_path) for point in points}
    paths = {
        digest: sweep_dir / run_dir.PROMPTS_DIR / prompt_file_name(point, requests[digest])
        for point in points
        for digest in [point_hash(point)]
    }
    jobs = {str(path): requests[digest].model_dump(mode="json") for digest, path in paths.items()}
    body = [{"request": request, "out": path} for path, request in jobs.items()]
    call(python_module("loadgen", "prompts"), body)
    made = {
        path: Prompts(str(path), run_dir.file_sha256(path), prompt_lines_sha256(path))
        for path in set(paths.values())
    }
    return {digest: made[path] for digest, path in paths.items()}


def _record_idle(directory: Path, server: Server, start: ServerStart, view: View) -> None:
    """Loaded idle (server up, no requests), the baseline of energy above idle."""
    telemetry = start.points[0].telemetry
    if telemetry.idle_s <= 0:
        return
    view.server(start, f"recording {telemetry.idle_s:g} s of loaded idle")
    directory.mkdir(exist_ok=True)
    recorder = RecorderStage(RunDir(directory), server, telemetry.period_s, telemetry.scrape_s)
    try:
        recorder.wait_started()
        wait(telemetry.idle_s, view.tick)
    finally:
        recorder.stop()


def wait(seconds: float, tick: Callable[[], None]) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        tick()
        time.sleep(0.1)

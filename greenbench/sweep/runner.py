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
from greenbench.contract.errors import system_sentence
from greenbench.contract.manifest import Manifest, Server
from greenbench.contract.new_run import Prompts, point_hash
from greenbench.contract.run_dir import RunDir, write_atomic
from greenbench.sweep import provenance
from greenbench.sweep.child_processes import (
    RecorderStage,
    ServerStage,
    StageError,
    call,
    python_module,
)
from greenbench.sweep.claims import Claim
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


def run_sweep(
    sweep: SweepConfig,
    out: Path,
    view: View,
    skip_refused: bool = False,
    blocks: frozenset[int] | None = None,
) -> Outcome:
    """Measure every pending point of the sweep, or of some repeats, into ``out``.

    Of ``candidates`` and a ``matrix``, those that the host refuses are skipped. Raises UserError before any
    start.
    """
    may_skip = skip_refused or not sweep.backends
    plans, refused = split_refused(plan_sweep(sweep, blocks), may_skip)
    with Claim(out, blocks) as claim:
        prepare_directory(out)
        for sentence in claim.notes:
            view.note(sentence)
        write_atomic(out / "refused.json", json.dumps(refused, indent=1) + "\n")
        for label, reasons in refused.items():
            view.note(f"skipped {label}: {'; '.join(reasons)}")
        for sentence in [
            *dtype_notes(plans),
            *unknown_shapes(plans),
            *environment_notes(plans),
            *stop_orphans(out),
        ]:
            view.note(sentence)
        write_atomic(out / "sweep.yaml", dump_yaml(sweep))
        return _measure_pending(plans, claim, view)


def _measure_pending(plans: list[Plan], claim: Claim, view: View) -> Outcome:
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
        return outcome
    origin = Origin(out, provenance.code(), provenance.host(), os.getpid(), claim.give_up_room)
    try:
        with origin.judge:
            for plan, points in todo:
                if points:
                    _may_go_on(claim)
                    _run_start(origin, claim, plan, points, view, outcome)
    except SweepStopped as error:
        outcome.failures.append(str(error))
        view.note(str(error))
    return outcome


class SweepStopped(Exception):
    """Nothing more can be measured by this sweep; its text is one sentence."""


def _may_go_on(claim: Claim) -> None:
    """SweepStopped when the disk is full, or another sweep has taken over."""
    try:
        claim.check()
    except StageError as error:
        raise SweepStopped(str(error)) from error
    if full := shortage(claim.out):
        raise SweepStopped(full)


def _pending(start: ServerStart, done: set[str]) -> list[PointConfig]:
    return [point for point in start.points if point_hash(point) not in done]


def _run_start(
    origin: Origin,
    claim: Claim,
    plan: Plan,
    points: list[PointConfig],
    view: View,
    outcome: Outcome,
) -> None:
    start = plan.start
    try:
        view.server(start, "getting the model")
        model_path = build_model(start.request)
        view.server(start, "making prompts")
        prompts = make_prompts(origin.sweep_dir, points, model_path)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        directory = origin.sweep_dir / run_dir.SERVERS_DIR / f"{start.slug}-{stamp}"
        directory.mkdir(parents=True, exist_ok=True)
        write_atomic(directory / RUNNER_FILE, claim.runner.model_dump_json() + "\n")
        view.server(start, "booting")
        with ServerStage(start.request, directory) as stage:
            server = stage.start(view.tick)
            view.server(start, f"ready, backend {server.proof}")
            for sentence in against(server, start.request):
                view.note(sentence)
            _record_idle(directory / "idle_before", server, start, view)
            _run_points(origin, claim, stage, server, points, prompts, view, outcome)
            if stage.alive:
                _record_idle(directory / "idle_after", server, start, view)
            view.server(start, "stopping")
    except StageError as error:
        sentence = f"{start.label}: {error}"
        outcome.failures.append(sentence)
        view.note(sentence)
    except OSError as error:
        raise SweepStopped(
            f"{start.label}: {system_sentence(error)}; put it right and run the same command again: "
            "what is complete is kept"
        ) from error


def _run_points(
    origin: Origin,
    claim: Claim,
    stage: ServerStage,
    server: Server,
    points: list[PointConfig],
    prompts: dict[str, Prompts],
    view: View,
    outcome: Outcome,
) -> None:
    for number, point in enumerate(points):
        _may_go_on(claim)
        view.point(point)
        prompt_file = prompts[point_hash(point)]
        watched = partial(view.alive, point)
        manifest = run_point(origin, stage, server, point, prompt_file, view.tick, watched)
        if stage.alive and (longer := worth_another_try(point, manifest)) is not None:
            view.note(
                f"{manifest.run_id}: invalid ({manifest.failure}); measured once more, for "
                f"{longer.phases.cap_s:g} s at most"
            )
            _may_go_on(claim)
            manifest = run_point(origin, stage, server, longer, prompt_file, view.tick, watched)
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
    sums = {path: run_dir.file_sha256(path) for path in set(paths.values())}
    return {digest: Prompts(str(path), sums[path]) for digest, path in paths.items()}


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

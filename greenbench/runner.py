"""Run a sweep: one server start after another, every pending point on it, nothing measured twice.

A point whose config hash has a complete run is skipped; failed, invalid and interrupted ones are tried
again in a new directory. A server that fails costs its own points and no others.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

import psutil

from greenbench import provenance, rundir
from greenbench.config import PointConfig, ServerRequest, SweepConfig, dump_yaml, load_model
from greenbench.errors import UserError, nearest
from greenbench.manifest import Manifest, Server
from greenbench.points import Origin, finish_interrupted, run_point
from greenbench.rundir import RunDir, list_runs, write_atomic
from greenbench.stages import (
    RecorderStage,
    ServerStage,
    StageError,
    call,
    call_json,
    kill_server_group,
    living_server,
    python_module,
)
from greenbench.sweep import (
    ServerStart,
    check_names,
    check_window,
    expand,
    point_hash,
    prompt_file_name,
    prompt_request,
    quality_warnings,
)

MIN_FREE_BYTES = 500 * 2**20


class View(Protocol):
    """What the runner tells whoever watches."""

    def start(self, points: int, skipped: int) -> None: ...
    def server(self, start: ServerStart, state: str) -> None: ...
    def point(self, point: PointConfig) -> None: ...
    def point_done(self, point: PointConfig, manifest: Manifest, run: RunDir) -> None: ...
    def note(self, sentence: str) -> None: ...
    def tick(self) -> None: ...


@dataclass
class Outcome:
    """How a sweep ended. ``failures`` holds one sentence for each server or point that failed."""

    complete: int = 0
    skipped: int = 0
    failures: list[str] = field(default_factory=list[str])
    pending: int = 0


@dataclass(frozen=True, slots=True)
class Plan:
    """A server start with what the launcher says of it: argv, env, model_path, refusals."""

    start: ServerStart
    launch: dict[str, Any]


def plan_sweep(sweep: SweepConfig, blocks: frozenset[int] | None = None) -> list[Plan]:
    """Expand the sweep, or some repeats, and have the other rooms check every name. Raises UserError."""
    models = [load_model(name) for name in sweep.models]
    check_names(sweep, models)
    starts = [s for s in expand(sweep, models) if blocks is None or s.repeat in blocks]
    tasks = call_json(python_module("loadgen", "tasks"))
    check_tasks(sweep, tasks)
    check_window(sweep, models, {name: task["output_tokens"] for name, task in tasks.items()})
    requests = [start.request.model_dump(mode="json") for start in starts]
    launches = call_json(python_module("servers", "plan"), requests)
    return [Plan(start, launch) for start, launch in zip(starts, launches, strict=True)]


def undecided_quality(sweep: SweepConfig) -> list[str]:
    """What the plan leaves open of the answers, a sentence each."""
    tasks = call_json(python_module("loadgen", "tasks"))
    return quality_warnings(sweep, [name for name, task in tasks.items() if not task["streaming"]])


def check_tasks(sweep: SweepConfig, table: dict[str, dict[str, Any]]) -> None:
    for task in sweep.task_configs:
        if task.name not in table:
            raise UserError(f"Unknown task '{task.name}'. {nearest(task.name, table)}")
        known = table[task.name]["params"]
        for key in task.params:
            if key not in known:
                raise UserError(
                    f"Task '{task.name}' has no parameter '{key}'; {nearest(key, known)}"
                )


def run_sweep(
    sweep: SweepConfig,
    out: Path,
    view: View,
    skip_refused: bool = False,
    blocks: frozenset[int] | None = None,
) -> Outcome:
    """Measure every pending point of the sweep, or of some repeats, into ``out``.

    Raises UserError before any start.
    """
    plans, refused = _split_refused(plan_sweep(sweep, blocks), skip_refused)
    prepare_directory(out)
    write_atomic(out / "refused.json", json.dumps(refused, indent=1) + "\n")
    for label, reasons in refused.items():
        view.note(f"left out {label}: {'; '.join(reasons)}")
    for sentence in [*dtype_notes(plans), *stop_orphans(out)]:
        view.note(sentence)
    write_atomic(out / "sweep.yaml", dump_yaml(sweep))
    done = complete_hashes(out)
    todo = [(plan, _pending(plan.start, done)) for plan in plans]
    pending = sum(len(points) for _, points in todo)
    total = sum(len(plan.start.points) for plan in plans)
    outcome = Outcome(skipped=total - pending, pending=pending)
    view.start(pending, outcome.skipped)
    if pending == 0:
        return outcome
    origin = Origin(out, provenance.code(), provenance.host(), os.getpid())
    for plan, points in todo:
        if points:
            _run_start(origin, plan, points, view, outcome)
    return outcome


def dtype_notes(plans: list[Plan]) -> list[str]:
    """A sentence for each dtype that ``auto`` chose: it is the same for all backends, by the CPU alone."""
    chosen: dict[str, list[str]] = {}
    for plan in plans:
        dtype, request = plan.launch["dtype"], plan.start.request
        if dtype["why"] is not None and request.server.base_url is None:
            sentence = f"served in {dtype['name']} by every backend: {dtype['why']}"
            chosen.setdefault(sentence, []).append(request.model.name)
    return [
        f"{', '.join(dict.fromkeys(models))} {'is' if len(set(models)) == 1 else 'are'} {sentence}"
        for sentence, models in chosen.items()
    ]


def prepare_directory(out: Path) -> None:
    """The sweep directory must be writable and have room, said before a server starts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.write_bytes(b"x" * 65536)
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{out}: results cannot be written there ({error.strerror}); give another --out"
        ) from error
    free = shutil.disk_usage(out).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"{out}: {free // 2**20} MiB of disk are free, {MIN_FREE_BYTES // 2**20} MiB are wanted; "
            "make room or give another --out"
        )


def complete_hashes(out: Path) -> set[str]:
    manifests = (run.manifest() for run in list_runs(out))
    return {manifest.config_hash for manifest in manifests if manifest.status == "complete"}


def stop_orphans(out: Path) -> Iterator[str]:
    """Close runs and stop servers that a killed sweep left behind; yield a sentence for each.

    Raises UserError when another sweep is still at work in this directory.
    """
    for run in list_runs(out):
        manifest = run.manifest()
        if manifest.status != "running":
            continue
        if manifest.sweep_pid is not None and _is_sweep(manifest.sweep_pid, manifest):
            raise UserError(
                f"{out}: a sweep with process id {manifest.sweep_pid} is still running here; "
                "wait for it, stop it, or give another --out"
            )
        finish_interrupted(run)
        yield f"closed {manifest.run_id}, left unfinished by a killed sweep"
    for directory in sorted((out / rundir.SERVERS_DIR).glob("*")):
        process = living_server(directory)
        if process is not None:
            pid = process.pid
            kill_server_group(directory)
            yield f"stopped orphan server process {pid} of {directory.name}"


def _is_sweep(pid: int, manifest: Manifest) -> bool:
    """True when ``pid`` lives and started before the run it is said to have made."""
    try:
        return psutil.Process(pid).create_time() * 1e9 < manifest.created_unix_ns
    except psutil.Error:
        return False


def _split_refused(plans: list[Plan], skip: bool) -> tuple[list[Plan], dict[str, list[str]]]:
    """The plans that this host can run, and of the others the reasons by label."""
    refused = {p.launch["label"]: p.launch["refusals"] for p in plans if p.launch["refusals"]}
    if refused and not skip:
        label, reasons = next(iter(refused.items()))
        raise UserError(
            f"{label} cannot run on this host: {'; '.join(reasons)}. "
            "Take it out of the sweep, or pass --skip-refused to measure the others."
        )
    return [plan for plan in plans if not plan.launch["refusals"]], refused


def _pending(start: ServerStart, done: set[str]) -> list[PointConfig]:
    return [point for point in start.points if point_hash(point) not in done]


def _run_start(
    origin: Origin, plan: Plan, points: list[PointConfig], view: View, outcome: Outcome
) -> None:
    start = plan.start
    try:
        view.server(start, "getting the model")
        model_path = build_model(start.request)
        view.server(start, "making prompts")
        prompts = make_prompts(origin.sweep_dir, points, model_path)
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
        directory = origin.sweep_dir / rundir.SERVERS_DIR / f"{start.slug}-{stamp}"
        view.server(start, "booting")
        with ServerStage(start.request, directory) as stage:
            server = stage.start(view.tick)
            view.server(start, f"ready, backend {server.proof}")
            _record_idle(directory / "idle_before", server, start, view)
            _run_points(origin, stage, server, points, prompts, view, outcome)
            if stage.alive:
                _record_idle(directory / "idle_after", server, start, view)
            view.server(start, "stopping")
    except StageError as error:
        sentence = f"{start.label}: {error}"
        outcome.failures.append(sentence)
        view.note(sentence)


def _run_points(
    origin: Origin,
    stage: ServerStage,
    server: Server,
    points: list[PointConfig],
    prompts: dict[str, tuple[Path, str]],
    view: View,
    outcome: Outcome,
) -> None:
    for number, point in enumerate(points):
        view.point(point)
        manifest = run_point(origin, stage, server, point, prompts[point_hash(point)], view.tick)
        run = RunDir(origin.sweep_dir / manifest.run_id)
        view.point_done(point, manifest, run)
        outcome.pending -= 1
        if manifest.status == "complete":
            outcome.complete += 1
        else:
            why = manifest.failure or ", ".join(manifest.invalid_reasons)
            outcome.failures.append(f"{manifest.run_id}: {manifest.status}: {why}")
        if not stage.alive:
            left = len(points) - number - 1
            raise StageError(f"the server died; {left} of its points were not measured")


def build_model(request: ServerRequest) -> str:
    """The folder of the model, built now when the project makes it and it is not there yet."""
    return call(
        python_module("servers", "build", "--request", "-"), request.model_dump(mode="json")
    ).strip()


def make_prompts(
    sweep_dir: Path, points: list[PointConfig], model_path: str
) -> dict[str, tuple[Path, str]]:
    """Point hash → (prompt file, its sha256). Files of the same request are made once and kept."""
    requests = {point_hash(point): prompt_request(point, model_path) for point in points}
    paths = {
        digest: sweep_dir / rundir.PROMPTS_DIR / prompt_file_name(point, requests[digest])
        for point in points
        for digest in [point_hash(point)]
    }
    jobs = {str(path): requests[digest].model_dump(mode="json") for digest, path in paths.items()}
    body = [{"request": request, "out": path} for path, request in jobs.items()]
    call(python_module("loadgen", "prompts"), body)
    sums = {path: rundir.file_sha256(path) for path in set(paths.values())}
    return {digest: (path, sums[path]) for digest, path in paths.items()}


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

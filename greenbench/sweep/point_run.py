"""Measure one point: its run directory, recorder, load, and a manifest that says what to make of it."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from greenbench.contract import run_dir
from greenbench.contract.clock import Anchor
from greenbench.contract.config import PointConfig
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Code, Host, Manifest, Server
from greenbench.contract.new_run import (
    NewRun,
    Prompts,
    Provenance,
    clock_of,
    file_entries,
    point_hash,
)
from greenbench.contract.run_dir import JsonlWriter, RunDir
from greenbench.contract.schema import Event
from greenbench.sweep.child_processes import (
    Child,
    RecorderStage,
    ServerStage,
    StageError,
    start_load,
)
from greenbench.sweep.provenance import hostname
from greenbench.sweep.verdict import Faults, client_audit, count, judge, rows_of

LOAD_SLACK_S = 90.0  # the client's own start, reading of prompts, and grading after the drain
DEATH_GRACE_S = 5.0  # after the server died: time for the client to write the rows of open requests
STOP_LOAD_S = 10.0
POLL_S = 0.1


@dataclass(frozen=True, slots=True)
class Origin:
    """What all points of one sweep invocation share."""

    sweep_dir: Path
    code: Code
    host: Host
    pid: int

    def at(self, moment: Anchor) -> Provenance:
        return Provenance(self.code, self.host, clock_of(moment, hostname()), self.pid)


def run_point(
    origin: Origin,
    stage: ServerStage,
    server: Server,
    point: PointConfig,
    prompts: Prompts,
    waiting: Callable[[], None],
) -> Manifest:
    """Measure one point on a ready server. Every ending but kill -9 leaves a final manifest."""
    now = Anchor.now()
    new = NewRun(point, now.unix_ns, point_hash(point))
    run, manifest = new.create(origin.sweep_dir, server, prompts, origin.at(now))
    log_start = stage.log_size()
    try:
        faults = _measure(run, stage, server, point, waiting)
    except KeyboardInterrupt:
        _finish(run, manifest, stage, log_start, Faults("stopped by Ctrl-C", ("interrupted",)))
        raise
    return _finish(run, manifest, stage, log_start, faults)


def _measure(
    run: RunDir,
    stage: ServerStage,
    server: Server,
    point: PointConfig,
    waiting: Callable[[], None],
) -> Faults:
    recorder = RecorderStage(run, server, point.telemetry.period_s, point.telemetry.scrape_s)
    load: Child | None = None
    try:
        recorder.wait_started()
        load = start_load(point.load, run)
        faults = _watch(load, stage, point, waiting)
        recorder_died = recorder.child.code is not None
    except StageError as error:
        return Faults(str(error), ("recorder_failed",))
    finally:
        if load is not None:
            load.stop(STOP_LOAD_S)
        recorder_code = recorder.stop()
    if faults.failure is None and (recorder_died or recorder_code != 0):
        return Faults(f"the recorder failed: {recorder.child.message()}", ("recorder_failed",))
    if "server_died" in faults.reasons:
        _mark(run, "server_died")
    return faults


def _watch(
    load: Child, stage: ServerStage, point: PointConfig, waiting: Callable[[], None]
) -> Faults:
    """Wait for the load generator to end, for the server to die, or for the time limit."""
    phases = point.phases
    limit_s = phases.warmup_s + phases.measure_s + phases.drain_s + LOAD_SLACK_S
    deadline = time.monotonic() + limit_s
    while load.code is None:
        if not stage.alive:
            _wait(load, DEATH_GRACE_S)
            return Faults("the server died during the point", ("server_died",))
        if time.monotonic() > deadline:
            reason = f"the load generator did not end within {limit_s:.0f} s"
            return Faults(reason, ("server_stalled",))
        waiting()
        time.sleep(POLL_S)
    if not stage.alive:
        return Faults("the server died during the point", ("server_died",))
    if load.code != 0:
        return Faults(f"the load generator failed: {load.message()}", ("load_failed",))
    return Faults()


def _wait(child: Child, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while child.code is None and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _mark(run: RunDir, name: str) -> None:
    now = Anchor.now()
    with JsonlWriter(run.events_path) as events:
        events.write(Event(unix_ns=now.unix_ns, mono_ns=now.mono_ns, name=name))


def _finish(
    run: RunDir, manifest: Manifest, stage: ServerStage, log_start: int, faults: Faults
) -> Manifest:
    _slice_server_log(run, stage, log_start)
    rows = [row for path in sorted(run.requests_dir.glob("*.jsonl")) for row in rows_of(path)]
    audit = client_audit(run)
    verdict = judge(rows, audit, faults)
    final = manifest.model_copy(
        update={
            "status": verdict.status,
            "failure": verdict.failure,
            "invalid_reasons": list(verdict.reasons),
            "phases": _phases(run),
            "counts": count(rows),
            "client_audit": audit,
            "files": file_entries(run, _files(run)),
        }
    )
    run.write_manifest(final)
    return final


def _phases(run: RunDir) -> dict[str, tuple[int, int]]:
    """Unix ns of warmup, measure and drain from the load generator's marks; missing marks, no phase."""
    if not run.events_path.exists():
        return {}
    marks = {row["name"]: int(row["unix_ns"]) for row in run_dir.read_jsonl(run.events_path)}
    edges = {
        "warmup": ("warmup_start", "measure_start"),
        "measure": ("measure_start", "measure_end"),
        "drain": ("measure_end", "drain_end"),
    }
    return {
        phase: (marks[start], marks[end])
        for phase, (start, end) in edges.items()
        if start in marks and end in marks
    }


def _slice_server_log(run: RunDir, stage: ServerStage, start: int) -> None:
    if stage.log_path.exists():
        with stage.log_path.open("rb") as log:
            log.seek(start)
            (run.logs_dir / "server.log").write_bytes(log.read())


def _files(run: RunDir) -> list[Path]:
    """All that the run holds but its manifest and what an analysis derived."""
    return [
        path
        for path in sorted(run.path.rglob("*"))
        if path.is_file() and path.name != run_dir.MANIFEST and run.derived_dir not in path.parents
    ]


def finish_interrupted(run: RunDir) -> Manifest:
    """Close a run whose sweep was killed: its manifest still says running and nobody writes to it."""
    manifest = run.manifest()
    if manifest.status != "running":
        raise UserError(
            f"{run.path}: status is {manifest.status}, only a running run can be closed"
        )
    closed = manifest.model_copy(
        update={
            "status": "failed",
            "failure": "the sweep was killed during the point",
            "invalid_reasons": ["interrupted"],
        }
    )
    run.write_manifest(closed)
    return closed

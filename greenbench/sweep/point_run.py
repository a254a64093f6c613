"""Measure one point: its run directory, recorder, load, and a manifest that says what to make of it."""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from greenbench.contract import run_dir
from greenbench.contract.clock import Anchor
from greenbench.contract.config import PointConfig
from greenbench.contract.errors import UserError, system_sentence
from greenbench.contract.manifest import Code, Host, Manifest, Server, audits_of
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
from greenbench.sweep.directory import shortage
from greenbench.sweep.enough import CAP_REACHED, ENOUGH, AutoEnd, Judge
from greenbench.sweep.live import Live
from greenbench.sweep.provenance import hostname
from greenbench.sweep.report_rules import hold_to_rules
from greenbench.sweep.verdict import Faults, client_audit, count, judge, rows_of

LOAD_SLACK_S = 90.0  # the client's own start, reading of prompts, and grading after the drain
DEATH_GRACE_S = 5.0  # after the server died: time for the client to write the rows of open requests
STOP_LOAD_S = 10.0
POLL_S = 0.1
SERVER_DIED = Faults("the server died during the point", ("server_died",))


class Hold(Protocol):
    """The claim on the sweep's folder. Once it is lost, ``look`` and ``check`` raise."""

    def look(self) -> None: ...
    def check(self) -> None: ...
    def give_up_room(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Origin:
    """What all points of one sweep invocation share."""

    sweep_dir: Path
    code: Code
    host: Host
    pid: int
    hold: Hold
    judge: Judge = field(default_factory=Judge)

    def at(self, moment: Anchor) -> Provenance:
        return Provenance(self.code, self.host, clock_of(moment, hostname()), self.pid)


@dataclass(frozen=True, slots=True)
class Watch:
    """Who looks on while a point is measured."""

    waiting: Callable[[], None]
    watched: Callable[[Live], None]
    judge: Judge
    hold: Hold

    def tick(self, live: Live, ending: AutoEnd | None) -> Callable[[], None]:
        def tick() -> None:
            self.hold.look()
            self.watched(live)
            self.waiting()
            if ending is not None:
                ending.look()

        return tick


def run_point(
    origin: Origin,
    stage: ServerStage,
    server: Server,
    point: PointConfig,
    prompts: Prompts,
    waiting: Callable[[], None],
    watched: Callable[[Live], None] = lambda live: None,
) -> Manifest:
    """Measure one point on a ready server. Every ending but kill -9, and but the loss of the claim, leaves a
    final manifest.

    ``watched``: called with the point's view while its load runs.

    OSError when even the last room (``Hold.give_up_room``) is not enough for it; the run then says
    ``running`` and is closed by the next sweep.
    """
    now = Anchor.now()
    new = NewRun(point, now.unix_ns, point_hash(point))
    run, manifest = new.create(origin.sweep_dir, server, prompts, origin.at(now))
    finish = partial(_finish, run, manifest, stage, stage.log_size(), origin.hold)
    try:
        watch = Watch(waiting, watched, origin.judge, origin.hold)
        faults = _measure(run, stage, server, point, watch)
    except KeyboardInterrupt:
        finish(Faults("stopped by Ctrl-C", ("interrupted",)))
        raise
    try:
        final = finish(faults)
    except OSError as error:
        origin.hold.give_up_room()
        full = Faults(f"the disk took no more: {system_sentence(error)}", ("disk_full",))
        final = finish(full)
    return final if final.status == "failed" else hold_to_rules(run, final, origin.hold.check)


def _measure(
    run: RunDir,
    stage: ServerStage,
    server: Server,
    point: PointConfig,
    watch: Watch,
) -> Faults:
    try:
        recorder = RecorderStage(run, server, point.telemetry.period_s, point.telemetry.scrape_s)
    except OSError as error:
        return _not_started(error)
    load: Child | None = None
    try:
        recorder.wait_started()
        load = start_load(point.load, run)
        live = Live(run, point)
        ending = None
        if point.phases.auto:
            ending = AutoEnd(watch.judge, live, load.process)
        faults = _watch(load, recorder.child, stage, point, watch.tick(live, ending))
        if ending is not None and faults.failure is None:
            _note_the_end(run, ending, watch.waiting)
        died = recorder.child.code is not None
    except StageError as error:
        return Faults(str(error), ("recorder_failed",))
    except OSError as error:
        return _not_started(error)
    finally:
        if load is not None:
            load.stop(STOP_LOAD_S)
        recorder_code = recorder.stop()
    if full := shortage(run.path):
        return Faults(full, ("disk_full",))
    if faults.failure is None and (died or recorder_code != 0):
        return _recorder_failed(recorder.child)
    if "server_died" in faults.reasons:
        _mark(run, "server_died")
    return faults


def _not_started(error: OSError) -> Faults:
    return Faults(f"the point could not be started: {system_sentence(error)}", ("load_failed",))


def _recorder_failed(child: Child) -> Faults:
    return Faults(f"the recorder {child.how_it_ended()}", ("recorder_failed",))


def _watch(
    load: Child,
    recorder: Child,
    stage: ServerStage,
    point: PointConfig,
    waiting: Callable[[], None],
) -> Faults:
    """Wait for the load generator to end, for the server or the recorder to die, or for the time limit."""
    phases = point.phases
    limit_s = phases.warmup_s + phases.longest_s + phases.drain_s + LOAD_SLACK_S
    deadline = time.monotonic() + limit_s
    while load.code is None:
        if not stage.alive:
            _wait(load, DEATH_GRACE_S)
            return SERVER_DIED
        if recorder.code is not None:
            return _recorder_failed(recorder)
        if time.monotonic() > deadline:
            reason = f"the load generator did not end within {limit_s:.0f} s"
            return Faults(reason, ("server_stalled",))
        waiting()
        time.sleep(POLL_S)
    stage.look()
    if not stage.alive:
        return SERVER_DIED
    if load.code != 0:
        return Faults(f"the load generator {load.how_it_ended()}", ("load_failed",))
    return Faults()


def _wait(child: Child, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while child.code is None and time.monotonic() < deadline:
        time.sleep(POLL_S)


def _note_the_end(run: RunDir, ending: AutoEnd, waiting: Callable[[], None]) -> None:
    """Why the measured phase of an auto point ended when it did, as an event."""
    if ending.ended_by is not None:
        _mark(run, ENOUGH, ending.ended_by.model_dump(include={"steady_s", "completions"}))
    elif (sentence := ending.at_the_cap(waiting)) is not None:
        _mark(run, CAP_REACHED, {"lacking": sentence})


def _mark(run: RunDir, name: str, detail: dict[str, Any] | None = None) -> None:
    now = Anchor.now()
    with JsonlWriter(run.events_path) as events:
        events.write(Event(now.unix_ns, now.mono_ns, name, detail or {}))


def _finish(
    run: RunDir,
    manifest: Manifest,
    stage: ServerStage,
    log_start: int,
    hold: Hold,
    faults: Faults,
) -> Manifest:
    _slice_server_log(run, stage, log_start)
    rows, phases, audit = _what_was_written(run)
    verdict = judge(rows, audits_of(audit), phases, faults)
    final = manifest.model_copy(
        update={
            "status": verdict.status,
            "failure": verdict.failure,
            "invalid_reasons": list(verdict.reasons),
            "phases": phases,
            "counts": count(rows),
            "client_audit": audit,
            "files": file_entries(run, _files(run)),
        }
    )
    hold.check()
    run.write_manifest(final)
    return final


def _what_was_written(
    run: RunDir,
) -> tuple[list[dict[str, Any]], dict[str, tuple[int, int]], dict[str, Any]]:
    """Rows, phases and the client's audit."""
    rows = [row for path in sorted(run.requests_dir.glob("*.jsonl")) for row in rows_of(path)]
    return rows, _phases(run), client_audit(run)


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
    """The point's part of the server's log. On a full disk there is none, so that the manifest has room."""
    part = run.logs_dir / "server.log"
    try:
        if stage.log_path.exists():
            with stage.log_path.open("rb") as log, part.open("wb") as copy:
                log.seek(start)
                shutil.copyfileobj(log, copy)
    except OSError:
        part.unlink(missing_ok=True)


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

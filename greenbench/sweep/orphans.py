"""Runs and servers that an earlier run of the same sweep left behind."""

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import psutil

from greenbench.contract import run_dir
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import list_runs
from greenbench.sweep.child_processes import (
    kill_server_group,
    living_server,
)
from greenbench.sweep.claims import RUNNERS_DIR, read_runner
from greenbench.sweep.point_run import finish_interrupted

RUNNER_FILE = "runner.json"  # in the folder of a server: the sweep that started it


def stop_orphans(out: Path) -> Iterator[str]:
    """Close runs and stop servers whose sweep is dead; yield a sentence for each.

    Called by the one who holds the claim on ``out``. What belongs to a living sweep, which measures other
    repeats here, is left alone. Raises UserError when a sweep that left no claim (an older version's) is
    still at work.
    """
    others = _others(out)
    for run in list_runs(out):
        try:
            manifest = run.manifest()
        except UserError as error:
            yield f"{error}; the run is left as it is"
            continue
        if manifest.status != "running" or (manifest.clock.host, manifest.sweep_pid) in others:
            continue
        if manifest.sweep_pid is not None and _is_sweep(manifest.sweep_pid, manifest):
            raise UserError(
                f"{out}: a sweep with process id {manifest.sweep_pid} is still running here; "
                "wait for it, stop it, or give another --out"
            )
        finish_interrupted(run)
        yield f"closed {manifest.run_id}, left unfinished by a killed sweep"
    for directory in sorted((out / run_dir.SERVERS_DIR).glob("*")):
        process = living_server(directory)
        runner = read_runner(directory / RUNNER_FILE)
        if process is None or (runner is not None and runner.lives_here):
            continue
        pid = process.pid
        kill_server_group(directory)
        yield f"stopped orphan server process {pid} of {directory.name}"


def _others(out: Path) -> set[tuple[str, int]]:
    """(host, process id) of every other runner with a claim; ours took those of dead ones away."""
    found = (read_runner(path) for path in (out / RUNNERS_DIR).glob("*.json"))
    ours = (socket.gethostname(), os.getpid())
    return {(runner.host, runner.pid) for runner in found if runner is not None} - {ours}


def _is_sweep(pid: int, manifest: Manifest) -> bool:
    """True when ``pid`` lives and started before the run it is said to have made, on this host."""
    if manifest.clock.host != socket.gethostname():
        return False
    try:
        return psutil.Process(pid).create_time() * 1e9 < manifest.created_unix_ns
    except psutil.Error:
        return False

"""Servers that an earlier run of the same sweep left behind."""

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
from greenbench.sweep.point_run import finish_interrupted


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
    for directory in sorted((out / run_dir.SERVERS_DIR).glob("*")):
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

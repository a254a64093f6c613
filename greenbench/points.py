"""Points that were measured: which there are, what one holds, measuring one again, deleting one."""

import os
import shutil
import textwrap
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import INVALID_REASONS, Manifest
from greenbench.contract.run_dir import MANIFEST, RunDir, list_runs
from greenbench.contract.terminal import visible
from greenbench.sweep.claims import Claim

WIDTH: Final = 80
REDO: Final = "redo_asked"  # of INVALID_REASONS
STATUS_CHARS: Final = 10


def list_lines(root: Path) -> Iterator[str]:
    """Every point at or below ``root``, by folder, oldest first; then how many there are of each status."""
    runs = list_runs(root, levels=3) if root.is_dir() else []
    if not runs:
        raise UserError(
            f"{root} holds no points; give a sweep's folder, as `greenbench run` names it at its end"
        )
    statuses: Counter[str] = Counter()
    for folder in dict.fromkeys(run.path.parent for run in runs):
        yield visible(folder)
        for run in (run for run in runs if run.path.parent == folder):
            status, said = _status_and_words(run)
            statuses[status] += 1
            yield f"  {status:<{STATUS_CHARS}}{visible(run.path.name)}"
            yield from _wrapped(said, 2 + STATUS_CHARS)
    parts = ", ".join(f"{n} {status}" for status, n in statuses.items())
    yield f"{counted(len(runs), 'point')}: {parts}"


def _status_and_words(run: RunDir) -> tuple[str, str]:
    try:
        manifest = run.manifest()
    except UserError as error:
        return "unreadable", str(error)
    counts = f"{counted(manifest.counts.ok, 'request')} good, {manifest.counts.failed} failed"
    return manifest.status, "; ".join(filter(None, [counts, _why(manifest)]))


def _why(manifest: Manifest) -> str:
    codes = [INVALID_REASONS.get(code, code) for code in manifest.invalid_reasons]
    why = manifest.failure or "; ".join(codes)
    if manifest.only_acquitted:
        why += "; by its own clocks the client was not late, so a report does not hold it against the point"
    return why


def _wrapped(text: str, indent: int, first: str = "") -> list[str]:
    """Lines of at most WIDTH columns; a word that is longer stays whole, so that it can be copied."""
    lead = " " * indent
    return textwrap.wrap(
        visible(text),
        WIDTH,
        initial_indent=first.ljust(indent),
        subsequent_indent=lead,
        break_long_words=False,
        break_on_hyphens=False,
    )


def show_lines(point: Path) -> Iterator[str]:
    """What ran, whether it counts, and which files it left."""
    run, manifest = _point(point)
    server, at = manifest.server, datetime.fromtimestamp(manifest.created_unix_ns / 1e9, UTC)
    phases = [
        f"{name} {(end - start) / 1e9:.1f} s" for name, (start, end) in manifest.phases.items()
    ]
    facts = {
        "point": manifest.run_id,
        "status": manifest.status,
        "why": _why(manifest),
        "backend": f"{manifest.point.get('backend', server.requested_backend)}, {server.proof}",
        "runs": server.observed_backend or "not known",
        "model": f"{server.model}, {server.dtype}, weights {server.weights}",
        "task": f"{manifest.point.get('task')}, {manifest.point.get('context_tokens')} tokens",
        "load": str(manifest.point.get("load")),
        "repeat": str(manifest.point.get("repeat")),
        "measured": f"{at:%Y-%m-%d %H:%M:%S} UTC on {manifest.clock.host}",
        "phases": ", ".join(phases),
        "requests": f"{manifest.counts.ok} good, {manifest.counts.failed} failed",
        "folder": str(run.path),
        "files": ", ".join(manifest.files),
    }
    for name, fact in facts.items():
        if fact:
            yield from _wrapped(fact, STATUS_CHARS, name)


def redo(point: Path) -> str:
    """Make the point's complete runs invalid, so that the next sweep measures it again; a sentence."""
    run, manifest = _point(point)
    _changeable(run.path.parent)
    again = f"run its sweep again (`greenbench run SWEEP --out {run.path.parent}`) to measure it"
    with Claim(run.path.parent):
        marked = [_mark(twin, each) for twin, each in _complete_twins(run, manifest)]
    if not marked:
        return f"{manifest.run_id} is {manifest.status} and is measured again anyway; {again}"
    return f"marked to be measured again: {', '.join(marked)}; {again}"


def _changeable(folder: Path) -> None:
    if not os.access(folder, os.W_OK):
        raise UserError(
            f"{folder}: nothing can be changed there (read-only, or somebody else's); it is left as it is"
        )


def _complete_twins(run: RunDir, manifest: Manifest) -> Iterator[tuple[RunDir, Manifest]]:
    """The complete runs of one measurement: any of them would let a sweep skip it."""
    for twin in list_runs(run.path.parent):
        try:
            other = twin.manifest()
        except UserError:
            continue
        if other.config_hash == manifest.config_hash and other.status == "complete":
            yield twin, other


def _mark(run: RunDir, manifest: Manifest) -> str:
    run.write_manifest(manifest.model_copy(update={"status": "invalid", "invalid_reasons": [REDO]}))
    return manifest.run_id


def delete(point: Path) -> str:
    """Delete one run directory and nothing else; a sentence."""
    run, manifest = deletable(point)
    with Claim(run.path.parent):
        run.manifest_path.unlink()  # first: half of a run is no run
        shutil.rmtree(run.path)  # follows no link
    return f"deleted {manifest.run_id}"


def deletable(point: Path) -> tuple[RunDir, Manifest]:
    """The run directory, when it surely is one. What is wrong raises UserError."""
    run, manifest = _point(point)
    _changeable(run.path.parent)
    if run.path.is_symlink():
        raise UserError(f"{run.path} is a link; give the folder that it leads to")
    if manifest.run_id != run.path.name:
        raise UserError(
            f"{run.path}: its manifest is of {manifest.run_id}, so the folder may hold something else; "
            "delete it by hand"
        )
    return run, manifest


def _point(given: Path) -> tuple[RunDir, Manifest]:
    path = Path(str(given.expanduser()).rstrip("/"))
    if not (path / MANIFEST).is_file():
        raise UserError(
            f"{path} is no point: it has no {MANIFEST}; `greenbench runs list RUNS` names the points"
        )
    run = RunDir(path if path.is_symlink() else path.resolve())
    return run, run.manifest()


def kept_sentence(out: Path) -> str:
    """What an interrupted sweep leaves, and how it goes on."""
    complete = sum(_is_complete(run) for run in list_runs(out))
    if not complete:
        return "interrupted: no point is complete yet; run the same command again to go on"
    points = counted(complete, "complete point")
    return (
        f"interrupted: {points} kept in {out}; run the same command again to measure the rest, "
        f"or `greenbench report {out}` for a report of these"
    )


def _is_complete(run: RunDir) -> bool:
    try:
        return run.manifest().status == "complete"
    except UserError:
        return False

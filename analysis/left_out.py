"""Servers of a sweep that did not give all their points: refused on its host, never ready, or dead too soon.

What they did not measure has no run directory: a report of runs alone would pass over it in silence.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from greenbench.rundir import SERVERS_DIR


@dataclass(frozen=True)
class LeftOut:
    """One server start. ``label``: model, backend with options, and which start; ``why``: a sentence."""

    label: str
    status: str  # refused | did not start | died
    why: str


def left_out(root: Path) -> list[LeftOut]:
    """Of the sweep in ``root``, or of those right below it. A start that came up later is not one."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    return [found for folder in folders for found in (*_refused(folder), *_failed(folder))]


def _refused(folder: Path) -> Iterator[LeftOut]:
    path = folder / "refused.json"
    if path.is_file():
        for label, reasons in json.loads(path.read_text()).items():
            yield LeftOut(label, "refused", "; ".join(reasons))


def _failed(folder: Path) -> Iterator[LeftOut]:
    latest: dict[str, Path] = {}  # by start; the folder's name ends with the start's time
    for path in sorted((folder / SERVERS_DIR).glob("*/server.json")):
        latest[path.parent.name.rpartition("-")[0]] = path
    for path in latest.values():
        body = json.loads(path.read_text())
        server = body.get("server") or {}
        if body.get("state") == "failed":
            label = f"{server.get('model')} {server.get('requested_backend')}"
            status = "did not start" if server.get("ready_s") is None else "died"
            yield LeftOut(label, status, body.get("error") or "no reason was given")

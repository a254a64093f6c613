"""Servers of a sweep that did not give all their points: refused on its host, never ready, or dead too soon.

What they did not measure has no run directory, and one that cannot be read has no point: a report of points
alone would pass over them in silence.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.runs.run import Unreadable
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import SERVERS_DIR, read_json


@dataclass(frozen=True)
class LeftOut:
    """One server start (``label``: model, backend with options, and which start) or run directory.

    ``why``: a sentence.
    """

    label: str
    status: str  # refused | did not start | died | unreadable
    why: str


def left_out(root: Path) -> list[LeftOut]:
    """Of the sweep in ``root``, or of those right below it. A start that came up later is not one."""
    folders = [root, *sorted(path for path in root.iterdir() if path.is_dir())]
    return [server for folder in folders for server in (*_refused(folder), *_failed(folder))]


def without_a_point(unreadable: Iterable[Unreadable]) -> list[LeftOut]:
    """Run directories whose manifest or config cannot be read."""
    return [LeftOut(run.path.name, "unreadable", run.why) for run in unreadable]


def _refused(folder: Path) -> Iterator[LeftOut]:
    path = folder / "refused.json"
    if not path.is_file():
        return
    try:
        reasons = {label: "; ".join(why) for label, why in read_json(path).items()}
    except (UserError, TypeError) as error:
        yield _unreadable(path, error)
        return
    for label, why in reasons.items():
        yield LeftOut(label, "refused", why)


def _failed(folder: Path) -> Iterator[LeftOut]:
    latest: dict[str, Path] = {}  # by start; the folder's name ends with the start's time
    for path in sorted((folder / SERVERS_DIR).glob("*/server.json")):
        latest[path.parent.name.rpartition("-")[0]] = path
    for path in latest.values():
        try:
            body = read_json(path)
        except UserError as error:
            yield _unreadable(path, error)
            continue
        server = body.get("server") or {}
        if body.get("state") == "failed":
            label = f"{server.get('model')} {server.get('requested_backend')}"
            status = "did not start" if server.get("ready_s") is None else "died"
            yield LeftOut(label, status, body.get("error") or "no reason was given")


def _unreadable(path: Path, error: Exception) -> LeftOut:
    name = f"{path.parent.name}/{path.name}"
    return LeftOut(name, "unreadable", str(error).replace(str(path), path.name))

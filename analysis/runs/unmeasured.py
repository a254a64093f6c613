"""Servers of a sweep that did not give all their points: refused on its host, never ready, or dead too soon.

What they did not measure has no run directory, and one that cannot be read has no point: a report of points
alone would pass over them in silence.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from pydantic import RootModel

from analysis.runs.boundary import words
from analysis.runs.run import Unreadable
from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.manifest import Open
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


class _Refused(RootModel[dict[str, list[str]]]):
    """refused.json: reasons by the label of a candidate."""


class _Started(Open):
    """Of a start, what a report says of it. ``ready_s`` None: it never was."""

    model: str
    requested_backend: str
    ready_s: float | None = None


class _Start(Open):
    """What is needed of server.json; a broken field beside that costs nothing."""

    state: str | None = None
    error: str | None = None
    server: _Started | None = None


def _refused(folder: Path) -> Iterator[LeftOut]:
    path = folder / "refused.json"
    if not path.is_file():
        return
    try:
        reasons = parse(_Refused, read_json(path), str(path)).root
    except UserError as error:
        yield _unreadable(path, error)
        return
    for label, why in reasons.items():
        yield LeftOut(label, "refused", "; ".join(why) or "no reason was given")


def _failed(folder: Path) -> Iterator[LeftOut]:
    latest: dict[str, Path] = {}  # by start; the folder's name ends with the start's time
    for path in sorted((folder / SERVERS_DIR).glob("*/server.json")):
        latest[path.parent.name.rpartition("-")[0]] = path
    for path in latest.values():
        try:
            start = parse(_Start, read_json(path), str(path))
        except UserError as error:
            yield _unreadable(path, error)
            continue
        if start.state == "failed":
            yield _left_out(start, path.parent.name)


def _left_out(start: _Start, folder: str) -> LeftOut:
    server = start.server
    label = f"{server.model} {server.requested_backend}" if server else folder
    status = "did not start" if server is None or server.ready_s is None else "died"
    return LeftOut(label, status, start.error or "no reason was given")


def _unreadable(path: Path, error: UserError) -> LeftOut:
    name = f"{path.parent.name}/{path.name}"
    return LeftOut(name, "unreadable", words(str(error).replace(str(path), path.name)))

"""Where a sweep's time goes, kept in ``times.json`` of its folder: for estimates, and to be said.

Boots and points are kept by what they were, so that the next estimate rests on them.
"""

import time
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from pydantic import Field

from greenbench.contract.config import PointConfig, StrictModel, parse
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import read_json, write_atomic
from greenbench.sweep.order import ServerStart
from greenbench.sweep.time_budget import Times, is_running

FILE = "times.json"
NS_PER_S = 1_000_000_000
MEASURED = ("warmup", "measure")  # phases
Activity = Literal["model", "prompts", "boot", "idle", "measured", "around points", "stop"]


class BootTime(StrictModel):
    server: str  # model and candidate
    seconds: float


class PointTime(StrictModel):
    server: str
    workload: str
    seconds: float  # from the start of its recorder to its verdict


class TimesFile(StrictModel):
    """times.json. ``spent``: seconds by activity, of all runs of the sweep in this folder; ``measured`` is
    warm-ups and measured phases.
    """

    host: str
    gpus: list[str] = Field(default_factory=list[str])
    boots: list[BootTime] = Field(default_factory=list[BootTime])
    points: list[PointTime] = Field(default_factory=list[PointTime])
    spent: dict[str, float] = Field(default_factory=dict[str, float])


class Stopwatch:
    """Keeps the file of one sweep; a broken one is begun anew."""

    def __init__(self, out: Path, host: str, gpus: list[str]) -> None:
        self._path = out / FILE
        self._earlier = [
            file
            for path in sorted(out.parent.glob(f"*/{FILE}"))
            if path != self._path and (file := read_times(path)) and file.host == host
            and file.gpus == gpus
        ]  # fmt: skip
        own = read_times(self._path)
        same = own is not None and own.host == host and own.gpus == gpus
        self.file = own if own is not None and same else TimesFile(host=host, gpus=gpus)

    @contextmanager
    def spend(self, activity: Activity) -> Generator[None]:
        start_s = time.monotonic()
        try:
            yield
        finally:
            self.spent(activity, time.monotonic() - start_s)

    def spent(self, activity: Activity, seconds: float) -> None:
        spent = self.file.spent
        self._put(spent={**spent, activity: spent.get(activity, 0.0) + seconds})

    def booted(self, start: ServerStart, seconds: float) -> None:
        """Or was found at its address: of that a later start of its like would learn nothing."""
        self.spent("boot", seconds)
        if not is_running(start):
            row = BootTime(server=start.server, seconds=seconds)
            self._put(boots=[*self.file.boots, row])

    def point(
        self, start: ServerStart, point: PointConfig, manifest: Manifest, took_s: float
    ) -> None:
        """A point that ended, however it did."""
        phases = manifest.phases
        spans = [phases[name] for name in MEASURED if name in phases]
        measured_s = min(took_s, sum(end - begin for begin, end in spans) / NS_PER_S)
        self.spent("measured", measured_s)
        self.spent("around points", took_s - measured_s)
        if manifest.status == "complete":
            row = PointTime(server=start.server, workload=point.workload, seconds=took_s)
            self._put(points=[*self.file.points, row])

    def _put(self, **changes: object) -> None:
        self.file = self.file.model_copy(update=changes)
        write_atomic(self._path, self.file.model_dump_json(indent=1) + "\n")

    @property
    def times(self) -> Times:
        """What is known of this sweep's servers, the latest of each; of other sweeps what this one lacks."""
        files = [*self._earlier, self.file]
        boots = {row.server: row.seconds for file in files for row in file.boots}
        points = {(r.server, r.workload): r.seconds for file in files for r in file.points}
        return Times(boots, points, bool(self.file.gpus))


def read_times(path: Path) -> TimesFile | None:
    """None where there is none that can be read."""
    try:
        return parse(TimesFile, read_json(path), str(path))
    except (UserError, OSError):
        return None


WORDS: dict[str, str] = {
    "measured": "warming up and measuring",
    "model": "getting models",
    "prompts": "making prompts",
    "boot": "booting or reaching servers",
    "idle": "recording idle",
    "around points": "around points (start, drain, grading)",
    "stop": "stopping servers",
}


def split(spent: Mapping[str, float]) -> str | None:
    """``71 % warming up and measuring, 20 % around points, …``; None before anything was spent."""
    total = sum(spent.values())
    if total <= 0:
        return None
    parts = sorted(spent.items(), key=lambda part: -part[1])
    return ", ".join(f"{100 * s / total:.0f} % {WORDS.get(name, name)}" for name, s in parts)

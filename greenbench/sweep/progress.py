"""What a person sees while a sweep runs: bars on a terminal, plain lines elsewhere."""

import statistics
import time
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from greenbench.contract.config import PointConfig
from greenbench.contract.counted import counted
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import RunDir, read_jsonl
from greenbench.contract.terminal import visible
from greenbench.sweep.enough import left_undone
from greenbench.sweep.live import Live
from greenbench.sweep.order import ServerStart

SIGN_S = 10.0  # without a terminal a line at least this often
VIEW_S = 1.0  # on a terminal


class SweepProgress:
    """runner.View over rich. Leaves one line for each point, so a log of it reads as a record."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=10),  # with names and times, 80 columns
            MofNCompleteColumn(),
            TextColumn("elapsed"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(elapsed_when_finished=False),
            console=console,
            disable=not console.is_terminal,
        )
        self._task = self.progress.add_task("points", total=None)
        self._doing = ""
        self._since_s = self._said_s = time.monotonic()

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, points: int, skipped: int) -> None:
        self.progress.update(self._task, total=points)
        self.console.print(f"{counted(points, 'point')} to measure, {skipped} already complete")

    def server(self, start: ServerStart, state: str) -> None:
        self._now(f"{start.candidate}: {state}")
        self.console.print(f"[bold]{_shown(start.label)}[/]: {_shown(state)}", highlight=False)

    def point(self, point: PointConfig) -> None:
        self._now(f"{point.name or point.backend.label} {point.workload}")

    def alive(self, point: PointConfig, live: Live) -> None:
        if self._due():
            self._sign(live.sign().words)

    def tick(self) -> None:
        """Nothing is measured: a sign of life says for how long what goes on has gone on."""
        if self._due():
            self._sign(f"{time.monotonic() - self._since_s:.0f} s so far")
        self.progress.refresh()

    def _now(self, doing: str) -> None:
        self._doing = doing
        self._since_s = self._said_s = time.monotonic()
        self.progress.update(self._task, description=_shown(doing))

    def _due(self) -> bool:
        rhythm_s = VIEW_S if self.console.is_terminal else SIGN_S
        return time.monotonic() - self._said_s >= rhythm_s

    def _sign(self, words: str) -> None:
        self._said_s = time.monotonic()
        if self.console.is_terminal:
            self.progress.update(self._task, description=_shown(f"{self._doing}: {words}"))
        else:
            self._print(f"    {self._doing}: {words}")

    def point_done(self, point: PointConfig, manifest: Manifest, run: RunDir) -> None:
        self.progress.advance(self._task)
        line = f"  {point.name or point.backend.label} {point.workload}: {manifest.status}, {figures(run)}"
        why = manifest.failure or ", ".join(manifest.invalid_reasons) or left_undone(run)
        self._print(line + (f" ({why})" if why else ""))

    def note(self, sentence: str) -> None:
        self._print(f"note: {sentence}")

    def _print(self, line: str) -> None:
        self.console.print(visible(line), highlight=False, markup=False)


def _shown(text: str) -> str:
    """As text within rich's markup."""
    return escape(visible(text))


def figures(run: RunDir) -> str:
    """A glance at a finished point: good and failed measured requests, median time to first token."""
    rows = [row for path in run.requests_dir.glob("*.jsonl") for row in read_jsonl(path)]
    measured = [row for row in rows if row["phase"] == "measure"]
    good = [row for row in measured if row.get("error_type") is None]
    first_ns = [row["first_token_ns"] for row in good if row.get("first_token_ns") is not None]
    text = f"{len(good)} ok, {len(measured) - len(good)} failed"
    return f"{text}, median TTFT {statistics.median(first_ns) / 1e6:.0f} ms" if first_ns else text

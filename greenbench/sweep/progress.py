"""What a person sees while a sweep runs: bars on a terminal, plain lines elsewhere."""

import statistics
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
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import RunDir, read_jsonl
from greenbench.contract.terminal import visible
from greenbench.sweep.order import ServerStart


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

    def __enter__(self) -> Self:
        self.progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.progress.stop()

    def start(self, points: int, skipped: int) -> None:
        self.progress.update(self._task, total=points)
        self.console.print(f"{points} points to measure, {skipped} already complete")

    def server(self, start: ServerStart, state: str) -> None:
        self._describe(f"{start.candidate}: {state}")
        self.console.print(f"[bold]{_shown(start.label)}[/]: {_shown(state)}", highlight=False)

    def point(self, point: PointConfig) -> None:
        self._describe(f"{point.backend.label} {point.workload}")

    def point_done(self, point: PointConfig, manifest: Manifest, run: RunDir) -> None:
        self.progress.advance(self._task)
        line = f"  {point.backend.label} {point.workload}: {manifest.status}, {figures(run)}"
        why = manifest.failure or ", ".join(manifest.invalid_reasons)
        self._print(line + (f" ({why})" if why else ""))

    def note(self, sentence: str) -> None:
        self._print(f"note: {sentence}")

    def tick(self) -> None:
        self.progress.refresh()

    def _describe(self, doing: str) -> None:
        self.progress.update(self._task, description=_shown(doing))

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

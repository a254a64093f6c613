"""All runs under one folder, worked through once: points, cells, differences, decisions, summary.json."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analysis.cells import Cell, Samples, cells
from analysis.checks import superseded
from analysis.crossings import Crossing, crossings
from analysis.decisions import Decision, decisions
from analysis.differences import Difference, differences
from analysis.gates import Barred, Gate, barred, gates
from analysis.load import Run, load_runs
from analysis.points import Point, analyse
from greenbench import SCHEMA_VERSION
from greenbench.rundir import write_atomic


@dataclass(frozen=True)
class Study:
    """What a report is made of. Points come oldest first; cells in table order."""

    root: Path
    runs: list[Run]
    points: list[Point]
    samples: Samples
    cells: list[Cell]
    differences: list[Difference]
    decisions: list[Decision]
    crossings: list[Crossing]
    gates: list[Gate]
    barred: Barred

    def run(self, point: Point) -> Run:
        return next(run for run in self.runs if str(run.path) == point.path)

    @property
    def usable(self) -> list[Point]:
        return [point for point in self.points if point.usable]


def study(root: Path, progress: Callable[[int, int], None] = lambda done, total: None) -> Study:
    """Load and analyse every run at or below ``root``."""
    runs = load_runs(root)
    replaced = superseded(runs)
    points: list[Point] = []
    samples: Samples = {}
    for number, run in enumerate(runs, start=1):
        point, values = analyse(run, replaced.get(run.path))
        points.append(point)
        samples[point.run_id] = values
        progress(number, len(runs))
    found = differences(points)
    table = cells(points, samples)
    usable = {point.path for point in points if point.usable}
    judged = gates([run for run in runs if str(run.path) in usable])
    out = barred(judged, root, runs)
    return Study(
        root=root,
        runs=runs,
        points=points,
        samples=samples,
        cells=table,
        differences=found,
        decisions=decisions(points, found, out),
        crossings=crossings(table, points, samples),
        gates=judged,
        barred=out,
    )


def summary(whole: Study) -> dict[str, Any]:
    """The machine-readable form of the report, without the path of this machine."""
    return {
        "schema_version": SCHEMA_VERSION,
        "made_unix_ns": time.time_ns(),
        "points": [asdict(point) | {"path": Path(point.path).name} for point in whole.points],
        "cells": [
            {
                "model": cell.model,
                "weights": cell.weights,
                "task": cell.task,
                "context_tokens": cell.context_tokens,
                "load": cell.load,
                "backend": cell.backend,
                "run_ids": [point.run_id for point in cell.starts],
                "latency_pooled": cell.latency,
            }
            for cell in whole.cells
        ],
        "differences": [asdict(difference) for difference in whole.differences],
        "gates": [asdict(gate) for gate in whole.gates],
        "barred": [
            {"model": model, "context_tokens": context, "backends": backends}
            for (model, context), backends in whole.barred.items()
        ],
        "crossings": [asdict(crossing) for crossing in whole.crossings],
        "decisions": [
            asdict(decision) | {"winner": decision.winner} for decision in whole.decisions
        ],
    }


def write_summary(whole: Study, path: Path) -> None:
    write_atomic(path, json.dumps(summary(whole), indent=1, allow_nan=False) + "\n")

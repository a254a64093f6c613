"""All runs under one folder, worked through once: points, cells, differences, decisions, summary.json."""

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.arms import arms, label_barred, label_gates, label_points, label_verifications
from analysis.barring import Barred, Verification, barred, standings, verifications
from analysis.bottleneck import Bottleneck, classify, classify_client, fixed_shares, gather
from analysis.ceilings import find_host_ceilings, run_ceilings
from analysis.cells import Cell, Samples, cells
from analysis.crossings import Crossing, crossings
from analysis.decisions import Decision, decisions
from analysis.differences import Difference, differences
from analysis.executions import apart, executions, together
from analysis.formats import MARK
from analysis.gates import Gate, gates
from analysis.heat_maps import HeatMap, heat_maps
from analysis.left_out import LeftOut, left_out
from analysis.load import Run, load_runs
from analysis.points import Point, analyse_all
from analysis.roofline import PhaseUse, phase_uses
from analysis.windows import Window
from greenbench import SCHEMA_VERSION
from greenbench.rundir import write_atomic

BEATEN = 1.05  # a share of a ceiling from which it was not one; below, the noise of measuring it


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
    bottlenecks: dict[str, Bottleneck]  # by run id, of usable points
    uses: dict[str, list[PhaseUse]]
    beaten: dict[str, float]  # ceilings that a point went beyond: what they are -> by what factor
    gates: list[Gate]
    verifications: list[Verification]
    heat_maps: list[HeatMap]
    barred: Barred
    left_out: list[LeftOut]
    executions: list[str]
    across_executions: bool  # one ranking for all of them, as was asked for

    def run(self, point: Point) -> Run:
        return next(run for run in self.runs if str(run.path) == point.path)

    @property
    def usable(self) -> list[Point]:
        return [point for point in self.points if point.usable]


def study(
    root: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    across_executions: bool = False,
) -> Study:
    """Load and analyse every run at or below ``root``.

    ``across_executions``: eager and CUDA graphs in one ranking; otherwise each has its own.
    """
    runs = load_runs(root)
    analysed = analyse_all(runs, progress)
    points = [point for point, _ in analysed]
    samples: Samples = {point.run_id: values for point, values in analysed}
    told = {point.path for point in points if point.answers_stand}
    answering = [run for run in runs if str(run.path) in told]
    judged, checked = gates(answering), verifications(root)
    names = arms(points)
    out = label_barred(barred(standings(judged, checked, runs, points)), names)
    judged, checked = label_gates(judged, names), label_verifications(checked, names)
    points = label_points(points, names)
    if across_executions:
        points, out = together(points, out)
    else:
        points = apart(points)
    found = differences(points)
    table = cells(points, samples)
    crossed = crossings(table, points, samples)
    uses, found_bounds, beaten = _bottlenecks(root, runs, points, crossed)
    return Study(
        root=root,
        runs=runs,
        points=points,
        samples=samples,
        cells=table,
        differences=found,
        decisions=decisions(points, found, out),
        crossings=crossed,
        bottlenecks=found_bounds,
        uses=uses,
        beaten=beaten,
        gates=judged,
        verifications=checked,
        heat_maps=heat_maps(answering),
        barred=out,
        left_out=left_out(root),
        executions=executions(points),
        across_executions=across_executions,
    )


def _bottlenecks(
    root: Path, runs: list[Run], points: list[Point], crossed: list[Crossing]
) -> tuple[dict[str, list[PhaseUse]], dict[str, Bottleneck], dict[str, float]]:
    """Per usable point: how near each phase came to the ceilings, and what held the point back.

    A point that is invalid because the client was late is classified too: as that. A ceiling that some
    point went beyond was taken wrongly (on a busy machine, say): it is no ceiling for any point, and the
    third value names it.
    """
    host = find_host_ceilings(root)
    by_path = {str(run.path): run for run in runs}
    uses: dict[str, list[PhaseUse]] = {}
    bounds: dict[str, Bottleneck] = {}
    windows: dict[str, Window] = {}
    for point in points:
        run = by_path[point.path]
        held = classify_client(run, point)
        if held is not None:
            uses[point.run_id], bounds[point.run_id] = [], held
        if point.usable and point.window is not None:
            window = Window("steady", point.window["start_unix_ns"], point.window["end_unix_ns"])
            windows[point.run_id] = window
            uses[point.run_id] = phase_uses(run, window, run_ceilings(run, host))
    uses, beaten = without_beaten(uses)
    for point in points:
        if point.run_id in windows:
            evidence = gather(by_path[point.path], windows[point.run_id], point)
            bounds[point.run_id] = classify(
                evidence, uses[point.run_id], _fixed_share(point, crossed)
            )
    return uses, bounds, beaten


def without_beaten(
    uses: dict[str, list[PhaseUse]],
) -> tuple[dict[str, list[PhaseUse]], dict[str, float]]:
    """MFU and MBU taken from every phase whose ceiling some phase beat by more than BEATEN."""
    highest: dict[str, float] = {}
    for use in (use for found in uses.values() for use in found):
        if use.ceiling is not None:
            top = max(use.mfu or 0.0, use.mbu or 0.0)
            highest[use.ceiling] = max(top, highest.get(use.ceiling, 0.0))
    beaten = {ceiling: top for ceiling, top in highest.items() if top > BEATEN}
    kept = {
        run_id: [
            replace(use, mfu=None, mbu=None, ceiling=None) if use.ceiling in beaten else use
            for use in found
        ]
        for run_id, found in uses.items()
    }
    return kept, beaten


def _fixed_share(point: Point, crossed: list[Crossing]) -> float | None:
    """From any fit of this backend's time per token over contexts."""
    for crossing in crossed:
        same = (crossing.model, crossing.task, crossing.load) == (
            point.model,
            point.task,
            point.load,
        )
        if same and crossing.cost.name == "itl" and point.backend in crossing.found.fits:
            return fixed_shares(crossing.found.fits[point.backend], point.context_tokens)
    return None


def _point_json(point: Point) -> dict[str, Any]:
    """Under the names of what ran; ``compared_as`` is the name in cells, differences and decisions."""
    raw = asdict(point)
    raw |= {"path": Path(point.path).name, "compared_as": point.backend}
    raw |= {"load": point.load.partition(MARK)[0]}
    raw |= {"model": raw.pop("of_model"), "backend": raw.pop("of_backend")}
    return raw


def summary(whole: Study) -> dict[str, Any]:
    """The machine-readable form of the report, without the path of this machine."""
    return {
        "schema_version": SCHEMA_VERSION,
        "made_unix_ns": time.time_ns(),
        "points": [_point_json(point) for point in whole.points],
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
        "bottlenecks": [
            {"run_id": run_id, **asdict(found), "uses": [asdict(u) for u in whole.uses[run_id]]}
            for run_id, found in whole.bottlenecks.items()
        ],
        "beaten_ceilings": whole.beaten,
        "gates": [asdict(gate) for gate in whole.gates],
        "verifications": [asdict(verification) for verification in whole.verifications],
        "heat_maps": [asdict(heat_map) for heat_map in whole.heat_maps],
        "barred": [
            {"model": model, "context_tokens": context, "backends": backends}
            for (model, context), backends in whole.barred.items()
        ],
        "left_out": [asdict(server) for server in whole.left_out],
        "crossings": [asdict(crossing) for crossing in whole.crossings],
        "decisions": [
            asdict(decision) | {"winner": decision.winner} for decision in whole.decisions
        ],
    }


def write_summary(whole: Study, path: Path) -> None:
    write_atomic(path, json.dumps(summary(whole), indent=1, allow_nan=False) + "\n")

"""All runs under one folder, worked through once: points, cells, differences, decisions, summary.json."""

import json
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from analysis.barring import Barred, Verification, barred, verifications
from analysis.bottleneck import Bottleneck, classify, classify_client, fixed_shares, gather
from analysis.ceilings import find_host_ceilings, run_ceilings
from analysis.cells import Cell, Samples, cells
from analysis.crossings import Crossing, crossings
from analysis.decisions import Decision, Eligible, decisions, may_win
from analysis.differences import Difference, differences
from analysis.gates import Gate, gates
from analysis.heat_maps import HeatMap, heat_maps
from analysis.identity import Candidate, Place, places
from analysis.labels import Labels, labels
from analysis.left_out import LeftOut, left_out, without_a_point
from analysis.load import Run, read_runs, some_readable
from analysis.objectives import Objective, objective
from analysis.points import Point, analyse_all
from analysis.roofline import PhaseUse, phase_uses
from analysis.windows import Window
from greenbench import SCHEMA_VERSION
from greenbench.config import load_sweep
from greenbench.errors import UserError
from greenbench.rundir import write_atomic

DEFAULT_OBJECTIVE = "goodput"  # under the sweep's SLO; where there is none, see sentences.FALLBACK
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
    eligible: dict[tuple[Place, Candidate], Eligible]
    left_out: list[LeftOut]
    labels: Labels
    objective: Objective  # what the headline goes by
    across_executions: bool  # one ranking for all of them, as was asked for

    @property
    def executions(self) -> list[str]:
        """Every execution that ran, sorted; points measured again later do not count."""
        ran = [point for point in self.points if point.status != "superseded"]
        return sorted({point.candidate.execution for point in ran})

    def run(self, point: Point) -> Run:
        return next(run for run in self.runs if str(run.path) == point.path)

    @property
    def usable(self) -> list[Point]:
        return [point for point in self.points if point.usable]


def study(
    root: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    across_executions: bool = False,
    by: str | None = None,
) -> Study:
    """Load and analyse every run at or below ``root``.

    ``across_executions``: eager and CUDA graphs in one ranking; otherwise each has its own. ``by``: name of the
    objective of the headline; default: the sweep's ``objective``, else DEFAULT_OBJECTIVE. UserError.
    """
    chosen = objective(by or sweep_objective(root) or DEFAULT_OBJECTIVE)
    runs, unreadable = read_runs(root)
    some_readable(root, runs, unreadable)
    analysed = analyse_all(runs, progress)
    points, named = placed([point for point, _ in analysed], across_executions)
    samples: Samples = {point.run_id: values for point, values in analysed}
    told = {point.path for point in points if point.answers_stand}
    answering = [run for run in runs if str(run.path) in told]
    judged, checked = gates(answering), verifications(root)
    able = eligible(points, barred(judged, checked, runs))
    found = differences(points)
    table = cells(points, samples)
    crossed = crossings(table, found, samples)
    uses, found_bounds, beaten = _bottlenecks(root, runs, points, crossed)
    return Study(
        root=root,
        runs=runs,
        points=points,
        samples=samples,
        cells=table,
        differences=found,
        decisions=decisions(points, found, able),
        crossings=crossed,
        bottlenecks=found_bounds,
        uses=uses,
        beaten=beaten,
        gates=judged,
        verifications=checked,
        heat_maps=heat_maps(answering),
        eligible=able,
        left_out=[*left_out(root), *without_a_point(unreadable)],
        labels=named,
        objective=chosen,
        across_executions=across_executions,
    )


def placed(points: Sequence[Point], across: bool) -> tuple[list[Point], Labels]:
    """The points at their places beside each other, under labels that tell them apart."""
    where = places({point.run_id: point.identity for point in points}, across)
    current = [point for point in points if point.status != "superseded"]
    named = labels(
        [point.candidate for point in current], [where[point.run_id] for point in current], across
    )
    return [
        replace(
            point,
            place=where[point.run_id],
            backend=named.candidates.get(point.candidate, point.backend),
            task=named.tasks.get(where[point.run_id], point.task),
            load=named.loads.get(where[point.run_id], point.load),
        )
        for point in points
    ], named


def sweep_objective(root: Path) -> str | None:
    """``objective`` of the sweep in ``root``, or of those right below it where they agree."""
    files = [root / "sweep.yaml", root.parent / "sweep.yaml", *sorted(root.glob("*/sweep.yaml"))]
    asked = {_objective_of(file) for file in files if file.is_file()}
    return asked.pop() if len(asked) == 1 else None


def _objective_of(sweep: Path) -> str | None:
    """None as well where the file cannot be read: the report does not rest on it."""
    try:
        return load_sweep(sweep).objective
    except UserError:
        return None


def eligible(points: Sequence[Point], out: Barred) -> dict[tuple[Place, Candidate], Eligible]:
    """Who may win where: by answers at a length, failed requests and the proof of the backend."""
    groups: dict[tuple[Place, Candidate], list[Point]] = {}
    for point in points:
        if point.usable:
            groups.setdefault((point.place, point.candidate), []).append(point)
    found: dict[tuple[Place, Candidate], Eligible] = {}
    for (place, candidate), members in groups.items():
        why = out.get((candidate.model, place.context_tokens), {}).get(candidate.backend_label)
        found[place, candidate] = may_win(
            "disqualified" if why else "ungraded",
            why or "",
            max(point.failed_share for point in members),
            min((point.proof for point in members), key=lambda proof: proof == "proven"),
            False,
        )
    return found


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
    """From any fit of this candidate's time per output token over contexts that is linear."""
    for crossing in crossed:
        fits = crossing.found.fits
        linear = crossing.objective.name == "tpot" and crossing.form == "linear"
        if linear and point.place in crossing.places and point.backend in fits:
            return fixed_shares(fits[point.backend], point.context_tokens)
    return None


def _place_json(whole: Study, place: Place) -> dict[str, Any]:
    return {
        "model": place.model,
        "task": whole.labels.tasks.get(place, place.workload.task),
        "context_tokens": place.context_tokens,
        "load": whole.labels.loads.get(place, ""),
        "device": place.device.words,
        "execution": place.execution,
    }


POINT_FIELDS = (
    "run_id",
    "status",
    "reasons",
    "notes",
    "observed_backend",
    "proof",
    "task",
    "load",
    "server_id",
    "created_unix_ns",
    "counts",
    "errors",
    "window",
    "latency",
    "throughput",
    "goodput",
    "answers",
    "memory",
    "energy",
    "extra",
    "faults",
    "edge_errors",
)


def _point_json(point: Point) -> dict[str, Any]:
    """What ran and its figures; ``compared_as`` is its label in cells, differences and decisions."""
    candidate, workload = point.candidate, point.identity.workload
    return {name: getattr(point, name) for name in POINT_FIELDS} | {
        "path": Path(point.path).name,
        "model": candidate.model,
        "backend": candidate.backend_label,
        "compared_as": point.backend,
        "weights": candidate.weights,
        "context_tokens": point.context_tokens,
        "repeat": point.repeat,
        "arm": point.arm,
        "execution": candidate.execution,
        "candidate": asdict(candidate)
        | {"options": dict(candidate.options), "settings": dict(candidate.settings)},
        "workload": asdict(workload)
        | {
            "params": dict(workload.params),
            "load": workload.load.model_dump(mode="json"),
            "phases": workload.phases.model_dump(mode="json") if workload.phases else None,
            "slo": workload.slo.model_dump(mode="json"),
        },
        "device": asdict(point.identity.device),
    }


def _difference_json(whole: Study, difference: Difference) -> dict[str, Any]:
    return {
        **_place_json(whole, difference.place),
        "objective": difference.objective,
        "a": difference.a,
        "b": difference.b,
        "values": difference.values,
        "ratio": {
            name: _finite(getattr(difference.ratio, name))
            for name in ("ratio", "low", "high", "p", "error", "edge", "blocks", "method")
        },
        "adjusted_p": difference.adjusted,
        "floor_ratio": difference.floor_ratio,
        "verdict": difference.verdict,
        "reason": difference.reason,
        "blocks": len(difference.blocks),
    }


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _decision_json(whole: Study, decision: Decision) -> dict[str, Any]:
    return {
        **_place_json(whole, decision.place),
        "objective": decision.objective,
        "outcome": decision.outcome,
        "winner": decision.winner,
        "leader": decision.leader,
        "front": decision.front,
        "tested": decision.tested,
        "contenders": [
            {
                "label": each.label,
                "value": each.value,
                "starts": each.starts,
                "may_win": each.eligible.may_win,
                "why_not": each.eligible.why_not,
                "mark": each.eligible.mark,
            }
            for each in decision.contenders
        ],
    }


def _crossing_json(crossing: Crossing) -> dict[str, Any]:
    return {
        "model": crossing.model,
        "task": crossing.task,
        "load": crossing.load,
        "objective": crossing.objective.name,
        "form": crossing.form,
        "output_tokens": crossing.output_tokens,
        "a": crossing.a,
        "b": crossing.b,
        "contexts": crossing.contexts,
        "measured": crossing.measured,
        "found": asdict(crossing.found),
    }


def summary(whole: Study, sentences: Sequence[str], headline: Sequence[str]) -> dict[str, Any]:
    """The machine-readable form of the report, without the path of this machine.

    ``sentences`` and ``headline`` are those of the page (``analysis.sentences``).
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "made_unix_ns": time.time_ns(),
        "objective": whole.objective.name,
        "headline": list(headline),
        "sentences": list(sentences),
        "points": [_point_json(point) for point in whole.points],
        "cells": [
            {
                **_place_json(whole, cell.place),
                "weights": cell.weights,
                "backend": cell.backend,
                "run_ids": [point.run_id for point in cell.starts],
                "latency_pooled": cell.latency,
            }
            for cell in whole.cells
        ],
        "differences": [_difference_json(whole, each) for each in whole.differences],
        "bottlenecks": [
            {"run_id": run_id, **asdict(found), "uses": [asdict(u) for u in whole.uses[run_id]]}
            for run_id, found in whole.bottlenecks.items()
        ],
        "beaten_ceilings": whole.beaten,
        "gates": [asdict(gate) for gate in whole.gates],
        "verifications": [asdict(verification) for verification in whole.verifications],
        "heat_maps": [asdict(heat_map) for heat_map in whole.heat_maps],
        "eligible": [
            {**_place_json(whole, place), "backend": label, **asdict(each)}
            for (place, candidate), each in whole.eligible.items()
            if (label := whole.labels.candidates.get(candidate)) is not None
        ],
        "left_out": [asdict(server) for server in whole.left_out],
        "crossings": [_crossing_json(crossing) for crossing in whole.crossings],
        "decisions": [_decision_json(whole, decision) for decision in whole.decisions],
    }


def write_summary(
    whole: Study, sentences: Sequence[str], headline: Sequence[str], path: Path
) -> None:
    found = summary(whole, sentences, headline)
    write_atomic(path, json.dumps(found, indent=1, allow_nan=False) + "\n")

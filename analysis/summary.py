"""summary.json: the report for programs. Here alone typed results become JSON.

Most take the form of their fields; the functions below write those whose published form is another.
"""

import json
import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from analysis.compare.crossovers import Crossing
from analysis.compare.decisions import Decision
from analysis.compare.differences import Difference
from analysis.objectives import NOTHING, OBJECTIVES, Measurement, Objective
from analysis.point.point import Point
from analysis.point.resources import PointEnergy
from analysis.point.steady_window import Window
from analysis.point.throughput import Throughput
from analysis.quality.gate import Gate
from analysis.report.answer import answer
from analysis.report.sentences import headline, summary_sentences
from analysis.runs.identity import Scenario
from analysis.study import Study
from greenbench import SCHEMA_VERSION
from greenbench.contract.run_dir import write_atomic


def _scenario_json(whole: Study, scenario: Scenario) -> dict[str, Any]:
    return {
        "model": scenario.model,
        "task": whole.labels.tasks.get(scenario, scenario.workload.task),
        "context_tokens": scenario.context_tokens,
        "load": whole.labels.loads.get(scenario, ""),
        "device": scenario.device.words,
        "execution": scenario.execution,
    }


def _point_json(point: Point) -> dict[str, Any]:
    """What ran and its figures; ``compared_as`` is its label in cells, differences and decisions."""
    candidate, workload = point.candidate, point.identity.workload
    measured = [(objective, objective.measure(point)) for objective in OBJECTIVES]
    return {
        "run_id": point.run_id,
        "status": point.status,
        "reasons": point.reasons,
        "notes": point.notes,
        "observed_backend": point.observed_backend,
        "proof": point.proof,
        "task": point.task,
        "load": point.load,
        "server_id": point.server_id,
        "created_unix_ns": point.created_unix_ns,
        "counts": point.counts.model_dump(),
        "errors": point.errors,
        "window": _windows_json(point),
        "latency": _fields(point.latency),
        "throughput": None if point.throughput is None else _throughput_json(point.throughput),
        "goodput": _fields(point.goodput),
        "answers": _fields(point.answers),
        "memory": _fields(point.memory),
        "energy": None if point.energy is None else _energy_json(point.energy),
        "extra": _fields(point.extra) or {},
        "faults": point.faults,
        "figures": {o.name: _figure_json(o, m) for o, m in measured if m != NOTHING},
        "edge_errors": {o.name: m.edge_error for o, m in measured if m.edge_error is not None},
        "bimodal": {o.name: asdict(m.modes) for o, m in measured if m.modes is not None},
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
            "phases": workload.phases.model_dump(mode="json", exclude={"cap_s"})
            if workload.phases
            else None,
            "slo": workload.slo.model_dump(mode="json"),
        },
        "device": asdict(point.identity.device),
    }


def _figure_json(objective: Objective, measured: Measurement) -> dict[str, Any]:
    """Any figure that candidates are compared by, under one form."""
    return {
        "value": measured.value,
        "unit": objective.unit,
        "standard_error": measured.standard_error,
        "edge_error": measured.edge_error,
        "n": measured.n,
        "reason": measured.reason,
    }


def _fields(value: Any) -> dict[str, Any] | None:
    """A dataclass by its fields."""
    return None if value is None else asdict(value)


def _windows_json(point: Point) -> dict[str, Any] | None:
    if point.window is None:
        return None
    steady = _window_json(point.window)
    if point.ml_energy_window is None:
        return steady
    return steady | {"ml_energy": _window_json(point.ml_energy_window)}


def _window_json(window: Window) -> dict[str, Any]:
    """Evidence without what was not worked out."""
    evidence = asdict(window.evidence)
    return {
        "definition": window.definition,
        "start_unix_ns": window.start_unix_ns,
        "end_unix_ns": window.end_unix_ns,
        "duration_s": window.duration_s,
        "reasons": list(window.reasons),
        "evidence": {name: value for name, value in evidence.items() if value is not None},
    }


def _throughput_json(found: Throughput) -> dict[str, Any]:
    return {
        "output_tokens": found.output_tokens,
        "input_tokens": found.input_tokens,
        "completions": found.completions,
        "output_tokens_per_s": found.output.value,
        "output_tokens_per_s_se": found.output.standard_error,
        "total_tokens_per_s": found.total.value,
        "total_tokens_per_s_se": found.total.standard_error,
        "requests_per_s": found.requests.value,
        "requests_per_s_se": found.requests.standard_error,
        "tokens_per_chunk": found.tokens_per_chunk,
        "estimator": found.estimator,
        "cycles": found.cycles,
        "cycles_per_user": found.cycles_per_user,
        "little_ratio": found.little,
        "reason": found.reason,
    }


def _energy_json(found: PointEnergy) -> dict[str, Any]:
    return asdict(found.result) | {
        "phase": _fields(found.phase),
        "attributed": asdict(found.attributed),
    }


def _difference_json(whole: Study, difference: Difference) -> dict[str, Any]:
    return {
        **_scenario_json(whole, difference.scenario),
        "objective": difference.objective.name,
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
        **_scenario_json(whole, decision.scenario),
        "objective": decision.objective.name,
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


def _gate_json(gate: Gate) -> dict[str, Any]:
    """Without the candidates' settings, which stand with the points."""
    whole = asdict(gate)
    return {n: v for n, v in whole.items() if n not in ("candidate", "reference_candidate")}


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
        "found": asdict(crossing.found)
        | {"shares": {course.value: share for course, share in crossing.found.shares.items()}},
    }


def summary(whole: Study) -> dict[str, Any]:
    """The machine-readable form of the report, without the path of this machine."""
    return {
        "schema_version": SCHEMA_VERSION,
        "made_unix_ns": time.time_ns(),
        "objective": whole.objective.name,
        "answer": answer(whole),
        "headline": headline(whole),
        "sentences": summary_sentences(whole),
        "points": [_point_json(point) for point in whole.points],
        "cells": [
            {
                **_scenario_json(whole, cell.scenario),
                "weights": cell.weights,
                "backend": cell.backend,
                "run_ids": [point.run_id for point in cell.starts],
                "latency_pooled": asdict(cell.latency),
            }
            for cell in whole.cells
        ],
        "differences": [_difference_json(whole, each) for each in whole.differences],
        "bottlenecks": [
            {"run_id": run_id, **asdict(found), "uses": [asdict(u) for u in whole.uses[run_id]]}
            for run_id, found in whole.bottlenecks.items()
        ],
        "beaten_ceilings": whole.beaten,
        "gates": [_gate_json(gate) for gate in whole.gates],
        "verifications": [asdict(verification) for verification in whole.verifications],
        "heat_maps": [asdict(heat_map) for heat_map in whole.heat_maps],
        "standings": [
            {
                "model": model,
                "context_tokens": context,
                "backend": whole.labels.candidates.get(who, who.backend_label),
                **asdict(standing),
            }
            for (model, context), by_candidate in whole.standings.items()
            for who, standing in by_candidate.items()
        ],
        "eligible": [
            {**_scenario_json(whole, scenario), "backend": label, **asdict(each)}
            for (scenario, candidate), each in whole.eligible.items()
            if (label := whole.labels.candidates.get(candidate)) is not None
        ],
        "left_out": [asdict(server) for server in whole.unmeasured],
        "crossings": [_crossing_json(crossing) for crossing in whole.crossings],
        "decisions": [_decision_json(whole, decision) for decision in whole.decisions],
    }


def write_summary(whole: Study, path: Path) -> None:
    write_atomic(path, json.dumps(summary(whole), indent=1, allow_nan=False) + "\n")

"""A CSV file of all points for a spreadsheet: one row a point, two columns (value and n) a figure."""

import csv
import io
from pathlib import Path
from typing import Any, Final

from analysis.objectives import OBJECTIVES
from analysis.point.point import Point
from analysis.study import Study
from greenbench.contract.run_dir import write_atomic

FORMULA: Final = ("=", "+", "-", "@", "\t", "\r")  # what a spreadsheet would work out


def write_points(whole: Study, path: Path) -> None:
    """What was not measured is an empty cell. A point that may not be used says why and has no figure."""
    rows = [_row(point) for point in whole.points]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_atomic(path, text.getvalue())


def _row(point: Point) -> dict[str, Any]:
    named: dict[str, Any] = {
        "run_id": point.run_id,
        "status": point.status,
        "reasons": "; ".join(point.reasons),
        "model": point.candidate.model,
        "backend": point.candidate.backend_label,
        "compared_as": point.backend,
        "proof": point.proof,
        "execution": point.candidate.execution,
        "device": point.identity.device.kind.words,
        "task": point.task,
        "context_tokens": point.context_tokens,
        "load": point.load,
        "repeat": point.repeat,
    }
    row = {name: _cell(value) for name, value in named.items()}
    for objective in OBJECTIVES:
        measured = objective.measure(point)
        row[f"{objective.name} ({objective.unit})"] = measured.value
        row[f"{objective.name} n"] = measured.n
    return row


def _cell(value: Any) -> Any:
    """Text of others stays text."""
    return f"'{value}" if isinstance(value, str) and value.startswith(FORMULA) else value

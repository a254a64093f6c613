"""Which backends may not win where: by their answers at a length, or by a failed verification everywhere."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from analysis.gates import Gate
from analysis.load import Run

Barred = dict[tuple[str, int], dict[str, str]]  # (model, context) → backend → why


@dataclass(frozen=True)
class Verification:
    """One ``verify.json``: a backend's log-probabilities against the reference's."""

    model: str
    backend: str
    reference: str
    verdict: str  # pass | fail | not_comparable
    reasons: list[str]
    steps: int | None = None
    same_choice: int | None = None
    typical_gap_nats: float | None = None
    worst_gap_nats: float | None = None
    doubts: list[str] = field(default_factory=list)  # of the reference itself


def verifications(root: Path) -> list[Verification]:
    """Every ``verify/<backend>/verify.json`` of a sweep, or of the sweeps below ``root``."""
    found: list[Verification] = []
    for path in sorted({*root.glob("verify/*/verify.json"), *root.glob("*/verify/*/verify.json")}):
        raw = json.loads(path.read_text())
        found.append(
            Verification(
                model=str(raw.get("model")),
                backend=str(raw.get("label")),
                reference=str(raw.get("reference")),
                verdict=str(raw.get("verdict")),
                reasons=[str(reason) for reason in raw.get("reasons", [])],
                steps=raw.get("steps"),
                same_choice=raw.get("same_choice"),
                typical_gap_nats=raw.get("typical_gap_nats"),
                worst_gap_nats=raw.get("worst_gap_nats"),
                doubts=[str(doubt) for doubt in raw.get("doubts", [])],
            )
        )
    return found


def barred(found: Sequence[Gate], checked: Sequence[Verification], runs: Sequence[Run]) -> Barred:
    """Who may not win where: by answers at that length, or everywhere by a failed verification."""
    out: Barred = {}
    for gate in found:
        if gate.barred:
            place = out.setdefault((gate.model, gate.context_tokens), {})
            place.setdefault(gate.backend, f"{gate.task}: {gate.sentence}")
    failed = {
        (
            v.model,
            v.backend,
        ): f"it fails verification against {v.reference}: {'; '.join(v.reasons[:1])}"
        for v in checked
        if v.verdict == "fail"
    }
    for run in runs:
        why = failed.get((run.point.model.name, run.label))
        if why is not None:
            place = out.setdefault((run.point.model.name, run.point.context_tokens), {})
            place.setdefault(run.label, why)
    return out

"""What is compared: backends of one model; where the runs hold several models, model and backend together.

State-space against attention is a choice of model, so over several models an arm is both. Answers and
verifications are judged within a model before this (``gates``): two models have no answers in common.
"""

from collections.abc import Sequence
from dataclasses import replace

from analysis.barring import Barred, Verification
from analysis.gates import Gate
from analysis.points import Point

Arms = dict[tuple[str, str], str]  # (model, backend) → label; empty where there is one model only


def arms(points: Sequence[Point]) -> Arms:
    """``tiny-mamba2`` where every model ran on one backend, else ``tiny-mamba2 · cpu_attn``."""
    pairs = list(dict.fromkeys((p.model, p.backend) for p in points if p.status != "superseded"))
    models = [model for model, _ in pairs]
    if len(set(models)) < 2:
        return {}
    return {
        (model, backend): model if models.count(model) == 1 else f"{model} · {backend}"
        for model, backend in pairs
    }


def together(found: Arms) -> str:
    """What stands in the place of the model's name when arms of several models are compared."""
    return f"{len({model for model, _ in found})} models"


def label_points(points: Sequence[Point], found: Arms) -> list[Point]:
    """The points under their arm's name, at one place for all models."""
    return [
        replace(point, model=together(found), backend=found[point.model, point.backend])
        if (point.model, point.backend) in found
        else point
        for point in points
    ]


def label_gates(gates: Sequence[Gate], found: Arms) -> list[Gate]:
    return [
        replace(
            gate,
            backend=found.get((gate.model, gate.backend), gate.backend),
            reference=found.get((gate.model, gate.reference), gate.reference),
        )
        for gate in gates
    ]


def label_verifications(checked: Sequence[Verification], found: Arms) -> list[Verification]:
    return [replace(v, backend=found.get((v.model, v.backend), v.backend)) for v in checked]


def label_barred(barred: Barred, found: Arms) -> Barred:
    if not found:
        return barred
    out: Barred = {}
    for (model, context), backends in barred.items():
        for backend, why in backends.items():
            label = found.get((model, backend), backend)
            out.setdefault((together(found), context), {})[label] = why
    return out

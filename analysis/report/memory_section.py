"""The report's memory section: what a server keeps, apart from what its KV pool reserves."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from analysis.point.point import Point


@dataclass(frozen=True)
class MemoryRow:
    """One model and backend. ``figures``: fields of MemoryResult; ``fits``: by context."""

    model: str
    backend: str
    figures: dict[str, Any]
    peak_bytes: int | None  # highest of all its points
    kv_usage_peak: float | None
    fits: dict[int, int]
    reasons: list[str]


def memory_rows(points: Iterable[Point]) -> tuple[list[MemoryRow], list[int]]:
    """Rows in order of model and backend, and the context lengths that any row has a figure for."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for point in points:
        if point.usable and point.memory:
            groups.setdefault((point.model, point.backend), []).append(point.memory)
    rows = [_row(model, backend, held) for (model, backend), held in sorted(groups.items())]
    return rows, sorted({context for row in rows for context in row.fits})


def _row(model: str, backend: str, held: Sequence[dict[str, Any]]) -> MemoryRow:
    fits: dict[int, int] = {}
    for memory in held:
        fits |= memory["sequences_that_fit"]
    return MemoryRow(
        model=model,
        backend=backend,
        figures={name: _first(memory[name] for memory in held) for name in held[0]},
        peak_bytes=max(
            (m["peak_bytes"] for m in held if m["peak_bytes"] is not None), default=None
        ),
        kv_usage_peak=max(
            (m["kv_usage_peak"] for m in held if m["kv_usage_peak"] is not None), default=None
        ),
        fits=fits,
        reasons=list(dict.fromkeys(reason for memory in held for reason in memory["reasons"])),
    )


def _first(values: Iterable[Any]) -> Any:
    return next((value for value in values if value is not None), None)

"""The report's memory section: what a server keeps, apart from what its KV pool reserves."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from analysis.point.memory import MemoryResult
from analysis.point.point import Point

Value = TypeVar("Value")


@dataclass(frozen=True)
class MemoryRow:
    """One model and backend: of each figure of MemoryResult the first that is known; peaks are the highest
    of all its points. ``fits``: sequences by context.
    """

    model: str
    backend: str
    peak_bytes: int | None
    peak_source: str | None
    weights_bytes: int | None
    activation_peak_bytes: int | None
    graph_bytes: int | None
    kv_pool_bytes: int | None
    kv_pool_tokens: int | None
    kv_usage_peak: float | None
    kv_bytes_per_token: int | None
    kv_bytes_per_token_paid: float | None
    state_bytes_per_sequence: int | None
    fits: dict[int, int]
    reasons: list[str]


def memory_rows(points: Iterable[Point]) -> tuple[list[MemoryRow], list[int]]:
    """Rows in order of model and backend, and the context lengths that any row has a figure for."""
    groups: dict[tuple[str, str], list[MemoryResult]] = {}
    for point in points:
        if point.usable and point.memory is not None:
            groups.setdefault((point.model, point.backend), []).append(point.memory)
    rows = [_row(model, backend, held) for (model, backend), held in sorted(groups.items())]
    return rows, sorted({context for row in rows for context in row.fits})


def _row(model: str, backend: str, held: Sequence[MemoryResult]) -> MemoryRow:
    fits: dict[int, int] = {}
    for memory in held:
        fits |= memory.sequences_that_fit

    def first(pick: Callable[[MemoryResult], Value | None]) -> Value | None:
        return next((value for memory in held if (value := pick(memory)) is not None), None)

    return MemoryRow(
        model=model,
        backend=backend,
        peak_bytes=max((m.peak_bytes for m in held if m.peak_bytes is not None), default=None),
        peak_source=first(lambda m: m.peak_source),
        weights_bytes=first(lambda m: m.weights_bytes),
        activation_peak_bytes=first(lambda m: m.activation_peak_bytes),
        graph_bytes=first(lambda m: m.graph_bytes),
        kv_pool_bytes=first(lambda m: m.kv_pool_bytes),
        kv_pool_tokens=first(lambda m: m.kv_pool_tokens),
        kv_usage_peak=max(
            (m.kv_usage_peak for m in held if m.kv_usage_peak is not None), default=None
        ),
        kv_bytes_per_token=first(lambda m: m.kv_bytes_per_token),
        kv_bytes_per_token_paid=first(lambda m: m.kv_bytes_per_token_paid),
        state_bytes_per_sequence=first(lambda m: m.state_bytes_per_sequence),
        fits=fits,
        reasons=list(dict.fromkeys(reason for memory in held for reason in memory.reasons)),
    )

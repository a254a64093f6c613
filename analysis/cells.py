"""A cell of the tables: one backend at one place (model, task, context, load), over all its server starts.

Throughput is kept a value a start. Latency percentiles are taken over the pooled requests of the
starts, because percentiles of single starts must not be averaged.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.metrics import statistic
from analysis.points import Point

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
Samples = dict[
    str, dict[str, np.ndarray]
]  # run id -> latency name -> one value a request (or token)


@dataclass(frozen=True)
class Cell:
    """``starts`` usable points of ``backend`` at one place; ``points`` are all of them, unusable ones too."""

    model: str
    weights: str
    task: str
    context_tokens: int
    load: str
    backend: str
    points: list[Point]
    latency: dict[str, dict[str, Any]]

    @property
    def starts(self) -> list[Point]:
        return [point for point in self.points if point.usable]

    @property
    def place(self) -> tuple[str, str, int, str]:
        return self.model, self.task, self.context_tokens, self.load

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests of the measured phase by error type, over all usable starts."""
        found: dict[str, int] = {}
        for point in self.starts:
            for kind, n in point.errors.items():
                found[kind] = found.get(kind, 0) + n
        return found

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def values(self, group: str, name: str) -> list[float]:
        """One value a usable start, those that have none left out. ``group`` may be a path: energy.gross."""
        first, *rest = group.split(".")
        found: list[float | None] = []
        for point in self.starts:
            held = getattr(point, first) or {}
            for key in rest:
                held = held.get(key) or {}
            found.append(held.get(name))
        return [float(value) for value in found if value is not None]

    def mean(self, group: str, name: str) -> float | None:
        values = self.values(group, name)
        return float(np.mean(values)) if values else None


def cells(points: Iterable[Point], samples: Samples) -> list[Cell]:
    """Cells in the order of the tables: model, task, load, context, backend."""
    groups: dict[tuple[Any, ...], list[Point]] = {}
    for point in points:
        if point.status == "superseded":
            continue
        key = (point.model, point.task, _load_key(point), point.context_tokens, point.backend)
        groups.setdefault(key, []).append(point)
    return [
        _cell(members, samples) for _, members in sorted(groups.items(), key=lambda item: item[0])
    ]


def _load_key(point: Point) -> tuple[int, float, str]:
    """Closed loads by users, then open loads by rate."""
    return (0 if point.users else 1, float(point.users or point.rate_per_s or 0), point.load)


def _cell(members: list[Point], samples: Samples) -> Cell:
    first = members[0]
    usable = [point for point in members if point.usable]
    pooled = (
        usable[0].latency or {}  # one start: its own statistics are the pooled ones
        if len(usable) == 1
        else {
            name: asdict(
                statistic(
                    np.concatenate([samples[p.run_id][name] for p in usable] or [np.empty(0)]),
                    interval=name != "itl_s",
                )
            )
            for name in LATENCIES
        }
    )
    tails = [p.extra.get("itl_tail_in_doubt") for p in usable]
    if len(usable) > 1 and any(tails):
        reason = next(reason for reason in tails if reason)
        pooled["itl_s"] |= {"p90": None, "p99": None}
        pooled["itl_s"]["refused"] = [*pooled["itl_s"]["refused"], f"p90, p99: {reason}"]
    return Cell(
        model=first.model,
        weights=first.weights,
        task=first.task,
        context_tokens=first.context_tokens,
        load=first.load,
        backend=first.backend,
        points=members,
        latency=pooled,
    )

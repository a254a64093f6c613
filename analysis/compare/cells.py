"""A cell of the tables: one candidate at one workload on one kind of device, over all its server starts.

Throughput is kept a value a start. Latency percentiles are taken over the pooled requests of the
starts, because percentiles of single starts must not be averaged.
"""

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from analysis.objectives import Objective
from analysis.point.point import Point
from analysis.runs.identity import Candidate, Place
from analysis.statistics.samples import statistic

LATENCIES = ("ttft_s", "tpot_s", "itl_s", "e2e_s")
Samples = dict[
    str, dict[str, np.ndarray]
]  # run id -> latency name -> one value a request (or token)


@dataclass(frozen=True)
class Cell:
    """``starts`` are the usable points of ``candidate`` at ``place``; ``points`` all of them."""

    place: Place
    candidate: Candidate
    backend: str  # labels of candidate, task and load
    task: str
    load: str
    points: list[Point]
    latency: dict[str, dict[str, Any]]

    @property
    def model(self) -> str:
        return self.place.model

    @property
    def weights(self) -> str:
        return self.candidate.weights

    @property
    def context_tokens(self) -> int:
        return self.place.context_tokens

    @property
    def starts(self) -> list[Point]:
        return [point for point in self.points if point.usable]

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

    def values(self, objective: Objective) -> list[float]:
        """One value a usable start, those that have none left out."""
        found = [objective.value(point) for point in self.starts]
        return [value for value in found if value is not None]

    def edge(self, objective: Objective) -> float:
        """The largest relative error of the window's edges over the usable starts; 0 where none is known."""
        return max((p.edge_errors.get(objective.name, 0.0) for p in self.starts), default=0.0)

    def mean(self, objective: Objective) -> float | None:
        values = self.values(objective)
        return float(np.mean(values)) if values else None


def cells(points: Iterable[Point], samples: Samples) -> list[Cell]:
    """Cells in the order of the tables: model, task, load, context, backend."""
    groups: dict[tuple[Place, Candidate], list[Point]] = {}
    for point in points:
        if point.status != "superseded":
            groups.setdefault((point.place, point.candidate), []).append(point)
    found = [_cell(members, samples) for members in groups.values()]
    return sorted(
        found,
        key=lambda c: (c.model, c.task, load_order(c.place), c.load, c.context_tokens, c.backend),
    )


def load_order(place: Place) -> tuple[int, float]:
    """Closed loads by users, then open loads by rate."""
    load = place.workload.load
    return (0 if load.users else 1, float(load.users or load.rate_per_s or 0))


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
        place=first.place,
        candidate=first.candidate,
        backend=first.backend,
        task=first.task,
        load=first.load,
        points=members,
        latency=pooled,
    )

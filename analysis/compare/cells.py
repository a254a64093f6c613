"""A cell of the tables: one candidate at one workload on one kind of device, over all its server starts.

Throughput is kept a value a start. Latency percentiles are taken over the pooled requests of the
starts, because percentiles of single starts must not be averaged.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.objectives import Objective
from analysis.point.latency import Latencies, latencies, pooled, without_tail
from analysis.point.point import Point
from analysis.runs.identity import Candidate, Scenario


@dataclass(frozen=True)
class Cell:
    """``starts`` are the usable points of ``candidate`` at ``scenario``; ``points`` all of them."""

    scenario: Scenario
    candidate: Candidate
    backend: str  # labels of candidate, task and load
    task: str
    load: str
    points: list[Point]
    latency: Latencies

    @property
    def model(self) -> str:
        return self.scenario.model

    @property
    def weights(self) -> str:
        return self.candidate.weights

    @property
    def context_tokens(self) -> int:
        return self.scenario.context_tokens

    @property
    def starts(self) -> list[Point]:
        return [point for point in self.points if point.usable]

    @property
    def errors(self) -> dict[str, int]:
        """Failed requests of the measured phase by error type, over all usable starts."""
        counts: Counter[str] = Counter()
        for point in self.starts:
            counts.update(point.errors)
        return dict(counts)

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    def values(self, objective: Objective) -> list[float]:
        """One value a usable start, those that have none left out."""
        held = [objective.value(point) for point in self.starts]
        return [value for value in held if value is not None]

    def edge(self, objective: Objective) -> float:
        """The largest relative error of the window's edges over the usable starts; 0 where none is known."""
        edges = [objective.measure(point).edge_error or 0.0 for point in self.starts]
        return max(edges, default=0.0)

    def mean(self, objective: Objective) -> float | None:
        values = self.values(objective)
        return float(np.mean(values)) if values else None


def cells(points: Iterable[Point]) -> list[Cell]:
    """Cells in the order of the tables: model, task, load, context, backend."""
    groups: dict[tuple[Scenario, Candidate], list[Point]] = {}
    for point in points:
        if point.status != "superseded":
            groups.setdefault((point.scenario, point.candidate), []).append(point)
    return sorted(
        map(_cell, groups.values()),
        key=lambda c: (
            c.model,
            c.task,
            load_order(c.scenario),
            c.load,
            c.context_tokens,
            c.backend,
        ),
    )


def load_order(scenario: Scenario) -> tuple[int, float]:
    """Closed loads by users, then open loads by rate."""
    load = scenario.workload.load
    return (0 if load.users else 1, float(load.users or load.rate_per_s or 0))


def _cell(members: list[Point]) -> Cell:
    first = members[0]
    return Cell(
        scenario=first.scenario,
        candidate=first.candidate,
        backend=first.backend,
        task=first.task,
        load=first.load,
        points=members,
        latency=_pooled_latency([point for point in members if point.usable]),
    )


def _pooled_latency(starts: Sequence[Point]) -> Latencies:
    if len(starts) == 1 and starts[0].latency is not None:
        return starts[0].latency  # its own statistics are the pooled ones
    found = latencies(pooled(p.values for p in starts if p.values is not None))
    doubts = [p.extra.itl_tail_in_doubt for p in starts if p.extra is not None]
    return without_tail(found, next((why for why in doubts if why is not None), None))

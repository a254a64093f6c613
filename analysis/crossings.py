"""Crossovers of every pair of backends, by every objective that has a physical form over context."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from analysis.cells import Cell
from analysis.crossover import MIN_STARTS, Crossover, Curve, crossover
from analysis.differences import OBJECTIVES, Floor, noise_floor
from analysis.points import Point

Samples = Mapping[str, Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Cost:
    """Something that grows with context in a known form. ``sample`` names its per-request values."""

    name: str
    title: str
    unit: str
    form: str
    path: tuple[str, ...]
    sample: str | None
    floor_of: str  # objective whose A/A noise applies


COSTS: tuple[Cost, ...] = (
    Cost(
        "ttft",
        "Time to first token",
        "s",
        "quadratic",
        ("latency", "ttft_s", "p50"),
        "ttft_s",
        "ttft",
    ),
    Cost(
        "itl", "Time per output token", "s", "linear", ("latency", "tpot_s", "p50"), "tpot_s", "itl"
    ),
    Cost("e2e", "Whole request", "s", "quadratic", ("latency", "e2e_s", "p50"), "e2e_s", "e2e"),
    Cost(
        "energy",
        "J per output token",
        "J",
        "quadratic",
        ("energy", "gross", "j_per_output_token"),
        None,
        "energy",
    ),
    Cost(
        "sequence",
        "KV pool a sequence takes",
        "share",
        "linear",
        ("extra", "kv_share_per_sequence"),
        None,
        "memory",
    ),
)


@dataclass(frozen=True)
class Crossing:
    """The crossover of two backends by one cost at one model, task and load."""

    model: str
    task: str
    load: str
    cost: Cost
    output_tokens: int | None  # what the whole request includes
    a: str
    b: str
    found: Crossover
    measured: dict[str, list[float]]  # backend -> cost at each context, for plotting
    contexts: list[int]


def crossings(cells: Sequence[Cell], points: Sequence[Point], samples: Samples) -> list[Crossing]:
    """Each pair × cost × (model, task, load) that shares at least two contexts."""
    groups: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        if cell.starts:
            groups.setdefault((cell.model, cell.task, cell.load), []).append(cell)
    floors = {o.name: noise_floor(points, o) for o in OBJECTIVES}
    found: list[Crossing] = []
    for (model, task, load), members in groups.items():
        for cost in COSTS:
            for a, b in combinations(sorted({cell.backend for cell in members}), 2):
                pair = _pair(members, (a, b), cost, samples)
                if pair is None:
                    continue
                starts = len(pair[0].starts)
                result = crossover(
                    (a, b), pair, cost.form, _floor(floors.get(cost.floor_of), starts)
                )
                found.append(
                    Crossing(
                        model=model,
                        task=task,
                        load=load,
                        cost=cost,
                        output_tokens=_output_tokens(members),
                        a=a,
                        b=b,
                        found=result,
                        measured={a: pair[0].centre.tolist(), b: pair[1].centre.tolist()},
                        contexts=list(pair[0].contexts),
                    )
                )
    return found


def _floor(floor: Floor | None, starts: int) -> float:
    return floor.half_width(starts) if floor and starts >= MIN_STARTS else 0.0


def _value(point: Point, path: tuple[str, ...]) -> float | None:
    found: object = getattr(point, path[0])
    for key in path[1:]:
        found = found.get(key) if isinstance(found, dict) else None
    return float(found) if isinstance(found, int | float) and found > 0 else None


def _pair(
    members: Sequence[Cell], names: tuple[str, str], cost: Cost, samples: Samples
) -> tuple[Curve, Curve] | None:
    """Curves over the contexts both have; by blocks that both have in full, or pooled when too few."""
    table: dict[str, dict[int, dict[int, float]]] = {}  # backend → context → block → value
    for cell in members:
        if cell.backend in names:
            for point in cell.starts:
                value = _value(point, cost.path)
                if value is not None and point.arm == 0:
                    by_block = table.setdefault(cell.backend, {}).setdefault(
                        cell.context_tokens, {}
                    )
                    by_block[point.repeat] = value
    if len(table) < 2:
        return None
    contexts = sorted(set(table[names[0]]) & set(table[names[1]]))
    if len(contexts) < 2:
        return None
    blocks = set.intersection(*(set(table[name][c]) for name in names for c in contexts))
    if len(blocks) >= MIN_STARTS:
        first, second = (
            Curve(
                tuple(contexts),
                np.array([[table[name][c][block] for c in contexts] for block in sorted(blocks)]),
            )
            for name in names
        )
        return first, second
    if cost.sample is None:
        return None
    first, second = (_pooled(members, name, contexts, cost.sample, samples) for name in names)
    return first, second


def _pooled(
    members: Sequence[Cell], name: str, contexts: list[int], sample: str, samples: Samples
) -> Curve:
    """One row: the median over the requests of all starts, with those requests to redraw from."""
    requests: list[np.ndarray] = []
    for context in contexts:
        own = [c for c in members if c.backend == name and c.context_tokens == context]
        values = np.concatenate([samples[p.run_id][sample] for c in own for p in c.starts])
        requests.append(values[~np.isnan(values)])
    medians = np.array([[float(np.median(values)) for values in requests]])
    return Curve(tuple(contexts), medians, requests)


def _output_tokens(members: Sequence[Cell]) -> int | None:
    """Tokens a request generated, where all of them generated the same."""
    counts = {
        point.extra.get("output_tokens_per_request") for cell in members for point in cell.starts
    }
    only = counts.pop() if len(counts) == 1 else None
    return int(only) if isinstance(only, int | float) else None

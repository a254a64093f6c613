"""The decision table: per place and objective the backend to take, ties shown as ties."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from analysis.differences import OBJECTIVES, Difference, Objective
from analysis.points import Point

Place = tuple[str, str, int, str]  # model, task, context, load


@dataclass(frozen=True)
class Decision:
    """``best`` leads; ``tied``: not shown to be beaten; ``tested``: False with one start each."""

    place: Place
    objective: str
    best: str
    value: float  # geometric mean over its starts, in the objective's unit
    starts: int
    tied: list[str]
    beaten: list[str]
    tested: bool
    barred: dict[str, str] = field(default_factory=dict)  # backend -> why it may not win here

    @property
    def winner(self) -> str | None:
        """The backend that is better than every other, or None where there is no such one."""
        return self.best if self.tested and not self.tied and self.beaten else None


def decisions(
    points: Sequence[Point],
    found: Iterable[Difference],
    barred: Mapping[tuple[str, int], Mapping[str, str]] | None = None,
) -> list[Decision]:
    """One per place × objective that at least one backend has a value for.

    ``barred`` maps (model, context) to backends that may not win at that length, with the reason.
    """
    by_pair: dict[tuple[object, ...], Difference] = {
        (d.model, d.task, d.context_tokens, d.load, d.objective, d.a, d.b): d for d in found
    }
    made: list[Decision] = []
    for place in dict.fromkeys(point.place for point in points if point.usable):
        here = [point for point in points if point.usable and point.place == place]
        out = dict((barred or {}).get((place[0], place[2]), {}))
        for objective in OBJECTIVES:
            decision = _decide(place, objective, here, by_pair, out)
            if decision is not None:
                made.append(decision)
    return made


def _decide(
    place: Place,
    objective: Objective,
    here: list[Point],
    by_pair: Mapping[tuple[object, ...], Difference],
    barred: dict[str, str],
) -> Decision | None:
    values: dict[str, list[float]] = {}
    for point in here:
        value = objective.value(point)
        if value is not None and point.backend not in barred:
            values.setdefault(point.backend, []).append(value)
    if not values:
        return None
    means = {name: float(np.exp(np.mean(np.log(each)))) for name, each in values.items()}
    ranked = sorted(means, key=lambda name: means[name], reverse=objective.higher_is_better)
    best, others = ranked[0], ranked[1:]
    verdicts = {other: _verdict_over(place, objective, best, other, by_pair) for other in others}
    return Decision(
        place=place,
        objective=objective.name,
        best=best,
        value=means[best],
        starts=len(values[best]),
        tied=[name for name in others if verdicts[name] != "better"],
        beaten=[name for name in others if verdicts[name] == "better"],
        tested=bool(others) and all(v not in ("untested", None) for v in verdicts.values()),
        barred=barred,
    )


def _verdict_over(
    place: Place,
    objective: Objective,
    best: str,
    other: str,
    by_pair: Mapping[tuple[object, ...], Difference],
) -> str | None:
    """What was found of ``best`` against ``other``, whichever way round the pair was compared."""
    forward = by_pair.get((*place, objective.name, best, other))
    if forward is not None:
        return forward.verdict
    backward = by_pair.get((*place, objective.name, other, best))
    if backward is None:
        return None
    return {"better": "worse", "worse": "better"}.get(backward.verdict, backward.verdict)

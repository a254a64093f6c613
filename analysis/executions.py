"""CUDA graphs are a confounder: points of another execution (eager, piecewise, full) have another ranking.

By default the execution is part of the load's label, which is part of the place that two backends must share
to be compared. Told to compare across them, it becomes part of the backend's name instead.
"""

from collections.abc import Sequence
from dataclasses import replace

from analysis.barring import Barred
from analysis.formats import MARK
from analysis.points import Point


def executions(points: Sequence[Point]) -> list[str]:
    """Every execution that ran, sorted; points measured again later do not count."""
    return sorted({point.execution for point in points if point.status != "superseded"})


def apart(points: Sequence[Point]) -> list[Point]:
    """The points with the execution in their load, where there is more than one."""
    if len(executions(points)) < 2:
        return list(points)
    return [replace(point, load=f"{point.load}{MARK}{point.execution}") for point in points]


def together(points: Sequence[Point], barred: Barred) -> tuple[list[Point], Barred]:
    """Points and who is barred, with the execution in the backend's name, where there is more than one."""
    found = executions(points)
    if len(found) < 2:
        return list(points), barred
    named = [replace(point, backend=f"{point.backend}{MARK}{point.execution}") for point in points]
    out = {
        place: {
            f"{name}{MARK}{execution}": why for name, why in names.items() for execution in found
        }
        for place, names in barred.items()
    }
    return named, out


def execution_of(load: str) -> str:
    """The execution in a load's label; empty where all points have the same."""
    return load.partition(MARK)[2]

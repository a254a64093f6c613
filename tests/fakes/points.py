"""Reading a point as the registry of objectives does."""

from analysis.objectives import objective
from analysis.point.point import Point


def edge(point: Point, name: str) -> float:
    """Relative error of the window's edges, by an objective's name; 0 where none is known."""
    return objective(name).measure(point).edge_error or 0.0


def value(point: Point, name: str) -> float:
    """The point's value by an objective's name; it must have one."""
    found = objective(name).value(point)
    assert found is not None, (name, point.reasons)
    return found

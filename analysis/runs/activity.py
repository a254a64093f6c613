"""Which requests were in the server when, and a sampled quantity over time."""

import math
from dataclasses import dataclass

import numpy as np
import pandas as pd

from greenbench.contract.clock import NS_PER_S


@dataclass(frozen=True)
class Series:
    """A sampled quantity: ``unix_ns`` ascending, one value each."""

    unix_ns: np.ndarray
    values: np.ndarray

    def within(self, start_ns: float, end_ns: float) -> "Series":
        keep = (self.unix_ns >= start_ns) & (self.unix_ns < end_ns)
        return Series(self.unix_ns[keep], self.values[keep])


@dataclass(frozen=True)
class Activity:
    """When each request was in the server: ``start_ns`` and ``end_ns`` (unix), sorted by start.

    ``held_ns``: until when it kept its user: with a pause between turns the sending of the user's next.
    """

    start_ns: np.ndarray
    end_ns: np.ndarray
    held_ns: np.ndarray | None = None

    @property
    def held(self) -> "Activity":
        """The same with a user's pauses counted as open: of these a closed load has its target."""
        return self if self.held_ns is None else Activity(self.start_ns, self.held_ns)

    @property
    def mean_residence_s(self) -> float:
        return (
            float(np.mean(self.end_ns - self.start_ns)) / NS_PER_S
            if len(self.start_ns)
            else math.nan
        )


def activity(
    requests: pd.DataFrame, users: np.ndarray | None = None, pause_s: float = 0.0
) -> Activity:
    """Requests that reached the server and have an end; rows that never left the client are left out.

    With ``users`` of each row and the load's pause between turns, a pause belongs to the request before it,
    up to its planned length: what is longer is the client's lateness.
    """
    known = (requests["sent_unix_ns"].notna() & requests["end_ns"].notna()).to_numpy(dtype=bool)
    seen = requests[known]
    start = seen["sent_unix_ns"].to_numpy(dtype=np.int64)
    end = start + seen["end_ns"].to_numpy(dtype=np.int64)
    order = np.argsort(start, kind="stable")
    held = None
    if users is not None and pause_s > 0:
        held = _held(start, end, users[known], seen["turn"].to_numpy(dtype=float), pause_s)[order]
    return Activity(start[order], end[order], held)


def _held(
    start: np.ndarray, end: np.ndarray, user: np.ndarray, turn: np.ndarray, pause_s: float
) -> np.ndarray:
    """Each request's end, or the sending of its user's next turn where that came within the pause."""
    order = np.lexsort((start, user))
    follows = (user[order][1:] == user[order][:-1]) & (turn[order][1:] > 0)
    until = np.minimum(start[order][1:], end[order][:-1] + round(pause_s * NS_PER_S))
    held = end.copy()
    held[order[:-1][follows]] = until[follows]
    return held


def in_flight(load: Activity) -> tuple[np.ndarray, np.ndarray]:
    """Step function of open requests: from ``times[i]`` on, ``levels[i]`` are open."""
    times = np.concatenate([load.start_ns, load.end_ns])
    change = np.repeat([1, -1], len(load.start_ns))
    order = np.lexsort(
        (change, times)
    )  # at one moment the end comes first: a user's next is no second user
    return times[order], np.cumsum(change[order])


def mean_level(times: np.ndarray, levels: np.ndarray, start_ns: float, end_ns: float) -> float:
    """Time-weighted mean of a step function over [start, end)."""
    edges, values = steps_within(times, levels, start_ns, end_ns)
    return float(np.sum(values * np.diff(edges)) / (end_ns - start_ns))


def steps_within(
    times: np.ndarray, levels: np.ndarray, start_ns: float, end_ns: float
) -> tuple[np.ndarray, np.ndarray]:
    first = np.searchsorted(times, start_ns, side="right")
    last = np.searchsorted(times, end_ns, side="left")
    before = levels[first - 1] if first > 0 else 0
    edges = np.concatenate([[round(start_ns)], times[first:last], [round(end_ns)]])
    return edges, np.concatenate([[before], levels[first:last]])


def share_above(
    times: np.ndarray, levels: np.ndarray, at_least: int, span: tuple[float, float]
) -> float:
    """Share of ``span`` in which a step function stands at ``at_least`` or more."""
    edges, values = steps_within(times, levels, *span)
    return float(np.sum(np.diff(edges)[values >= at_least]) / (edges[-1] - edges[0]))

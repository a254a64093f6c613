"""Rates without edges: whole cycles of each user in a closed loop, work spread over its time in an open one.

A closed-loop user's *cycle* reaches from the end of one of its requests to the end of the next, pauses and
failures within. Over whole cycles no token is cut by an edge, whatever the phase of the loop, and by renewal
theory Σ gain / Σ time of the cycles, times the users, is the rate. Every figure here is such a ratio of two
sums over cycles (tokens over seconds, joules over seconds, joules over tokens), with two errors:

* the *standard error* from the cycles' own spread, which differs from start to start;
* the *edge error*, relative: what one round of cycles more or less at an edge changes, root mean square. A
  loop that repeats in every start is cut at the same place in every start, so repeating does not shrink it.

Times are unix nanoseconds, lengths seconds.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from heapq import heappop, heappush
from itertools import pairwise
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.statistics import student_t
from greenbench.contract.clock import NS_PER_S

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

NOBODY = -1  # the user of a request that was never sent
LEAST_CYCLES = 2.5  # whole cycles a user, on average: about three
PRESENT = 0.95  # share of the users that must have a whole cycle
TREND_P = 0.01  # a slope is called a trend below this chance …
TREND_EFFECT = 0.05  # … and where late differs from early by more than this
FEWEST_FOR_TREND = 4  # cycles a user: a line takes two of them
SHIFTS = 8  # places within one residence to which an open loop's edges are moved
SLICES = 16  # of an open loop's window, for its standard error


@dataclass(frozen=True)
class Trend:
    """A slope over the phase that chance does not make: the ratio in the phase's two halves."""

    early: float
    late: float
    p: float

    @property
    def log_change(self) -> float:
        return math.log(self.late / self.early)


@dataclass(frozen=True)
class Ratio:
    """``value`` None: ``reason`` says why. ``edge_error`` is relative and includes half of a trend."""

    value: float | None = None
    standard_error: float | None = None  # absolute
    edge_error: float | None = None
    trend: Trend | None = None
    reason: str | None = None


@dataclass(frozen=True)
class Cycles:
    """Whole cycles, one entry each, by user and in order of time.

    ``request``: row of the frame whose end ended the cycle. ``weight``: 1, or of conversations what makes
    every turn weigh alike. ``users`` are the load's. ``reason`` is set where they are too few for a rate.
    """

    request: Ints
    user: Ints
    start_ns: Ints
    end_ns: Ints
    weight: Floats
    users: int
    reason: str | None = None

    def __len__(self) -> int:
        return len(self.request)

    def only(self, kept: Flags) -> "Cycles":
        """Some of them, each still as long as it was."""
        names = ("request", "user", "start_ns", "end_ns", "weight")
        return replace(self, **{name: getattr(self, name)[kept] for name in names})

    @cached_property
    def seconds(self) -> Floats:
        return (self.end_ns - self.start_ns) / NS_PER_S

    @cached_property
    def changes(self) -> tuple[Ints, Floats]:
        """Starts (0 … n−1) and ends (n … 2n−1) in order of time; the seconds from each to the next."""
        times = np.concatenate((self.start_ns, self.end_ns))
        order = np.argsort(times, kind="stable")
        return order, np.diff(times[order]) / NS_PER_S

    @cached_property
    def per_user(self) -> float:
        """Cycles of a user that has any, on average."""
        present = len(np.unique(self.user))
        return len(self) / present if present else 0.0

    @cached_property
    def number(self) -> Ints:
        """The how-manieth cycle of its user each is, from 0."""
        if not len(self):
            return np.empty(0, dtype=np.int64)
        opens = np.flatnonzero(np.diff(self.user, prepend=self.user[0] - 1))
        lengths = np.diff(np.append(opens, len(self)))
        return np.arange(len(self)) - np.repeat(opens, lengths)


def users_of(requests: pd.DataFrame) -> Ints:
    """The closed-loop user of each request; NOBODY where it was not sent or has no end.

    As recorded; else each request is chained to the user of its conversation, or to the one whose last
    answer ended just before it was sent. ``requests`` in order of sending.
    """
    known = (requests["sent_unix_ns"].notna() & requests["end_ns"].notna()).to_numpy(dtype=bool)
    users = np.full(len(requests), NOBODY, dtype=np.int64)
    recorded = requests["user"] if "user" in requests else pd.Series(index=requests.index)
    if bool(recorded[known].notna().all()):
        users[known] = recorded[known].to_numpy(dtype=np.int64)
        return users
    sent = requests.loc[known, "sent_unix_ns"].to_numpy(dtype=np.int64)
    ends = sent + requests.loc[known, "end_ns"].to_numpy(dtype=np.int64)
    talks = requests.loc[known, "conversation"] if "conversation" in requests else None
    held = [] if talks is None else talks.astype(float).fillna(NOBODY).astype(int).tolist()
    users[known] = _chained(sent.tolist(), ends.tolist(), held)
    return users


def _chained(sent: list[int], ends: list[int], talks: list[int]) -> list[int]:
    """Virtual users: of those whose last request is over, the one whose end is latest."""
    free: list[tuple[int, int]] = []  # (end, user), a stack: ends rise to the top
    open_: list[tuple[int, int]] = []  # heap of (end, user)
    of_talk: dict[int, int] = {}
    owners: list[int] = []
    users = 0
    for number, (start, end) in enumerate(zip(sent, ends, strict=True)):
        while open_ and open_[0][0] <= start:
            free.append(heappop(open_))
        talk = talks[number] if talks else NOBODY
        user = of_talk.get(talk) if talk != NOBODY else None
        place = next((i for i, (_, u) in enumerate(free) if u == user), None) if free else None
        if user is not None and place is not None:
            free.pop(place)
        elif free:
            user = free.pop()[1]
        else:
            user, users = users, users + 1
        if talk != NOBODY:
            of_talk[talk] = user
        owners.append(user)
        heappush(open_, (end, user))
    return owners


def whole_cycles(
    requests: pd.DataFrame, owners: Ints, span_ns: tuple[int, int], users: int, turns: int = 1
) -> Cycles:
    """Each user's whole cycles between its first end in the span and its last but for the slowest's.

    A user stops at its first end after the moment up to which all have had one: stopping at the last end
    before a fixed moment would leave out long cycles more often than short ones. ``owners``: by ``users_of``.
    """
    sent = requests["sent_unix_ns"].astype("Int64").fillna(0).to_numpy(dtype=np.int64)
    ends = sent + requests["end_ns"].fillna(0).to_numpy(dtype=np.int64)
    inside = np.flatnonzero((owners != NOBODY) & (ends >= span_ns[0]) & (ends <= span_ns[1]))
    inside = inside[np.lexsort((ends[inside], owners[inside]))]
    user, end = owners[inside], ends[inside]
    first = np.flatnonzero(np.diff(user, prepend=NOBODY) != 0)
    last = np.append(first[1:], len(user)) - 1
    if not len(inside):
        return _none(users, "no request ended in the window")
    stop_ns = np.sort(end[last])[int((1 - PRESENT) * len(last))]
    before = np.concatenate(([False], (user[1:] == user[:-1]) & (end[:-1] < stop_ns)))
    kept = np.flatnonzero(before)  # its user's end before lies ahead of the stop, and there is one
    cycles = Cycles(inside[kept], user[kept], end[kept - 1], end[kept], np.ones(len(kept)), users)
    turn = requests["turn"].to_numpy(dtype=float) if turns > 1 else np.zeros(len(requests))
    weight, missing = _balanced(turn[cycles.request], turns)
    return replace(cycles, weight=weight, reason=_too_few(cycles, missing))


def _none(users: int, reason: str) -> Cycles:
    empty = np.empty(0, dtype=np.int64)
    return Cycles(empty, empty, empty, empty, np.empty(0), users, reason)


def _balanced(turn: Floats, turns: int) -> tuple[Floats, int]:
    """Weights by which each turn of a conversation counts alike, and how many turns have no cycle."""
    counts = np.array([np.sum(turn == number) for number in range(turns)])
    present = counts > 0
    if turns == 1 or not present.all():
        return np.ones(len(turn)), int(np.sum(~present)) if turns > 1 else 0
    share = len(turn) / (turns * counts)
    return share[turn.astype(int)], 0


def _too_few(cycles: Cycles, missing_turns: int) -> str | None:
    present = len(np.unique(cycles.user))
    if present < PRESENT * cycles.users:
        return f"only {present} of {cycles.users} users ended two requests in the window"
    if len(cycles) < LEAST_CYCLES * present:
        return (
            f"the window holds {cycles.per_user:.1f} whole cycles a user (end of a request to the end of its "
            f"next), about three are needed; a longer measured phase helps"
        )
    if missing_turns:
        return f"{missing_turns} turns of a conversation have no whole cycle in the window"
    return None


def ratio(cycles: Cycles, over: Floats, under: Floats) -> Ratio:
    """Σ over / Σ under of the cycles, with its errors.

    Residuals d = w·(over − value·under) sum to nothing. Cycles of one user follow each other and count as
    independent; those that run side by side count as one as far as they overlap, so that users in step make
    no information of one round: Var = m/(m−1)·∫ (Σ d/√C of the cycles open at t)² dt, m cycles a user.
    """
    if cycles.reason is not None:
        return Ratio(reason=cycles.reason)
    gained, spent = float(cycles.weight @ over), float(cycles.weight @ under)
    if spent <= 0:
        return Ratio(reason="there is nothing to relate it to")
    value = gained / spent
    if gained == 0:
        return Ratio(0.0, 0.0, 0.0)
    rounds = max(cycles.per_user, 2.0)
    residual = cycles.weight * (over - value * under)
    round_sd = math.sqrt(_overlapping(cycles, residual) / (rounds - 1))
    trend = _trend(cycles, over, under, value)
    edge = round_sd / abs(gained)
    if trend is not None:
        edge = math.hypot(edge, trend.log_change / 2)
    return Ratio(value, math.sqrt(rounds) * round_sd / spent, edge, trend)


def _overlapping(cycles: Cycles, residual: Floats) -> float:
    """∫ (Σ d/√C over the cycles open at t)² dt."""
    height = residual / np.sqrt(np.maximum(cycles.seconds, 1e-9))
    order, seconds = cycles.changes
    level = np.cumsum(np.concatenate((height, -height))[order])[:-1]
    return float(level**2 @ seconds)


def _trend(cycles: Cycles, over: Floats, under: Floats, value: float) -> Trend | None:
    """By least squares over the cycles' middles; the slope's error is that of what the line leaves over."""
    rounds = cycles.per_user
    if rounds < FEWEST_FOR_TREND:
        return None
    middle = (cycles.start_ns + cycles.end_ns) / 2.0
    base = cycles.weight * value * under  # how much each cycle counts
    at = middle - np.average(middle, weights=np.abs(base))
    spread = float(np.sum(base * at**2))
    if spread <= 0:
        return None
    at = at / np.ptp(middle)
    spread = float(np.sum(base * at**2))
    residual = cycles.weight * (over - value * under)
    slope = float(np.sum(residual * at)) / spread  # relative, from the first middle to the last
    left = residual - slope * base * at
    error = math.sqrt(_overlapping(cycles, left * at) * rounds / (rounds - 2)) / spread
    half_ns = (float(cycles.start_ns.min()) + float(cycles.end_ns.max())) / 2
    early, late = middle < half_ns, middle >= half_ns
    weighted = cycles.weight * over, cycles.weight * under
    halves = [float(weighted[0][half].sum() / weighted[1][half].sum()) for half in (early, late)]
    if min(halves) <= 0 or abs(math.log(halves[1] / halves[0])) < TREND_EFFECT:
        return None
    p = 2 * float(student_t.sf(abs(slope) / error, rounds - 2)) if error > 0 else 0.0
    return Trend(halves[0], halves[1], p) if p < TREND_P else None


@dataclass(frozen=True)
class Work:
    """Amounts of work, each done at an even pace from ``start_ns`` to ``end_ns``."""

    start_ns: Ints
    end_ns: Ints
    amount: Floats

    def done(self, start_ns: float, end_ns: float) -> float:
        """What of it was done between two moments."""
        length = np.maximum(self.end_ns - self.start_ns, 1)
        first = np.maximum(self.start_ns, start_ns)
        share = np.clip(np.minimum(self.start_ns + length, end_ns) - first, 0, None) / length
        return float(self.amount @ share)


class Done(Protocol):
    """What is done in time: work, or energy."""

    def done(self, start_ns: float, end_ns: float) -> float: ...


def spread_ratio(
    over: Sequence[Done], under: Sequence[Done] | None, span_ns: tuple[int, int], residence_s: float
) -> Ratio:
    """Work done in an open loop's window over other work done in it, or over its seconds (None).

    The standard error is that of the means of slices at least a residence long; the edge error is what
    moving either edge inwards by up to one residence changes, root mean square.
    """
    start_ns, end_ns = span_ns

    def between(first_ns: float, last_ns: float) -> tuple[float, float]:
        gained = sum(work.done(first_ns, last_ns) for work in over)
        if under is None:
            return gained, (last_ns - first_ns) / NS_PER_S
        return gained, sum(work.done(first_ns, last_ns) for work in under)

    gained, spent = between(start_ns, end_ns)
    if not spent > 0 or math.isnan(gained):
        return Ratio(reason="there is nothing to relate it to")
    value = gained / spent
    if gained == 0:
        return Ratio(0.0, 0.0, 0.0)
    slices = min(SLICES, int((end_ns - start_ns) / NS_PER_S / max(residence_s, 1e-9)))
    error = _slice_error(between, span_ns, value, slices) if slices > 1 else None
    reach_ns = min(residence_s * NS_PER_S, (end_ns - start_ns) / 4)
    moves = reach_ns * np.arange(1, SHIFTS + 1) / SHIFTS
    moved = [between(start_ns + by, end_ns) for by in moves]
    moved += [between(start_ns, end_ns - by) for by in moves]
    changes = [math.log(g / s / value) for g, s in moved if s > 0 and g / s / value > 0]
    edge = math.sqrt(float(np.mean(np.square(changes)))) if changes else None
    return Ratio(value, error, edge)


def _slice_error(
    between: Callable[[float, float], tuple[float, float]],
    span_ns: tuple[int, int],
    value: float,
    slices: int,
) -> float:
    edges = np.linspace(*span_ns, slices + 1)
    parts = [between(a, b) for a, b in pairwise(edges)]
    residuals = np.array([gained - value * spent for gained, spent in parts])
    spent = sum(part[1] for part in parts)
    return math.sqrt(slices / (slices - 1) * float(np.sum(residuals**2))) / spent

"""What candidates are compared by: one entry a figure, read by tables, charts, crossovers and sentences.

A new figure is a function from a point to its ``Measurement`` and an entry of OBJECTIVES that names it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

from analysis.point.joules import Denominator, ratio_of
from analysis.point.latency import Edges, RequestLatency
from analysis.point.point import Point
from analysis.point.throughput import Throughput
from analysis.statistics.medians import Modes
from analysis.statistics.rates import Ratio
from analysis.statistics.samples import refusal
from greenbench.contract.errors import UserError, nearest

Form = Literal["linear", "quadratic"]
Unit = Literal["req/s", "tok/s", "s", "J", "B", "share"]  # and with it the format of the figures
# Where a report shows a figure: a column of the decision table (and what a winner costs), a column of
# the numbers, a chart against context, a trade-off against SPEED, a summary sentence on who wins by it.
View = Literal["decisions", "numbers", "chart", "tradeoff", "summary"]
# A smaller difference is of no use to anybody, however surely it is there.
MARGIN = 0.02


@dataclass(frozen=True)
class Measurement:
    """A figure of one start. ``value`` None: ``reason`` says why, where anything does.

    ``standard_error`` is absolute. ``edge_error`` is relative: what the window's edges leave open, the same
    in every start. ``n``: requests behind it. ``modes``: two kinds of requests, so that a median is nobody's.
    """

    value: float | None = None
    standard_error: float | None = None
    edge_error: float | None = None
    n: int | None = None
    modes: Modes | None = None
    reason: str | None = None


Measure = Callable[[Point], Measurement]
NOTHING = Measurement()


@dataclass(frozen=True, eq=False)
class Objective:
    """A figure of a point.

    ``better`` is what the better candidate has, as in "1.3× higher goodput than"; ``quantity`` what the
    title says without its statistic. ``latency``: the requests' own values, where it is their median.
    ``form``: how it grows with context, where a crossover is looked for; ``shared_form`` the same where
    several users share the server. ``streamed``: means nothing of a task that is not streamed. ``all_zero``:
    what is said where every candidate has 0.
    """

    name: str
    title: str
    unit: Unit
    higher_is_better: bool
    of: Measure
    better: str
    views: frozenset[View] = frozenset()
    quantity: str = ""
    latency: RequestLatency | None = None
    form: Form | None = None
    shared_form: Form | None = None
    streamed: bool = False
    all_zero: str | None = None
    zero: str | None = None  # what a candidate at 0 did
    margin: float = MARGIN

    def measure(self, point: Point) -> Measurement:
        """The point's figure; none of a point that may not be used."""
        return self.of(point) if point.usable else NOTHING

    def value(self, point: Point) -> float | None:
        """The point's value, 0 included; None where it has none or the point may not be used."""
        return self.measure(point).value

    @property
    def worse(self) -> str:
        """What the worse candidate has: ``better`` with its adjective turned."""
        adjective, rest = self.better.split(" ", 1)
        return f"{OPPOSITES[adjective]} {rest}"


OPPOSITES = {"higher": "lower", "lower": "higher", "fewer": "more"}


def goodput(point: Point) -> Measurement:
    found = point.goodput
    if found is None:
        return NOTHING
    edge = found.edge_error if found.per_s else None
    return Measurement(found.per_s, found.per_s_se, edge, found.sent, reason=found.reason)


def rate(pick: Callable[[Throughput], Ratio]) -> Measure:
    """A rate of the point's throughput."""

    def measure(point: Point) -> Measurement:
        if point.throughput is None:
            return NOTHING
        found = pick(point.throughput)
        edge = found.edge_error if found.value else None
        reason = point.throughput.reason
        return Measurement(found.value, found.standard_error, edge, reason=reason)

    return measure


def median(name: RequestLatency) -> Measure:
    """The median of the counted requests; their spread is no error of a start, so none is given."""

    def measure(point: Point) -> Measurement:
        if point.latency is None or point.medians is None:
            return NOTHING
        found, error = point.latency.of(name), point.medians.of(name)
        reason = found.refused[0] if found.p50 is None and found.refused else None
        return Measurement(
            found.p50, edge_error=error.edge_error, n=found.n, modes=error.modes, reason=reason
        )

    return measure


def percentile(name: RequestLatency, p: int) -> Measure:
    """A tail percentile of the counted requests; none below the number of them that it needs."""

    def of(values: np.ndarray) -> float:
        return float(np.percentile(values, p))

    @cache  # a point is asked for it by each comparison
    def edge(edges: Edges) -> float | None:
        return edges.error(name, of)

    def measure(point: Point) -> Measurement:
        if point.values is None or point.edges is None:
            return NOTHING
        seconds: np.ndarray = getattr(point.values, name)
        seconds = seconds[~np.isnan(seconds)]
        reason = refusal(p, len(seconds))
        if reason is not None:
            return Measurement(n=len(seconds), reason=f"{reason} in a start")
        return Measurement(of(seconds), edge_error=edge(point.edges), n=len(seconds))

    return measure


def joules(name: Denominator) -> Measure:
    """Gross energy of the GPU boards over the work."""

    def measure(point: Point) -> Measurement:
        if point.energy is None:
            return NOTHING
        result = point.energy.result
        if result.gross is None:
            return Measurement(reason="; ".join(result.explain) or None)
        found = ratio_of(result.gross, name)
        return Measurement(found.value, found.standard_error, found.edge_error, reason=found.reason)

    return measure


def peak_memory(point: Point) -> Measurement:
    return Measurement(None if point.memory is None else point.memory.peak_bytes)


def kv_share_of_a_sequence(point: Point) -> Measurement:
    return Measurement(None if point.extra is None else point.extra.kv_share_per_sequence)


def views(*names: View) -> frozenset[View]:
    return frozenset(names)


GOODPUT = Objective(
    "goodput",
    "Goodput",
    "req/s",
    True,
    goodput,
    "higher goodput",
    views("decisions", "numbers", "chart"),
    streamed=True,
    all_zero="no candidate met the SLO",
    zero="met the SLO in no request",
)
TOTAL = Objective(
    "total",
    "Total tokens/s",
    "tok/s",
    True,
    rate(lambda t: t.total),
    "higher total tokens/s",
    views("decisions", "numbers", "chart"),
)
# a request's own mean: tokens that arrive in bursts give the median gap no meaning
TPOT = Objective(
    "tpot",
    "TPOT p50",
    "s",
    False,
    median("tpot_s"),
    "lower TPOT",
    views("decisions", "numbers", "chart", "tradeoff", "summary"),
    quantity="TPOT",
    latency="tpot_s",
    # one user's steps read a cache that grows; of several, prefills of others stand between two tokens
    form="linear",
    shared_form="quadratic",
    streamed=True,
)
E2E = Objective(
    "e2e",
    "E2E p50",
    "s",
    False,
    median("e2e_s"),
    "lower E2E time",
    views("decisions", "numbers", "chart", "tradeoff", "summary"),
    quantity="E2E",
    latency="e2e_s",
    form="quadratic",
)
ENERGY = Objective(
    "energy",
    "J per output token",
    "J",
    False,
    joules("j_per_output_token"),
    "fewer J per output token",
    views("decisions", "numbers", "chart", "summary"),
    form="quadratic",
)
MEMORY = Objective(
    "memory",
    "Peak memory",
    "B",
    False,
    peak_memory,
    "lower peak memory",
    views("decisions", "numbers"),
)
OBJECTIVES: tuple[Objective, ...] = (
    GOODPUT,
    Objective(
        "output",
        "Output tokens/s",
        "tok/s",
        True,
        rate(lambda t: t.output),
        "higher output tokens/s",
        views("decisions", "numbers", "chart", "summary"),
        streamed=True,
    ),
    TOTAL,
    Objective(
        "requests", "Requests/s", "req/s", True, rate(lambda t: t.requests), "higher requests/s"
    ),
    Objective(
        "ttft",
        "TTFT p50",
        "s",
        False,
        median("ttft_s"),
        "lower TTFT",
        views("decisions", "numbers", "chart", "summary"),
        quantity="TTFT",
        latency="ttft_s",
        form="quadratic",
        streamed=True,
    ),
    Objective(
        "ttft_p95",
        "TTFT p95",
        "s",
        False,
        percentile("ttft_s", 95),
        "lower TTFT p95",
        views("decisions", "numbers", "summary"),
        streamed=True,
    ),
    TPOT,
    E2E,
    ENERGY,
    Objective(
        "energy_total",
        "J per total token",
        "J",
        False,
        joules("j_per_total_token"),
        "fewer J per total token",
        views("tradeoff"),
    ),
    Objective(
        "energy_request",
        "J per request",
        "J",
        False,
        joules("j_per_request"),
        "fewer J per request",
    ),
    MEMORY,
    Objective(
        "sequence",
        "KV pool a sequence takes",
        "share",
        False,
        kv_share_of_a_sequence,
        "lower KV pool a sequence",
        form="linear",
    ),
)
DEFAULT = GOODPUT  # of the headline, under the sweep's SLO
FALLBACK = E2E  # where nobody chose one and no two candidates have a value of the default
SPEED = TOTAL  # against which trade-offs are drawn
BY_NAME = {objective.name: objective for objective in OBJECTIVES}


def shown(view: View) -> list[Objective]:
    """The objectives of one view, in order."""
    return [objective for objective in OBJECTIVES if view in objective.views]


def objective(name: str) -> Objective:
    """By its name; one that is not there is a UserError that names the nearest."""
    if name not in BY_NAME:
        raise UserError(f"objective: no '{name}' is known; {nearest(name, BY_NAME)}")
    return BY_NAME[name]

"""TTFT, TPOT, ITL and E2E of a point's counted requests: their values, statistics, and errors of medians."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Generic, Literal, TypeVar

import numpy as np

from analysis.point.requests import NS, PointRequests
from analysis.point.steady_window import Window
from analysis.runs.run import Run
from analysis.statistics.medians import (
    Modes,
    SampleStatistic,
    cycles_edge,
    median,
    modes,
    open_edge,
)
from analysis.statistics.rates import Cycles, Flags, Floats, Ints
from analysis.statistics.samples import Statistic, statistic

Value = TypeVar("Value")
RequestLatency = Literal["ttft_s", "tpot_s", "e2e_s"]  # those with one value a request


@dataclass(frozen=True)
class PerLatency(Generic[Value]):
    """One value for each latency, seconds. ITL is of tokens, the others are of requests."""

    ttft_s: Value
    tpot_s: Value
    itl_s: Value
    e2e_s: Value

    def of(self, name: RequestLatency) -> Value:
        return getattr(self, name)


Latencies = PerLatency[Statistic]
LatencyValues = PerLatency[Floats]  # NaN where a request has none


@dataclass(frozen=True)
class Doubt:
    """Why the gaps between tokens are not to be believed, and why their tail is not; None: they are."""

    gaps: str | None = None
    tail: str | None = None


@dataclass(frozen=True)
class MedianError:
    """What a median of requests hides: the relative error of the window's edges, two kinds of requests."""

    edge_error: float | None = None
    modes: Modes | None = None


def doubt(run: Run) -> Doubt:
    """By the client's word: chunks that were read together carry one time, and it works out how far off
    that can be.
    """
    found = Doubt()
    for audit in run.manifest.audits.values():
        if audit.itl_in_doubt:
            off_ms = audit.figures.shared_time_p90_ms or 0
            found = replace(found, gaps=f"chunks shared reads: {off_ms:.3g} ms of doubt at p90")
        if audit.itl_tail_in_doubt:
            off_ms = audit.figures.shared_time_p99_ms or 0
            found = replace(found, tail=f"chunks shared reads: {off_ms:.3g} ms of doubt at p99")
    return found


def latency_values(measured: PointRequests, doubt: Doubt) -> LatencyValues:
    """Of the counted requests; no gaps between tokens where those are in doubt."""
    counted = measured.frame[measured.frame["counted"]]
    none = np.empty(0)
    return PerLatency(
        counted["ttft_s"].to_numpy(dtype=float),
        counted["tpot_s"].to_numpy(dtype=float) if doubt.gaps is None else none,
        measured.itl_s if doubt.gaps is None else none,
        counted["e2e_s"].to_numpy(dtype=float),
    )


def pooled(each: Iterable[LatencyValues]) -> LatencyValues:
    """The requests of several starts as one: percentiles of single starts must not be averaged."""
    starts = list(each)

    def joined(pick: Callable[[LatencyValues], Floats]) -> Floats:
        return np.concatenate([pick(values) for values in starts] or [np.empty(0)])

    return PerLatency(
        joined(lambda v: v.ttft_s),
        joined(lambda v: v.tpot_s),
        joined(lambda v: v.itl_s),
        joined(lambda v: v.e2e_s),
    )


def latencies(values: LatencyValues) -> Latencies:
    """Statistics; ITL gets no interval, since tokens of one request are not independent."""
    return PerLatency(
        statistic(values.ttft_s),
        statistic(values.tpot_s),
        statistic(values.itl_s, interval=False),
        statistic(values.e2e_s),
    )


def latency(measured: PointRequests, doubt: Doubt = Doubt()) -> Latencies:
    """Statistics over the counted requests, without what is in doubt: ITL and TPOT, or the tail of ITL."""
    found = latencies(latency_values(measured, Doubt()))
    if doubt.gaps is not None:
        return replace(
            found,
            tpot_s=Statistic(found.tpot_s.n, refused=[doubt.gaps]),
            itl_s=Statistic(found.itl_s.n, refused=[doubt.gaps]),
        )
    return without_tail(found, doubt.tail)


def without_tail(found: Latencies, why: str | None) -> Latencies:
    """The same with p90 and p99 of ITL refused; ``why`` None: nothing speaks against them."""
    if why is None:
        return found
    tails = {"p90": found.itl_s.p90, "p99": found.itl_s.p99}
    refused = [f"{name}: {why}" for name, value in tails.items() if value is not None]
    itl_s = replace(found.itl_s, p90=None, p99=None, refused=[*found.itl_s.refused, *refused])
    return replace(found, itl_s=itl_s)


@dataclass(frozen=True, eq=False)
class Edges:
    """Where a window cuts a point's requests: their latencies, bases and whether they count, by row of its
    frame. ``cycles``: of a closed loop.
    """

    window: Window
    cycles: Cycles | None
    seconds: Mapping[RequestLatency, Floats]
    base_ns: Ints
    counted: Flags

    @classmethod
    def of(cls, measured: PointRequests, window: Window, cycles: Cycles | None) -> "Edges":
        frame = measured.frame
        names: tuple[RequestLatency, ...] = ("ttft_s", "tpot_s", "e2e_s")
        return cls(
            window,
            cycles,
            {name: frame[name].to_numpy(dtype=float) for name in names},
            frame["base_ns"].fillna(0).to_numpy(dtype=np.int64),
            frame["counted"].to_numpy(dtype=bool),
        )

    def error(self, name: RequestLatency, statistic: SampleStatistic = median) -> float | None:
        """Relative error of a statistic of the counted requests that the window's edges make."""
        values = self.seconds[name]
        if self.cycles is not None:
            return cycles_edge(values, self.counted, self.cycles, statistic)
        used = self.counted & ~np.isnan(values)
        span = self.window.start_unix_ns, self.window.end_unix_ns
        reach_ns = min(self.window.residence_s * NS, (span[1] - span[0]) / 4)
        edge = open_edge(values[used], self.base_ns[used], span, reach_ns, statistic)
        pace = self.window.evidence.pace
        return edge if edge is None or pace is None else math.hypot(edge, pace.log_change / 2)


def median_errors(edges: Edges, doubt: Doubt) -> PerLatency[MedianError]:
    """Of each latency of requests; none of ITL, nor of TPOT where gaps are in doubt."""

    def of(name: RequestLatency) -> MedianError:
        return MedianError(edges.error(name), modes(edges.seconds[name][edges.counted]))

    tpot = of("tpot_s") if doubt.gaps is None else MedianError()
    return PerLatency(of("ttft_s"), tpot, MedianError(), of("e2e_s"))

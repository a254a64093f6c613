"""Joules per token and request by the very intervals that the rates rest on.

Closed loop: of every whole cycle of every user the energy between its two ends. P = mean power over
the users' cycles, and J per token = P / rate = Σ energy / (users · Σ tokens), so that no edge cuts a token or
a joule. In step, all users share one phase and each interval holds whole cycles of the card's power too; out
of step their mean is smooth. Open loop: energy of the window over the work that was done in it.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import pandas as pd

from analysis.energy.cards import Joules
from analysis.energy.result import PerWork
from analysis.energy.window import PerWorkOf
from analysis.point.throughput import SpreadWork, TokenCounts
from analysis.statistics.rates import Cycles, Floats, Ints, Ratio, ratio, spread_ratio

NS = 1e9
Denominator = Literal["j_per_output_token", "j_per_total_token", "j_per_request"]
NAMES: tuple[Denominator, ...] = ("j_per_output_token", "j_per_total_token", "j_per_request")


def ratio_of(joules: PerWork, name: Denominator) -> Ratio:
    """One of the three figures with its errors."""
    return Ratio(
        getattr(joules, name),
        joules.standard_errors.get(name),
        joules.edge_errors.get(name),
        joules.trends.get(name),
        joules.reason,
    )


def joules_per_work(
    frame: pd.DataFrame, cycles: Cycles | None, offset_ns: int, residence_s: float
) -> PerWorkOf:
    """``frame``: requests as ``point_requests`` gives them. ``offset_ns``: unix − monotonic."""
    counts = TokenCounts.of(frame, cycles)
    if cycles is not None:
        return _closed(counts, frame["ok"].to_numpy(dtype=float), cycles, offset_ns)
    return _open(counts, SpreadWork.of(counts, frame, None), offset_ns, residence_s)


def _closed(counts: TokenCounts, requests: Floats, cycles: Cycles, offset_ns: int) -> PerWorkOf:
    def per(own: Joules, idle_w: float, _: tuple[int, int]) -> dict[str, Ratio]:
        energy_j = own.between(cycles.start_ns - offset_ns, cycles.end_ns - offset_ns)
        energy_j = energy_j - idle_w * cycles.seconds
        if np.isnan(energy_j).any():
            return dict.fromkeys(NAMES, Ratio(reason="the counter does not enclose the cycles"))

        def over(amounts: Floats) -> Ratio:
            return ratio(cycles, energy_j, amounts[cycles.request] * cycles.users)

        return _named(
            counts, over(counts.output), over(counts.output + counts.prompt), over(requests)
        )

    return per


def _open(counts: TokenCounts, work: SpreadWork, offset_ns: int, residence_s: float) -> PerWorkOf:
    def per(own: Joules, idle_w: float, aligned: tuple[int, int]) -> dict[str, Ratio]:
        span = aligned[0] + offset_ns, aligned[1] + offset_ns
        used = _Used(own, idle_w, offset_ns)
        parts = ((work.output,), (work.output, work.prompt), (work.requests,))
        return _named(counts, *(spread_ratio((used,), part, span, residence_s) for part in parts))

    return per


def _named(counts: TokenCounts, output: Ratio, total: Ratio, request: Ratio) -> dict[str, Ratio]:
    return {
        "j_per_output_token": Ratio(reason=counts.no_output) if counts.no_output else output,
        "j_per_total_token": Ratio(reason=counts.no_total) if counts.no_total else total,
        "j_per_request": request,
    }


@dataclass(frozen=True)
class _Used:
    """Energy as work that was done in time, above ``idle_w``."""

    own: Joules
    idle_w: float
    offset_ns: int

    def done(self, start_ns: float, end_ns: float) -> float:
        edges: Ints = np.round(np.array([start_ns, end_ns])).astype(np.int64) - self.offset_ns
        joules = float(self.own.between(edges[:1], edges[1:])[0])
        return joules - self.idle_w * (end_ns - start_ns) / NS

"""Requests that met the SLO: their count, share and rate."""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.statistics.rates import (
    Cycles,
    Ratio,
)
from greenbench.contract.config import SloConfig
from greenbench.contract.slo import is_good


@dataclass(frozen=True)
class Goodput:
    """Requests that met the SLO. ``share`` is of all that were counted, failed ones included."""

    good: int | None = None
    sent: int | None = None
    share: float | None = None
    per_s: float | None = None
    per_s_se: float | None = None
    edge_error: float | None = None  # relative, of the rate
    reason: str | None = None  # why there is none


def good_requests(frame: pd.DataFrame, slo: SloConfig) -> np.ndarray | None:
    """Which requests are good, by ``greenbench.contract.slo``; None where the SLO bounds nothing.

    A reply that is not streamed comes at once: its first token is its end.
    """
    if not any(limit is not None for limit in slo.model_dump().values()):
        return None
    met = is_good(
        slo,
        frame["ok"].to_numpy(dtype=bool),
        frame["ttft_s"].fillna(frame["e2e_s"]).to_numpy(dtype=float),
        frame["tpot_s"].to_numpy(dtype=float),
        frame["e2e_s"].to_numpy(dtype=float),
        frame["output_tokens"].to_numpy(dtype=float),
    )
    return np.asarray(met, dtype=bool)


def goodput(
    frame: pd.DataFrame, good: np.ndarray | None, cycles: Cycles | None, rate: Ratio
) -> Goodput:
    """``rate`` of good requests, with the counts and the share of those it was taken over: the requests of
    whole cycles, in open loop those whose base lies in the window.
    """
    if good is None:
        return Goodput(reason="the sweep sets no SLO")
    among = frame["in_window"].to_numpy(dtype=bool) if cycles is None else cycles.request
    met = good[among]
    if len(met) == 0:
        return Goodput(reason=rate.reason or "no request was sent in the window")
    count = int(met.sum())
    share = count / len(met)
    return Goodput(
        count, len(met), share, rate.value, rate.standard_error, rate.edge_error, rate.reason
    )

"""TTFT, TPOT, ITL and E2E of a point's counted requests."""

from dataclasses import asdict
from typing import Any

from analysis.point.requests import PointRequests
from analysis.statistics.samples import statistic

LATENCIES = {"ttft": "ttft_s", "tpot": "tpot_s", "e2e": "e2e_s"}  # of the objectives' names


def latency(measured: PointRequests) -> dict[str, dict[str, Any]]:
    """Statistics of TTFT, TPOT, ITL and E2E (seconds) over the counted requests."""
    counted = measured.frame[measured.frame["counted"]]
    found = {name: statistic(counted[name].to_numpy(dtype=float)) for name in LATENCIES.values()}
    # tokens of one request are not independent, so ITL gets no interval
    found["itl_s"] = statistic(measured.itl_s, interval=False)
    return {name: asdict(value) for name, value in found.items()}

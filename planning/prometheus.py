"""The traffic of a production vLLM, out of the Prometheus that scrapes it: its busiest hour of the last day.

Rate: requests that ended, a second. Lengths: vLLM's histograms of prompt and output tokens, whose buckets are
wide; a bucket stands as the geometric mean of its edges, and all of them are scaled to the true mean. The
share of a prompt in the prefix cache is hits over queries. Arrivals are taken to be Poisson, which a counter
cannot show.
"""

import math
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from greenbench.contract.access import Access, access
from greenbench.contract.errors import UserError
from greenbench.contract.fetch import FetchError, Limits, fetch
from planning.demand import Demand, TrafficFile

LIMITS = Limits(30.0, 16 << 20)
DAY_S = 86_400
STEPS_A_WINDOW = 6
MOST_STEPS = 10_000  # Prometheus answers 11,000 at most
ENDED = 'vllm:request_success_total{finished_reason!~"abort|error"}'
PROMPTS, OUTPUTS = "vllm:request_prompt_tokens", "vllm:request_generation_tokens"
WINDOW = re.compile(r"(\d{1,6})([smh])")
SECONDS = {"s": 1, "m": 60, "h": 3600}


@dataclass(frozen=True)
class Histogram:
    """Upper edges, tokens, and requests in each bucket; ``mean`` of all."""

    edges: tuple[float, ...]
    counts: tuple[float, ...]
    mean: float


def window_s(text: str) -> int:
    found = WINDOW.fullmatch(text)
    if found is None or not int(found[1]):
        raise UserError(f"--window wants a time such as 1h or 30m, found '{text}'")
    return int(found[1]) * SECONDS[found[2]]


def production(url: str, window: str = "1h", now_s: float | None = None) -> Demand:
    """UserError in one sentence where it has no such metrics, or does not answer."""
    there, span = access(url), window_s(window)
    end = time.time() if now_s is None else now_s
    step = max(1, span // STEPS_A_WINDOW, DAY_S // MOST_STEPS)
    asked = {
        "query": f"sum(rate({ENDED}[{window}]))",
        "start": end - DAY_S,
        "end": end,
        "step": step,
    }
    series = _get(there, "query_range", asked)
    values = [(float(v), float(at)) for each in series for at, v in each["values"]]
    rate, at = max(values, default=(0.0, end))
    if not rate:
        raise UserError(
            f"{url}: no request of a vLLM ended in the last day (vllm:request_success_total)"
        )
    prompts, outputs = (_histogram(there, name, window, at) for name in (PROMPTS, OUTPUTS))
    hits, queries = (
        _sum(there, f"increase(vllm:prefix_cache_{name}_total[{window}])", at)
        for name in ("hits", "queries")
    )
    return Demand(
        TrafficFile(
            rate_per_s=rate,
            prompt_tokens=shares(prompts),
            output_tokens=shares(outputs),
            cached_share=min(hits / queries, 0.99) if queries else 0.0,
        )
    )


def shares(of: Histogram) -> dict[int, float]:
    """Length → share of the requests, with the histogram's mean."""
    total = sum(of.counts)
    lows = (1.0, *of.edges[:-1])
    middles = [
        low if math.isinf(high) else math.sqrt(max(low, 1.0) * high)
        for low, high in zip(lows, of.edges, strict=True)
    ]
    mean = sum(m * n for m, n in zip(middles, of.counts, strict=True)) / total
    made: dict[int, float] = {}
    for middle, count in zip(middles, of.counts, strict=True):
        if count:
            length = max(1, round(middle * of.mean / mean))
            made[length] = made.get(length, 0.0) + count / total
    return made


def _histogram(there: Access, name: str, window: str, at: float) -> Histogram:
    found = _get(
        there, "query", {"query": f"sum by (le) (increase({name}_bucket[{window}]))", "time": at}
    )
    below = sorted((float(each["metric"]["le"]), float(each["value"][1])) for each in found)
    counts = [max(0.0, n - before) for (_, n), before in zip(below, _shifted(below), strict=True)]
    many = _sum(there, f"increase({name}_count[{window}])", at)
    if not below or not sum(counts) or not many:
        raise UserError(
            f"{there.base_url}: no requests in the histogram {name} in its busiest {window}"
        )
    mean = _sum(there, f"increase({name}_sum[{window}])", at) / many
    return Histogram(tuple(edge for edge, _ in below), tuple(counts), mean)


def _shifted(below: Sequence[tuple[float, float]]) -> list[float]:
    return [0.0, *(n for _, n in below[:-1])]


def _sum(there: Access, expression: str, at: float) -> float:
    found = _get(there, "query", {"query": f"sum({expression})", "time": at})
    return float(found[0]["value"][1]) if found else 0.0


def _get(there: Access, kind: str, asked: dict[str, Any]) -> list[Any]:
    try:
        reply = fetch(there, f"/api/v1/{kind}?{urlencode(asked)}", LIMITS)
    except FetchError as why:
        raise UserError(f"{there.base_url}: Prometheus does not answer: {why}") from why
    said = reply.json()
    if not reply.is_success or not isinstance(said, dict) or "data" not in said:
        raise UserError(f"{there.base_url}: this is no Prometheus, or it refuses: {reply.words}")
    return list(said["data"].get("result", []))

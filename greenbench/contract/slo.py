"""What a good request is: the one definition, for the analysis and for the load search."""

from typing import Any

from greenbench.contract.config import SloConfig


def is_good(slo: SloConfig, ok: Any, ttft_s: Any, tpot_s: Any, e2e_s: Any, tokens: Any) -> Any:
    """Whether a request succeeded (``ok``) and met every bound that is given.

    Takes one request's figures or arrays of them. Missing is NaN and meets no bound, but a request of one
    token has no time per output token and is not asked for it. Times count from the base: the scheduled
    moment in open loop, else sending.
    """
    good = ok
    for limit, value in ((slo.ttft_s, ttft_s), (slo.e2e_s, e2e_s)):
        if limit is not None:
            good = good & (value <= limit)
    if slo.tpot_s is not None:
        good = good & ((tpot_s <= slo.tpot_s) | (tokens < 2))
    return good


def time_per_token_ns(
    first_ns: float, last_ns: float, tokens: float, chunk_tokens: list[int] | None
) -> float:
    """(t_last − t_first) / (c_last − c_first), c: cumulative tokens at a chunk; without counts over
    tokens − 1. NaN below two.
    """
    steps = chunk_tokens[-1] - chunk_tokens[0] if chunk_tokens else tokens - 1
    return (last_ns - first_ns) / steps if steps >= 1 else float("nan")

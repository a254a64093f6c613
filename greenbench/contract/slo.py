"""What a good request is: the one definition, for the analysis and for the load search."""

import re
from pathlib import Path
from typing import Any

from greenbench.contract.config import SloConfig, parse
from greenbench.contract.errors import UserError
from greenbench.contract.yaml_files import load_yaml

SUFFIXES = (".yaml", ".yml")
SECONDS = {"": 1.0, "s": 1.0, "ms": 0.001}


def parse_slo(text: str) -> SloConfig:
    """``ttft=2,tpot=50ms,e2e=30s``, seconds where no unit stands; or a YAML file with a sweep's keys."""
    if text.endswith(SUFFIXES):
        found = parse(SloConfig, load_yaml(Path(text)) or {}, text)
        if found == SloConfig():
            known = ", ".join(SloConfig.model_fields)
            raise UserError(f"{text}: at least one of {known} is wanted, in seconds, found none")
        return found
    bounds: dict[str, float] = {}
    for part in text.split(","):
        match = re.fullmatch(r"(ttft|tpot|e2e)=(\d*\.?\d+)(s|ms|)", part.strip().lower())
        if match is None:
            raise UserError(
                f"--slo wants bounds such as ttft=2,tpot=50ms (ttft, tpot, e2e), found '{part.strip()}'"
            )
        if f"{match[1]}_s" in bounds:
            raise UserError(f"--slo wants each bound once, found two of {match[1]} in '{text}'")
        bounds[f"{match[1]}_s"] = float(match[2]) * SECONDS[match[3]]
    return parse(SloConfig, bounds, "--slo")


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

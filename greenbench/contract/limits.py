"""The most that a sweep may ask for, each with the reason: beyond it a typing error is likelier than a wish.

They bind what a person writes, not what is stored or imported.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import cast

from pydantic import BaseModel

DAY_S, WEEK_S = 86_400, 604_800
INT32 = 2**31 - 1


Key = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Limit:
    most: float
    why: str


_PHASE = Limit(WEEK_S, "a week; a sweep measures every point for so long")
_TOKENS = Limit(100_000_000, "the longest windows of today hold ten million tokens")
_RATE = Limit(100_000, "requests a second; one client process sends some ten thousand")
_REQUESTS = Limit(10_000_000, "each request is a row that the report reads")
LIMITS: dict[str, Limit] = {  # key of the sweep → limit; * is a place in a list
    "seed": Limit(2**63 - 1, "a seed has 64 bits"),
    "repeats": Limit(1_000, "each starts every server anew"),
    "contexts.*": _TOKENS,
    "prompts_per_point": Limit(100_000, "all are made and kept before the first server starts"),
    "tasks.*.output_tokens": _TOKENS,
    "tasks.*.requests": _REQUESTS,
    "loads.*.users": Limit(
        20_000, "each holds a connection, and a host has some 28,000 ports toward one address"
    ),
    "loads.*.turns": Limit(10_000, "each is a longer prefix of one prompt"),
    "loads.*.turn_pause_s": Limit(DAY_S, "a day"),
    "loads.*.rate_per_s": _RATE,
    "loads.*.ramp_to_per_s": _RATE,
    "loads.*.ramp_s": _PHASE,
    "loads.*.burstiness": Limit(1_000_000, "from there on arrivals are constant"),
    "loads.*.trace_speed": Limit(1_000_000, "a day of traffic in a tenth of a second"),
    "phases.warmup_s": _PHASE,
    "phases.measure_s": _PHASE,
    "phases.cap_s": _PHASE,
    "phases.drain_s": _PHASE,
    "phases.request_timeout_s": _PHASE,
    "phases.requests": _REQUESTS,
    "telemetry.period_s": Limit(3_600, "an hour between two samples tells of no point"),
    "telemetry.scrape_s": Limit(3_600, "an hour between two samples tells of no point"),
    "telemetry.idle_s": Limit(DAY_S, "a day before and after each server's points"),
    "server.seed": Limit(2**32 - 1, "NumPy, which vLLM seeds, takes 32 bits"),
    "server.max_model_len": _TOKENS,
    "server.max_num_seqs": Limit(1_000_000, "vLLM keeps tables for each"),
    "server.max_num_batched_tokens": _TOKENS,
    "server.block_size": Limit(1_000_000, "tokens of one KV block"),
    "server.num_gpu_blocks": Limit(INT32, "a block's number has 32 bits"),
    "server.kv_cache_gib": Limit(1_000_000, "a petabyte of memory"),
    "server.tensor_parallel": Limit(1_024, "cards of one server"),
    "server.boot_timeout_s": Limit(DAY_S, "a day for one start"),
}
MOST_POINTS = 100_000  # more than a year of half-minutes, and more folders than one should hold
MOST_PROMPT_TOKENS = 2_000_000_000  # of one file: some ten GB


def beyond_limit(model: BaseModel, at: Key = ()) -> str | None:
    """A sentence for the first key that is beyond its limit; None when none is.

    ``at``: where the model stands in a sweep.
    """
    for where, value in _numbers(model, at):
        limit = LIMITS.get(".".join("*" if isinstance(part, int) else part for part in where))
        if limit is not None and value > limit.most:
            key = ".".join(str(part) for part in where)
            return f"{key}: {limit.most:,} at most ({limit.why}), found {_short(value)}"
    return None


def _numbers(value: object, where: Key) -> Iterator[tuple[Key, float]]:
    parts: Iterable[tuple[str | int, object]] = ()
    if isinstance(value, BaseModel):
        parts = ((name, getattr(value, name)) for name in type(value).model_fields)
    elif isinstance(value, list):
        parts = enumerate(cast(list[object], value))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield where, value
    for key, part in parts:
        yield from _numbers(part, (*where, key))


def _short(value: float) -> str:
    return f"{value:,}" if abs(value) < 10**15 else f"{float(value):.3g}"

"""``vllm bench serve --save-result --save-detailed``, and its ``--append-result``."""

import math
import time
from pathlib import Path
from typing import Any

from analysis.importers.fields import Field, Unfit
from analysis.importers.record import Foreign, Imported, Reader, has_keys
from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError

DETAIL = ("ttfts", "itls", "input_lens", "output_lens")
STARTS = "start_times"
STARTS_SINCE = "0.15"
CANNOT_TELL = [
    "prompt lengths are the client's own count, not the server's",
    "start times count from sending: waiting behind the concurrency limit is not in them",
]


def read(raw: dict[str, Any], path: Path) -> list[Imported]:
    """``start_times`` are monotonic seconds, so only differences are used; ``date`` is the end of the run.

    ``itls`` are gaps between chunks, which need not be single tokens.
    """
    whole = Field(raw)
    _complete(whole, path)
    starts = [each.number() for each in whole[STARTS].each()]
    began = min((start for start in starts if start), default=0.0)
    shift = _moment(whole["date"]) - whole["duration"].number() - began
    requests = [
        _request(whole, number, start + shift if start else None)  # 0: it was never sent
        for number, start in enumerate(starts)
    ]
    model = whole["model_id"].text()
    return [Imported(READER.tool, model, _load(whole, len(starts), path), requests, CANNOT_TELL)]


def _complete(whole: Field, path: Path) -> None:
    """UserError where the lists of single requests are not there; Unfit where they differ in length."""
    lacking = [key for key in DETAIL if not whole[key].known]
    if lacking:
        raise UserError(
            f"{path}: no {', '.join(lacking)} in the result: run the tool with --save-detailed"
        )
    if not whole[STARTS].known:
        raise UserError(
            f"{path}: no {STARTS} in the result: `vllm bench serve` writes when each request was sent since "
            f"vLLM {STARTS_SINCE}, and this file seems to be of an older version; run the benchmark with a "
            "client of that version or a later one (its server may stay older)"
        )
    sent = len(whole[STARTS].items_of_list())
    for key in (*DETAIL, "errors", "latencies"):
        held = len(whole[key].items_of_list()) if whole[key].known else sent
        if held != sent:
            raise Unfit(f"{key} holds {held} values, {STARTS} {sent}")


def _moment(date: Field) -> float:
    """``20260301-101500``, local time, as unix seconds."""
    try:
        return time.mktime(time.strptime(date.text(), "%Y%m%d-%H%M%S"))
    except (ValueError, OverflowError):
        raise date.unfit("a date such as 20260301-101500") from None


def _request(whole: Field, number: int, start_s: float | None) -> Foreign:
    said = whole["errors"][number] if whole["errors"].known else Field(None)
    error = str(said.value) if said.value else None if start_s is not None else "never sent"
    tokens = whole["output_lens"][number].count()
    answered = error is None and tokens > 0
    chunks: list[float] = []
    if answered:
        chunks.append(whole["ttfts"][number].number())
        for gap in whole["itls"][number].each():
            chunks.append(chunks[-1] + gap.number())
    latency = whole["latencies"][number].number() if whole["latencies"].known else None
    return Foreign(
        start_s=start_s,
        ttft_s=chunks[0] if chunks else None,
        last_token_s=chunks[-1] if chunks else None,
        end_s=latency if latency or not chunks else chunks[-1],
        chunk_s=chunks or None,
        prompt_tokens=whole["input_lens"][number].count(),
        output_tokens=tokens,
        error=error,
    )


def _load(whole: Field, sent: int, path: Path) -> LoadConfig:
    if whole["ramp_up_strategy"].known:
        low, high = whole["ramp_up_start_rps"].value, whole["ramp_up_end_rps"].value
        raise UserError(
            f"{path}: its rate rises from {low} to {high} requests a second "
            f"({whole['ramp_up_strategy'].value} ramp-up), so that it is no one load with figures of its "
            "own; run the tool without --ramp-up-strategy"
        )
    rate = whole["request_rate"]
    if rate.known and str(rate.value).lower() not in ("inf", "infinity") and rate.value != math.inf:
        shape = whole["burstiness"].number() if whole["burstiness"].known else 1.0
        return LoadConfig(
            kind="open",
            rate_per_s=rate.number(),
            arrivals="poisson" if shape == 1 else "gamma",  # gamma, of which 1 is Poisson
            burstiness=shape,
        )
    return LoadConfig(kind="closed", users=whole["max_concurrency"].count_or_none() or sent)


def seems(raw: Any, _: Path) -> str:
    """The file names no version: by the keys that each one added."""
    if "endpoint_type" not in raw:
        return "vllm bench serve of vLLM 0.9 or so"
    return "vllm bench serve" + ("" if STARTS in raw else f" before vLLM {STARTS_SINCE}")


READER = Reader(
    tool="vllm bench serve",
    tried="0.32.0",
    known=lambda data: (
        has_keys(data, "model_id", "total_output_tokens")
        and ("endpoint_type" in data or has_keys(data, "backend", "num_prompts"))
    ),
    read=read,
    seems=seems,
)

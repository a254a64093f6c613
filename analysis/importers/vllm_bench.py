"""``vllm bench serve --save-result --save-detailed``."""

import time
from pathlib import Path
from typing import Any

from analysis.importers.record import Foreign, Imported, Reader, has_keys
from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError

DETAIL = ("start_times", "ttfts", "itls", "input_lens", "output_lens")
CANNOT_TELL = [
    "prompt lengths are the client's own count, not the server's",
    "start times count from sending: waiting behind the concurrency limit is not in them",
]


def read(raw: dict[str, Any], path: Path) -> list[Imported]:
    """``start_times`` are monotonic seconds, so only differences are used; ``date`` is the end of the run.

    ``itls`` are gaps between chunks, which need not be single tokens.
    """
    missing = [key for key in DETAIL if key not in raw]
    if missing:
        raise UserError(
            f"{path}: no {', '.join(missing)} in the result: run the tool with --save-detailed"
        )
    ended = time.mktime(time.strptime(raw["date"], "%Y%m%d-%H%M%S"))
    starts = [float(s) for s in raw["start_times"]]
    shift = ended - float(raw["duration"]) - min(starts, default=0.0)
    errors = raw.get("errors") or [""] * len(starts)
    requests = [
        _request(raw, number, start + shift, errors[number] or None)
        for number, start in enumerate(starts)
    ]
    return [Imported(READER.tool, str(raw["model_id"]), _load(raw), requests, CANNOT_TELL)]


def _request(raw: dict[str, Any], number: int, start_s: float, error: str | None) -> Foreign:
    chunks = [float(raw["ttfts"][number])]
    for gap in raw["itls"][number]:
        chunks.append(chunks[-1] + float(gap))
    latencies = raw.get("latencies")
    return Foreign(
        start_s=start_s,
        ttft_s=None if error else chunks[0],
        last_token_s=None if error else chunks[-1],
        end_s=float(latencies[number]) if latencies else chunks[-1],
        chunk_s=None if error else chunks,
        prompt_tokens=int(raw["input_lens"][number]),
        output_tokens=int(raw["output_lens"][number]),
        error=error,
    )


def _load(raw: dict[str, Any]) -> LoadConfig:
    rate = float(raw.get("request_rate") or "inf")
    if rate != float("inf"):
        shape = float(raw.get("burstiness") or 1.0)  # of the tool's gamma arrivals; 1 = Poisson
        return LoadConfig(
            kind="open",
            rate_per_s=rate,
            arrivals="poisson" if shape == 1 else "gamma",
            burstiness=shape,
        )
    return LoadConfig(kind="closed", users=int(raw.get("max_concurrency") or len(raw["ttfts"])))


READER = Reader(
    tool="vllm bench serve",
    tried="0.32.0",
    known=lambda data: has_keys(data, "endpoint_type", "model_id", "total_output_tokens"),
    read=read,
)

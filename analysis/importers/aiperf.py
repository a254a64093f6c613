"""AIPerf's ``profile_export.jsonl``, one line a request, with ``profile_export_aiperf.json`` beside it."""

import json
from itertools import accumulate
from pathlib import Path
from typing import Any

from analysis.importers.record import CUT, Foreign, Imported, Reader, first_has_keys, has_keys
from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError

RECORDS, WHOLE = "profile_export.jsonl", "profile_export_aiperf.json"
NS = 1e9
OWN_LENGTHS = "token counts are AIPerf's own: the server sent none"
CANNOT_TELL = ["a chunk's tokens are not in the file: ITL only where each chunk is one token"]


def read(rows: list[dict[str, Any]], path: Path) -> list[Imported]:
    whole = path.with_name(path.name.replace(".jsonl", "_aiperf.json"))
    try:
        config = json.loads(whole.read_text())["input_config"]
    except OSError as error:
        raise UserError(
            f"{path}: {whole.name}, which AIPerf writes beside it and which names the model and the load, "
            "is not there; give the directory that AIPerf wrote"
        ) from error
    load = _load(config["phases"], path)
    requests = [_request(row, load.kind == "open") for row in rows]
    counted = any("usage_completion_tokens" in row["metrics"] for row in rows)
    notes = CANNOT_TELL if counted else [*CANNOT_TELL, OWN_LENGTHS]
    if load.kind == "open":
        notes = [*notes, "latencies count from the moment AIPerf issued the request, its schedule"]
    return [Imported(READER.tool, str(config["models"]["items"][0]["name"]), load, requests, notes)]


def _request(row: dict[str, Any], scheduled: bool) -> Foreign:
    meta, metrics = row["metadata"], row["metrics"]

    def value(*names: str) -> Any:
        return next((metrics[name]["value"] for name in names if name in metrics), None)

    start_ns, ttft_ms = meta["request_start_ns"], value("time_to_first_token")
    gaps_ms = value("inter_chunk_latency") or []
    chunks = None if ttft_ms is None else [ms / 1e3 for ms in accumulate(gaps_ms, initial=ttft_ms)]
    error = row.get("error")
    said = error and f"{error.get('type')} {error.get('code')}: {error['message']}"
    return Foreign(
        start_s=start_ns / NS,
        ttft_s=chunks[0] if chunks else None,
        last_token_s=chunks[-1] if chunks else None,
        end_s=(meta["request_end_ns"] - start_ns) / NS,
        chunk_s=chunks,
        prompt_tokens=_whole(value("usage_prompt_tokens", "input_sequence_length")),
        output_tokens=_whole(value("usage_completion_tokens", "output_sequence_length")),
        error=CUT if meta.get("was_cancelled") else said,
        scheduled_s=meta["credit_issued_ns"] / NS if scheduled else None,
        phase="measure" if meta["benchmark_phase"] == "profiling" else "warmup",
    )


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)


def _load(phases: list[dict[str, Any]], path: Path) -> LoadConfig:
    measured = [phase for phase in phases if phase["kind"] == "profiling"]
    if len(measured) != 1:
        raise UserError(
            f"{path}: AIPerf ran {len(measured)} profiling phases into one file; run one phase a file"
        )
    phase = measured[0]
    if phase["type"] in ("constant", "poisson"):
        return LoadConfig(kind="open", rate_per_s=float(phase["rate"]), arrivals=phase["type"])
    if phase["type"] == "concurrency":
        return LoadConfig(kind="closed", users=int(phase["concurrency"]))
    raise UserError(
        f"{path}: AIPerf's load '{phase['type']}' is not readable here; readable are concurrency, "
        "constant and poisson"
    )


def refuse(_: dict[str, Any], path: Path) -> list[Imported]:
    raise UserError(
        f"{path}: holds aggregates only; give {RECORDS}, which AIPerf writes beside it "
        "unless it was run with --export-level summary"
    )


READER = Reader(
    tool="AIPerf",
    tried="0.13.0",
    known=lambda data: (
        first_has_keys(data, "metadata", "metrics") and "credit_issued_ns" in data[0]["metadata"]
    ),
    read=read,
    file_name=RECORDS,
)
AGGREGATES = Reader(
    tool="AIPerf",
    tried="0.13.0",
    known=lambda data: has_keys(data, "aiperf_version", "request_latency"),
    read=refuse,
)

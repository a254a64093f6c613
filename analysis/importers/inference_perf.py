"""inference-perf's ``per_request_lifecycle_metrics.json`` (``report.request_lifecycle.per_request``).

The file names neither model nor load: they are in ``config.yaml``, which the tool writes beside it.
"""

from pathlib import Path
from typing import Any

from analysis.importers.record import Foreign, Imported, Reader, first_has_keys
from greenbench.contract.config import LoadConfig, load_yaml
from greenbench.contract.errors import UserError

PER_REQUEST = "per_request_lifecycle_metrics.json"
CANNOT_TELL = [
    "times of day are guessed from the file's own time stamp; differences are as measured",
    "a chunk's tokens are not in the file: ITL only where each chunk is one token",
]
OWN_LENGTHS = "token counts are inference-perf's own: the server sent none"


def read(rows: list[dict[str, Any]], path: Path) -> list[Imported]:
    """Times are of a monotonic clock; laid so that the last request ends when the file was written."""
    beside = path.with_name(path.name.replace(PER_REQUEST, "config.yaml"))
    if not beside.is_file():
        raise UserError(
            f"{path}: {beside.name}, which inference-perf writes beside it and which names the model and "
            "the load, is not there; give the directory that inference-perf wrote"
        )
    config: Any = load_yaml(beside)
    load = _load(config["load"], path)
    shift = path.stat().st_mtime - max(row["end_time"] for row in rows)
    requests = [_request(row, shift) for row in rows]
    notes = list(CANNOT_TELL)
    if not any(_usage(row) for row in rows):
        notes.append(OWN_LENGTHS)
    if load.kind == "open":
        notes.append("latencies count from sending: how late that was is not in the file")
    return [Imported(READER.tool, str(config["server"]["model_name"]), load, requests, notes)]


def _usage(row: dict[str, Any]) -> dict[str, Any]:
    return (row["info"]["response_metrics"] or {}).get("server_usage") or {}


def _request(row: dict[str, Any], shift: float) -> Foreign:
    start, error = row["start_time"], row["error"]
    info, response = row["info"], row["info"]["response_metrics"] or {}
    chunks = [at - start for at in response.get("chunk_times") or []] or None
    usage = _usage(row)
    return Foreign(
        start_s=start + shift,
        ttft_s=chunks[0] if chunks else None,
        last_token_s=chunks[-1] if chunks else None,
        end_s=row["end_time"] - start,
        chunk_s=chunks,
        prompt_tokens=usage.get("prompt_tokens", None if error else info["input_tokens"]),
        output_tokens=usage.get("completion_tokens", response.get("output_tokens")),
        error=f"{error['error_type']}: {error['error_msg']}" if error else None,
    )


def _load(load: dict[str, Any], path: Path) -> LoadConfig:
    stages = load["stages"]
    if len(stages) != 1:
        raise UserError(
            f"{path}: {len(stages)} load stages are in this one file, which does not say whose stage a "
            "request belongs to; run one stage at a time"
        )
    if load["type"] in ("constant", "poisson"):
        rate = float(stages[0]["rate"])
        return LoadConfig(kind="open", rate_per_s=rate, arrivals=load["type"])
    if load["type"] == "concurrent":
        return LoadConfig(kind="closed", users=int(stages[0]["concurrency_level"]))
    raise UserError(
        f"{path}: inference-perf's load '{load['type']}' is not readable here; readable are constant, "
        "poisson and concurrent"
    )


READER = Reader(
    tool="inference-perf",
    tried="0.7.0",
    known=lambda data: first_has_keys(data, "start_time", "end_time", "info", "error"),
    read=read,
    file_name=PER_REQUEST,
)

"""inference-perf's ``per_request_lifecycle_metrics.json`` (``report.request_lifecycle.per_request``).

The file names neither model nor load: they are in ``config.yaml``, which the tool writes beside it.
"""

from pathlib import Path
from typing import Any

from analysis.importers.fields import Field
from analysis.importers.record import Foreign, Imported, Reader, first_has_keys
from greenbench.contract.config import LoadConfig, load_yaml
from greenbench.contract.errors import UserError

PER_REQUEST = "per_request_lifecycle_metrics.json"
CANNOT_TELL = [
    "times of day are guessed from the file's own time stamp; differences are as measured",
    "a chunk's tokens are not in the file: ITL only where each chunk is one token",
]
OWN_LENGTHS = "token counts are inference-perf's own: the server sent none"


def read(rows: list[Any], path: Path) -> list[Imported]:
    """Times are of a monotonic clock; laid so that the last request ends when the file was written."""
    config = _config(path)
    records = [*Field(rows, "request").each()]
    load = _load(config["load"], path)
    shift = path.stat().st_mtime - max(row["end_time"].number() for row in records)
    requests = [_request(row, shift) for row in records]
    notes = list(CANNOT_TELL)
    if not any(_answer(row)["server_usage"].known for row in records):
        notes.append(OWN_LENGTHS)
    if load.kind == "open":
        notes.append("latencies count from sending: how late that was is not in the file")
    return [Imported(READER.tool, _model(config), load, requests, notes)]


def _config(path: Path) -> Field:
    beside = path.with_name(path.name.replace(PER_REQUEST, "config.yaml"))
    if beside == path or not beside.is_file():
        raise UserError(
            f"{path}: config.yaml, which inference-perf writes beside it and which names the model and "
            "the load, is not there; give the directory that inference-perf wrote"
        )
    return Field(load_yaml(beside))


def _model(config: Field) -> str:
    """Before the server's models were asked for it, a config may name the tokenizer alone."""
    named = config["server"]["model_name"]
    return (named if named.known else config["tokenizer"]["pretrained_model_name_or_path"]).text()


def _answer(row: Field) -> Field:
    """Where the answer's figures stand: since 0.6 ``response_metrics``, in 0.5 ``response_info``."""
    info = row["info"]
    return next(
        (info[key] for key in ("response_metrics", "response_info") if info[key].known), info
    )


def _request(row: Field, shift: float) -> Foreign:
    start, answer = row["start_time"].number(), _answer(row)
    usage, failed = answer["server_usage"], row["error"].known
    times = next(
        (answer[key] for key in ("chunk_times", "output_token_times") if answer[key].value),
        Field(None),
    )
    chunks = [at.number() - start for at in times.each()] or None
    return Foreign(
        start_s=start + shift,
        ttft_s=chunks[0] if chunks else None,
        last_token_s=chunks[-1] if chunks else None,
        end_s=row["end_time"].number() - start,
        chunk_s=chunks,
        prompt_tokens=_prompt_tokens(row["info"], usage, failed),
        output_tokens=_output_tokens(answer, usage, failed),
        error=_error(row["error"]),
    )


def _prompt_tokens(info: Field, usage: Field, failed: bool) -> int | None:
    if usage["prompt_tokens"].known:
        return usage["prompt_tokens"].count()
    if failed:
        return None
    own = info["input_tokens"]
    return (own if own.known else info["request_metrics"]["text"]["input_tokens"]).count()


def _output_tokens(answer: Field, usage: Field, failed: bool) -> int | None:
    if usage["completion_tokens"].known:
        return usage["completion_tokens"].count()
    return None if failed else answer["output_tokens"].count_or_none()


def _error(error: Field) -> str | None:
    return f"{error['error_type'].value}: {error['error_msg'].value}" if error.known else None


def _load(load: Field, path: Path) -> LoadConfig:
    stages = [*load["stages"].each()]
    kind = load["type"].text()
    if kind not in ("constant", "poisson", "concurrent"):
        raise UserError(
            f"{path}: inference-perf's load '{kind}' is not readable here; readable are constant, "
            "poisson and concurrent"
        )
    if len(stages) != 1:
        raise UserError(
            f"{path}: {len(stages)} load stages are in this one file, which does not say whose stage a "
            "request belongs to; run one stage at a time"
        )
    if kind == "concurrent":
        return LoadConfig(kind="closed", users=stages[0]["concurrency_level"].count())
    return LoadConfig(kind="open", rate_per_s=stages[0]["rate"].number(), arrivals=kind)


def seems(rows: Any, _: Path) -> str:
    """The file names no version: by where each one put the answer's figures."""
    info = Field(rows[0])["info"]
    if info["response_metrics"].known:
        return "inference-perf 0.6 or later"
    return (
        "inference-perf 0.5"
        if "response_info" in (info.value or {})
        else "inference-perf before 0.5"
    )


READER = Reader(
    tool="inference-perf",
    tried="0.7.0",
    known=lambda data: first_has_keys(data, "start_time", "end_time", "info", "error"),
    read=read,
    seems=seems,
    file_name=PER_REQUEST,
)

"""GuideLLM's ``--output kind=json``: one point a benchmark of the file (a sweep holds several).

Its times are wall-clock seconds of the first and the last token; chunks in between are not kept.
"""

from pathlib import Path
from typing import Any

from analysis.importers.record import CUT, Foreign, Imported, Reader, has_keys
from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError

CANNOT_TELL = [
    "the file has no time of each chunk: no ITL",
    "token counts are the server's where it sent them, else GuideLLM's own",
]


def read(raw: dict[str, Any], path: Path) -> list[Imported]:
    return [_benchmark(benchmark, path) for benchmark in raw["benchmarks"]]


def _benchmark(raw: dict[str, Any], path: Path) -> Imported:
    kept: dict[str, list[dict[str, Any]]] = {
        kind: raw["requests"][kind] or [] for kind in ("successful", "errored", "incomplete")
    }
    made = raw["scheduler_metrics"]["requests_made"]["total"]
    if sum(map(len, kept.values())) != made:
        raise UserError(
            f"{path}: it keeps {sum(map(len, kept.values()))} of {made} requests (a sample); "
            "run GuideLLM without a sample size"
        )
    load = _load(raw["config"]["strategy"], made, path)
    requests = [_request(r, kind, load.kind == "open") for kind, rows in kept.items() for r in rows]
    requests.sort(key=lambda request: request.start_s or float("inf"))
    model = str(raw["config"]["backend"]["model"])
    return Imported(READER.tool, model, load, requests, CANNOT_TELL)


def _request(raw: dict[str, Any], kind: str, scheduled: bool) -> Foreign:
    timings = raw["info"]["timings"]
    start = timings["request_start"]

    def after_start(name: str) -> float | None:
        at = timings[name]
        return None if at is None or start is None else at - start

    error = {"successful": None, "incomplete": CUT}.get(kind, "")
    if error == "":
        error = str(raw["info"]["error"] or "errored")
    return Foreign(
        start_s=start,
        ttft_s=after_start("first_token_iteration"),
        last_token_s=after_start("last_token_iteration"),
        end_s=after_start("request_end") or after_start("resolve_end"),  # the latter when refused
        prompt_tokens=raw["prompt_tokens"],
        output_tokens=raw["output_tokens"],
        error=error,
        scheduled_s=timings["targeted_start"] if scheduled else None,
    )


def _load(strategy: dict[str, Any], made: int, path: Path) -> LoadConfig:
    kind = strategy["type_"]
    if kind in ("constant", "poisson"):
        return LoadConfig(kind="open", rate_per_s=float(strategy["rate"]), arrivals=kind)
    if kind in ("synchronous", "concurrent", "throughput"):
        streams = 1 if kind == "synchronous" else strategy.get("streams")
        return LoadConfig(kind="closed", users=int(streams or strategy["max_concurrency"] or made))
    raise UserError(
        f"{path}: GuideLLM's load '{kind}' is not readable here; readable are synchronous, concurrent, "
        "throughput, constant and poisson"
    )


READER = Reader(
    tool="GuideLLM",
    tried="0.8.1",
    known=lambda data: (
        has_keys(data, "benchmarks", "metadata") and "guidellm_version" in data["metadata"]
    ),
    read=read,
    file_name="benchmarks.json",
)

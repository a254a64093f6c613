"""GuideLLM's JSON output: one point a benchmark of the file (a sweep holds several).

Its times are wall-clock seconds of the first and the last token; chunks in between are not kept. Version 0.4
moved nearly everything; the two forms are read into ``_Kept``.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from analysis.importers.fields import Field
from analysis.importers.record import CUT, Foreign, Imported, Reader, has_keys
from greenbench.contract.config import LoadConfig
from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError

CANNOT_TELL = [
    "the file has no time of each chunk: no ITL",
    "token counts are the server's where it sent them, else GuideLLM's own",
]
KINDS = ("successful", "errored", "incomplete")
Read = Callable[[Field, str, bool], Foreign]


@dataclass(frozen=True)
class _Kept:
    """Where one version keeps what is read of a benchmark."""

    made: Field  # counts by kind
    sample: Field  # of how many requests the file keeps a sample; None: of all
    edges: tuple[Field, ...]  # lengths of warm-up and cool-down, whose requests are kept nowhere
    strategy: Field
    model: Field
    read: Read


def read(raw: dict[str, Any], path: Path) -> list[Imported]:
    return [_benchmark(benchmark, path) for benchmark in Field(raw)["benchmarks"].each()]


def _kept(benchmark: Field) -> _Kept:
    if benchmark["config"].known:
        config = benchmark["config"]
        return _Kept(
            made=benchmark["scheduler_metrics"]["requests_made"],
            sample=config.first("sample_requests", "sample_size"),
            edges=tuple(
                config[edge][length]
                for edge in ("warmup", "cooldown")
                for length in ("percent", "value")
            ),
            strategy=config["strategy"],
            model=config["backend"]["model"],
            read=_request,
        )
    return _Kept(
        made=benchmark["request_totals"],  # without warm-up and cool-down
        sample=benchmark["request_samples"]["total"],
        edges=(),
        strategy=benchmark["args"]["strategy"],
        model=benchmark["worker"]["backend_model"],
        read=_request_before_0_4,
    )


def _benchmark(raw: Field, path: Path) -> Imported:
    kept = _kept(raw)
    rows = {kind: list(raw["requests"][kind].each()) for kind in KINDS}
    made = {kind: kept.made[kind].count_or_none() or 0 for kind in KINDS}
    edges = _outside_measurement(kept, rows, made, path)
    load = _load(kept.strategy, sum(made.values()), path)
    requests = [kept.read(row, kind, load.kind == "open") for kind in KINDS for row in rows[kind]]
    requests.sort(key=lambda request: request.start_s or float("inf"))
    notes = [*CANNOT_TELL]
    unsent = made["incomplete"] - len(rows["incomplete"])
    if edges:
        n = edges + max(0, unsent)
        are = "is" if n == 1 else "are"
        notes.append(f"{counted(n, 'request')} of warm-up and cool-down {are} not in the file")
    elif unsent > 0:
        notes.append(
            f"{counted(unsent, 'request', 'was', 'were')} due and never sent when the run's time was over"
        )
    return Imported(READER.tool, kept.model.text(), load, requests, notes)


def _outside_measurement(
    kept: _Kept, rows: dict[str, list[Field]], made: dict[str, int], path: Path
) -> int:
    """How many requests ended in warm-up or cool-down; UserError where the file keeps but a sample.

    What was due and never started is counted as incomplete and kept nowhere: no sample for that.
    """
    total, found = sum(made.values()), sum(map(len, rows.values()))
    ended = sum(max(0, made[kind] - len(rows[kind])) for kind in ("successful", "errored"))
    lacking = min(ended, total - found)
    cut = any(length.number_or_none() for length in kept.edges)
    if lacking > 0 and (kept.sample.known or not cut):
        raise UserError(
            f"{path}: it keeps {found} of {total} requests (a sample); "
            "run GuideLLM without a sample size"
        )
    return max(0, lacking)


def _request(raw: Field, kind: str, scheduled: bool) -> Foreign:
    timings = raw["info"]["timings"]
    start = _moment(timings["request_start"])

    def after_start(name: str) -> float | None:
        at = _moment(timings[name])
        return None if at is None or start is None else at - start

    ended = after_start("request_end")
    return Foreign(
        start_s=start,
        ttft_s=after_start("first_token_iteration"),
        last_token_s=after_start("last_token_iteration"),
        end_s=after_start("resolve_end") if ended is None else ended,  # the former when refused
        prompt_tokens=_tokens(raw, "prompt_tokens", "input_metrics"),
        output_tokens=_tokens(raw, "output_tokens", "output_metrics"),
        error=_error(kind, raw["info"]["error"]),
        scheduled_s=_moment(timings["targeted_start"]) if scheduled else None,
    )


def _tokens(raw: Field, name: str, metrics: str) -> int | None:
    return (
        raw[name].count_or_none()
        if raw[name].known
        else raw[metrics]["total_tokens"].count_or_none()
    )


def _request_before_0_4(raw: Field, kind: str, scheduled: bool) -> Foreign:
    start = _moment(raw["start_time"])

    def after_start(name: str) -> float | None:
        at = _moment(raw[name])
        return None if at is None or start is None else at - start

    targeted = _moment(raw["scheduler_info"]["targeted_start_time"])
    return Foreign(
        start_s=start,
        ttft_s=after_start("first_token_time"),
        last_token_s=after_start("last_token_time"),
        end_s=after_start("end_time"),
        prompt_tokens=raw["prompt_tokens"].count_or_none(),
        output_tokens=raw["output_tokens"].count_or_none(),
        error=_error(kind, raw["error"]),
        scheduled_s=targeted if scheduled else None,
    )


def _moment(at: Field) -> float | None:
    """Unix seconds; −1 stands for none before 0.4."""
    found = at.number_or_none()
    return found if found is not None and found > 0 else None


def _error(kind: str, said: Field) -> str | None:
    if kind == "successful":
        return None
    return CUT if kind == "incomplete" else str(said.value or "errored")


def _load(strategy: Field, made: int, path: Path) -> LoadConfig:
    kind = strategy["type_"].text()
    if kind in ("constant", "poisson"):
        if strategy["rampup_duration"].number_or_none():
            raise UserError(
                f"{path}: its rate rises for {strategy['rampup_duration'].value} s (rampup_duration), so "
                "that it is no one load with figures of its own; run GuideLLM without a ramp-up"
            )
        return LoadConfig(kind="open", rate_per_s=strategy["rate"].number(), arrivals=kind)
    if kind in ("synchronous", "concurrent", "throughput"):
        streams = None if kind == "synchronous" else strategy["streams"].count_or_none()
        most = strategy["max_concurrency"].count_or_none() if kind == "throughput" else None
        users = 1 if kind == "synchronous" else streams or most or made
        return LoadConfig(kind="closed", users=users)
    raise UserError(
        f"{path}: GuideLLM's load '{kind}' is not readable here; readable are synchronous, concurrent, "
        "throughput, constant and poisson"
    )


def seems(raw: Any, _: Path) -> str:
    """Since 0.5 the file says its version; 0.4 brought ``config``."""
    told = Field(raw)["metadata"]["guidellm_version"].value
    if told:
        return f"GuideLLM {told}"
    first = next(Field(raw)["benchmarks"].each(), Field({}))
    return "GuideLLM 0.4" if first["config"].known else "GuideLLM 0.3 or older"


def _known(data: Any) -> bool:
    if not has_keys(data, "benchmarks"):
        return False
    told = isinstance(data.get("metadata"), dict) and "guidellm_version" in data["metadata"]
    benchmarks = data["benchmarks"]
    first: Any = benchmarks[0] if isinstance(benchmarks, list) and benchmarks else None
    return told or (
        has_keys(first, "requests", "type_") and first["type_"] == "generative_benchmark"
    )


READER = Reader(
    tool="GuideLLM",
    tried="0.8.1",
    known=_known,
    read=read,
    seems=seems,
    file_name="benchmarks.json",
)

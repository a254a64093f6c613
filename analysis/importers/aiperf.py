"""AIPerf's ``profile_export.jsonl``, one line a request, with ``profile_export_aiperf.json`` beside it.

The latter holds the configuration: from 0.9 on as ``models`` and ``phases``, before as ``endpoint`` and
``loadgen`` (and only what the person had set).
"""

from itertools import accumulate
from pathlib import Path
from typing import Any

from analysis.importers.fields import Field, seconds
from analysis.importers.json_text import only_object
from analysis.importers.record import CUT, Foreign, Imported, Reader, first_has_keys, has_keys
from greenbench.contract.config import LoadConfig
from greenbench.contract.errors import UserError

RECORDS = "profile_export.jsonl"
NS = 1e9
OWN_LENGTHS = "token counts are AIPerf's own: the server sent none"
CANNOT_TELL = ["a chunk's tokens are not in the file: ITL only where each chunk is one token"]
FROM_SCHEDULE = "latencies count from the moment AIPerf issued the request, its schedule"
FROM_SENDING = "latencies count from sending: when AIPerf issued a request is not in the file"


def read(rows: list[Any], path: Path) -> list[Imported]:
    records = [*Field(rows, "line").each()]
    config = _whole(path)["input_config"]
    load = _load(config, path)
    issued = all(row["metadata"]["credit_issued_ns"].known for row in records)
    requests = [_request(row, load.kind == "open" and issued) for row in records]
    counted = any(row["metrics"]["usage_completion_tokens"]["value"].known for row in records)
    notes = CANNOT_TELL if counted else [*CANNOT_TELL, OWN_LENGTHS]
    if load.kind == "open":
        notes = [*notes, FROM_SCHEDULE if issued else FROM_SENDING]
    return [Imported(READER.tool, _model(config), load, requests, notes)]


def _whole(path: Path) -> Field:
    """The summary beside the records; UserError where there is none."""
    stem = path.name.removesuffix(".jsonl")  # with --profile-export-prefix both files have its name
    beside = [path.with_name(name) for name in (f"{stem}_aiperf.json", f"{stem}.json")]
    whole = next((each for each in beside if each != path and each.is_file()), None)
    if whole is None:
        raise UserError(
            f"{path}: {beside[0].name}, which AIPerf writes beside it and which names the model and the "
            "load, is not there; give the directory that AIPerf wrote"
        )
    return Field(only_object(whole))


def _model(config: Field) -> str:
    if config["models"].known:
        return config["models"]["items"][0]["name"].text()
    names = config["endpoint"]["model_names"]
    return names[0].text() if isinstance(names.value, list) and names.value else names.text()


def _request(row: Field, scheduled: bool) -> Foreign:
    meta, metrics = row["metadata"], row["metrics"]
    start_ns, end_ns = meta["request_start_ns"].nanoseconds(), meta["request_end_ns"].nanoseconds()
    ttft = seconds(metrics["time_to_first_token"])
    gaps = seconds(metrics["inter_chunk_latency"])
    chunks = None
    if isinstance(ttft, float):
        chunks = [*accumulate(gaps if isinstance(gaps, list) else [], initial=ttft)]
    return Foreign(
        start_s=start_ns / NS,
        ttft_s=chunks[0] if chunks else None,
        last_token_s=chunks[-1] if chunks else None,
        end_s=(end_ns - start_ns) / NS,
        chunk_s=chunks,
        prompt_tokens=_tokens(metrics, "usage_prompt_tokens", "input_sequence_length"),
        output_tokens=_tokens(metrics, "usage_completion_tokens", "output_sequence_length"),
        error=CUT if meta["was_cancelled"].value is True else _error(row["error"]),
        scheduled_s=meta["credit_issued_ns"].nanoseconds() / NS if scheduled else None,
        phase="measure" if meta["benchmark_phase"].text() == "profiling" else "warmup",
    )


def _tokens(metrics: Field, *names: str) -> int | None:
    values = [metrics[name]["value"] for name in names]
    return next((value.count() for value in values if value.known), None)


def _error(error: Field) -> str | None:
    if not error.known:
        return None
    said = [str(error[key].value) for key in ("type", "code") if error[key].known]
    return f"{' '.join(said)}: {error['message'].value or 'no message'}"


def _load(config: Field, path: Path) -> LoadConfig:
    return (
        _load_of_phases(config, path) if config["phases"].known else _load_before_0_9(config, path)
    )


def _load_of_phases(config: Field, path: Path) -> LoadConfig:
    measured = [
        phase
        for phase in config["phases"].each()
        if phase.first("kind", "name").value == "profiling"
    ]
    if len(measured) != 1:
        raise UserError(
            f"{path}: AIPerf ran {len(measured)} profiling phases into one file; run one phase a file"
        )
    phase = measured[0]
    kind = phase["type"].text()
    if kind in ("constant", "poisson", "gamma"):
        _refuse_ramp(phase["rate_ramp"], path)
        return _open(phase["rate"], kind, phase["smoothness"])
    if kind == "concurrency":
        return LoadConfig(kind="closed", users=phase["concurrency"].count())
    raise _unreadable(kind, path)


def _load_before_0_9(config: Field, path: Path) -> LoadConfig:
    """Of ``loadgen``: a request rate, else so many at once; 1 where the person set neither."""
    load = config["loadgen"]
    for name, given in (
        ("user_centric_rate", load["user_centric_rate"]),
        ("fixed_schedule", config["input"]["fixed_schedule"]),
    ):
        if given.value:
            raise _unreadable(name, path)
    rate = load["request_rate"]
    if not rate.known:
        return LoadConfig(kind="closed", users=load["concurrency"].count_or_none() or 1)
    _refuse_ramp(load["request_rate_ramp_duration"], path)
    arrivals = load.first("arrival_pattern", "request_rate_mode").value or "poisson"
    if arrivals not in ("constant", "poisson", "gamma"):
        raise _unreadable(str(arrivals), path)
    return _open(rate, arrivals, load["arrival_smoothness"])


def _open(rate: Field, arrivals: Any, smoothness: Field) -> LoadConfig:
    shape = smoothness.number() if arrivals == "gamma" and smoothness.known else 1.0
    return LoadConfig(kind="open", rate_per_s=rate.number(), arrivals=arrivals, burstiness=shape)


def _refuse_ramp(ramp: Field, path: Path) -> None:
    if ramp.value:
        raise UserError(
            f"{path}: its rate rises while it runs ({ramp.place}), so that it is no one load with figures of "
            "its own; run AIPerf without a ramp"
        )


def _unreadable(kind: str, path: Path) -> UserError:
    return UserError(
        f"{path}: AIPerf's load '{kind}' is not readable here; readable are concurrency, "
        "constant, poisson and gamma"
    )


def refuse(_: Any, path: Path) -> list[Imported]:
    raise UserError(
        f"{path}: holds aggregates only; give {RECORDS}, which AIPerf writes beside it "
        "unless it was run with --export-level summary"
    )


def seems(_: Any, path: Path) -> str:
    """The version stands in the file beside the records."""
    try:
        return f"AIPerf {_whole(path)['aiperf_version'].text()}"
    except (UserError, ValueError):
        return "AIPerf"


READER = Reader(
    tool="AIPerf",
    tried="0.13.0",
    known=lambda data: (
        first_has_keys(data, "metadata", "metrics")
        and has_keys(data[0]["metadata"], "request_start_ns", "benchmark_phase")
    ),
    read=read,
    seems=seems,
    file_name=RECORDS,
)
AGGREGATES = Reader(
    tool="AIPerf",
    tried="0.13.0",
    known=lambda data: has_keys(data, "aiperf_version", "request_latency"),
    read=refuse,
    seems=lambda data, _: f"AIPerf {data['aiperf_version']}",
)

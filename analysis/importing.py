"""Results of other load generators as run directories, so that the same analysis works on them.

    python -m analysis import bench.json --backend flash_attn --out runs/imported

What a tool did not record stays null, and the point carries notes of what it cannot tell. Nothing is made
up: a run without a proof of its backend is ``unproven``, one without prompt lengths has none.
"""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench import __version__
from greenbench.clock import Anchor
from greenbench.config import (
    BackendChoice,
    LivePoint,
    LoadConfig,
    ModelConfig,
    PhaseConfig,
    PointConfig,
    ServerConfig,
    SloConfig,
    TaskConfig,
    TelemetryConfig,
    dump_yaml,
)
from greenbench.errors import UserError
from greenbench.manifest import Clock, Code, Counts, FileEntry, Host, Manifest, Server
from greenbench.rundir import JsonlWriter, RunDir, config_hash, file_sha256, run_id, slug
from greenbench.schema import Event, RequestRecord

NS = 1e9


@dataclass(frozen=True)
class Foreign:
    """One request as another tool recorded it; offsets in seconds from ``start_s``, unix seconds."""

    start_s: float
    ttft_s: float | None
    end_s: float | None
    chunk_s: list[float] | None
    prompt_tokens: int | None
    output_tokens: int | None
    error: str | None
    scheduled_s: float | None = None


@dataclass(frozen=True)
class Imported:
    """A whole result file. ``cannot_tell`` becomes the point's notes."""

    tool: str
    model: str
    load: LoadConfig
    requests: list[Foreign]
    cannot_tell: list[str]


def read_vllm_bench(raw: dict[str, Any]) -> Imported:
    """``vllm bench serve --save-result --save-detailed``.

    ``start_times`` are monotonic seconds, so only differences are used. ``itls`` are gaps between chunks;
    without token counts per chunk they are single tokens only where their number says so.
    """
    missing = [k for k in ("start_times", "ttfts", "itls", "output_lens") if k not in raw]
    if missing:
        raise UserError(f"no {', '.join(missing)} in the result: run the tool with --save-detailed")
    ended = _unix_s(raw["date"], "%Y%m%d-%H%M%S")
    starts = [float(s) for s in raw["start_times"]]
    shift = ended - float(raw["duration"]) - min(starts, default=0.0)
    latencies = raw.get("latencies")
    found: list[Foreign] = []
    for number, start in enumerate(starts):
        ttft, gaps = float(raw["ttfts"][number]), [float(g) for g in raw["itls"][number]]
        error = raw.get("errors", [""] * len(starts))[number] or None
        chunks = [ttft]
        for gap in gaps:
            chunks.append(chunks[-1] + gap)
        end = float(latencies[number]) if latencies else chunks[-1]
        found.append(
            Foreign(
                start_s=start + shift,
                ttft_s=None if error else ttft,
                end_s=end,
                chunk_s=None if error else chunks,
                prompt_tokens=int(raw["input_lens"][number]),
                output_tokens=int(raw["output_lens"][number]),
                error=error,
            )
        )
    rate = float(raw.get("request_rate") or "inf")
    users = raw.get("max_concurrency") or len(starts)
    load = (
        LoadConfig(kind="closed", users=int(users))
        if rate == float("inf")
        else LoadConfig(kind="open", rate_per_s=rate)
    )
    notes = [
        "prompt lengths are the client's own count, not the server's",
        "start times count from sending: waiting behind the concurrency limit is not in them",
    ]
    return Imported("vllm bench serve", str(raw["model_id"]), load, found, notes)


def _unix_s(text: str, form: str) -> float:
    return time.mktime(time.strptime(text, form))


READERS: dict[str, Callable[[dict[str, Any]], Imported]] = {"vllm-bench": read_vllm_bench}
SIGNS: dict[str, frozenset[str]] = {  # keys by which a file is known
    "vllm-bench": frozenset({"endpoint_type", "model_id", "total_output_tokens"}),
}


def read_result(path: Path) -> Imported:
    """Whose file it is shows in its keys; one that is nobody's is a UserError."""
    try:
        raw = json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise UserError(f"{path}: not a JSON result file ({error})") from error
    for name, signs in SIGNS.items():
        if isinstance(raw, dict) and signs <= raw.keys():
            return READERS[name](raw)
    raise UserError(
        f"{path}: not a result that is known here; readable are those of "
        f"{', '.join(READERS)} (give the JSON file the tool saved with per-request detail)"
    )


def write_imported(found: Imported, backend: str, out: Path) -> Path:
    """A run directory under ``out``; its measured phase is from the first sending to the last."""
    if not found.requests:
        raise UserError("the result holds no requests")
    starts = [round(r.start_s * NS) for r in found.requests]
    ends = [round((r.start_s + (r.end_s or 0.0)) * NS) for r in found.requests]
    measure = (min(starts), max(ends))
    context = max((r.prompt_tokens or 0) for r in found.requests) or 1
    point = _point(found, backend, context, (measure[1] - measure[0]) / NS)
    hashed = config_hash(point.identity() | {"start": measure[0]})
    name = run_id(measure[0], backend, point.workload, hashed)
    live = LivePoint(
        point=point,
        run_id=name,
        base_url="http://imported",
        served_model=found.model,
        prompts_path="none",
        prompts_sha256="0" * 64,
    )
    anchor = Anchor.now()
    manifest = _manifest(found, point, name, hashed, measure, anchor)
    run = RunDir.create(out / name, manifest, dump_yaml(live))
    with JsonlWriter(run.requests_dir / "imported.jsonl") as writer:
        for number, request in enumerate(found.requests):
            writer.write(_record(request, name, number, anchor))
    with JsonlWriter(run.events_path) as writer:
        for mark, at in zip(("measure_start", "measure_end"), measure, strict=True):
            writer.write(Event(at, anchor.to_mono_ns(at), mark))
    good = sum(r.error is None for r in found.requests)
    total = len(found.requests)
    final = manifest.model_copy(
        update={
            "status": "complete",
            "counts": Counts(scheduled=total, sent=total, ok=good, failed=total - good, rows=total),
            "files": {
                str(path.relative_to(run.path)): FileEntry(
                    rows=path.read_bytes().count(b"\n"), sha256=file_sha256(path)
                )
                for path in sorted(run.path.rglob("*.jsonl"))
            },
        }
    )
    run.write_manifest(final)
    return run.path


def _record(request: Foreign, name: str, number: int, anchor: Anchor) -> RequestRecord:
    sent = round(request.start_s * NS)
    chunks = [round(s * NS) for s in request.chunk_s] if request.chunk_s else None
    # one token a chunk only where the server's total says so
    single = chunks is not None and request.output_tokens == len(chunks)
    return RequestRecord(
        run_id=name,
        client_id="imported",
        request_id=f"{name}-{number}",
        phase="measure",
        task="imported",
        prompt_index=number,
        prompt_sha256="0" * 64,
        context_tokens_target=request.prompt_tokens or 0,
        max_output_tokens=request.output_tokens or 0,
        in_flight_at_send=0,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        scheduled_unix_ns=None if request.scheduled_s is None else round(request.scheduled_s * NS),
        sent_unix_ns=sent,
        sent_mono_ns=anchor.to_mono_ns(sent),
        first_token_ns=None if request.ttft_s is None else round(request.ttft_s * NS),
        last_token_ns=chunks[-1] if chunks else None,
        end_ns=None if request.end_s is None else round(request.end_s * NS),
        chunk_ns=chunks,
        chunk_tokens=list(range(1, len(chunks) + 1)) if chunks and single else None,
        error_type="imported" if request.error else None,
        error_message=request.error[:200] if request.error else None,
    )


def _point(found: Imported, backend: str, context: int, length_s: float) -> PointConfig:
    return PointConfig(
        sweep="imported",
        seed=0,
        repeat=0,
        model=ModelConfig(
            name=slug(found.model) or "unknown", path=found.model, max_model_len=context
        ),
        backend=BackendChoice(name=backend),
        server=ServerConfig(base_url="http://imported"),
        task=TaskConfig(name="imported"),
        context_tokens=context,
        load=found.load,
        phases=PhaseConfig(warmup_s=0, measure_s=max(length_s, 1e-9)),
        slo=SloConfig(),
        telemetry=TelemetryConfig(),
        prompts_per_point=len(found.requests),
    )


def _manifest(
    found: Imported,
    point: PointConfig,
    name: str,
    hashed: str,
    measure: tuple[int, int],
    anchor: Anchor,
) -> Manifest:
    unknown = "unknown"
    return Manifest(
        run_id=name,
        sweep="imported",
        config_hash=hashed,
        seed=0,
        created_unix_ns=measure[0],
        clock=Clock(unix_ns=anchor.unix_ns, mono_ns=anchor.mono_ns, host=unknown),
        code=Code(git_sha=None, dirty=None, greenbench=__version__, python=unknown, packages={}),
        host=Host(cpu=unknown, cores=0, ram_bytes=0, kernel=unknown),
        server=Server(
            server_id=f"imported-{name}",
            requested_backend=point.backend.label,
            proof="unproven",
            proof_detail={"imported_from": found.tool, "cannot_tell": found.cannot_tell},
            model=point.model.name,
            model_path=found.model,
            weights="unknown",
            dtype=unknown,
            kv_cache_dtype=unknown,
            execution=unknown,
            base_url="http://imported",
            served_model=found.model,
        ),
        load=point.load.model_dump(mode="json"),
        point={"imported_from": found.tool},
        phases={"measure": measure},
    )

"""Results of other load generators as run directories, so that the same analysis works on them.

    greenbench import bench.json --backend flash_attn --out runs/imported

What a tool did not record stays null, and the point carries notes of what it cannot tell. Nothing is made
up: a run without a proof of its backend is ``unproven``, one without prompt lengths has none.
"""

import json
import statistics
from pathlib import Path
from typing import Any

from analysis.importers import aiperf, guidellm, inference_perf, vllm_bench
from analysis.importers.record import CUT, Foreign, Imported, Reader
from greenbench import __version__
from greenbench.contract.clock import Anchor
from greenbench.contract.config import (
    BackendChoice,
    ModelConfig,
    PhaseConfig,
    PointConfig,
    ServerConfig,
    SweepConfig,
    points_of,
)
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Code, Counts, Host, Server
from greenbench.contract.new_run import (
    NO_PROMPT_FILE,
    NewRun,
    Provenance,
    clock_of,
    file_entries,
    point_hash,
)
from greenbench.contract.run_dir import JsonlWriter, RunDir, read_jsonl, slug
from greenbench.contract.schema import Event, RequestRecord

NS = 1e9
UNKNOWN = "unknown"
UNKNOWN_CODE = Code(git_sha=None, dirty=None, greenbench=__version__, python=UNKNOWN, packages={})
UNKNOWN_HOST = Host(cpu=UNKNOWN, cores=0, ram_bytes=0, kernel=UNKNOWN)
READERS: tuple[Reader, ...] = (
    vllm_bench.READER,
    guidellm.READER,
    aiperf.READER,
    aiperf.AGGREGATES,
    inference_perf.READER,
)


def read_result(path: Path) -> list[Imported]:
    """The points of a result file, or of the directory that a tool wrote.

    Whose file it is shows in its content; one that is nobody's, or lacks what its tool writes, is a
    UserError.
    """
    file = _result_file(path)
    data = _parsed(file)
    reader = next((reader for reader in READERS if reader.known(data)), None)
    if reader is None:
        raise UserError(
            f"{file}: not a result that is known here; readable are the per-request results of "
            f"{', '.join(_versions())}"
        )
    try:
        points = reader.read(data, file)
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise UserError(
            f"{file}: a result of {reader.tool} without what version {reader.tried} writes "
            f"({type(error).__name__}: {error})"
        ) from error
    if not points or any(not point.requests for point in points):
        raise UserError(f"{file}: the result holds no requests")
    return points


def _versions() -> list[str]:
    return list(dict.fromkeys(f"{reader.tool} {reader.tried}" for reader in READERS))


def _result_file(path: Path) -> Path:
    if not path.is_dir():
        return path
    names = [reader.file_name for reader in READERS if reader.file_name]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise UserError(f"{path}: none of {', '.join(names)} is in it; give the result file itself")


def _parsed(path: Path) -> Any:
    try:
        if path.suffix == ".jsonl":
            return list(read_jsonl(path))
        return json.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the tool's result file or its directory"
        ) from error
    except ValueError as error:
        raise UserError(f"{path}: not a JSON result file ({error})") from error


def write_imported(imported: Imported, backend: str, out: Path) -> Path:
    """A run directory under ``out``; its measured phase is from the first measured sending to the last
    end."""
    anchor = Anchor.now()
    measure = _measured_phase(imported, out)
    point = _point(imported, backend, (measure[1] - measure[0]) / NS)
    new = NewRun(point, measure[0], point_hash(point, {"start": measure[0]}))
    name = new.run_id
    if (out / name).exists():
        raise UserError(f"{out / name}: it was imported before; remove it to import it again")
    provenance = Provenance(UNKNOWN_CODE, UNKNOWN_HOST, clock_of(anchor, UNKNOWN))
    facts = {"imported_from": imported.tool}
    run, manifest = new.create(
        out, _server(imported, point, name), NO_PROMPT_FILE, provenance, facts
    )
    with JsonlWriter(run.requests_dir / "imported.jsonl") as writer:
        for number, request in enumerate(imported.requests):
            writer.write(_record(request, name, number, anchor))
    with JsonlWriter(run.events_path) as writer:
        for mark, at in zip(("measure_start", "measure_end"), measure, strict=True):
            writer.write(Event(at, anchor.to_mono_ns(at), mark))
    run.write_manifest(manifest.model_copy(update=_outcome(imported, run, measure)))
    return run.path


def _measured_phase(imported: Imported, out: Path) -> tuple[int, int]:
    sent = [r for r in imported.requests if r.phase == "measure" and r.start_s is not None]
    if not sent:
        raise UserError(
            f"{imported.tool}'s result has no measured request that was sent; {out} is as it was"
        )
    starts = [round((r.start_s or 0.0) * NS) for r in sent]
    ends = [round(((r.start_s or 0.0) + (r.end_s or 0.0)) * NS) for r in sent]
    return min(starts), max(ends)


def _outcome(imported: Imported, run: RunDir, measure: tuple[int, int]) -> dict[str, Any]:
    good = sum(r.error is None for r in imported.requests)
    total = len(imported.requests)
    return {
        "status": "complete",
        "counts": Counts(
            scheduled=sum(r.scheduled_s is not None for r in imported.requests),
            sent=sum(r.start_s is not None for r in imported.requests),
            ok=good,
            failed=total - good,
            rows=total,
        ),
        "phases": {"measure": measure},
        "files": file_entries(run, sorted(run.path.rglob("*.jsonl"))),
    }


def _record(request: Foreign, name: str, number: int, anchor: Anchor) -> RequestRecord:
    sent = None if request.start_s is None else round(request.start_s * NS)
    chunks = [round(s * NS) for s in request.chunk_s] if request.chunk_s else None
    # one token a chunk only where the server's total says so
    single = chunks is not None and request.output_tokens == len(chunks)
    return RequestRecord(
        run_id=name,
        client_id="imported",
        request_id=f"{name}-{number}",
        phase=request.phase,
        task="imported",
        prompt_index=number,
        prompt_sha256="0" * 64,
        context_tokens_target=request.prompt_tokens or 0,
        max_output_tokens=request.output_tokens or 0,
        in_flight_at_send=0,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
        scheduled_unix_ns=_ns(request.scheduled_s),
        sent_unix_ns=sent,
        sent_mono_ns=None if sent is None else anchor.to_mono_ns(sent),
        first_token_ns=_ns(request.ttft_s),
        last_token_ns=_ns(request.last_token_s),
        end_ns=_ns(request.end_s),
        chunk_ns=chunks,
        chunk_tokens=list(range(1, len(chunks) + 1)) if chunks and single else None,
        error_type=None if request.error is None else _error_type(request),
        error_message=None if request.error is None else request.error[:200],
    )


def _ns(seconds: float | None) -> int | None:
    return None if seconds is None else round(seconds * NS)


def _error_type(request: Foreign) -> str:
    if request.start_s is None:
        return "not_sent"
    return "cut_at_drain" if request.error == CUT else "imported"


def _prompt_lengths(imported: Imported) -> list[int]:
    return [r.prompt_tokens for r in imported.requests if r.prompt_tokens]


def _notes(imported: Imported) -> list[str]:
    """What the file cannot tell, and under which length prompts of several lengths stand."""
    lengths = _prompt_lengths(imported)
    if len(set(lengths)) < 2:
        return imported.cannot_tell
    said = f"prompts of {min(lengths):,} to {max(lengths):,} tokens stand under their median"
    return [*imported.cannot_tell, said]


def _point(imported: Imported, backend: str, length_s: float) -> PointConfig:
    lengths = _prompt_lengths(imported) or [1]
    sweep = SweepConfig(
        name="imported",
        seed=0,
        models=[UNKNOWN],
        backends=[backend],
        contexts=[round(statistics.median(lengths))],
        tasks=["imported"],
        loads=[imported.load],
        server=ServerConfig(base_url="http://imported"),
        phases=PhaseConfig(warmup_s=0, measure_s=max(length_s, 1e-9)),
        prompts_per_point=len(imported.requests),
    )
    model = ModelConfig(
        name=slug(imported.model) or UNKNOWN, path=imported.model, max_model_len=max(lengths)
    )
    [point] = points_of(sweep, model, BackendChoice(name=backend))
    return point


def _server(imported: Imported, point: PointConfig, name: str) -> Server:
    return Server(
        server_id=f"imported-{name}",
        requested_backend=point.backend.label,
        proof="unproven",
        proof_detail={"imported_from": imported.tool, "cannot_tell": _notes(imported)},
        model=point.model.name,
        model_path=imported.model,
        weights=UNKNOWN,
        dtype=UNKNOWN,
        kv_cache_dtype=UNKNOWN,
        execution=UNKNOWN,
        base_url="http://imported",
        served_model=imported.model,
    )

"""Results of other load generators as run directories, so that the same analysis works on them.

    greenbench import bench.json --backend flash_attn --out runs/imported

What a tool did not record stays null, and the point carries notes of what it cannot tell. Nothing is made
up: a run without a proof of its backend is ``unproven``, one without prompt lengths has none.
"""

import shutil
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from analysis.importers import aiperf, guidellm, inference_perf, vllm_bench
from analysis.importers.fields import Unfit, printable
from analysis.importers.json_text import documents
from analysis.importers.record import CUT, NO_TOKEN, Foreign, Imported, Reader, believed
from greenbench import __version__
from greenbench.contract.clock import Anchor
from greenbench.contract.config import (
    ModelConfig,
    PhaseConfig,
    PointConfig,
    ServerConfig,
    SweepConfig,
    SweepLoad,
    points_of,
)
from greenbench.contract.counted import counted
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
from greenbench.contract.run_dir import JsonlWriter, RunDir, slug
from greenbench.contract.schema import Event, RequestRecord

NS = 1e9
UNKNOWN = "unknown"
TORN = "the file's last line was cut off, and is left out"
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
    UserError. A file of several results, one after the other, holds the points of all.
    """
    file = _result_file(path)
    held = documents(file)
    by_itself = _reader(held.found[0])
    if by_itself is None:
        reader = _reader(held.found)
        if reader is None:
            raise UserError(
                f"{file}: not a result that is known here; readable are the per-request results of "
                f"{', '.join(_versions())}"
            )
        points = _points(reader, held.found, file)
    elif held.torn:
        raise UserError(f"{file}: its last result is cut off; remove the line to import the others")
    else:
        points = [
            point
            for data in held.found
            for point in _points(_reader(data) or by_itself, data, file)
        ]
    if not points or any(not point.requests for point in points):
        raise UserError(f"{file}: the result holds no requests")
    return [_with_note(point, TORN) for point in points] if held.torn else points


def _reader(data: Any) -> Reader | None:
    return next((reader for reader in READERS if reader.known(data)), None)


def _points(reader: Reader, data: Any, file: Path) -> list[Imported]:
    """What a reader makes of its tool's data; what it lacks is said with the version that it seems to be."""
    try:
        points = reader.read(data, file)
        return [_believed(point) for point in points]
    except Unfit as error:
        why = str(error)
    except ValidationError as error:
        first = error.errors()[0]
        why = f"its load: {'.'.join(map(str, first['loc']))}: {first['msg']}"
    except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
        why = f"{type(error).__name__}: {error}"
    raise UserError(
        f"{file}: it seems to be a result of {_seems(reader, data, file)}, but {why}; what is read was "
        f"tried with {reader.tried}"
    )


def _seems(reader: Reader, data: Any, file: Path) -> str:
    try:
        return printable(reader.seems(data, file))
    except (ValueError, LookupError, TypeError, AttributeError):  # what is wrong may be there too
        return reader.tool


def _believed(point: Imported) -> Imported:
    requests = [believed(request, number) for number, request in enumerate(point.requests)]
    empty = sum(request.error == NO_TOKEN for request in requests)
    if not empty:
        return point
    said = f"{counted(empty, 'request')} without an output token, which the tool counts as "
    said += "a success, is a failure here" if empty == 1 else "successes, are failures here"
    return _with_note(replace(point, requests=requests), said)


def _with_note(point: Imported, note: str) -> Imported:
    return replace(point, cannot_tell=[*point.cannot_tell, note])


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


def write_all(points: Sequence[Imported], backend: str, out: Path) -> list[Path]:
    """A run directory under ``out`` for each point, in order; where one cannot be written, none is.

    They are made in a folder beside and renamed when all are whole.
    """
    with _workshop(out) as place:
        made = [_write(point, backend, place, out) for point in points]
        return [Path(shutil.move(path, out / path.name)) for path in made]


def write_imported(imported: Imported, backend: str, out: Path) -> Path:
    """A run directory under ``out``; its measured phase is from the first measured sending to the last
    end."""
    [path] = write_all([imported], backend, out)
    return path


@contextmanager
def _workshop(out: Path) -> Iterator[Path]:
    """A folder in ``out`` that is gone afterwards, and ``out`` with it where it was made for nothing."""
    new = not out.exists()
    try:
        out.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(prefix=".import-", dir=out))
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written ({error.strerror}); choose another --out"
        ) from error
    try:
        yield place
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error})") from error
    finally:
        shutil.rmtree(place, ignore_errors=True)
        if new and not any(out.iterdir()):
            out.rmdir()


def _write(imported: Imported, backend: str, place: Path, out: Path) -> Path:
    anchor = Anchor.now()
    measure = _measured_phase(imported, out)
    try:
        point = _point(imported, backend, (measure[1] - measure[0]) / NS)
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{imported.tool}'s result cannot be a point here: {'.'.join(map(str, first['loc']))}: "
            f"{first['msg']}"
        ) from error
    new = NewRun(point, measure[0], point_hash(point, {"start": measure[0]}))
    name = new.run_id
    if (out / name).exists():
        raise UserError(f"{out / name}: it was imported before; remove it to import it again")
    if (place / name).exists():
        raise UserError(f"{name}: the same run stands twice in what was given; give it once")
    provenance = Provenance(UNKNOWN_CODE, UNKNOWN_HOST, clock_of(anchor, UNKNOWN))
    facts = {"imported_from": imported.tool}
    run, manifest = new.create(
        place, _server(imported, point, name), NO_PROMPT_FILE, provenance, facts
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
        error_message=None if request.error is None else printable(request.error[:200]),
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
        loads=[SweepLoad.everywhere(imported.load)],
        server=ServerConfig(base_url="http://imported"),
        phases=PhaseConfig(warmup_s=0, measure_s=max(length_s, 1e-9)),
        prompts_per_point=len(imported.requests),
    )
    model = ModelConfig(
        name=slug(imported.model) or UNKNOWN, path=imported.model, max_model_len=max(lengths)
    )
    [point] = points_of(sweep, model, sweep.contenders[0])
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

"""``python -m analysis archive RUNS --out DIR``: a sweep small enough to keep; the report reads it as it is.

Row files become Parquet (``analysis.runs.archived`` says what is rounded), the server's log its engine steps
and the lines that are none. Manifest, configuration, events, audits, sources and proofs stay byte for byte.
Prompts, the logs of our own processes and ``derived/`` are left out. Nothing in RUNS is changed.
"""

import gzip
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.runs.archived import SUFFIX, write_archived, write_steps
from analysis.runs.boundary import OF_THE_DATA, sentence
from analysis.runs.engine_steps import STEP, parse_steps
from analysis.runs.parquet import SOURCES, raw_table, row_files
from analysis.runs.run import Run, Unreadable, read_runs
from greenbench.contract.archive import ARCHIVE, STEPS, Archive, ArchivedFile
from greenbench.contract.errors import UserError
from greenbench.contract.prompt_head import prompt_lines_sha256
from greenbench.contract.run_dir import (
    MANIFEST,
    PROMPTS_DIR,
    SERVERS_DIR,
    file_sha256,
    write_atomic,
)

UNIT_NS = (
    10_000  # of the times of chunks; the load generator's own error is 0.1 ms (docs/client.md)
)
OF_A_SWEEP = ("sweep.yaml", "refused.json", "ceilings.json", "times.json", "verify/*/verify.json")
OF_A_SERVER = ("server.json", "model_inspection.txt")
PACKED = ("server_info.json",)  # of a server: long, and read by people alone
IDLE = ("idle_before", "idle_after")
OF_A_RECORDING = ("events.jsonl", "telemetry/sources.json")
OF_A_RUN = (MANIFEST, "config.yaml", *OF_A_RECORDING, "client_audit/*.json")
LOG = "logs/server.log"
TELEMETRY = "telemetry/"


@dataclass(frozen=True)
class Kept:
    """What was archived: folders of the runs, and those that cannot be, each with the reason."""

    runs: list[Path]
    unreadable: list[Unreadable]
    raw_bytes: int
    bytes: int


def archive(root: Path, out: Path, unit_ns: int = UNIT_NS, prompts: bool = False) -> Kept:
    """The runs at or below ``root`` into the new folder ``out``; UserError where that cannot be.

    A run that cannot be read is named in the result and costs the others nothing. ``out`` is there once all
    of it is.
    """
    runs, unreadable = read_runs(root)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(
            f"{out}: is there already, and an archive is not written over; name another --out"
        )
    base = root.parent if (root / MANIFEST).is_file() else root
    scratch = out.with_name(f".{out.name}.part")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        whole = base == root
        for folder in dict.fromkeys(run.path.parent for run in runs):
            own = [run for run in runs if run.path.parent == folder]
            _sweep(folder, scratch / folder.relative_to(base), own, unit_ns, whole, prompts)
        done: list[Run] = []
        for run in runs:
            try:
                archive_run(run, scratch / run.path.relative_to(base), unit_ns)
                done.append(run)
            except OF_THE_DATA as error:
                if isinstance(error, OSError):  # of the place that is written to
                    raise
                shutil.rmtree(scratch / run.path.relative_to(base), ignore_errors=True)
                unreadable.append(Unreadable(run.path, sentence(error, run.path)))
        if not done:
            raise UserError(f"{root}: none of its runs can be archived; {unreadable[0].why}")
        out.parent.mkdir(parents=True, exist_ok=True)
        if out.exists():
            out.rmdir()
        scratch.replace(out)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return Kept([run.path for run in done], unreadable, folder_bytes(root), folder_bytes(out))


def folder_bytes(folder: Path) -> int:
    """Of all files below it but caches."""
    paths = (path for path in folder.rglob("*") if "derived" not in path.parts)
    return sum(path.stat().st_size for path in paths if path.is_file())


def archive_run(run: Run, out: Path, unit_ns: int) -> None:
    """One run directory. What cannot be read raises UserError."""
    source = run.path
    for fault in run.unreadable:
        raise UserError(fault)
    refuse_links_out(source)
    _copy(source, out, OF_A_RUN)
    files = dict(_tables(source, out, unit_ns))
    if (source / LOG).is_file():
        files |= _log(source / LOG, out)
    kept = {name for file in files.values() for name in file.of}
    left_out = {
        name: file_sha256(source / name)
        for name in run.manifest.files
        if name not in kept and (source / name).is_file() and not (out / name).is_file()
    }
    told = Archive(
        chunk_unit_ns=unit_ns,
        files=files,
        left_out=left_out,
        prompt_lines_sha256=run.live.prompt_lines_sha256
        or prompt_lines_sha256(source.parent / PROMPTS_DIR / Path(run.live.prompts_path).name),
    )
    write_atomic(out / ARCHIVE, told.model_dump_json(indent=1) + "\n")


def _tables(source: Path, out: Path, unit_ns: int) -> Iterator[tuple[str, ArchivedFile]]:
    """Each table as Parquet: parts of a recording in one file, those of several clients one by one."""
    for row, pattern in SOURCES.values():
        raw = row_files(source, pattern)
        together = pattern.startswith(TELEMETRY)
        for paths in [raw] if together and raw else [[path] for path in raw]:
            path = Path(pattern) if together else paths[0].relative_to(source)
            name = path.with_suffix(SUFFIX).as_posix()
            sha = write_archived(raw_table(row, paths), out / name, unit_ns)
            of = {each.relative_to(source).as_posix(): file_sha256(each) for each in paths}
            yield name, ArchivedFile(sha256=sha, of=of)


def _log(path: Path, out: Path) -> dict[str, ArchivedFile]:
    """The engine's steps as a table, and the other lines where there are any."""
    of = {LOG: file_sha256(path)}
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
    steps = f"logs/{STEPS}"
    kept = {steps: ArchivedFile(sha256=write_steps(parse_steps(lines), out / steps), of=of)}
    if others := "".join(_no_steps(lines)):
        write_atomic(out / LOG, others)
        kept[LOG] = ArchivedFile(sha256=file_sha256(out / LOG), of=of)
    return kept


def _no_steps(lines: Iterable[str]) -> Iterator[str]:
    return (line for line in lines if "Iteration(" not in line or not STEP.match(line))


def _sweep(
    folder: Path, out: Path, runs: list[Run], unit_ns: int, whole: bool, prompts: bool
) -> None:
    """What a sweep has beside its runs; of a part of a sweep no more than what belongs to these."""
    _copy(folder, out, OF_A_SWEEP)
    servers = {run.manifest.server.server_id for run in runs}
    for server in sorted((folder / SERVERS_DIR).glob("*")):
        if server.is_dir() and (whole or server.name in servers):
            _server(server, out / SERVERS_DIR / server.name, unit_ns)
    if prompts:
        _copy(folder, out, (f"{PROMPTS_DIR}/*.jsonl",))


def refuse_links_out(folder: Path) -> None:
    """An archive is given to others: a link in a run must not put a file of this machine into it."""
    inside = folder.resolve()
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(inside):
            raise UserError(
                f"{path}: is a link to {path.resolve()}, outside of {folder.name}; put the file "
                "itself there, or take the link away"
            )


def _server(folder: Path, out: Path, unit_ns: int) -> None:
    refuse_links_out(folder)
    _copy(folder, out, OF_A_SERVER)
    log = folder / "server.log"
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        _pack("".join(_no_steps(lines)).encode(), out / "server.log.gz")
    for name in PACKED:
        if (folder / name).is_file():
            _pack((folder / name).read_bytes(), out / f"{name}.gz")
    for name in IDLE:
        if (folder / name).is_dir():
            _copy(folder / name, out / name, OF_A_RECORDING)
            _ = dict(_tables(folder / name, out / name, unit_ns))


def _pack(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0))  # the same bytes each time


def _copy(source: Path, out: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            if not path.resolve().is_relative_to(source.resolve()):
                raise UserError(f"{path}: is a link out of {source}; put the file itself there")
            target = out / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)

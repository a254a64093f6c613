"""``python -m analysis archive RUNS --out DIR``: a sweep small enough to keep; the report reads it as it is.

Row files become Parquet (``analysis.runs.archived`` says what is rounded), the server's log its engine steps
and the lines that are none. Manifest, configuration, events, audits, sources and proofs stay byte for byte.
Prompts, the logs of our own processes and ``derived/`` are left out, and of a model with random weights the
answers' texts, which nobody can grade. RUNS may be an archive already. Nothing in RUNS is changed.
"""

import gzip
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from analysis.runs.archived import (
    SUFFIX,
    read_archived,
    texts_left_out,
    without_texts,
    write_archived,
    write_steps,
)
from analysis.runs.boundary import OF_THE_DATA, sentence
from analysis.runs.engine_steps import STEP, logged_steps, parse_steps
from analysis.runs.parquet import SOURCES, raw_table, row_files
from analysis.runs.run import Run, Unreadable, read_runs
from greenbench import SCHEMA_VERSION
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
SERVER_LOG = "server.log"
PACKED = ("server_info.json",)  # of a server: long, and read by people alone
GZIPPED = ".gz"
IDLE = ("idle_before", "idle_after")
OF_A_RECORDING = ("events.jsonl", "telemetry/sources.json")
OF_A_RUN = (MANIFEST, "config.yaml", *OF_A_RECORDING, "client_audit/*.json")
LOG, STEP_TABLE = f"logs/{SERVER_LOG}", f"logs/{STEPS}"
TELEMETRY = "telemetry/"
OUTPUTS = "outputs"  # the table of answers


@dataclass(frozen=True)
class Kept:
    """What was archived: folders of the runs, and those that cannot be, each with the reason."""

    runs: list[Path]
    unreadable: list[Unreadable]
    raw_bytes: int
    bytes: int
    texts_left_out: int  # answers of random weights


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
    if out.resolve().is_relative_to(root.resolve()):
        raise UserError(
            f"{out}: lies in {root}, where reports would read each archived run as one more; "
            "name a folder outside as --out"
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
        texts = 0
        for run in runs:
            try:
                told = archive_run(run, scratch / run.path.relative_to(base), unit_ns)
                texts += told.texts_left_out
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
    sizes = folder_bytes(root), folder_bytes(out)
    return Kept([run.path for run in done], unreadable, *sizes, texts)


def folder_bytes(folder: Path) -> int:
    """Of all files below it but caches."""
    paths = (path for path in folder.rglob("*") if "derived" not in path.parts)
    return sum(path.stat().st_size for path in paths if path.is_file())


def archive_run(run: Run, out: Path, unit_ns: int) -> Archive:
    """One run directory, raw or archived before. What cannot be read raises UserError."""
    for fault in run.unreadable:
        raise UserError(fault)
    refuse_links_out(run.path)
    _copy(run.path, out, OF_A_RUN)
    told = run.archive
    told = _of_raw(run, out, unit_ns) if told is None else _of_archived(run.path, told, out)
    if run.manifest.server.weights == "random":
        told = _texts_left_out(told, out)
    write_atomic(out / ARCHIVE, told.model_dump_json(indent=1) + "\n")
    return told


def _of_raw(run: Run, out: Path, unit_ns: int) -> Archive:
    source = run.path
    files = dict(_tables(source, out, unit_ns))
    if (source / LOG).is_file():
        files |= _log(source / LOG, out)
    kept = {name for file in files.values() for name in file.of}
    left_out = {
        name: file_sha256(source / name)
        for name in run.manifest.files
        if name not in kept and (source / name).is_file() and not (out / name).is_file()
    }
    return Archive(
        chunk_unit_ns=unit_ns,
        files=files,
        left_out=left_out,
        prompt_lines_sha256=run.live.prompt_lines_sha256
        or prompt_lines_sha256(source.parent / PROMPTS_DIR / Path(run.live.prompts_path).name),
    )


def _of_archived(source: Path, told: Archive, out: Path) -> Archive:
    """The tables of an archive as they would be written today, all else as it is.

    A file that is not the one that was archived raises UserError.
    """
    files = dict(told.files)
    of_tables = (path for _, pattern in SOURCES.values() for path in row_files(source, pattern))
    of_log = (source / name for name in (STEP_TABLE, LOG))
    there = {
        path.relative_to(source).as_posix(): path
        for path in (*of_tables, *of_log)
        if path.is_file()
    }
    for name in sorted(there.keys() ^ told.files.keys()):
        said = "is there and not listed" if name in there else "is listed and not there"
        raise UserError(f"{source / ARCHIVE}: {name} {said}; archive the run's own files again")
    for name, path in there.items():
        if file_sha256(path) != told.files[name].sha256:
            raise UserError(
                f"{path}: is not the file that was archived; archive the run's own files again"
            )
        if name == LOG:
            _put(path, out / name)
        else:
            files[name] = files[name].model_copy(update={"sha256": _again(path, out / name, told)})
    return told.model_copy(update={"schema_version": SCHEMA_VERSION, "files": files})


def _again(path: Path, target: Path, told: Archive) -> str:
    """An archived table written anew; the file's sha256."""
    if path.name == STEPS:
        return write_steps(logged_steps(path.with_name(SERVER_LOG)), target)
    return write_archived(read_archived(path), target, told.chunk_unit_ns)


def _texts_left_out(told: Archive, out: Path) -> Archive:
    """The archive in ``out`` without the texts of its answers."""
    files, count = dict(told.files), 0
    for path in row_files(out, SOURCES[OUTPUTS][1]):
        sha = write_archived(without_texts(read_archived(path)), path, told.chunk_unit_ns)
        name = path.relative_to(out).as_posix()
        files[name] = files[name].model_copy(update={"sha256": sha})
        count += texts_left_out(path)
    return told.model_copy(update={"files": files, "texts_left_out": count})


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
    sha = write_steps(parse_steps(lines), out / STEP_TABLE)
    kept = {STEP_TABLE: ArchivedFile(sha256=sha, of=of)}
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
    for path in folder.rglob("*"):
        _refuse_link_out(path, folder)


def _refuse_link_out(path: Path, folder: Path) -> None:
    target = path.resolve()
    if not target.is_relative_to(folder.resolve()):
        raise UserError(
            f"{path}: is a link to {target}, outside of {folder.name}; put the file itself there, or "
            "take the link away"
        )


def _server(folder: Path, out: Path, unit_ns: int) -> None:
    refuse_links_out(folder)
    packed = (f"{name}{GZIPPED}" for name in (SERVER_LOG, *PACKED))  # of an archive
    _copy(folder, out, (*OF_A_SERVER, *packed))
    log = folder / SERVER_LOG
    if log.is_file():
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        _pack("".join(_no_steps(lines)).encode(), out / f"{SERVER_LOG}{GZIPPED}")
    for name in PACKED:
        if (folder / name).is_file():
            _pack((folder / name).read_bytes(), out / f"{name}{GZIPPED}")
    for name in IDLE:
        if (folder / name).is_dir():
            tables = f"{TELEMETRY}*{SUFFIX}"
            _copy(folder / name, out / name, (*OF_A_RECORDING, tables))
            if not any(folder.glob(f"{name}/{tables}")):
                _ = dict(_tables(folder / name, out / name, unit_ns))


def _pack(content: bytes, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content, mtime=0))  # the same bytes each time


def _copy(source: Path, out: Path, patterns: Iterable[str]) -> None:
    for pattern in patterns:
        for path in sorted(source.glob(pattern)):
            _refuse_link_out(path, source)
            _put(path, out / path.relative_to(source))


def _put(path: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)

"""Run directories: names, creation, atomic writes, append-only JSONL, and reading them back.

``runs/<sweep>/<run_id>/`` is one measured point. Capture never writes ``derived/``; analysis writes
nothing else. Another run's data is never deleted or cut.
"""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Self, cast

from pydantic import ValidationError

from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Manifest
from greenbench.contract.newer import is_newer, known_part, refuse_other_major
from greenbench.contract.schema import Row

NAME_CHARS = 80  # of a backend or a workload in the name of a folder, which has 255
MANIFEST = "manifest.json"
CONFIG = "config.yaml"
EVENTS = "events.jsonl"
SERVERS_DIR = "servers"  # runs/<sweep>/servers/<server_id>/: server.json, server.log, proof files
PROMPTS_DIR = "prompts"  # runs/<sweep>/prompts/*.jsonl, shared by all backends


def run_id(unix_ns: int, backend: str, workload: str, config_hash: str) -> str:
    """e.g. 20261123T074812Z-flashinfer-retrieve-8192-closed4-3f9a1c2e (UTC)."""
    stamp = datetime.fromtimestamp(unix_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
    names = f"{slug(backend)[:NAME_CHARS]}-{slug(workload)[:NAME_CHARS]}"
    return f"{stamp}-{names}-{config_hash[:8]}"


def slug(text: str) -> str:
    return re.sub(r"[^a-z0-9_.-]+", "-", text.lower()).strip("-")


def config_hash(config: dict[str, Any]) -> str:
    """sha256 of the canonical JSON of a resolved config."""
    canonical = json.dumps(config, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def write_atomic(path: Path, text: str) -> None:
    """Write beside the target and rename over it, so a reader sees the old file or the new one.

    A full disk leaves the old one, and nothing beside it.
    """
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        scratch.write_text(text, encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        with suppress(OSError):  # a read-only file system refuses this too
            scratch.unlink()
        error.filename = str(
            path
        )  # a failed write names no file, and nobody knows the scratch file
        raise


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class JsonlWriter:
    """Append rows to one JSONL file, a whole line at a time, flushed so that kill -9 loses no line."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self.rows = 0
        self._file: TextIOWrapper = path.open("a", encoding="utf-8")

    def write(self, row: Row) -> None:
        self._file.write(row.to_json() + "\n")
        self._file.flush()
        self.rows += 1

    def close(self) -> None:
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_jsonl(path: Path) -> Iterator[dict[str, Any]]:
    """Yield rows. A torn last line (kill -9) is dropped; a broken line elsewhere raises UserError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, or nested too deeply
                if not line.endswith(b"\n"):
                    return
                why = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
                raise UserError(f"{path}:{number}: not a JSON line ({why})") from error
            if not isinstance(row, dict):
                raise UserError(f"{path}:{number}: not a JSON object")
            yield row


def read_json(path: Path) -> dict[str, Any]:
    """A small JSON object file; an unreadable one raises UserError."""
    try:
        body: Any = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({error})") from error
    if not isinstance(body, dict):
        raise UserError(f"{path}: holds no JSON object")
    return cast(dict[str, Any], body)


class RunDir:
    """Paths of one run directory and its manifest."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def manifest_path(self) -> Path:
        return self.path / MANIFEST

    @property
    def config_path(self) -> Path:
        return self.path / CONFIG

    @property
    def events_path(self) -> Path:
        return self.path / EVENTS

    @property
    def requests_dir(self) -> Path:
        return self.path / "requests"

    @property
    def outputs_dir(self) -> Path:
        return self.path / "outputs"

    @property
    def telemetry_dir(self) -> Path:
        return self.path / "telemetry"

    @property
    def logs_dir(self) -> Path:
        return self.path / "logs"

    @property
    def derived_dir(self) -> Path:
        return self.path / "derived"

    @classmethod
    def create(cls, path: Path, manifest: Manifest, config_yaml: str) -> Self:
        """Make the directory (an existing one raises) with its config and a ``running`` manifest."""
        path.mkdir(parents=True)
        for name in ("requests", "outputs", "telemetry", "logs"):
            (path / name).mkdir()
        run = cls(path)
        write_atomic(run.config_path, config_yaml)
        run.write_manifest(manifest)
        return run

    def write_manifest(self, manifest: Manifest) -> None:
        write_atomic(self.manifest_path, manifest.model_dump_json(indent=1) + "\n")

    def manifest(self) -> Manifest:
        """Read the manifest; another major schema version or a broken file raises UserError."""
        raw = read_json(self.manifest_path)
        version = str(raw.get("schema_version", "none"))
        refuse_other_major(version, str(self.manifest_path))
        try:
            return Manifest.model_validate(known_part(Manifest, raw) if is_newer(version) else raw)
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise UserError(f"{self.manifest_path}: {where}: {first['msg']}") from error


def list_runs(root: Path, levels: int = 2) -> list[RunDir]:
    """Run directories at or below ``root`` (a run, a sweep, or a folder of sweeps), oldest first."""
    if (root / MANIFEST).is_file():
        return [RunDir(root)]
    manifests = [
        path for level in range(levels) for path in root.glob(f"{'*/' * (level + 1)}{MANIFEST}")
    ]
    return [RunDir(path.parent) for path in sorted(manifests, key=lambda path: path.parent.name)]


def runs_to_read(root: Path) -> list[RunDir]:
    """``list_runs`` of a folder that is read as a whole: runs that lie deeper are a UserError, since a
    result of the others would not say that they are missing."""
    runs = list_runs(root, levels=3)
    below = [run.path.relative_to(root).parts for run in runs]
    if deeper := {parts[0] for parts in below if len(parts) == 3}:
        raise UserError(
            f"{root}: a run, a sweep or a folder of sweeps is wanted, and it holds folders of sweeps "
            f"({', '.join(sorted(deeper))}); give one, as {root / min(deeper)}"
        )
    return runs

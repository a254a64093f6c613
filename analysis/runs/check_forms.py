"""``check --schema``: does every file of a run directory have the form that docs/contract.md gives it?

Whether what the files say can be believed is another question (``analysis.runs.validity``). A sentence a
fault, with file, line and key; nothing is written.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from io import BytesIO
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from pydantic import BaseModel

from analysis.runs.archived import SUFFIX, archived_lines
from analysis.runs.boundary import words
from analysis.runs.parquet import row_files
from greenbench import SCHEMA_VERSION
from greenbench.contract.archive import ARCHIVE, Archive
from greenbench.contract.config import LivePoint, SweepConfig, measured_point
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.forms import (
    ROWS,
    PromptHead,
    PromptLine,
    ServerFile,
    Sources,
    form_faults,
    line_faults,
)
from greenbench.contract.manifest import Manifest
from greenbench.contract.newer import is_newer, known_part
from greenbench.contract.run_dir import (
    CONFIG,
    EVENTS,
    MANIFEST,
    PROMPTS_DIR,
    SERVERS_DIR,
    RunDir,
    config_hash,
    read_json,
    runs_to_read,
)
from greenbench.contract.unpack import gunzip
from greenbench.contract.yaml_text import parse_yaml

MOST = 20  # faults shown of one file; a wrong column is wrong in every row
IN_RUN = (
    MANIFEST, CONFIG, EVENTS, ARCHIVE, "requests", "outputs", "telemetry", "client_audit", "logs", "derived",
)  # fmt: skip
MARKS = ("measure_start", "measure_end")
Clause = tuple[str, str]  # a key of the manifest, and what is wrong with it


@dataclass
class Reading:
    """What was read, and what is wrong with it."""

    files: int = 0
    faults: list[str] = field(default_factory=list[str])

    def say(self, place: Path, line: int | None, clause: str) -> None:
        where = f"{place}:{line}" if line else str(place)
        self.faults.append(f"{where}: {words(clause)}")


def read_forms(root: Path) -> Reading:
    """Every file of the run directories at or below ``root``, and of the sweeps they lie in."""
    if not root.exists():
        raise UserError(f"{root}: no such directory; give a run, a sweep or a folder of sweeps")
    runs = runs_to_read(root)
    if not runs:
        raise UserError(
            f"{root}: no run directories ({MANIFEST}) at or below it; docs/contract.md says what one holds"
        )
    reading = Reading()
    for folder in dict.fromkeys(run.path.parent for run in runs):
        _sweep(folder, reading)
    for run in runs:
        _run(run, reading)
    return reading


def _is_newer(run: RunDir) -> bool:
    """Whether a newer minor version wrote the run, whose keys need not be known here."""
    try:
        return is_newer(_schema_version(read_json(run.manifest_path)))
    except (UserError, RecursionError):
        return False


def _sweep(folder: Path, reading: Reading) -> None:
    if (folder / "sweep.yaml").is_file():
        _yaml(SweepConfig, folder / "sweep.yaml", reading)
    for path in sorted((folder / SERVERS_DIR).glob("*/server.json")):
        _json(ServerFile, path, reading)
        for idle in ("idle_before", "idle_after"):
            if (path.parent / idle).is_dir():
                _rows(path.parent / idle, reading)
                _sources(path.parent / idle, reading)
    for path in sorted((folder / PROMPTS_DIR).glob("*.jsonl")):
        _prompts(path, reading)


def _run(run: RunDir, reading: Reading) -> None:
    names = sorted(path.name for path in run.path.iterdir() if not path.name.startswith("."))
    for name in names:
        if name not in IN_RUN:
            reading.say(
                run.path / name, None, f"no name of a run directory; {nearest(name, IN_RUN)}"
            )
    newer = _is_newer(run)
    manifest = _json(Manifest, run.manifest_path, reading, newer)
    config = _yaml(LivePoint, run.config_path, reading, newer)
    files = _rows(run.path, reading)
    _sources(run.path, reading)
    if (run.path / ARCHIVE).is_file():
        _json(Archive, run.path / ARCHIVE, reading, newer)
    for pattern in (EVENTS, "requests/*.jsonl"):
        if not files.get(pattern):
            reading.say(run.path / pattern, None, "is missing, and a run needs it")
    if manifest is not None:
        _manifest_agrees(run, manifest, config, reading)
    if run.events_path.is_file():
        _marks(run.events_path, reading)


def _manifest_agrees(
    run: RunDir, manifest: dict[str, Any], config: dict[str, Any] | None, reading: Reading
) -> None:
    text = run.manifest_path.read_bytes()
    clauses = [*_version(manifest), *_finished(run, manifest), *_of_config(manifest, config)]
    for key, clause in clauses:
        reading.say(run.manifest_path, _line(text, (key,)), f"{key}: {clause}")


def _version(manifest: dict[str, Any]) -> Iterator[Clause]:
    version = _schema_version(manifest)
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        yield "schema_version", f"{version}, and this program reads {SCHEMA_VERSION}"


def _schema_version(manifest: Any) -> str:
    return str(manifest.get("schema_version", "none")) if isinstance(manifest, dict) else "none"


def _finished(run: RunDir, manifest: dict[str, Any]) -> Iterator[Clause]:
    """What a finished point's manifest has."""
    if manifest.get("status") not in ("complete", "invalid"):
        return
    if "measure" not in manifest.get("phases", {}):
        yield "phases", "lacks 'measure'"
    for file in sorted(run.requests_dir.glob("*.jsonl")):
        name = str(file.relative_to(run.path))
        if name not in manifest.get("files", {}):
            yield "files", f"lacks {name}"


def _of_config(manifest: dict[str, Any], config: dict[str, Any] | None) -> Iterator[Clause]:
    if config is None:
        return
    if config.get("run_id") != manifest.get("run_id"):
        yield "run_id", f"{manifest.get('run_id')}, and {CONFIG} has {config.get('run_id')}"
    wanted = hash_of_point(config["point"])
    imported = Manifest.model_validate(manifest).server.shown.imported_from is not None
    if wanted != manifest.get("config_hash") and not imported:
        yield "config_hash", f"is not that of {CONFIG}'s point, {wanted}"


def hash_of_point(point: dict[str, Any]) -> str:
    """``config_hash`` of a point as it stands in config.yaml."""
    return config_hash(measured_point(point))


def _marks(path: Path, reading: Reading) -> None:
    text = path.read_bytes()
    for mark in MARKS:
        if f'"{mark}"'.encode() not in text:
            reading.say(path, None, f"has no event '{mark}'")


def _rows(folder: Path, reading: Reading) -> dict[str, int]:
    """Reads every row file; how many files there are of each pattern of ROWS."""
    counts: dict[str, int] = {}
    for pattern, row in ROWS.items():
        paths = row_files(folder, pattern)
        counts[pattern] = len(paths)
        for path in paths:
            _lines(row, path, reading)
    return counts


def _lines(row: type, path: Path, reading: Reading) -> None:
    reading.files += 1
    try:
        if path.suffix == SUFFIX:
            faults = list(islice(line_faults(row, archived_lines(path)), MOST + 1))
        else:
            packed = path.suffix == ".gz"
            with BytesIO(gunzip(path)) if packed else path.open("rb") as lines:
                faults = list(islice(line_faults(row, lines), MOST + 1))
    except (OSError, pa.ArrowException) as error:
        reading.say(path, None, f"cannot be read ({error})")
        return
    for number, clause in faults[:MOST]:
        reading.say(path, number, clause)
    if len(faults) > MOST:
        reading.say(path, None, f"and more; {MOST} faults of a file are shown")


def _prompts(path: Path, reading: Reading) -> None:
    reading.files += 1
    head, _, rest = path.read_bytes().partition(b"\n")
    clauses = form_faults(PromptHead, head)
    for fault in clauses:
        reading.say(path, 1, fault.clause)
    if not clauses and json.loads(head)["sha256"] != hashlib.sha256(rest).hexdigest():
        reading.say(path, 1, "sha256: is not that of the lines after it")
    lines = rest.splitlines(keepends=True)
    for number, clause in islice(line_faults(PromptLine, lines), MOST):
        reading.say(path, number + 1, clause)


def _sources(folder: Path, reading: Reading) -> None:
    path = folder / "telemetry" / "sources.json"
    if path.is_file():
        _json(Sources, path, reading)


def _json(
    form: type[BaseModel], path: Path, reading: Reading, newer: bool = False
) -> dict[str, Any] | None:
    return _document(form, path, reading, json.loads, newer)


def _yaml(
    form: type[BaseModel], path: Path, reading: Reading, newer: bool = False
) -> dict[str, Any] | None:
    return _document(form, path, reading, lambda text: parse_yaml(text.decode()), newer)


def _document(
    form: type[BaseModel],
    path: Path,
    reading: Reading,
    load: Callable[[bytes], Any],
    newer: bool,
) -> dict[str, Any] | None:
    """The parsed file when it has its form; else None, and what is wrong is said."""
    reading.files += 1
    try:
        text = path.read_bytes()
        parsed = load(text)
        parsed = known_part(form, parsed) if newer else parsed
        faults = form_faults(form, json.dumps(parsed, allow_nan=False).encode())
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        reading.say(path, mark.line + 1 if mark else None, f"not YAML ({error.problem})")
        return None
    except json.JSONDecodeError as error:
        reading.say(path, error.lineno, f"not JSON ({error.msg})")
        return None
    except (OSError, ValueError, TypeError, RecursionError, yaml.YAMLError) as error:
        reading.say(path, None, f"cannot be read ({error})")
        return None
    for fault in faults[:MOST]:
        reading.say(path, _line(text, fault.where), fault.clause)
    return None if faults else parsed


def _line(text: bytes, where: tuple[str | int, ...]) -> int | None:
    """Line of a key in a JSON or YAML text; of the nearest part above it where it is missing."""
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError:
        return None
    line = None if node is None else node.start_mark.line + 1
    for part in where:
        below = [(mark, value) for key, mark, value in _children(node) if key == part]
        if not below:
            break
        line, node = below[-1]  # of a key that stands twice, the one that counts
    return line


def _children(node: yaml.Node | None) -> Iterator[tuple[str | int, int, yaml.Node]]:
    """(key, line, value) of what a node holds."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key.value, key.start_mark.line + 1, value
    if isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            yield index, value.start_mark.line + 1, value

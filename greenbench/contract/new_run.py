"""A run directory as it begins: its name, config.yaml, and a manifest that says running.

Whoever writes run directories uses this: the sweep, the importers of other tools' results, and tests.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.clock import Anchor
from greenbench.contract.config import LivePoint, PointConfig, dump_yaml
from greenbench.contract.manifest import Clock, Code, FileEntry, Host, Manifest, Server
from greenbench.contract.run_dir import RunDir, config_hash, file_sha256, run_id


@dataclass(frozen=True, slots=True)
class Prompts:
    """The prompt file of a point, as config.yaml names it."""

    path: str
    sha256: str
    lines_sha256: str | None = None


NO_PROMPT_FILE = Prompts("none", "0" * 64)


@dataclass(frozen=True, slots=True)
class Provenance:
    """Where a run comes from: the code and host that made it, and its moment on both clocks."""

    code: Code
    host: Host
    clock: Clock
    sweep_pid: int | None = None


def clock_of(anchor: Anchor, host: str) -> Clock:
    return Clock(unix_ns=anchor.unix_ns, mono_ns=anchor.mono_ns, host=host)


def point_hash(point: PointConfig, also: Mapping[str, Any] | None = None) -> str:
    """Equal for two points that are the same measurement; ``also``: what else tells this one apart."""
    return config_hash({**point.identity(), **(also or {})})


@dataclass(frozen=True, slots=True)
class NewRun:
    """One run before it is written. ``config_hash`` as ``point_hash`` gives it."""

    point: PointConfig
    created_unix_ns: int
    config_hash: str

    @property
    def run_id(self) -> str:
        return run_id(
            self.created_unix_ns, self.point.backend.label, self.point.workload, self.config_hash
        )

    def create(
        self,
        parent: Path,
        server: Server,
        prompts: Prompts,
        provenance: Provenance,
        facts: Mapping[str, Any] | None = None,
    ) -> tuple[RunDir, Manifest]:
        """Make ``parent/<run_id>/`` (an existing one raises FileExistsError) and its first manifest.

        ``facts``: the manifest's ``point``; None: what the point says.
        """
        live = LivePoint(
            point=self.point,
            run_id=self.run_id,
            base_url=server.base_url,
            served_model=server.served_model,
            prompts_path=prompts.path,
            prompts_sha256=prompts.sha256,
            prompt_lines_sha256=prompts.lines_sha256,
            server_pid=server.pid,
        )
        manifest = self._manifest(server, provenance, facts)
        return RunDir.create(parent / self.run_id, manifest, dump_yaml(live)), manifest

    def _manifest(
        self, server: Server, provenance: Provenance, facts: Mapping[str, Any] | None
    ) -> Manifest:
        return Manifest(
            run_id=self.run_id,
            sweep=self.point.sweep,
            config_hash=self.config_hash,
            seed=self.point.seed,
            created_unix_ns=self.created_unix_ns,
            sweep_pid=provenance.sweep_pid,
            clock=provenance.clock,
            code=provenance.code,
            host=provenance.host,
            server=server,
            load=self.point.load.model_dump(mode="json"),
            point=_point_facts(self.point) if facts is None else dict(facts),
        )


def _point_facts(point: PointConfig) -> dict[str, Any]:
    return {
        "model": point.model.name,
        "backend": point.backend.label,
        "task": point.task.name,
        "context_tokens": point.context_tokens,
        "load": point.load.label,
        "repeat": point.repeat,
        "arm": point.arm,
        "slo": point.slo.model_dump(mode="json"),
    }


def file_entries(run: RunDir, files: Iterable[Path]) -> dict[str, FileEntry]:
    """What a manifest says of the files of its run: rows of JSONL, and sha256."""
    return {
        str(path.relative_to(run.path)): FileEntry(
            rows=_line_count(path) if path.suffix == ".jsonl" else None,
            sha256=file_sha256(path),
        )
        for path in files
    }


def _line_count(path: Path) -> int:
    with path.open("rb") as file:
        return sum(1 for _ in file)

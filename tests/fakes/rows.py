"""Alter rows of a written run so that only the alteration is at fault: counts and hashes follow."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenbench.contract.run_dir import RunDir, file_sha256

Rows = list[dict[str, Any]]


def read_rows(path: Path) -> Rows:
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_rows(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def edit_manifest(run: RunDir, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads(run.manifest_path.read_text())
    change(raw)
    run.manifest_path.write_text(json.dumps(raw))


def edit(run: RunDir, name: str, change: Callable[[Rows], object]) -> None:
    """Change the rows of one file in place; hashes, and for requests the counts, are made to agree."""
    path = run.path / name
    rows = read_rows(path)
    change(rows)
    write_rows(path, rows)
    rehash(run)


def rehash(run: RunDir) -> None:
    """Counts and hashes of the manifest as the capture would have written them for these files."""
    rows = [row for path in sorted(run.requests_dir.glob("*.jsonl")) for row in read_rows(path)]
    ok = sum(row.get("error_type") is None for row in rows)

    def change(raw: dict[str, Any]) -> None:
        raw["counts"] = {
            "scheduled": sum(row.get("scheduled_unix_ns") is not None for row in rows),
            "sent": sum(row.get("sent_unix_ns") is not None for row in rows),
            "ok": ok,
            "failed": len(rows) - ok,
            "rows": len(rows),
        }
        raw["files"] = {
            str(path.relative_to(run.path)): {
                "rows": path.read_bytes().count(b"\n"),
                "sha256": file_sha256(path),
            }
            for path in sorted(run.path.rglob("*.jsonl"))
        }

    edit_manifest(run, change)

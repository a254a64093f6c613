"""The folder of a sweep: free disk space, and the points that it already holds."""

import shutil
from pathlib import Path

from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import list_runs

MIN_FREE_BYTES = 500 * 2**20


def prepare_directory(out: Path) -> None:
    """The sweep directory must be writable and have space, checked before a server starts."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.write_bytes(b"x" * 65536)
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"{out}: results cannot be written there ({error.strerror}); give another --out"
        ) from error
    free = shutil.disk_usage(out).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"{out}: {free // 2**20} MiB of disk are free, {MIN_FREE_BYTES // 2**20} MiB are wanted; "
            "free some space or give another --out"
        )


def complete_hashes(out: Path) -> set[str]:
    manifests = (run.manifest() for run in list_runs(out))
    return {manifest.config_hash for manifest in manifests if manifest.status == "complete"}

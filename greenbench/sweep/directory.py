"""The folder of a sweep: whether it can be written, and what disk is free."""

import os
import shutil
from pathlib import Path

from greenbench.contract.errors import UserError

MIN_FREE_BYTES = 500 * 2**20  # to begin
LEAST_FREE_BYTES = 100 * 2**20  # to go on: a point of long answers writes some ten MiB


def make_directory(out: Path) -> list[Path]:
    """The folders that it had to make, the deepest first."""
    try:
        missing = [folder for folder in (out, *out.parents) if not folder.exists()]
        out.mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:
        raise unwritable(out, error) from error
    return missing


def unwritable(out: Path, error: Exception) -> UserError:
    why = getattr(error, "strerror", None) or error
    return UserError(f"{out}: results cannot be written there ({why}); give another --out")


def prepare_directory(out: Path) -> None:
    """The sweep directory must be writable and have space, checked before a server starts."""
    make_directory(out)
    try:
        probe = out / f".write-test-{os.getpid()}"
        probe.write_bytes(b"x" * 65536)
        probe.unlink(missing_ok=True)
    except OSError as error:
        raise unwritable(out, error) from error
    free = shutil.disk_usage(out).free
    if free < MIN_FREE_BYTES:
        raise UserError(
            f"{out}: {free // 2**20} MiB of disk are free, {MIN_FREE_BYTES // 2**20} MiB are wanted; "
            "free some space or give another --out"
        )


def shortage(out: Path) -> str | None:
    """Why a sweep under way cannot go on for want of disk; None when it can."""
    free = shutil.disk_usage(out).free
    if free >= LEAST_FREE_BYTES:
        return None
    return (
        f"{free // 2**20} MiB of disk are free at {out}, {LEAST_FREE_BYTES // 2**20} MiB are wanted to "
        "go on; free some space and run the same command again: what is complete is kept"
    )

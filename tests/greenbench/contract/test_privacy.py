"""GREENBENCH_PRIVATE: prompts and answers are files of their owner alone, also those of child processes."""

import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenbench.contract.privacy import PRIVATE_ENV, keep_private
from greenbench.contract.run_dir import RunDir
from tests.fakes.manifests import manifest


@pytest.fixture(autouse=True)
def usual_mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(root: Path) -> dict[str, int]:
    return {str(p.relative_to(root)): stat.S_IMODE(p.stat().st_mode) for p in root.rglob("*")}


@pytest.mark.parametrize(
    ("said", "file_mode", "folder_mode"),
    [("1", 0o600, 0o700), ("true", 0o600, 0o700), ("0", 0o644, 0o755), ("", 0o644, 0o755)],
)
def test_a_run_directory_is_the_owners_alone_when_asked(
    said: str, file_mode: int, folder_mode: int, tmp_path: Path
) -> None:
    keep_private({PRIVATE_ENV: said})
    RunDir.create(tmp_path / "r", manifest(), "a: 1\n")
    found = modes(tmp_path)
    assert found["r/manifest.json"] == found["r/config.yaml"] == file_mode
    assert found["r"] == found["r/outputs"] == folder_mode


def test_what_a_command_starts_writes_so_too(tmp_path: Path) -> None:
    """As the vLLM server's log, which knows nothing of the variable."""
    child = "open('log', 'w').write('a prompt')"
    code = (
        "import subprocess, sys; from greenbench.contract.errors import exit_on_user_error\n"
        f"exit_on_user_error(lambda: subprocess.run([sys.executable, '-c', {child!r}], env={{}}).returncode)"
    )
    argv = [sys.executable, "-c", code]
    subprocess.run(argv, env={**os.environ, PRIVATE_ENV: "1"}, cwd=tmp_path, check=True)
    assert modes(tmp_path) == {"log": 0o600}

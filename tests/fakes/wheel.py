"""The wheel in a new environment, and commands there without the variables of a checkout."""

import os
import subprocess
import sys
from pathlib import Path

from greenbench.contract.installation import ROOT

LIMIT_S = 300  # of one command; the installation takes 15 s where packages are near


def run(*argv: str | Path, cwd: Path = ROOT, **env: str) -> str:
    """stdout of a command that must succeed, without the variables of a checkout."""
    done = ask(*argv, cwd=cwd, **env)
    assert done.returncode == 0, f"{argv}: {done.stdout}{done.stderr}"
    return done.stdout


def ask(*argv: str | Path, cwd: Path, **env: str) -> "subprocess.CompletedProcess[str]":
    kept = {
        k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VLLM", "GREENBENCH"))
    }
    return subprocess.run(
        argv, cwd=cwd, env=kept | env, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )


def installed(place: Path) -> Path:
    """A new environment that holds the wheel and what it asks for, in the versions of the lock."""
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place)
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "venv", place / "venv")
    lock = ROOT / "requirements" / "bench.lock"
    pip = place / "venv" / "bin" / "pip"
    run(pip, "install", "--quiet", "--no-compile", "--constraint", lock, wheel, cwd=place)
    return place / "venv"


def installed_files(venv: Path) -> set[Path]:
    return {path for path in venv.rglob("*") if path.is_file() and path.suffix != ".pyc"}

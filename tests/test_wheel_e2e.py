"""The wheel in an empty environment, used from another folder: nothing of the checkout is needed."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenbench import __version__
from greenbench.contract.config import ROOT
from tests.fakes.rundirs import FakeRun, write_run

pytestmark = pytest.mark.e2e
LIMIT_S = 300  # of one command; the installation takes 15 s where packages are near
ENTRY_POINTS = """
import sys
from importlib.metadata import entry_points
import servers.plugins
names = [e.name for kind in ("general", "platform") for e in entry_points(group=f"vllm.{kind}_plugins")]
print(servers.plugins.__file__, *names)
"""


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


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new environment that holds the wheel and what it asks for, in the versions of the lock."""
    place = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", place)
    (wheel,) = place.glob("*.whl")
    run(sys.executable, "-m", "venv", place / "venv")
    lock = ROOT / "requirements" / "bench.lock"
    pip = place / "venv" / "bin" / "pip"
    run(pip, "install", "--quiet", "--no-compile", "--constraint", lock, wheel, cwd=place)
    return place / "venv"


@pytest.fixture
def here(tmp_path: Path) -> Path:
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    return folder


@pytest.fixture(autouse=True)
def installed_files_stay(venv: Path) -> Iterator[None]:
    """No command writes beside the installed modules, but what Python itself compiles."""
    before = installed_files(venv)
    yield
    assert installed_files(venv) == before


def installed_files(venv: Path) -> set[Path]:
    return {path for path in venv.rglob("*") if path.is_file() and path.suffix != ".pyc"}


def test_version_and_doctor_say_what_this_person_has(venv: Path, here: Path) -> None:
    greenbench = venv / "bin" / "greenbench"
    assert run(greenbench, "--version", cwd=here) == f"greenbench {__version__}\n"
    said = ask(greenbench, "doctor", cwd=here)
    assert said.returncode == 1 and f"ok      bench: greenbench {__version__}" in said.stdout
    (vllm,) = [line for line in said.stdout.splitlines() if "vLLM:" in line]
    assert str(here / ".venv-vllm") in vllm and "pip install vllm" in vllm
    assert "make setup" not in said.stdout
    assert list(here.iterdir()) == []


def test_a_plan_names_shipped_files_and_ones_own_config_comes_first(venv: Path, here: Path) -> None:
    greenbench = venv / "bin" / "greenbench"
    cache = {"XDG_CACHE_HOME": str(here / "cache")}
    demo = run(greenbench, "run", "demo", "--dry-run", cwd=here, **cache)
    assert demo.count("point retrieve context=2048") == 3
    (shipped,) = (venv / "lib").glob("python*/site-packages/greenbench/models/retriever/model")
    assert f"--model {shipped} " in demo
    sweeps = here / "configs" / "sweeps"
    sweeps.mkdir(parents=True)
    own = (ROOT / "configs/sweeps/demo.yaml").read_text().replace("2048, 4096]", "1024]")
    (sweeps / "demo.yaml").write_text(own)
    mine = run(greenbench, "run", "demo", "--dry-run", cwd=here, **cache)
    assert mine.count("point retrieve context=1024") == 3 and "context=2048" not in mine
    assert not (here / "runs").exists()


def test_a_report_of_runs_in_the_working_folder_is_written_there(venv: Path, here: Path) -> None:
    for backend in ("alpha", "beta"):
        write_run(here / "runs" / "my", FakeRun(backend=backend))
    said = run(venv / "bin" / "greenbench", "report", "runs/my", cwd=here)
    assert said.strip() == "runs/my/report.html"
    page = (here / "runs/my/report.html").read_text()
    assert page.startswith("<!doctype html>") and "alpha" in page and "beta" in page
    assert len(json.loads((here / "runs/my/summary.json").read_text())["points"]) == 2


def test_a_python_without_this_project_finds_the_plugins(venv: Path, here: Path) -> None:
    """The one that stands for vLLM's has none of the bench's libraries and must see none of them."""
    code = "from greenbench.contract.installation import plugin_folder; print(plugin_folder())"
    python = venv / "bin" / "python"
    cache = {"XDG_CACHE_HOME": str(here / "cache")}
    folder = Path(run(python, "-c", code, cwd=here, **cache).strip())
    assert folder.is_relative_to(here / "cache" / "greenbench")
    bare = Path(sys.base_prefix, "bin", f"python3.{sys.version_info.minor}")
    found, *names = run(bare, "-c", ENTRY_POINTS, cwd=folder).split()
    assert Path(found) == folder / "servers" / "plugins" / "__init__.py"
    assert names == ["greenbench", "greenbench_cpu"]
    assert {path.name.partition("-")[0] for path in folder.iterdir()} == {
        *("greenbench", "servers", "telemetry", "loadgen", "analysis", "planning", "gateway"),
        "green_attention_bench",
    }

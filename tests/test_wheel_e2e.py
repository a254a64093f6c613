"""The wheel in an empty environment, used from another folder: nothing of the checkout is needed."""

import json
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenbench import __version__
from greenbench.contract.config import ROOT
from tests.fakes.rundirs import FakeRun, write_run
from tests.fakes.wheel import ask, installed, installed_files, run

pytestmark = pytest.mark.e2e
ENTRY_POINTS = """
import sys
from importlib.metadata import entry_points
import servers.plugins
names = [e.name for kind in ("general", "platform") for e in entry_points(group=f"vllm.{kind}_plugins")]
print(servers.plugins.__file__, *names)
"""


@pytest.fixture(scope="module")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return installed(tmp_path_factory.mktemp("wheel"))


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
        *(
            "greenbench",
            "servers",
            "telemetry",
            "loadgen",
            "analysis",
            "planning",
            "gateway",
            "green_attention_bench",
        )
    }

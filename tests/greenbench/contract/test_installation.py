"""Where files are looked for and written, in a checkout and after ``pip install``."""

import ast
import os
import re
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from greenbench import vllm_python
from greenbench.cli import find_sweep
from greenbench.contract import installation
from greenbench.contract.config import CONFIGS, ROOT, load_model
from greenbench.contract.errors import UserError
from greenbench.sweep import provenance
from greenbench.sweep.child_processes import call_json, python_module
from servers.backends.custom import read_backend

PACKAGES = ("greenbench", "servers", "telemetry", "loadgen", "analysis", "planning", "gateway")
# of vLLM's Python, or optional: Zeus is read where a person has it
ELSEWHERE = {"torch", "vllm", "transformers", "xformers", "zeus"}
IN_VLLMS_PYTHON = ("servers/plugins", "servers/bench", "servers/models/builder.py")


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def from_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (installation, provenance, vllm_python):
        monkeypatch.setattr(module, "CHECKOUT", None)


def test_ones_own_configs_come_first_and_the_shipped_ones_stay(here: Path) -> None:
    own = write(here / "configs/sweeps/demo.yaml", "name: mine\n")
    assert find_sweep(Path("demo")) == own
    assert find_sweep(Path("families")) == CONFIGS / "sweeps/families.yaml"
    write(here / "configs/models/fresh.yaml", "name: fresh\npath: /m\nmax_model_len: 7\n")
    assert load_model("fresh").max_model_len == 7
    assert load_model("tiny-llama").build is not None
    with pytest.raises(UserError, match="did you mean 'fresh'"):
        load_model("fresch")


def test_a_relative_path_is_meant_from_its_files_folder_then_from_the_working_folder(
    here: Path,
) -> None:
    assert load_model("retriever").path == str(ROOT / "models/retriever/model")
    (here / "models/own").mkdir(parents=True)
    own = write(here / "configs/models/own.yaml", "name: own\npath: models/own\nmax_model_len: 7\n")
    assert load_model("own").path == str(here / "models/own")
    (here / "models/own").rmdir()
    with pytest.raises(UserError, match=re.escape(f"{own}: path: no folder models/own, neither")):
        load_model("own")
    row = "class_path: my.Backend\nimpls: [Impl]\ndescribe: mine\ndevices: [cpu]\n"
    write(here / "attn/my.yaml", row)
    assert read_backend("attn/my.yaml").class_folder == str(here / "attn")


def test_a_stage_is_ours_whatever_lies_in_the_working_folder(here: Path) -> None:
    """Guards against a person's own ``servers/`` or ``json.py``, which ``-m`` would import first."""
    for name in ("servers/__init__.py", "json.py"):
        write(here / name, "raise SystemExit('not ours')")
    rows = call_json(python_module("servers", "backends", "--json"))
    assert {"sdpa", "flash_attn"} <= {row["name"] for row in rows}


def test_a_checkouts_children_get_its_packages_and_a_wheels_no_path(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Guards against the bench's installed libraries on the path of vLLM's Python."""
    given = {"PYTHONPATH": "/theirs", "A": "b"}
    assert installation.bench_env(given) == given | {"PYTHONPATH": f"{ROOT}{os.pathsep}/theirs"}
    assert installation.bench_env({}) == {"PYTHONPATH": str(ROOT)}
    monkeypatch.setattr(installation, "CHECKOUT", None)
    assert installation.bench_env(given) == given


def test_the_cache_is_the_one_asked_for_the_checkouts_or_the_persons(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    env = {"XDG_CACHE_HOME": "/caches"}
    assert installation.cache(env | {"GREENBENCH_CACHE": "/asked"}) == Path("/asked")
    assert installation.cache(env) == ROOT / ".cache"
    monkeypatch.setattr(installation, "CHECKOUT", None)
    assert installation.cache(env) == Path("/caches/greenbench")


@pytest.mark.usefixtures("from_wheel")
def test_after_pip_vllm_is_looked_for_in_the_working_folder_then_in_this_python(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usual = here / ".venv-vllm/bin/python"
    assert vllm_python.vllm_python({}) == usual  # named, for the message that it is not there
    monkeypatch.setattr(vllm_python, "BUILDS", ("pytest",))
    assert vllm_python.vllm_python({}) == Path(sys.executable)
    write(usual, "")
    assert vllm_python.vllm_python({}) == usual


@pytest.mark.usefixtures("from_wheel")
def test_after_pip_no_repository_around_it_is_taken_for_ours() -> None:
    code = provenance.code()
    assert (code.git_sha, code.dirty) == (None, None)


def test_every_library_that_is_imported_is_a_dependency() -> None:
    """Guards against a library that only the lock file brings: an empty environment lacks it."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = {normal(re.split(r"[<>=]", name)[0]) for name in project["dependencies"]}
    files = [
        path
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        if not any(path.is_relative_to(ROOT / place) for place in IN_VLLMS_PYTHON)
    ]
    modules = set[str]().union(*(imported(path) for path in files))
    foreign = modules - sys.stdlib_module_names - {*PACKAGES} - ELSEWHERE
    packages = metadata.packages_distributions()
    needed = {normal(packages[module][0]) for module in foreign if not module.startswith("_")}
    # importlib.import_module, pandas's engine, uvicorn's parser and event loop
    by_name_alone = {"pyarrow", "huggingface-hub", "httptools", "uvloop"}
    assert needed - declared == set()
    assert declared - needed <= by_name_alone


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def imported(path: Path) -> set[str]:
    tree = list(ast.walk(ast.parse(path.read_text())))
    names = [alias.name for node in tree if isinstance(node, ast.Import) for alias in node.names]
    names += [node.module or "" for node in tree if isinstance(node, ast.ImportFrom)]
    return {name.partition(".")[0] for name in names}

"""The stages stay apart, the rooms inside a stage stand on floors, and a heavy library lives in its files."""

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
STAGES = ("servers", "telemetry", "loadgen", "analysis", "gateway")
PACKAGES = ("greenbench", *STAGES, "planning")
# The rooms of each package (folders, and modules that stand alone) from the ground up: a room imports
# only itself and rooms that stand before it.
FLOORS = {
    "greenbench": (
        "__init__", "contract", "vllm_python", "sweep", "choose", "points", "doctor", "cli",
    ),
    "servers": ("__init__", "backends", "models", "launch", "verify", "plugins", "bench", "__main__"),
    "telemetry": (
        "__init__", "sensors", "ticker", "sampler", "recorder", "exporter", "selftest", "__main__",
    ),
    "loadgen": (
        "__init__", "prompts", "tasks", "wire", "driver", "make_prompts", "direct_run",
        "locust_tab", "locust_run", "openloop", "longctx", "search", "__main__",
    ),
    "analysis": (
        "__init__", "statistics", "runs", "model", "energy", "point", "objectives", "quality",
        "bottleneck", "compare", "study", "report", "summary", "points_csv", "archive", "importers",
        "selftest", "__main__",
    ),
    "planning": (
        "__init__", "folder", "hardware", "evidence", "regions", "sentences", "policy", "curves", "requests",
        "simulate", "routers", "score", "playing", "fresh", "fit", "replay", "told", "export", "batches",
        "forward", "step_time",
        "simulator",
        "front", "closed_loop", "demand", "prometheus", "candidates", "fleet", "capacity", "held_out",
        "baselines", "back_test", "side_by_side", "plan", "plan_told", "plan_page", "__main__",
    ),
    "gateway": (
        "__init__", "options", "request", "page", "scrape", "prefixes", "pools", "policy_file", "length",
        "counters", "route", "access_log", "metrics", "upstream", "watch", "proxy", "admin", "app",
        "connection", "__main__",
    ),
}  # fmt: skip
# library → the only files that may import it (folders end with /)
HOMES = {
    "pandas": ("analysis/",),
    "plotly": ("analysis/report/", "planning/plan_page.py"),
    "gevent": ("loadgen/longctx.py", "loadgen/locust_run.py", "loadgen/wire/gevent_loop.py"),
    "locust": ("loadgen/longctx.py", "loadgen/locust_run.py", "loadgen/locust_tab.py"),
    "torch": (
        "servers/plugins/",
        "servers/bench/",
        "servers/models/builder.py",
        "telemetry/selftest/gpu_load.py",
        "analysis/bottleneck/peaks_torch.py",
    ),
    "vllm": (
        "servers/plugins/",
        "servers/bench/",
        "servers/models/resolver.py",
        "analysis/bottleneck/peaks_torch.py",
    ),
    "aiohttp": ("gateway/",),
    "uvicorn": ("gateway/__main__.py", "gateway/connection.py"),
    "pynvml": ("telemetry/sensors/nvml.py",),
}


def files(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found, f"no modules in {folder}"
    return found


def imports(path: Path) -> Iterator[str]:
    """Dotted names of everything the file imports, at any depth of the code."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def libraries(path: Path) -> set[str]:
    return {name.split(".")[0] for name in imports(path)}


def room(package: str, dotted: str) -> str:
    """The room that ``package.room.module.name`` is in; a name of the package itself is in its __init__."""
    first = [*dotted.split("."), "__init__"][1]
    folder = ROOT / package / first
    return first if folder.is_dir() or folder.with_suffix(".py").is_file() else "__init__"


# What a stage may take from greenbench; greenbench itself takes nothing of a stage.
SHARED = ("greenbench.contract", "greenbench.vllm_python", "greenbench.__version__")
SHARED += ("greenbench.SCHEMA_VERSION",)
FOLDERS = {*PACKAGES, "tests", "scripts", "models"}
ALSO = {"planning": ("analysis.",)}  # what a package may take beside the contract


def test_stages_share_the_contract_alone() -> None:
    for package in PACKAGES:
        for path in files(package):
            for dotted in imports(path):
                ours = dotted.split(".")[0] in FOLDERS - {package}
                allowed = (*SHARED, *ALSO.get(package, ()))
                assert not ours or dotted.startswith(allowed), (
                    f"{path.relative_to(ROOT)} imports {dotted}; stages share the contract alone"
                )


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_only_what_stands_below_it(package: str) -> None:
    """So there is no circle between rooms, and none that knows who uses it."""
    floors = FLOORS[package]
    for path in files(package):
        parts = path.relative_to(ROOT / package).with_suffix("").parts
        assert parts[0] in floors, f"{path.relative_to(ROOT)}: give its room a place in FLOORS"
        for dotted in imports(path):
            if dotted.split(".")[0] == package:
                other = room(package, dotted)
                assert floors.index(other) <= floors.index(parts[0]), (
                    f"{path.relative_to(ROOT)} imports {dotted}, which stands above it"
                )


def test_the_architecture_page_lists_the_rooms_in_this_order() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text()
    for package, floors in FLOORS.items():
        section = page.partition(f"\n**{package}/**:")[2].partition("\n**")[0]
        rows = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
        told = [name.rstrip("/") for row in rows for name in re.findall(r"`([^`]+)`", row)]
        assert told == [room for room in floors if not room.startswith("__")], package


def test_no_file_imports_a_private_name_of_another() -> None:
    for package in PACKAGES:
        for path in files(package):
            for dotted in imports(path):
                head, _, name = dotted.rpartition(".")
                private = name.startswith("_") and not name.startswith("__")
                assert not (private and head.split(".")[0] in PACKAGES), f"{path}: {dotted}"


def test_no_test_imports_another_test() -> None:
    """What several need lies in tests/fakes, or in a conftest."""
    for path in files("tests"):
        for dotted in imports(path):
            parts = dotted.split(".")
            assert parts[0] != "tests" or not any(p.startswith("test_") for p in parts), (
                f"{path.relative_to(ROOT)} imports {dotted}"
            )


def test_heavy_libraries_stay_in_their_files() -> None:
    for package in PACKAGES:
        for path in files(package):
            name = str(path.relative_to(ROOT))
            for library in libraries(path) & set(HOMES):
                homes = HOMES[library]
                assert any(name.startswith(home) for home in homes), f"{name} imports {library}"


def test_the_plugins_do_not_carry_the_benches() -> None:
    for path in files("servers/plugins"):
        assert not any(name.startswith("servers.bench") for name in imports(path)), path


def test_loadgen_modules_do_not_shadow_the_standard_library() -> None:
    """Locust puts the locustfile's folder first on sys.path, so loadgen/queue.py would be `queue`."""
    names = {p.stem for p in (ROOT / "loadgen").iterdir() if p.suffix == ".py" or p.is_dir()}
    names -= {"__init__", "__main__", "__pycache__"}
    assert not names & (set(sys.stdlib_module_names) | {"locust", "httpx", "gevent"})


def test_every_config_file_loads() -> None:
    """A config that no longer fits the schema is found here and not by a person at night."""
    from greenbench.contract.config import load_model, load_sweep

    sweeps = sorted((ROOT / "configs" / "sweeps").glob("*.yaml"))
    models = sorted((ROOT / "configs" / "models").glob("*.yaml"))
    assert sweeps and models
    for path in models:
        assert load_model(path.stem).name == path.stem
    for path in sweeps:
        for model in load_sweep(path).models:
            load_model(model)

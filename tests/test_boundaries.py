"""The rooms stay apart: who may import whom, and which heavy library lives in which file."""

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STAGES = ("servers", "telemetry", "loadgen", "analysis")
ROOMS = ("greenbench", *STAGES)
# library → the only files that may import it (folders end with /)
HOMES = {
    "pandas": ("analysis/",),
    "plotly": ("analysis/",),
    "gevent": ("loadgen/longctx.py", "loadgen/wire/gevent_loop.py", "loadgen/locust_tab.py"),
    "locust": ("loadgen/longctx.py", "loadgen/locust_tab.py"),
    "torch": (
        "servers/plugins/",
        "servers/models/builder.py",
        "telemetry/selftest/gpu_load.py",
        "analysis/bottleneck/peaks_torch.py",
    ),
    "vllm": ("servers/plugins/", "analysis/bottleneck/peaks_torch.py"),
    "pynvml": ("telemetry/sensors/nvml.py", "servers/host.py"),
}


def modules(room: str) -> list[Path]:
    found = sorted((ROOT / room).rglob("*.py"))
    assert found, f"no modules in {room}"
    return found


def imported(path: Path) -> set[str]:
    """Top-level names of everything the file imports, at any depth of the code."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add((node.module or "").split(".")[0])
    return names


def test_no_stage_imports_another_and_the_contract_imports_none() -> None:
    for room in ROOMS:
        for path in modules(room):
            foreign = (imported(path) & set(STAGES)) - {room}
            assert not foreign, f"{path.relative_to(ROOT)} imports {foreign}"


def test_heavy_libraries_stay_in_their_files() -> None:
    for room in ROOMS:
        for path in modules(room):
            name = str(path.relative_to(ROOT))
            for library in imported(path) & set(HOMES):
                homes = HOMES[library]
                assert any(name.startswith(home) for home in homes), f"{name} imports {library}"


def test_loadgen_modules_do_not_shadow_the_standard_library() -> None:
    """Locust puts the locustfile's folder first on sys.path, so loadgen/queue.py would be `queue`."""
    shadows = {path.stem for path in modules("loadgen")} - {"__init__", "__main__"}
    assert not shadows & set(sys.stdlib_module_names)


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

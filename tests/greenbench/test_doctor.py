"""What is read of the machine: the CPU, the dtype that goes by it, and the Python that has vLLM."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from greenbench import doctor
from greenbench.contract.config import (
    ROOT,
    BackendChoice,
    ModelConfig,
    ServerConfig,
    ServerRequest,
)
from greenbench.contract.cpu import dtype_on_cpu, read_cpu
from greenbench.sweep.plan import Plan, dtype_notes
from greenbench.vllm_python import vllm_python
from servers.backends.host_facts import HostFacts, ModelFacts, served_dtype
from servers.backends.registry import BACKENDS
from servers.launch.command import command, plan
from tests.fakes.launch_plans import launch_plan
from tests.fakes.waiting import HUNG_S

# as the kernel prints them, cut to what decides
HASWELL = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz
flags\t\t: fpu sse sse2 ht avx f16c rdrand avx2 bmi2 erms
bugs\t\t: spectre_v1

processor\t: 1
model name\t: another
flags\t\t: avx512_bf16
"""
SKYLAKE = "model name\t: Intel Xeon Gold 6148\nflags\t\t: avx2 avx512f avx512dq avx512bw avx512vl\n"
COOPER_LAKE = "model name\t: Intel Xeon\nflags\t\t: avx2 avx512f avx512_bf16 avx512_vnni\n"
SAPPHIRE = "model name\t: x\nflags\t\t: avx2 avx512f avx512_bf16 amx_bf16 amx_tile amx_int8\n"
NEOVERSE = "processor\t: 0\nFeatures\t: fp asimd sve i8mm bf16 dgh\nCPU part\t: 0xd4f\n"
CORTEX = "processor\t: 0\nFeatures\t: fp asimd evtstrm crc32\n"


@pytest.mark.parametrize(
    ("text", "dtype", "words"),
    [
        (HASWELL, "float32", "neither AVX512_BF16 nor AMX"),
        (SKYLAKE, "float32", "neither AVX512_BF16 nor AMX"),
        (COOPER_LAKE, "bfloat16", "computes it (AVX512_BF16)"),
        (SAPPHIRE, "bfloat16", "AVX512_BF16 and AMX"),
        (NEOVERSE, "bfloat16", "Arm BF16"),
        (CORTEX, "float32", "neither AVX512_BF16 nor AMX"),
        ("", "float32", "does not say"),
    ],
)
def test_dtype_auto_goes_by_what_the_cpu_has(text: str, dtype: str, words: str) -> None:
    """Guards against bfloat16 on a CPU that computes it through float32, three times slower."""
    found = dtype_on_cpu(read_cpu(text).flags)
    assert found.name == dtype
    assert found.why is not None and words in found.why


def test_the_first_cpu_of_the_text_is_read_whole() -> None:
    cpu = read_cpu(HASWELL)
    assert cpu.name == "Intel(R) Xeon(R) CPU E5-2680 v3 @ 2.50GHz"
    assert cpu.flags == frozenset(
        ["fpu", "sse", "sse2", "ht", "avx", "f16c", "rdrand", "avx2", "bmi2", "erms"]
    )


OLD = HostFacts(vllm_build="cpu", modules=frozenset(), cpu_flags=read_cpu(HASWELL).flags)
NEW = replace(OLD, cpu_flags=read_cpu(COOPER_LAKE).flags)
CARD = HostFacts(gpu_name="H100", capability=(9, 0), vllm_build="cuda", cpu_flags=OLD.cpu_flags)
AUTO = ModelConfig(name="m", path="/models/m", max_model_len=8192)


@pytest.mark.parametrize(
    ("model", "sweep", "host", "served", "said"),
    [
        ("auto", None, OLD, "float32", True),
        ("auto", None, NEW, "bfloat16", True),
        ("auto", None, CARD, "auto", False),  # vLLM takes that of the weights
        ("bfloat16", "auto", OLD, "float32", True),  # the sweep's word stands above the model's
        ("auto", "bfloat16", OLD, "bfloat16", True),  # asked for, and slow there
        ("bfloat16", None, OLD, "bfloat16", True),
        ("bfloat16", None, NEW, "bfloat16", False),
        ("bfloat16", None, CARD, "bfloat16", False),
        ("float32", None, NEW, "float32", False),
    ],
)
def test_a_dtype_that_is_asked_for_is_served(
    model: str, sweep: str | None, host: HostFacts, served: str, said: bool
) -> None:
    config = AUTO.model_copy(update={"dtype": model})
    found = served_dtype(config, ServerConfig.model_validate({"dtype": sweep}), host)
    assert found.name == served
    assert (found.why is not None) == said


@pytest.mark.parametrize("host", [OLD, NEW])
def test_every_backend_of_a_cpu_is_given_the_same_dtype(host: HostFacts) -> None:
    """Guards against a comparison of dtypes that looks like one of backends."""
    on_cpu = [name for name, row in BACKENDS.items() if "cpu" in row.devices and not row.needs]
    assert len(on_cpu) >= 3
    flags: set[str] = set()
    for name in on_cpu:
        request = ServerRequest(model=AUTO, backend=BackendChoice(name=name))
        planned = plan(request, host, ModelFacts("m", head_size=64))
        assert planned.refusals == []
        argv = command(planned, "/models/m", 1, "python3").argv
        flags.add(argv[argv.index("--dtype") + 1])
    assert flags == {dtype_on_cpu(host.cpu_flags).name} != {"auto"}


def planned_start(model: str, why: str | None, base_url: str | None = None) -> Plan:
    request = SimpleNamespace(
        model=SimpleNamespace(name=model), server=SimpleNamespace(base_url=base_url)
    )
    launch = launch_plan(dtype={"name": "float32", "why": why})
    return Plan(SimpleNamespace(request=request), launch)  # type: ignore[arg-type]


def test_what_auto_chose_is_said_once_and_only_where_it_chose() -> None:
    plans = [planned_start(model, "old CPU") for model in ("a", "a", "b")]
    others = [planned_start("c", None), planned_start("d", "old CPU", "http://127.0.0.1:1")]
    assert dtype_notes([*plans, *others]) == [
        "a, b are served in float32 by every backend: old CPU"
    ]
    assert dtype_notes(plans[:1]) == ["a is served in float32 by every backend: old CPU"]
    assert dtype_notes(others) == []


@pytest.mark.parametrize("env", [{}, {"VLLM_PYTHON": ""}, {"VLLM_PYTHON": "  "}])
def test_unset_and_empty_are_alike(env: dict[str, str]) -> None:
    """Guards against ``make``, which exports it empty: the empty path is the working folder."""
    assert vllm_python(env) == ROOT / ".venv-vllm" / "bin" / "python"


def test_a_command_is_looked_up_and_a_path_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = tmp_path / "bin" / "snake"
    real.parent.mkdir()
    real.symlink_to(sys.executable)
    assert vllm_python({"VLLM_PYTHON": "snake", "PATH": str(real.parent)}) == real
    monkeypatch.chdir(tmp_path)
    assert (
        vllm_python({"VLLM_PYTHON": "bin/snake"}) == real
    )  # a link is not followed: a venv is one
    assert vllm_python({"VLLM_PYTHON": "bin/none"}) == tmp_path / "bin" / "none"


def test_nothing_else_resolves_it() -> None:
    """One place: a second reading of the variable is how the five came to differ."""
    readers = [
        path.relative_to(ROOT)
        for room in (
            "greenbench",
            "servers",
            "telemetry",
            "loadgen",
            "analysis",
            "scripts",
            "tests",
        )
        for path in (ROOT / room).rglob("*.py")
        if any(
            words in path.read_text()
            for words in ('get("VLLM_PYTHON', 'environ["VLLM_PYTHON', 'getenv("VLLM_PYTHON')
        )
    ]
    assert set(readers) <= {
        Path("greenbench/vllm_python.py"),
        Path("tests/greenbench/test_doctor.py"),
    }


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ("none", "no {path}"),
        ("folder", "{path} does not run as a Python"),
        ("text", "{path} does not run as a Python"),
        ("silent", "{path} does not run as a Python"),
    ],
)
def test_doctor_says_what_is_wrong_with_a_python(tmp_path: Path, made: str, said: str) -> None:
    path = tmp_path / "python"
    if made == "folder":
        path.mkdir()
    elif made != "none":
        path.write_text("#!/bin/sh\nexit 3\n" if made == "silent" else "no program")
        path.chmod(0o755)
    (found,) = doctor._vllm(path)
    assert (found.state, found.detail) == ("missing", said.format(path=path))
    assert "VLLM_PYTHON" in found.fix


def test_make_doctor_with_the_variable_empty_ends_without_a_traceback() -> None:
    command = [sys.executable, "-c", "from greenbench.cli import main; main()", "doctor"]
    env = {**os.environ, "VLLM_PYTHON": ""}
    done = subprocess.run(
        command, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=HUNG_S
    )
    assert done.returncode in (0, 1) and "Traceback" not in done.stderr, done.stderr
    assert str(ROOT / ".venv-vllm" / "bin" / "python") in done.stdout

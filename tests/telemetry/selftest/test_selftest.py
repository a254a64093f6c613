"""The GPU self-test: what it says without a GPU, and a whole run of it over a card that does not exist."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[3]
HOST = ROOT / "tests" / "fakes" / "gpu_host"
NO_DRIVER = """
class NVMLError(Exception): pass
def nvmlInit(): raise NVMLError("Driver Not Loaded")
"""


def run_selftest(
    out: Path, python_path: Path, lengths: str, timeline: Path
) -> "subprocess.CompletedProcess[str]":
    code = (
        "import sys; from pathlib import Path; from telemetry.selftest.run import Lengths, selftest;"
        f"sys.exit(selftest(Path({str(out)!r}), {lengths}))"
    )
    env = {
        **os.environ,
        "PYTHONPATH": f"{python_path}{os.pathsep}{ROOT}",
        "FAKE_GPU_TIMELINE": str(timeline),
        "VLLM_PYTHON": sys.executable,
    }
    return subprocess.run(
        [sys.executable, "-c", code], env=env, cwd=ROOT, capture_output=True, text=True, timeout=400
    )


def verdicts(out: Path) -> dict[str, dict[str, Any]]:
    found = json.loads((out / "oracles.json").read_text())["oracles"]
    return {verdict["oracle"]: verdict for verdict in found}


def test_without_a_gpu_it_says_that_there_is_nothing_to_test_and_ends_with_2(
    tmp_path: Path,
) -> None:
    """It ended with 0, as if the sensors had been tested."""
    (tmp_path / "pynvml.py").write_text(NO_DRIVER)
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "selftest", "--out", str(tmp_path / "out")],
        env={**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == (
        "error: no GPU can be read here (NVML does not start: Driver Not Loaded), so there are no energy "
        "sensors to test; run this on a host with an NVIDIA GPU and its driver\n"
    )
    assert not done.stdout
    assert not (tmp_path / "out").exists()


def test_a_folder_with_something_in_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("kept")
    done = subprocess.run(
        [sys.executable, "-m", "telemetry", "selftest", "--out", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2 and "give a new one" in done.stderr
    assert (tmp_path / "mine").read_text() == "kept"


@pytest.mark.e2e
def test_a_whole_run_on_a_card_of_known_powers(tmp_path: Path) -> None:
    """Load, recorder, marks and judge together; the fake card's watts are those of an H200."""
    lengths = "Lengths(steady=7, wave=5, kind=3.3, sampler=1, idle=1, settle=2, launches=1500)"
    out = tmp_path / "out"
    done = run_selftest(out, HOST, lengths, tmp_path / "timeline")
    assert (out / "oracles.json").exists(), done.stderr
    found = verdicts(out)
    told = {oracle: v["verdict"] for oracle, v in found.items()}
    assert told["G-1"] == told["G-2"] == told["G-3"] == told["G-4"] == told["G-5"] == "pass", (
        done.stdout
    )
    assert told["G-6"] == "published"
    assert told["G-11"] == "pass", done.stdout
    # what these two compare are rates of the host's own loop, which a shared machine starves
    assert "TB/s" in found["G-10"]["figure"] and told["G-10"] in ("pass", "fail")
    assert "throughput" in found["G-7"]["figure"] and told["G-7"] in ("pass", "fail")
    assert {told[o] for o in ("G-8", "G-9", "G-12")} == {"not run"}
    matmul_w = float(found["G-2"]["figure"].split(" W")[0])
    assert matmul_w == pytest.approx(690, rel=0.05)  # less what the loop waits between launches
    assert "normal 6" in found["G-6"]["figure"] and "zeros 3" in found["G-6"]["figure"]
    assert "asked]" in found["G-2"]["figure"]  # a window shorter than the oracle's is labelled

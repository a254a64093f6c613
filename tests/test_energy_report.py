"""A report from recorded fake GPUs: every energy figure of a measured window, every refusal of the others."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from analysis.energy import REASONS
from greenbench.manifest import FileEntry
from greenbench.rundir import JsonlWriter, RunDir, file_sha256
from tests.fakes.energy_frames import sources
from tests.fakes.nvml import SECOND, FakeGpu, constant, record
from tests.fakes.rundirs import T0_UNIX_NS, FakeRun, _mono, write_run

ROOT = Path(__file__).resolve().parent.parent
WARMUP_S, MEASURE_S = 2.0, 70.0
START_S = _mono(T0_UNIX_NS) / SECOND  # on the fake host's monotonic clock
GOOD = FakeGpu(constant(450), uuid="GPU-0")
HALFWAY_S = START_S + 40


def after(at_s: float, then: int, before: int) -> Callable[[float], int]:
    return lambda t: then if t >= at_s else before


# what is wrong -> (cards, facts about each, last second recorded after the start)
CASES: dict[str, tuple[list[FakeGpu], dict[str, Any], float]] = {
    "measured": ([GOOD], {}, 100),
    "mig": ([replace(GOOD, mig=True)], {}, 100),
    "vgpu": ([GOOD], {"virtual": True}, 100),
    "foreign_process": ([GOOD], {"foreign_pids": [1]}, 100),
    "throttled": ([replace(GOOD, throttle=after(HALFWAY_S, 0x40, 0))], {}, 100),
    "clock_changed": ([replace(GOOD, sm_clock_mhz=after(HALFWAY_S, 1500, 1980))], {}, 100),
    "counter_reset": ([replace(GOOD, reset_at_s=HALFWAY_S)], {}, 100),
    "counter_vs_integral": ([replace(GOOD, average_gain=1.04)], {}, 100),
    "gpu_count_mismatch": ([GOOD, FakeGpu(constant(450), 1, "GPU-1", lacks=("counter",))], {}, 100),
    "sampling_gap": (
        [replace(GOOD, error_at=lambda t: "x:Lost" if HALFWAY_S < t < HALFWAY_S + 3 else None)],
        {},
        100,
    ),
    "window_not_bracketed": ([GOOD], {}, 60),
}


def write_case(root: Path, name: str, measure_s: float = MEASURE_S) -> RunDir:
    """One point whose backend is called after its fault, with telemetry of the case's cards."""
    cards, facts, recorded_s = CASES[name]
    fake = FakeRun(backend=name, gpu_power_w=450, measure_s=measure_s, warmup_s=WARMUP_S)
    run = write_run(root, fake)
    path = run.telemetry_dir / "gpu.jsonl"
    path.unlink()
    offset_ns = T0_UNIX_NS - _mono(T0_UNIX_NS)
    rows = record(
        cards, START_S - 2, START_S + recorded_s, unix_ns=lambda mono_ns: mono_ns + offset_ns
    )
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)
    (run.telemetry_dir / "sources.json").write_text(json.dumps(sources(cards, **facts)))
    manifest = run.manifest()
    entry = FileEntry(rows=len(rows), sha256=file_sha256(path))
    files = {**manifest.files, "telemetry/gpu.jsonl": entry}
    run.write_manifest(manifest.model_copy(update={"files": files}))
    return run


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """(point by backend, report.html) of one sweep with every case."""
    root = tmp_path_factory.mktemp("runs")
    for name in CASES:
        write_case(root, name)
    command = [sys.executable, "-m", "analysis", "report", str(root)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    summary = json.loads((root / "summary.json").read_text())
    points = {point["backend"]: point for point in summary["points"]}
    assert points["measured"]["energy"], points["measured"]
    return points, unescape((root / "report.html").read_text())


def test_every_figure_stands_where_the_window_was_measured(
    reported: tuple[dict[str, dict[str, Any]], str],
) -> None:
    energy = reported[0]["measured"]["energy"]
    assert energy["status"] == "measured", energy
    assert energy["power_w"] == pytest.approx(450, rel=1e-6)
    # four users, one request a second each, 11 tokens out and 1 024 in: 450 W over 4 requests a second
    gross = energy["gross"]
    assert gross["j_per_request"] == pytest.approx(450 / 4, rel=0.03)
    assert gross["j_per_output_token"] == pytest.approx(450 / 44, rel=0.03)
    assert gross["j_per_total_token"] == pytest.approx(450 / (4 * 1035), rel=0.03)
    assert energy["counter_over_integral"] == pytest.approx(1, abs=1e-6)
    assert (energy["source"], energy["scope"]) == ("nvml_counter", "gpu")
    assert energy["above_idle"] is None and "idle_not_measured" in energy["flags"]


@pytest.mark.parametrize("reason", [name for name in CASES if name != "measured"])
def test_every_refusal_is_named_and_has_no_joules(
    reason: str, reported: tuple[dict[str, dict[str, Any]], str]
) -> None:
    points, html = reported
    energy = points[reason]["energy"]
    assert reason in energy["reasons"], energy["reasons"]
    assert energy["status"] == "invalid"
    assert energy["energy_j"] is None and energy["gross"] is None
    assert REASONS[reason].split(":")[0] in html  # a reader of the report sees why

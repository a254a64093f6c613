"""A report from recorded fake GPUs: every energy figure of a measured window, every refusal of the others."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from analysis.energy.trust import REASONS
from greenbench.contract.manifest import FileEntry
from greenbench.contract.run_dir import JsonlWriter, RunDir, file_sha256, read_jsonl
from tests.fakes.energy_frames import sources
from tests.fakes.engine_load import CYCLE_S, IDLE_W, PRICES, mixed_load
from tests.fakes.nvml import SECOND, FakeGpu, constant, record
from tests.fakes.rundirs import T0_UNIX_NS, FakeRun, _mono, write_run

ROOT = Path(__file__).resolve().parents[3]
WARMUP_S, MEASURE_S = 2.0, 70.0
START_S = _mono(T0_UNIX_NS) / SECOND  # on the fake host's monotonic clock
GOOD = FakeGpu(constant(450), uuid="GPU-0")
HALFWAY_S = START_S + 40
RAPL_W = 30.0


def after(at_s: float, then: int, before: int) -> Callable[[float], int]:
    return lambda t: then if t >= at_s else before


@dataclass(frozen=True)
class Case:
    """What is wrong with one point: its cards, facts about each, and until when they were recorded."""

    cards: list[FakeGpu] = field(default_factory=lambda: [GOOD])
    facts: dict[str, Any] = field(default_factory=dict)
    recorded_s: float = 100
    measure_s: float = MEASURE_S
    run: dict[str, Any] = field(default_factory=dict)  # fields of FakeRun
    log: list[str] = field(default_factory=list)  # engine steps


def step_line(end_s: float, prefill: int, decode: int, elapsed_s: float) -> str:
    """One line of vLLM's iteration log; seconds after the run's start."""
    return (
        f"{T0_UNIX_NS // SECOND + end_s:.6f} (EngineCore pid=1) INFO Engine 000: Iteration(1): "
        f"{prefill > 0:d} context requests, {prefill} context tokens, {decode} generation requests, "
        f"{decode} generation tokens, iteration elapsed time: {elapsed_s * 1e3:.3f} ms, "
        "CPU KV cache usage: 1.0%"
    )


ALONE = {
    "prefill_alone": (256, 0),
    "decode_alone": (0, 4),
}
STEPS = [number * 0.25 for number in range(1, 4 * 74)]
REFUSED: dict[str, Case] = {
    "mig": Case([replace(GOOD, mig=True)]),
    "vgpu": Case(facts={"virtual": True}),
    "foreign_process": Case(facts={"foreign_pids": [1]}),
    "throttled": Case([replace(GOOD, throttle=after(HALFWAY_S, 0x40, 0))]),
    "clock_changed": Case([replace(GOOD, sm_clock_mhz=after(HALFWAY_S, 1500, 1980))]),
    "counter_reset": Case([replace(GOOD, reset_at_s=HALFWAY_S)]),
    "counter_vs_integral": Case([replace(GOOD, average_gain=1.04)]),
    "gpu_count_mismatch": Case([GOOD, FakeGpu(constant(450), 1, "GPU-1", lacks=("counter",))]),
    "sampling_gap": Case(
        [replace(GOOD, error_at=lambda t: "x:Lost" if HALFWAY_S < t < HALFWAY_S + 3 else None)]
    ),
    "window_not_bracketed": Case(recorded_s=60),
    "window_too_short": Case(measure_s=30),
}
CASES: dict[str, Case] = {
    "measured": Case(),
    **REFUSED,
    "no_counter": Case([replace(GOOD, lacks=("counter",))]),
    **{
        name: Case(log=[step_line(end, prefill, decode, 0.25) for end in STEPS])
        for name, (prefill, decode) in ALONE.items()
    },
}


def write_case(root: Path, name: str, case: Case) -> RunDir:
    """One point whose backend is called after its case, with telemetry of the case's cards."""
    fake = FakeRun(
        backend=name,
        gpu_power_w=450,
        **{"measure_s": case.measure_s, "warmup_s": WARMUP_S} | case.run,  # type: ignore[arg-type]
    )
    run = write_run(root, fake)
    write_gpus(run.telemetry_dir, case.cards, START_S - 2, START_S + case.recorded_s)
    found = sources(case.cards, **case.facts)
    if name == "no_counter":
        found["counter"] = {"status": "unavailable", "reason": "the card has no energy counter"}
    if name == "measured":
        found["rapl"] = {"status": "available", "zones": {"0 package-0": None}}
        add_rapl(run.telemetry_dir / "host.jsonl")
    else:
        found["rapl"] = {"status": "unavailable", "reason": "no powercap on this host"}
    (run.telemetry_dir / "sources.json").write_text(json.dumps(found))
    if case.log:
        run.logs_dir.mkdir(exist_ok=True)
        (run.logs_dir / "server.log").write_text("\n".join(case.log) + "\n")
    sign(run)
    return run


def write_gpus(folder: Path, cards: list[FakeGpu], start_s: float, end_s: float) -> None:
    path = folder / "gpu.jsonl"
    path.unlink(missing_ok=True)
    offset_ns = T0_UNIX_NS - _mono(T0_UNIX_NS)
    with JsonlWriter(path) as writer:
        for row in record(cards, start_s, end_s, unix_ns=lambda mono_ns: mono_ns + offset_ns):
            writer.write(row)


def add_rapl(path: Path) -> None:
    """A package counter of RAPL_W watts in every host row."""
    rows = list(read_jsonl(path))
    for row in rows:
        row["cpu_energy_uj"] = {"0 package-0": round(row["mono_ns"] / SECOND * RAPL_W * 1e6)}
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def sign(run: RunDir) -> None:
    """The manifest's hashes follow the files."""
    manifest = run.manifest()
    for name in ("telemetry/gpu.jsonl", "telemetry/host.jsonl"):
        path = run.path / name
        entry = FileEntry(rows=path.read_bytes().count(b"\n"), sha256=file_sha256(path))
        manifest = manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    run.write_manifest(manifest)


def write_mixed(root: Path) -> None:
    """A point that prefills and decodes, with power by known prices and loaded idle around it."""
    fake, log, truth = mixed_load("mixed")
    cycles_s = fake.warmup_s + fake.measure_s + CYCLE_S
    case = Case(
        [FakeGpu(truth, uuid="GPU-0")],
        recorded_s=cycles_s,
        measure_s=fake.measure_s,
        run={
            name: getattr(fake, name)
            for name in (
                "context_tokens",
                "output_tokens",
                "tokens_per_chunk",
                "ttft_s",
                "itl_s",
                "users",
            )
        },
        log=log,
    )
    run = write_case(root, "mixed", case)
    server = run.path.parent / "servers" / run.manifest().server.server_id
    for name, begin_s in (("idle_before", START_S - 100), ("idle_after", START_S + cycles_s + 10)):
        folder = server / name / "telemetry"
        folder.mkdir(parents=True)
        write_gpus(folder, [FakeGpu(constant(IDLE_W), uuid="GPU-0")], begin_s, begin_s + 45)


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, dict[str, Any]], str]:
    """(point by backend, report.html) of one sweep with every case."""
    root = tmp_path_factory.mktemp("energy")
    for name, case in CASES.items():
        write_case(root, name, case)
    write_mixed(root)
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
    assert gross["j_per_request"] == pytest.approx(450 / 4, rel=1e-4)
    assert gross["j_per_output_token"] == pytest.approx(450 / 44, rel=1e-4)
    assert gross["j_per_total_token"] == pytest.approx(450 / (4 * 1035), rel=1e-4)
    assert energy["counter_over_integral"] == pytest.approx(1, abs=1e-6)
    assert (energy["source"], energy["scope"]) == ("nvml_counter", "gpu")
    assert energy["above_idle"] is None and "idle_not_measured" in energy["flags"]


def test_cpu_energy_is_measured_or_an_estimate_in_a_column_of_its_own(
    reported: tuple[dict[str, dict[str, Any]], str],
) -> None:
    points, html = reported
    cpu = points["measured"]["energy"]["cpu"]
    window_s = points["measured"]["window"]["duration_s"]
    assert cpu["package"]["joules"] == pytest.approx(RAPL_W * window_s, rel=1e-6)
    assert cpu["estimate"] is None
    # 2 threads half busy: 2·1.9·(0.1 + 0.9·0.5³) and 2·7.9·(0.5 + 0.5·0.5) W
    other = points["mig"]
    found, window_s = other["energy"]["cpu"]["estimate"], other["window"]["duration_s"]
    assert found["low_j"] == pytest.approx(0.8075 * window_s, rel=1e-6)
    assert found["high_j"] == pytest.approx(11.85 * window_s, rel=1e-6)
    assert re.search(r'<span class="tag">estimate</span> 0\.80[78]–11\.[89] W', html)
    assert "no powercap on this host" in html
    # the estimate is in no total: a refused window still has no joules
    assert other["energy"]["energy_j"] is None


def test_no_counter_is_unavailable_with_its_reason(
    reported: tuple[dict[str, dict[str, Any]], str],
) -> None:
    points, html = reported
    assert points["no_counter"]["energy"]["status"] == "unavailable"
    assert "unavailable: no GPU energy counter: the card has no energy counter" in html


@pytest.mark.parametrize("name", list(ALONE))
def test_one_phase_alone_is_measured(
    name: str, reported: tuple[dict[str, dict[str, Any]], str]
) -> None:
    points, html = reported
    energy = points[name]["energy"]
    phase, tokens = name.split("_")[0], sum(ALONE[name])
    assert energy["phase"]["phase"] == phase
    assert energy["phase"]["j_per_token"] == pytest.approx(450 / (4 * tokens), rel=0.02)
    assert energy["attributed"]["status"] == "unavailable"
    assert f"{phase.capitalize()} alone" in html and f"{phase} alone" in html


def test_mixed_phases_are_attributed_and_labelled_so(
    reported: tuple[dict[str, dict[str, Any]], str],
) -> None:
    points, html = reported
    energy = points["mixed"]["energy"]
    assert energy["status"] == "measured", energy["explain"]
    assert energy["idle_w"] == pytest.approx(IDLE_W, rel=1e-3)
    assert abs(energy["idle_drift"]) < 1e-3
    above = energy["above_idle"]["j"]
    assert above == pytest.approx(energy["energy_j"] - IDLE_W * energy["window_s"], rel=1e-6)
    found = energy["attributed"]
    assert found["status"] == "attributed", found["reasons"]
    prices = {price["work"]: price for price in found["prices"]}
    for work, true in PRICES.items():
        assert prices[work]["j_per_unit"] == pytest.approx(true, rel=0.05), work
        assert prices[work]["standard_error"] is not None
    assert sum(p["attributed_j"] for p in found["prices"]) == pytest.approx(found["measured_j"])
    assert found["held_out_median_error"] < 0.02
    assert "attributed by a model, not measured" in html
    for words in ("prefilled token", "prefilled (query, key) pair", "decoded token"):
        assert words in html
    assert "token of context read by decode" in html and "second of loaded idle" in html


@pytest.mark.parametrize("reason", list(REFUSED))
def test_every_refusal_is_named_and_has_no_joules(
    reason: str, reported: tuple[dict[str, dict[str, Any]], str]
) -> None:
    points, html = reported
    energy = points[reason]["energy"]
    assert reason in energy["reasons"], energy["reasons"]
    assert energy["status"] == "invalid"
    assert energy["energy_j"] is None and energy["gross"] is None
    assert REASONS[reason].split(":")[0] in html  # a reader of the report sees why
    assert energy["attributed"]["status"] == "unavailable"

"""A minute of llama-3.2-1b served on an H100 (results/h100), analysed, and by plain sums over the raw rows.

Guards: a change that moves a figure of a real GPU run, and a step time that no GPU could have reached.
"""

import json
import math
import re
import statistics
from pathlib import Path
from typing import Any

import pytest

from analysis.bottleneck.peaks import run_ceilings
from analysis.point.point import Point, analyse
from analysis.report.energy_section import energy_section
from analysis.runs.run import Run, load_run
from analysis.study import Study, study
from greenbench.contract.config import ROOT
from tests.fakes.points import value
from tests.fakes.recorded import RESULTS, unpack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("h100/serving.txz", tmp_path_factory.mktemp("h100"))


@pytest.fixture(scope="module")
def whole(folder: Path) -> Study:
    return study(folder)


@pytest.fixture(scope="module")
def run(folder: Path) -> Run:
    return load_run(next(path for path in folder.iterdir() if path.is_dir()))


@pytest.fixture(scope="module")
def point(run: Run) -> Point:
    return analyse(run)


def raw(run: Run, pattern: str) -> list[dict[str, Any]]:
    return [json.loads(line) for f in run.path.glob(pattern) for line in f.read_text().splitlines()]


def ends_by_user(run: Run, start: int, end: int) -> list[list[int]]:
    """Of each user the ends of its requests in the window, chained by hand: one sends when its last ended."""
    users: list[list[int]] = []
    for row in sorted(raw(run, "requests/*.jsonl"), key=lambda row: row["sent_unix_ns"]):
        free = [ends for ends in users if ends[-1] <= row["sent_unix_ns"]]
        mine = max(free, key=lambda ends: ends[-1]) if free else []
        if not free:
            users.append(mine)
        mine.append(row["sent_unix_ns"] + row["end_ns"])
    assert len(users) == 16
    return [[at for at in ends if start <= at <= end] for ends in users]


def test_joules_a_token_are_those_of_the_raw_counter_and_the_raw_chunks(
    run: Run, point: Point
) -> None:
    assert point.energy is not None
    energy = point.energy.result
    assert energy.status == "measured" and energy.gross is not None
    [card] = energy.per_gpu
    inside = [
        row
        for row in raw(run, "telemetry/gpu.jsonl")
        if row["gpu_uuid"] == card.uuid
        and (energy.start_mono_ns or 0) <= row["mono_ns"] <= (energy.end_mono_ns or 0)
    ]
    joules = (inside[-1]["energy_mj"] - inside[0]["energy_mj"]) / 1e3
    seconds = (inside[-1]["mono_ns"] - inside[0]["mono_ns"]) / 1e9
    tokens = 0
    for row in raw(run, "requests/*.jsonl"):
        at = [row["sent_mono_ns"] + ns for ns in row["chunk_ns"]]
        new = [b - a for a, b in zip([0, *row["chunk_tokens"]], row["chunk_tokens"], strict=False)]
        tokens += sum(
            n
            for ns, n in zip(at, new, strict=True)
            if inside[0]["mono_ns"] <= ns <= inside[-1]["mono_ns"]
        )
    # what the window's edges cut is under 1 % here; by whole cycles it is P / rate
    assert energy.gross.j_per_output_token == pytest.approx(joules / tokens, rel=1e-2)
    assert point.throughput is not None
    power_w = joules / seconds
    assert energy.gross.j_per_output_token == pytest.approx(
        power_w / value(point, "output"), rel=2e-3
    )
    by_average_w = sum(row["power_avg_w"] for row in inside) / len(inside)
    assert by_average_w == pytest.approx(joules / seconds, rel=0.005)
    assert energy.counter_over_integral == pytest.approx(1, abs=0.002)  # the gate allows 0.02
    assert "warming" in energy.flags and 5 < (card.temperature_c_per_min or 0) < 15


def test_throughput_is_that_of_whole_cycles_and_littles_law_agrees(run: Run, point: Point) -> None:
    assert point.window is not None and point.throughput is not None
    start, end = point.window.start_unix_ns, point.window.end_unix_ns
    users = ends_by_user(run, start, end)
    stop = min(ends[-1] for ends in users)
    served = 0.0
    for ends in users:
        last = next(number for number, at in enumerate(ends) if at >= stop)
        served += last / ((ends[last] - ends[0]) / 1e9)
    assert point.throughput.requests.value == pytest.approx(served, rel=1e-4)
    assert point.throughput.output.value == pytest.approx(128 * served, rel=1e-4)
    # by Little's law: 16 users over the mean time of a request
    rows = raw(run, "requests/*.jsonl")
    took = [r["end_ns"] / 1e9 for r in rows if start <= r["sent_unix_ns"] + r["end_ns"] < end]
    assert point.throughput.requests.value == pytest.approx(16 / statistics.fmean(took), rel=0.005)
    # which the count of what ended in the window misses by half a per cent: its edges cut a round
    counted = len(took) / ((end - start) / 1e9)
    assert counted / value(point, "requests") == pytest.approx(1.0058, abs=5e-4)


def test_steps_fill_the_window_and_stay_below_what_an_h100_can_do(
    whole: Study, run: Run, point: Point
) -> None:
    """vLLM's own figure, 0.03 ms a decode step, would have read 70 TB/s from a card of 3.35."""
    uses = {use.phase: use for use in whole.uses[point.run_id]}
    lines = (run.path / "logs/server.log").read_text().splitlines()
    stamps = [float(line.split()[0]) for line in lines if re.search(r"Iteration\(\d+\)", line)]
    assert point.window is not None
    start, end = (at / 1e9 for at in (point.window.start_unix_ns, point.window.end_unix_ns))
    inside = [at for at in stamps if start <= at <= end]
    assert sum(use.seconds for use in uses.values()) == pytest.approx(
        inside[-1] - inside[0], rel=2e-3
    )
    [spec] = run_ceilings(run, None)
    assert 0.4 < uses["prefill"].flops_per_s / spec.flops_per_s < 0.8
    assert 0.4 < uses["decode"].bytes_per_s / spec.bytes_per_s < 0.8
    bound = whole.bottlenecks[point.run_id]
    assert bound.bound == "engine" and "full (8192 tokens) and compute-bound" in bound.sentence
    assert [phase.bound for phase in bound.phases] == ["compute", "bandwidth"]
    assert bound.evidence.engine_share == pytest.approx(0.93, abs=0.01)  # NVML: a kernel ran


def test_the_energy_table_says_that_the_card_had_not_settled(whole: Study) -> None:
    [row] = energy_section(whole.cells).rows
    assert row.power_w == pytest.approx(622, abs=1)
    assert row.warming == pytest.approx(0.0147, abs=5e-4)


def test_equal_arms_on_h100s_do_not_differ_and_the_documented_interval_is_theirs() -> None:
    """G-8 from the joules and tokens of results/h100 by a hand-worked t interval: t(6) = 2.447 at 95 %."""
    starts = json.loads((RESULTS / "h100/equal-arms.json").read_text())["starts"]
    j_per_token: dict[tuple[int, int], dict[int, float]] = {}
    for row in starts:
        if row["energy_j"] is not None:
            pair = j_per_token.setdefault((row["sweep"], row["block"]), {})
            pair[row["arm"]] = row["energy_j"] / row["output_tokens"]
    logs = [math.log(pair[1] / pair[0]) for pair in j_per_token.values() if len(pair) == 2]
    assert len(logs) == 7
    middle = statistics.fmean(logs)
    half = 2.447 * statistics.stdev(logs) / math.sqrt(7)
    told = [math.exp(middle), math.exp(middle - half), math.exp(middle + half)]
    assert (
        "{:.3f} [{:.3f}, {:.3f}] over seven pairs".format(*told)
        in (ROOT / "docs" / "energy.md").read_text()
    )
    assert told[1] < 1 < told[2]

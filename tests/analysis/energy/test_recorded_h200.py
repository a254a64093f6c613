"""The self-test recorded on an H200 (results/h200), judged again, and by a second method from the raw rows.

Guards: a change of the energy arithmetic that moves a figure of a real card.
"""

import json
from pathlib import Path
from typing import Any

import pytest

from analysis.selftest.judge import Recording, judge
from tests.fakes.recorded import unpack


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpack("h200/energy-selftest.tgz", tmp_path_factory.mktemp("recorded")) / "e"


def rows(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "main/telemetry/gpu.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def mark(folder: Path, name: str) -> dict[str, Any]:
    lines = (folder / "marks.jsonl").read_text().splitlines()
    return next(m for m in map(json.loads, lines) if m["name"] == name)


def test_the_verdicts_of_docs_energy_come_out_again(folder: Path) -> None:
    found = {v.oracle: v.verdict for v in judge(Recording.read(folder))}
    passed = {"G-1", "G-2", "G-3", "G-4", "G-5", "G-7", "G-10", "G-11"}
    assert {o for o, verdict in found.items() if verdict == "pass"} == passed
    assert found["G-6"] == "published"
    assert {found[o] for o in ("G-8", "G-9", "G-12")} == {"not run"}


@pytest.mark.parametrize("name", ["matmul", "idle"])
def test_counter_and_a_plain_mean_of_the_average_agree_on_the_raw_rows(
    folder: Path, name: str
) -> None:
    """No interpolation, no code of ours: first and last counter value, and the mean of power_avg_w."""
    start_ns = mark(folder, name)["start_mono_ns"] + 3_000_000_000
    end_ns = mark(folder, name)["end_mono_ns"]
    inside = [row for row in rows(folder) if start_ns <= row["mono_ns"] <= end_ns]
    assert len(inside) > 500
    seconds = (inside[-1]["mono_ns"] - inside[0]["mono_ns"]) / 1e9
    by_counter_w = (inside[-1]["energy_mj"] - inside[0]["energy_mj"]) / 1e3 / seconds
    by_average_w = sum(row["power_avg_w"] for row in inside) / len(inside)
    assert by_counter_w == pytest.approx(by_average_w, rel=0.01)
    sensors = Recording.read(folder).see()
    assert sensors.counter_w(start_ns, end_ns) == pytest.approx(by_counter_w, rel=0.003)

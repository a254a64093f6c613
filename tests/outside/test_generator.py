"""The generator itself: its truths against closed forms, its directories against the product's check."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.outside.generator import Point, Power, write
from tests.outside.playing import Load, Pace, Phases, Played, arrival_times, play
from tests.outside.reading import ROOT, read, read_by_command
from tests.outside.sweeps import equal_pair, long_pair, split_pair, starts

LONG = Phases(10.0, 1000.0)


def mean_cycle_s(played: Played, users: int) -> float:
    """By Little's law over whole cycles: users / completions a second between two completions."""
    ends = np.sort(played.end_s)
    inside = ends[(ends > 100) & (ends < 1000)]
    whole = len(inside) // users * users - users
    return float(inside[whole] - inside[0]) / whole * users


@pytest.mark.parametrize("start", ["in step", "staggered", "random"])
@pytest.mark.parametrize("schedule", ["alternating", "shared"])
def test_other_split_has_the_same_throughput(start: str, schedule: str) -> None:
    for point in split_pair(start, schedule):
        played = play(point.pace, point.load, LONG, point.output_tokens, seed=1, factor=1.0)
        assert mean_cycle_s(played, 8) == pytest.approx(8 * 0.6 + 63 * 0.05, rel=1e-3)


def test_long_cycles_take_18_seconds() -> None:
    for point in long_pair():
        played = play(point.pace, point.load, LONG, point.output_tokens, seed=1, factor=1.0)
        assert mean_cycle_s(played, 2) == pytest.approx(18.0, rel=2e-3)


@pytest.mark.parametrize("schedule", ["alternating", "shared", "alone"])
def test_tokens_come_in_order_and_the_last_ends_the_request(schedule: str) -> None:
    pace = Pace(0.3, 0.01, schedule=schedule, request_sd=0.05)  # type: ignore[arg-type]
    played = play(pace, Load(6, "random"), Phases(5, 60), 32, seed=3, factor=1.1)
    assert (np.diff(played.tokens_s, axis=1) > 0).all()
    assert (played.tokens_s[:, 0] > played.sent_s).all()
    assert np.abs(played.end_s - played.tokens_s[:, -1]).max() < 0.001


def test_never_more_open_requests_than_users() -> None:
    played = play(Pace(0.3, 0.01), Load(6, "random"), Phases(5, 60), 32, seed=3, factor=1.0)
    for at in played.sent_s:
        assert ((played.sent_s <= at) & (played.end_s > at)).sum() <= 6


@pytest.mark.parametrize(
    ("load", "variation"),
    [
        (Load(None, rate_per_s=5.0), 1.0),
        (Load(None, rate_per_s=5.0, arrivals="constant"), 0.0),
        (Load(None, rate_per_s=5.0, arrivals="gamma", burstiness=0.25), 2.0),
    ],
)
def test_arrivals_have_their_rate_and_variation(load: Load, variation: float) -> None:
    at = arrival_times(load, 4000.0, np.random.default_rng(1))
    gaps = np.diff(at)
    assert len(at) / 4000 == pytest.approx(5.0, rel=0.05)
    assert gaps.std() / gaps.mean() == pytest.approx(variation, abs=0.1)


def test_failures_have_their_share() -> None:
    played = play(Pace(0.3, 0.01, failed=0.5), Load(4), Phases(5, 60), 16, seed=3, factor=1.0)
    assert abs(played.failed.mean() - 0.5) < 0.01


def test_directories_pass_the_check_and_hold_their_truth(tmp_path: Path) -> None:
    """Whole command, every kind of point; figures against closed forms up to the window's edge."""
    power = Power(prefill_w=650, decode_w=500)
    closed = replace(split_pair("staggered")[0], power=power)
    opened = replace(
        closed,
        pace=Pace(0.2, 0.005, schedule="alone"),
        load=Load(None, rate_per_s=4.0, arrivals="constant"),
    )
    scored = Point(
        backend="beta", task="perplexity", output_tokens=1, shifts=(0.01,) * 8, prompts=8,
        pace=Pace(0.5, 0.0, schedule="alone"),
    )  # fmt: skip
    points = starts([closed, opened, scored], 2, sd=0.0)
    write(tmp_path, points)
    command = [sys.executable, "-m", "analysis", "check", str(tmp_path)]
    checked = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    by_command, here = read_by_command(tmp_path), read(tmp_path)
    assert here.sentences == by_command.sentences
    usable = [p for p in here.summary["points"] if p["status"] == "ok"]
    assert len(usable) == 6, [(p["status"], p["reasons"]) for p in here.summary["points"]]
    first = next(p for p in usable if "closed8" in p["run_id"])
    cycle_s = 7.95
    watts = (8 * 0.3 * 650 + (cycle_s - 8 * 0.3) * 500) / cycle_s
    assert first["energy"]["power_w"] == pytest.approx(watts, rel=0.02)
    assert first["throughput"]["output_tokens_per_s"] == pytest.approx(8 * 64 / cycle_s, rel=0.03)
    free = next(p for p in usable if "open4" in p["run_id"])
    assert free["latency"]["ttft_s"]["p50"] == pytest.approx(0.2, rel=0.01)
    assert free["latency"]["tpot_s"]["p50"] == pytest.approx(0.005, rel=0.01)


def test_runs_of_the_same_seed_are_the_same(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write(tmp_path / name, starts(equal_pair(), 1, sd=0.02))
    rows = [sorted((tmp_path / name).rglob("requests/*.jsonl")) for name in ("one", "two")]
    assert rows[0] and [p.read_bytes() for p in rows[0]] == [p.read_bytes() for p in rows[1]]

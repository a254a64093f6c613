"""Frozen predictions and their score: what a bar says, where a knee lies; a changed file is refused."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from planning.back_test import Compared, bars, knee, no_knee
from planning.baselines import Known, line, nearest
from planning.held_out import Figures, Load
from tests.fakes.recorded import unpack

ROOT = Path(__file__).resolve().parents[2]
EVIDENCE = ROOT / "results" / "backtest-cpu"
ONE = Figures(10.0, 0.1, 0.2, 1.0, 2.0, 1.2, waiting_s=0.05)


def off(by: float) -> Figures:
    """All of ONE's figures, ``by`` too high."""
    f = 1 + by
    return Figures(10 * f, 0.1 * f, 0.2 * f, 1 * f, 2 * f, 1.2 * f, waiting_s=0.05 * f)


def compared(plan: float, other: float, of_most: float | None) -> Compared:
    return Compared("a", {"plan": off(plan), "nearest": off(other), "line": None}, ONE, of_most)


def test_a_bar_is_the_median_of_absolute_errors_and_must_beat_the_baselines() -> None:
    points = [compared(-0.02, 0.5, 0.5), compared(0.05, 0.5, 0.6), compared(0.20, 0.5, 0.7)]
    by_name = {bar.name: bar for bar in bars(points)}
    e2e = by_name["E2E p50"]
    assert e2e.points == 3 and e2e.errors["plan"] == pytest.approx(0.05)
    assert e2e.met is True and e2e.beats is True
    worse = bars([compared(0.05, 0.01, 0.5)])[0]
    assert worse.met is True and worse.beats is False


def test_ttft_counts_below_and_waiting_about_the_knee() -> None:
    points = [compared(0.01, 1, 0.3), compared(0.02, 1, 0.85), compared(0.04, 1, None)]
    by_name = {bar.name: bar for bar in bars(points)}
    assert by_name["TTFT p50 below 0.8 of the knee"].points == 2  # 0.3 and the closed loop
    waiting = by_name["mean waiting at utilisation 0.5 to 0.9"]
    assert waiting.points == 1 and waiting.errors["plan"] == pytest.approx(0.02)


def test_a_knee_is_where_a_power_law_between_two_rates_meets_the_limit() -> None:
    """0.5 s at 2/s and 2 s at 4/s: the square of the rate, so 1 s at 2·√2."""
    assert knee([4, 1, 2], [2.0, 0.4, 0.5], 1.0) == pytest.approx(2 * 2**0.5)
    assert knee([1, 2], [0.4, 0.5], 1.0) is None


@pytest.mark.parametrize(
    ("ttft_s", "side"),
    [
        ([0.4, 0.5], "at most 1 s"),
        ([2.0, 3.0], "above 1 s"),
        ([3.0, 0.5], "above 1 s at the lowest"),
    ],
)
def test_without_a_knee_it_is_said_on_which_side_the_rates_are(
    ttft_s: list[float], side: str
) -> None:
    assert knee([1, 2], ttft_s, 1.0) is None
    said = no_knee([1, 2], ttft_s, 1.0)
    assert said.startswith(f"p90 of TTFT is {side}") and "at 1 to 2 requests/s" in said


def test_baselines_of_points_on_a_line() -> None:
    """E2E is 0.5 s + 1 ms a token + 0.1 s an open request."""

    def at(tokens: float, users: float) -> Known:
        e2e = 0.5 + 0.001 * tokens + 0.1 * users
        return Known(tokens, users, replace(ONE, e2e_p50_s=e2e, e2e_mean_s=e2e))

    known = [at(t, u) for t in (500.0, 1000.0, 4000.0) for u in (1.0, 4.0)]
    found = line(known, Load(0, 10, users=2, prompt=2000, output=10))
    assert found is not None and found.e2e_p50_s == pytest.approx(0.5 + 2.0 + 0.2)
    assert found.throughput == pytest.approx(2 / 2.7)
    close = nearest(known, Load(0, 10, users=3, prompt=1200, output=10))
    assert close is not None and close.e2e_p50_s == pytest.approx(0.5 + 1.0 + 0.4)


def score(predictions: Path, runs: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "scripts/backtest.py",
            "score",
            str(predictions),
            str(runs),
            *options,
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


@pytest.mark.parametrize("round_", ["", "-2", "-3", "-4"])
def test_the_documents_tables_are_the_score_of_the_committed_runs(
    tmp_path: Path, round_: str
) -> None:
    runs = unpack(f"backtest-cpu/heldout{round_}.txz", tmp_path)
    done = score(EVIDENCE / f"predictions{round_}.json", runs / f"heldout{round_}")
    assert done.returncode == 0, done.stderr
    said = (ROOT / "docs" / "plan.md").read_text() + (EVIDENCE / "README.md").read_text()
    rows = [row for row in done.stdout.splitlines() if row.startswith(("|", "knee", "order"))]
    assert len(rows) > 10
    missing = [row for row in rows if row not in said]
    assert not missing, missing
    assert json.loads((EVIDENCE / f"predictions{round_}.json").read_text())["sha256"] in said


@pytest.mark.parametrize("round_", ["", "-2", "-3"])
def test_the_tables_of_the_card_are_the_score_of_its_runs(tmp_path: Path, round_: str) -> None:
    """The page beside the runs is written from the committed score, which is this one."""
    h200 = ROOT / "results" / "h200"
    frozen, told = h200 / f"predictions{round_}.json", tmp_path / "score.json"
    done = score(frozen, h200 / f"heldout{round_}", "--json", str(told))
    assert done.returncode == 0, done.stderr
    said = (ROOT / "docs" / "plan.md").read_text()
    printed = done.stdout.splitlines()
    bars = [row for row in printed if row.startswith("| ") and "%" in row and " / " not in row]
    told_after = [row for row in printed if row.startswith(("knee", "order"))]
    assert len(bars) == 6 and len(told_after) > 1
    assert not [row for row in bars + told_after if row not in said]
    assert json.loads(frozen.read_text())["sha256"] in said
    assert json.loads(told.read_text()) == json.loads((h200 / f"backtest{round_}.json").read_text())


def test_a_changed_prediction_is_refused(tmp_path: Path) -> None:
    frozen = json.loads((EVIDENCE / "predictions.json").read_text())
    frozen["points"][0]["plan"]["e2e_p50_s"] *= 1.01
    (tmp_path / "p.json").write_text(json.dumps(frozen))
    done = score(tmp_path / "p.json", tmp_path)
    assert done.returncode == 2 and "changed after freezing" in done.stderr

"""Whether a point has enough by now: expected windows and counts come from arithmetic.

A closed loop of 4 users whose requests take exactly 1 s: four requests end each second, in step.
"""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.point.enough import SoFar, answers, judge
from analysis.point.point import choose_window
from analysis.point.verdict import verdict
from analysis.runs.labels import labels
from analysis.runs.run import load_run
from analysis.runs.validity import superseded
from greenbench.contract.enough import Answer, Question
from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import RunDir
from tests.fakes.rundirs import NS, FakeRun, write_run

USERS, WARMUP_S, SECOND = 4, 2.0, FakeRun(ttft_s=0.5, itl_s=0.05, output_tokens=11, kv_usage=None)


def as_of(run: RunDir, seconds: float) -> Path:
    """The run as it lay on disk so many seconds into its measured phase."""
    marks = [json.loads(line) for line in run.events_path.open()]
    now = next(m["unix_ns"] for m in marks if m["name"] == "measure_start") + round(seconds * NS)

    def keep(path: Path, moment: str, length: str | None = None) -> None:
        rows = [json.loads(line) for line in path.open()]
        there = [r for r in rows if r[moment] + (r[length] if length else 0) <= now]
        path.write_text("".join(json.dumps(row) + "\n" for row in there))

    keep(run.events_path, "unix_ns")
    keep(run.requests_dir / "w0.jsonl", "sent_unix_ns", "end_ns")
    if (run.telemetry_dir / "server.jsonl").exists():
        keep(run.telemetry_dir / "server.jsonl", "unix_ns")
    return run.path


def asked(path: Path, seconds: float = 0.0, completions: int = 1) -> Answer:
    question = Question(path=str(path), seconds=seconds, completions=completions)
    return next(answers([question.model_dump_json()]))


def test_a_window_is_as_long_as_what_has_ended_and_counts_whole_cycles(tmp_path: Path) -> None:
    """20.5 s in, 20 rounds have ended: 20 s at the target. A user's first end in it opens its first cycle."""
    path = as_of(write_run(tmp_path, SECOND), 20.5)
    found = asked(path)
    assert found.enough and found.lacking == []
    assert found.steady_s == pytest.approx(20, abs=1e-6)
    assert 18 * USERS <= found.completions <= 20 * USERS


@pytest.mark.parametrize(
    ("seconds", "completions", "lacking"),
    [
        (20.0, 72, []),
        (20.1, 72, ["20 s of steady load, 20.1 are wanted"]),
        (20.0, 100, ["requests counted in it, 100 are wanted"]),
        (60.0, 1000, ["20 s of steady load, 60 are wanted", "in it, 1,000 are wanted"]),
    ],
)
def test_what_is_lacking_is_said_with_what_was_wanted(
    tmp_path: Path, seconds: float, completions: int, lacking: list[str]
) -> None:
    found = asked(as_of(write_run(tmp_path, SECOND), 20.5), seconds, completions)
    assert found.enough == (not lacking)
    assert len(found.lacking) == len(lacking)
    assert all(said.endswith(end) for said, end in zip(found.lacking, lacking, strict=True))


def test_five_completions_are_no_window(tmp_path: Path) -> None:
    """One user, 5.5 s: five requests ended, and six are the fewest of a window."""
    found = asked(as_of(write_run(tmp_path, replace(SECOND, users=1)), 5.5))
    assert not found.enough
    assert found.lacking == ["no steady state: only 5 requests ended in it, 6 are needed"]


def test_before_the_first_row_nothing_is_enough(tmp_path: Path) -> None:
    found = asked(as_of(write_run(tmp_path, replace(SECOND, warmup_s=0.0)), 0.5))
    assert (found.enough, found.completions) == (False, 0)


def test_requests_of_an_open_loop_that_are_open_do_not_make_it_fall(tmp_path: Path) -> None:
    """5 requests/s of 1 s each: in the last second their rows are lacking, and the load stands."""
    open_loop = replace(SECOND, users=None, rate_per_s=5.0)
    found = asked(as_of(write_run(tmp_path, open_loop), 30.5), 28.0, 100)
    assert found.enough, found.lacking
    assert 28 < found.steady_s <= 29.6  # to the end of what is surely over


@pytest.mark.parametrize("fake", [SECOND, replace(SECOND, jitter=0.1, kv_usage=0.3)])
def test_of_a_whole_run_it_finds_the_reports_own_window(tmp_path: Path, fake: FakeRun) -> None:
    run = write_run(tmp_path, fake)
    window = choose_window(load_run(run.path))
    assert window is not None and window.valid
    assert asked(run.path).steady_s == window.duration_s


def test_what_was_read_is_kept_and_only_new_lines_are_taken_up(tmp_path: Path) -> None:
    run = write_run(tmp_path, SECOND)
    rows = (run.requests_dir / "w0.jsonl").read_bytes()
    torn = rows.index(b"\n", len(rows) // 2) + 20  # in mid-line
    (run.requests_dir / "w0.jsonl").write_bytes(rows[:torn])
    so_far = SoFar.of(run.path)
    so_far.read()
    assert len(so_far.rows) == rows[:torn].count(b"\n")
    with (run.requests_dir / "w0.jsonl").open("ab") as file:
        file.write(rows[torn:])
    so_far.read()
    assert len(so_far.rows) == rows.count(b"\n")
    whole = judge(so_far, Question(path=str(run.path), seconds=0, completions=0))
    assert whole.steady_s == asked(run.path).steady_s


def test_the_command_answers_line_by_line_and_stays(tmp_path: Path) -> None:
    path = as_of(write_run(tmp_path, SECOND), 20.5)
    question = Question(path=str(path), seconds=10, completions=10).model_dump_json() + "\n"
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "enough"], input=question * 2, capture_output=True,
        text=True, env={**os.environ, "PYTHONPATH": str(ROOT)}, timeout=120, check=True,
    )  # fmt: skip
    said = [Answer.model_validate_json(line) for line in done.stdout.splitlines()]
    assert [answer.enough for answer in said] == [True, True]
    assert said[0].completions == said[1].completions


def test_auto_points_are_one_workload_whatever_their_length_and_cap(tmp_path: Path) -> None:
    fakes = [
        replace(SECOND, measure_s=40.0, cap_s=300.0),
        replace(SECOND, measure_s=65.0, cap_s=600.0, repeat=1, started_s=1000.0),
    ]
    runs = [load_run(write_run(tmp_path, fake).path) for fake in fakes]
    assert [verdict(run) for run in runs] == [[], []]
    assert runs[0].identity.workload == runs[1].identity.workload


def test_the_second_try_with_another_cap_stands_for_the_first(tmp_path: Path) -> None:
    first = replace(SECOND, measure_s=40.0, cap_s=40.0)
    second = replace(first, measure_s=80.0, cap_s=80.0, started_s=1000.0)
    runs = [load_run(write_run(tmp_path, fake).path) for fake in (first, second)]
    assert superseded(runs) == {runs[0].path: runs[1].manifest.run_id}


def test_a_point_that_was_measured_beyond_its_cap_is_no_honest_one(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, replace(SECOND, measure_s=50.0, cap_s=40.0)).path)
    assert [fault.code for fault in verdict(run)] == ["phases_differ"]


def test_auto_and_fixed_are_told_apart_by_their_labels(tmp_path: Path) -> None:
    fakes = [replace(SECOND, cap_s=300.0), replace(SECOND, started_s=1000.0)]
    points = [load_run(write_run(tmp_path, fake).path).identity for fake in fakes]
    found = labels([p.candidate for p in points], [p.scenario for p in points])
    assert [found.loads[p.scenario] for p in points] == [
        "4 users · measured until p90 is known",
        "4 users · measured for 40 s",
    ]

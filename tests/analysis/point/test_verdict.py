"""What the sweep asks as soon as a point ends: the report's own word on it, no more and no less."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from analysis.point.point import analyse
from analysis.point.verdict import verdict
from analysis.runs.run import load_run
from greenbench.contract.run_dir import RunDir, file_sha256
from tests.fakes.rundirs import FakeRun, write_run

SOUND = FakeRun()  # 4 users, a second a request, 40 s: 160 measured


def codes(run: RunDir) -> list[str]:
    return [fault.code for fault in verdict(load_run(run.path))]


def fail(run: RunDir, which: slice, error_type: str) -> RunDir:
    """Make measured requests, by their order of sending, fail as ``error_type``."""
    path = run.requests_dir / "w0.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    rows.sort(key=lambda row: row["sent_unix_ns"])
    for row in [row for row in rows if row["phase"] == "measure"][which]:
        row.update(error_type=error_type, error_message="made to fail", finish_reason=None)
        row.update(first_token_ns=None, last_token_ns=None, chunk_ns=None, chunk_tokens=None)
        row.update(output_tokens=None, http_status=None)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    bad = {row["request_id"] for row in rows if row["error_type"]}
    answers = run.outputs_dir / "w0.jsonl"
    kept = [
        line
        for line in answers.read_text().splitlines()
        if json.loads(line)["request_id"] not in bad
    ]
    answers.write_text("".join(line + "\n" for line in kept))
    raw = json.loads(run.manifest_path.read_text())
    raw["counts"].update(ok=len(rows) - len(bad), failed=len(bad))
    for name, rows_of_it in (("requests/w0.jsonl", len(rows)), ("outputs/w0.jsonl", len(kept))):
        raw["files"][name] = {"rows": rows_of_it, "sha256": file_sha256(run.path / name)}
    run.manifest_path.write_text(json.dumps(raw))
    return run


@pytest.mark.parametrize(
    ("fake", "found"),
    [
        (SOUND, []),
        (replace(SOUND, measure_s=1.5), ["no_steady_state"]),
        (replace(SOUND, slower_from_s=20.0, slower=3.0), ["no_steady_state"]),
        (replace(SOUND, rate_per_s=2.0, users=None), []),
        (replace(SOUND, proof="mismatch"), ["backend_mismatch"]),
        (replace(SOUND, failed_every=1), ["no_good_requests"]),
        (replace(SOUND, status="failed", failure="gone"), ["failed"]),
    ],
)
def test_it_is_the_reports_own_word(tmp_path: Path, fake: FakeRun, found: list[str]) -> None:
    run = write_run(tmp_path, fake)
    assert set(found) <= set(codes(run))
    assert analyse(load_run(run.path)).usable is (not codes(run)) is (not found)


@pytest.mark.parametrize(
    ("which", "error_type", "found"),
    [
        (slice(-3, None), "connect", ["server_gone"]),  # the last three
        (slice(-20, None), "http_5xx", ["server_gone"]),
        (slice(-2, None), "cut_in_stream", []),  # two may be a restart's
        (slice(6, None), "connect", ["mostly_failed", "server_gone"]),  # 6 good, the others refused
        (slice(0, 90), "http_4xx", ["mostly_failed"]),  # 90 of 160
        (slice(0, 70), "http_4xx", []),  # a finding, counted and shown
        (slice(-20, None), "http_4xx", []),
        (slice(-3, -1), "connect", []),
    ],
)
def test_a_server_that_went_away_and_a_failed_share_are_part_of_it(
    tmp_path: Path, which: slice, error_type: str, found: list[str]
) -> None:
    run = fail(write_run(tmp_path, SOUND), which, error_type)
    ours = [code for code in codes(run) if code in ("server_gone", "mostly_failed")]
    assert ours == found


def test_requests_that_fail_now_and_then_may_do_so_at_the_end(tmp_path: Path) -> None:
    """One in three fails: that the last three do so has a chance of 1 in 27."""
    run = fail(write_run(tmp_path, SOUND), slice(0, None, 3), "http_5xx")
    fail(run, slice(-3, None), "http_5xx")
    assert "server_gone" not in codes(run)
    assert "server_gone" in codes(fail(run, slice(-12, None), "http_5xx"))


def test_what_the_load_brings_about_is_a_finding_and_no_fault(tmp_path: Path) -> None:
    run = fail(write_run(tmp_path, SOUND), slice(6, None), "timeout")
    assert not {"server_gone", "mostly_failed"} & set(codes(run))


def test_what_was_seen_says_more_than_its_code_in_the_manifest(tmp_path: Path) -> None:
    """Guards against one reason told twice, and against a lost sentence."""
    fake = replace(SOUND, status="invalid", invalid_reasons=("mostly_failed", "no_steady_state"))
    run = fail(write_run(tmp_path, fake), slice(0, 90), "http_4xx")
    (told,) = [f for f in verdict(load_run(run.path)) if f.code == "mostly_failed"]
    assert told.sentence.startswith(
        "90 of 160 requests of the measured phase failed (90 × http_4xx"
    )
    assert "no_steady_state" not in codes(run)  # its window is looked for again, by today's rule


def test_a_point_without_a_steady_state_keeps_its_window_and_its_answers(tmp_path: Path) -> None:
    short = replace(SOUND, measure_s=1.5, status="invalid", invalid_reasons=("no_steady_state",))
    point = analyse(load_run(write_run(tmp_path, short).path))
    assert point.status == "invalid" and point.window is not None
    assert point.answers_stand


def test_the_command_answers_for_each_run_directory(tmp_path: Path) -> None:
    sound = write_run(tmp_path / "a", SOUND).path
    broken = tmp_path / "b" / "r0"
    broken.mkdir(parents=True)
    (broken / "manifest.json").write_text("{")
    done = subprocess.run(
        [sys.executable, "-m", "analysis", "verdict"],
        input=json.dumps([str(sound), str(broken)]), capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = json.loads(done.stdout)
    assert first == {"path": str(sound), "faults": []}
    assert [fault["code"] for fault in second["faults"]] == ["unreadable"]

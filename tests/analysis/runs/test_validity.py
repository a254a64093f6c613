"""``check`` finds each way in which a run directory can fall short of its manifest."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import main
from analysis.point.point import analyse_all
from analysis.runs.run import load_run, load_runs
from analysis.runs.validity import faults, superseded
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import RunDir, file_sha256
from tests.fakes.rows import edit_manifest
from tests.fakes.rundirs import FakeRun, write_run


def codes(run: RunDir) -> list[str]:
    return [fault.code for fault in faults(load_run(run.path))]


def edit_rows(run: RunDir, change: Callable[[dict[str, Any]], None], rehash: bool = True) -> None:
    """Alter the first request row; with ``rehash`` the manifest is told, so that only the row is at fault."""
    path = run.requests_dir / "w0.jsonl"
    lines = path.read_text().splitlines()
    row = json.loads(lines[0])
    change(row)
    path.write_text("\n".join([json.dumps(row), *lines[1:]]) + "\n")
    if rehash:
        edit_manifest(
            run, lambda m: m["files"]["requests/w0.jsonl"].update(sha256=file_sha256(path))
        )


def test_a_sound_run_has_no_fault(tmp_path: Path) -> None:
    assert codes(write_run(tmp_path, FakeRun())) == []


@pytest.mark.parametrize(
    ("fake", "code"),
    [
        (FakeRun(status="running"), "interrupted"),
        (FakeRun(status="failed", failure="the server died"), "failed"),
        (FakeRun(status="invalid", invalid_reasons=("client_bound",)), "client_bound"),
        (FakeRun(proof="mismatch"), "backend_mismatch"),
        (FakeRun(observed_backend=None), "backend_mismatch"),
        (FakeRun(failed_every=1), "no_good_requests"),
    ],
)
def test_states_that_bar_a_point(tmp_path: Path, fake: FakeRun, code: str) -> None:
    assert code in codes(write_run(tmp_path, fake))


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        ("stopped by Ctrl-C", "stopped by Ctrl-C"),
        (
            None,
            "the point failed; its manifest does not say why; stopped by the person before it was complete",
        ),
    ],
)
def test_that_a_point_was_stopped_is_said_once_and_its_code_kept(
    tmp_path: Path, failure: str | None, said: str
) -> None:
    stopped = FakeRun(status="failed", failure=failure, invalid_reasons=("interrupted",))
    (point,) = analyse_all([load_run(write_run(tmp_path, stopped).path)])
    assert "; ".join(point.reasons) == said
    assert (point.status, point.faults) == ("failed", ["failed", "interrupted"])


def test_unproven_is_no_fault(tmp_path: Path) -> None:
    assert codes(write_run(tmp_path, FakeRun(proof="unproven", observed_backend=None))) == []


def test_other_backend_in_config_than_in_server(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    edit_manifest(run, lambda m: m["server"].update(requested_backend="beta"))
    assert codes(run) == ["backend_mismatch"]


def test_lost_row_is_seen_by_count_and_by_hash(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    path = run.requests_dir / "w0.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    assert codes(run) == ["record_count_mismatch", "file_changed"]


def test_altered_file_is_seen_by_hash(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    edit_rows(run, lambda row: row.update(first_token_ns=1), rehash=False)
    assert codes(run) == ["file_changed"]


def test_missing_and_unlisted_files(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    (run.telemetry_dir / "host.jsonl").unlink()
    assert codes(run) == ["file_missing"]
    other = write_run(tmp_path / "other", FakeRun())
    (other.requests_dir / "w1.jsonl").write_text("")
    assert codes(other) == ["file_unlisted"]


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"prompt_tokens": 1023}, "prompt_length_mismatch"),
        ({"prompt_tokens": None}, "no_usage"),
        ({"cached_tokens": 512}, "prefix_cache_hits"),
        ({"run_id": "another"}, "foreign_rows"),
        ({"error_type": "timeout"}, "record_count_mismatch"),
    ],
)
def test_faulty_rows(tmp_path: Path, change: dict[str, Any], code: str) -> None:
    run = write_run(tmp_path, FakeRun())
    edit_rows(run, lambda row: row.update(change))
    assert codes(run) == [code]


def test_clock_step_between_events(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    lines = run.events_path.read_text().splitlines()
    last = json.loads(lines[-1])
    last["unix_ns"] += 2_000_000_000
    run.events_path.write_text("\n".join([*lines[:-1], json.dumps(last)]) + "\n")
    edit_manifest(
        run, lambda m: m["files"]["events.jsonl"].update(sha256=file_sha256(run.events_path))
    )
    assert codes(run) == ["clock_stepped"]


def test_a_torn_last_line_is_dropped_and_a_broken_one_is_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    path = run.requests_dir / "w0.jsonl"
    whole = path.read_text()
    rows = whole.count("\n")
    path.write_text(whole + whole.splitlines()[0][:40])
    assert len(load_run(run.path).requests) == rows
    lines = whole.splitlines()
    path.write_text("\n".join([lines[0], "{broken", *lines[1:]]) + "\n")
    found = faults(load_run(run.path))
    assert [fault.code for fault in found] == ["unreadable"]
    assert found[0].sentence.startswith("requests/w0.jsonl:2: not a JSON line (")


def test_cache_follows_its_source(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    before = load_run(run.path).requests["first_token_ns"].iloc[0]
    assert (run.derived_dir / "requests.parquet").is_file()
    edit_rows(run, lambda row: row.update(first_token_ns=int(before) + 1))
    assert load_run(run.path).requests["first_token_ns"].iloc[0] == before + 1


def test_another_major_schema_is_refused(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    edit_manifest(run, lambda m: m.update(schema_version="2.0"))
    with pytest.raises(UserError, match=r"schema version 2\.0"):
        load_run(run.path)


def test_a_point_measured_again_is_passed_over(tmp_path: Path) -> None:
    failed = write_run(tmp_path, FakeRun(status="failed", failure="died"))
    good = write_run(tmp_path, FakeRun(started_s=100))
    runs = load_runs(tmp_path)
    assert superseded(runs) == {failed.path: good.path.name}
    assert [point.reasons for point in analyse_all(runs)] == [
        ["died", f"measured again: {good.path.name} stands for it"],
        [],
    ]


def acquit(run: RunDir) -> None:
    """Late over the server's own TTFT, by more than its client can have been: see ClientAudit.faults."""
    said = {
        "over_budget": True,
        "reasons": ["TTFT over the server's own p50 is 720 ms, at most 459 ms was allowed"],
        "figures": {"loop_lag": {"p99_ms": 1.2}, "kernel_to_user_delay": {"p99_ms": 1.2}},
    }
    edit_manifest(run, lambda m: m.update(client_audit={"locust": said}))


def test_a_server_start_measured_twice_is_no_two_starts_though_both_clients_are_acquitted(
    tmp_path: Path,
) -> None:
    """Guards a range over "2 starts" that were one (seen: results/h200/llama-3.2-1b-decode)."""
    late = FakeRun(status="invalid", invalid_reasons=("client_bound",))
    runs = [write_run(tmp_path, replace(late, started_s=s)) for s in (0, 100)]
    for run in runs:
        acquit(run)
    assert [point.status for point in analyse_all(load_runs(tmp_path))] == ["superseded", "ok"]


def test_of_a_complete_run_and_an_acquitted_one_the_complete_stands(tmp_path: Path) -> None:
    complete = write_run(tmp_path, FakeRun())
    late = FakeRun(status="invalid", invalid_reasons=("client_bound",), started_s=100)
    acquitted = write_run(tmp_path, late)
    acquit(acquitted)
    assert superseded(load_runs(tmp_path)) == {acquitted.path: complete.path.name}


def test_a_late_client_stands_for_no_run(tmp_path: Path) -> None:
    late = FakeRun(status="invalid", invalid_reasons=("client_bound",))
    for started_s in (0, 100):
        write_run(tmp_path, replace(late, started_s=started_s))
    assert superseded(load_runs(tmp_path)) == {}


def test_a_copy_beside_a_run_leaves_the_run(tmp_path: Path) -> None:
    """Neither counted: each was taken as measured again by the other, and a report had no point of it."""
    run = write_run(tmp_path, FakeRun())
    copy = run.path.with_name(f"{run.path.name}-copy")
    shutil.copytree(run.path, copy)
    earlier = write_run(tmp_path, FakeRun(status="failed", failure="died", started_s=-100))
    assert superseded(load_runs(tmp_path)) == {
        copy: run.path.name,
        earlier.path: run.path.name,
    }


def test_a_server_json_that_a_report_leaves_out_is_a_fault(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, FakeRun())
    start = tmp_path / "servers" / "start-1"
    start.mkdir(parents=True)
    (start / "server.json").write_text("[]")
    monkeypatch.setattr(sys, "argv", ["analysis", "check", str(tmp_path)])
    assert main() == 1
    said = "start-1/server.json: unreadable: server.json: holds no JSON object\n"
    assert said in capsys.readouterr().out


def test_command_prints_a_line_a_fault_and_exits_1(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun())
    command = [sys.executable, "-m", "analysis", "check", str(tmp_path)]
    clean = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (clean.returncode, clean.stdout.count("\n")) == (0, 1)
    bad = write_run(tmp_path, FakeRun(started_s=50, proof="mismatch", backend="beta"))
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 1
    assert f"{bad.path.name}: backend_mismatch: beta was asked for" in found.stdout


def test_no_runs_is_bad_input(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "analysis", "check", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ") and "no run directories" in found.stderr

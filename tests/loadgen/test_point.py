"""A whole point, as the sweep runs it: the runners as subprocesses against the golden server."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from greenbench.contract.schema import Event, RequestRecord
from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import GoldenServer, Script, json_script, well_behaved
from tests.fakes.waiting import HUNG_S, wait_until

ROOT = Path(__file__).resolve().parents[2]
OPEN = {"kind": "open", "rate_per_s": 37, "arrivals": "constant"}


def start(run: Path, *extra: str) -> subprocess.CompletedProcess[str]:
    runner = ["locust", "-f", "loadgen/longctx.py", "--headless"]
    if "rate_per_s: 37" in (run / "config.yaml").read_text():
        runner = ["loadgen.openloop"]
    argv = [sys.executable, "-m", *runner, "--run-dir", str(run), *extra]
    return subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=False
    )


def rows(run: Path, folder: str = "requests") -> list[dict[str, Any]]:
    return [json.loads(line) for file in run.glob(f"{folder}/*.jsonl") for line in file.open()]


def marks(run: Path) -> dict[str, Event]:
    events = [Event.from_dict(json.loads(line)) for line in (run / "events.jsonl").open()]
    return {event.name: event for event in events}


def expected_priority() -> str:
    """What this host allows, tried in processes of their own."""
    for word, attempt in (
        ("real-time", "os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))"),
        ("nice -10", "os.setpriority(os.PRIO_PROCESS, 0, -10)"),
    ):
        argv = [sys.executable, "-c", f"import os; {attempt}"]
        if not subprocess.run(argv, stderr=subprocess.DEVNULL, check=False).returncode:
            return word
    return f"nice {os.nice(0)}"


@pytest.mark.parametrize("client", ["fast", "httpx"])
@pytest.mark.parametrize("load", [{"kind": "closed", "users": 3}, OPEN], ids=["closed", "open"])
def test_a_point_runs_its_phases_and_leaves_every_request_as_a_row(
    load: dict[str, Any], client: str, tmp_path: Path
) -> None:
    with GoldenServer() as server:
        run = make_run(tmp_path, server.url, load=load)
        ended = start(run, "--client", client)
        seen = {s.request_id: s for s in server.seen}
    assert ended.returncode == 0, ended.stderr
    records = [RequestRecord.from_dict(row) for row in rows(run)]
    assert len(records) > 15
    assert {r.request_id for r in records} == set(seen)  # nothing lost, nothing twice
    assert {r.error_type for r in records} == {None}
    at = marks(run)
    start_ns, end_ns = at["measure_start"].mono_ns, at["measure_end"].mono_ns
    assert list(at) == ["warmup_start", "measure_start", "measure_end", "drain_end"]
    assert start_ns - at["warmup_start"].mono_ns == 200_000_000
    assert end_ns - start_ns == 600_000_000
    for record in records:
        assert record.sent_mono_ns is not None
        moment = record.sent_mono_ns
        if load is OPEN:
            assert record.scheduled_unix_ns is not None and record.sent_unix_ns is not None
            moment -= record.sent_unix_ns - record.scheduled_unix_ns
        assert record.phase == ("warmup" if moment < start_ns else "measure")
        assert moment < end_ns
        assert record.output_tokens == 8 and record.chunk_tokens == list(range(1, 9))
        assert record.in_flight_at_send <= (2 if load is not OPEN else 40)
        assert seen[record.request_id].body["prompt"]
        assert record.time_source == ("kernel" if client == "fast" else "user")
    outputs = rows(run, "outputs")
    assert {o["request_id"] for o in outputs} == set(seen)
    assert {o["correct"] for o in outputs} == {False}  # made-up words are no answer
    (audit,) = [json.loads(p.read_text()) for p in run.glob("client_audit/*.json")]
    assert audit["figures"]["priority"] == expected_priority()
    assert audit["counts"] == {
        "sent": len(records),
        "ok": len(records),
        "failed": 0,
        "rows": len(records),
    }


def test_scored_replies_are_graded_after_the_last_request(tmp_path: Path) -> None:
    with GoldenServer() as server:
        run = make_run(tmp_path, server.url, task="perplexity", context=64)
        assert start(run).returncode == 0
    outputs = rows(run, "outputs")
    assert outputs and {(o["nll_sum"], o["nll_tokens"]) for o in outputs} == {(63.0, 63)}


def test_a_limit_of_requests_ends_the_measuring_early(tmp_path: Path) -> None:
    with GoldenServer() as server:
        phases = {"warmup_s": 0, "measure_s": 20, "requests": 10}
        run = make_run(tmp_path, server.url, phases=phases)
        assert start(run).returncode == 0
    assert [r["phase"] for r in rows(run)] == ["measure"] * 10
    length_ns = marks(run)["measure_end"].mono_ns - marks(run)["measure_start"].mono_ns
    assert length_ns < phases["measure_s"] * 1e9


@pytest.mark.parametrize("load", [{"kind": "closed", "users": 3}, OPEN], ids=["closed", "open"])
def test_a_signal_ends_the_measuring_and_what_is_open_is_answered(
    load: dict[str, Any], tmp_path: Path
) -> None:
    phases = {"warmup_s": 0, "measure": "auto", "measure_s": None, "cap_s": 300, "drain_s": 20}
    runner = ["loadgen.openloop"]
    if load is not OPEN:
        runner = ["locust", "-f", "loadgen/longctx.py", "--headless"]
    with GoldenServer(well_behaved(0.2, 0.05)) as server:
        run = make_run(tmp_path, server.url, load=load, phases=phases)
        argv = [sys.executable, "-m", *runner, "--run-dir", str(run)]
        process = subprocess.Popen(argv, cwd=ROOT, stderr=subprocess.PIPE, text=True)
        wait_until(lambda: any((run / "requests").glob("*")) and len(rows(run)) > 5, "some rows")
        process.send_signal(signal.SIGUSR1)
        _, said = process.communicate(timeout=HUNG_S)
        asked = len(server.seen)
    assert process.returncode == 0, said
    records = rows(run)
    assert len(records) == asked and {r["error_type"] for r in records} == {None}
    end_ns = marks(run)["measure_end"].mono_ns
    assert max(r["sent_mono_ns"] for r in records) < end_ns + 50_000_000  # a due one may be late
    assert any(r["sent_mono_ns"] + r["end_ns"] > end_ns for r in records)
    assert len(rows(run, "outputs")) == len(records)


@pytest.mark.parametrize("load", [{"kind": "closed", "users": 3}, OPEN], ids=["closed", "open"])
@pytest.mark.parametrize("client", ["fast", "httpx"])
def test_what_is_open_when_the_drain_ends_is_cut_and_recorded(
    load: dict[str, Any], client: str, tmp_path: Path
) -> None:
    with GoldenServer(lambda seen: Script([], "hang")) as server:
        phases = {"warmup_s": 0, "measure_s": 0.3, "drain_s": 0.3}
        run = make_run(tmp_path, server.url, load=load, phases=phases)
        assert start(run, "--client", client).returncode == 0
    records = rows(run)
    assert len(records) == (3 if load is not OPEN else 11)  # 0.3 s at 37/s, the first after one gap
    assert {r["error_type"] for r in records} == {"cut_at_drain"}
    assert all(r["end_ns"] > 2.5e8 for r in records)


def test_a_failing_server_gives_failed_rows_and_is_not_hammered(tmp_path: Path) -> None:
    """Zero good requests: rows with the error, exit 0, no outputs; the sweep calls the point failed."""
    with GoldenServer(lambda seen: json_script({"error": "no"}, "503 Unavailable")) as server:
        run = make_run(tmp_path, server.url)
        assert start(run).returncode == 0
    records = rows(run)
    assert {r["error_type"] for r in records} == {"http_5xx"}
    assert 4 <= len(records) <= 20  # 2 users, 0.8 s, a pause of 0.1 s after each failure
    assert rows(run, "outputs") == []


def test_a_server_that_is_gone_gives_connect_rows(tmp_path: Path) -> None:
    with GoldenServer() as server:
        url = server.url
    run = make_run(tmp_path, url)
    assert start(run).returncode == 0
    assert {r["error_type"] for r in rows(run)} == {"connect"}
    assert {r["sent_mono_ns"] for r in rows(run)} == {None}


@pytest.mark.parametrize("runner", ["locust", "openloop"])
def test_a_run_directory_of_the_other_kind_or_none_ends_with_2_and_one_sentence(
    runner: str, tmp_path: Path
) -> None:
    run = make_run(tmp_path, "http://127.0.0.1:9", load=OPEN)
    if runner == "openloop":
        (run / "config.yaml").write_text(
            (run / "config.yaml").read_text().replace("kind: open", "kind: x")
        )
    else:
        (run / "config.yaml").unlink()
    argv = (
        ["locust", "-f", "loadgen/longctx.py", "--headless"]
        if runner == "locust"
        else ["loadgen.openloop"]
    )
    ended = subprocess.run(
        [sys.executable, "-m", *argv, "--run-dir", str(run)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
    )
    assert ended.returncode == 2
    assert "config.yaml" in ended.stdout + ended.stderr
    assert "Traceback" not in ended.stderr
    assert list(run.iterdir()) in ([], [run / "config.yaml"])


def test_a_kill_in_mid_run_leaves_whole_lines(tmp_path: Path) -> None:
    with GoldenServer(well_behaved(0.001, 0.0005)) as server:
        run = make_run(tmp_path, server.url, phases={"measure_s": 30})
        argv = [sys.executable, "-m", "locust", "-f", "loadgen/longctx.py", "--headless"]
        process = subprocess.Popen(
            [*argv, "--run-dir", str(run)],
            cwd=ROOT,
            stderr=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        path = run / "requests" / "locust.jsonl"

        def begun() -> bool:
            assert process.poll() is None
            return path.exists() and path.stat().st_size >= 20_000

        wait_until(begun, "20 kB of rows")
        process.kill()
        process.wait(HUNG_S)
    assert path.read_text().endswith("\n")
    assert len(rows(run)) > 10


def test_by_itself_without_a_server_it_says_what_to_do_and_ends_with_2(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "locust", "-f", "loadgen/longctx.py", "--headless", "-t", "9s"]
    argv += ["-H", "http://127.0.0.1:9", "--out", str(tmp_path), "--only-summary"]
    ended = subprocess.run(
        argv, cwd=ROOT, capture_output=True, text=True, timeout=HUNG_S, check=False
    )
    assert ended.returncode == 2
    assert "no model server answers at http://127.0.0.1:9" in ended.stderr
    assert list(tmp_path.iterdir()) == []

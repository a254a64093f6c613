"""The main job on real vLLM servers: a sweep that is killed, loses a server, resumes, and reports."""

import json
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from greenbench.contract.config import ROOT
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import RunDir, list_runs, read_jsonl
from greenbench.sweep.child_processes import living_server
from tests.fakes.serving import Pace
from tests.fakes.waiting import wait_until

pytestmark = pytest.mark.e2e
GREENBENCH = str(ROOT / ".venv" / "bin" / "greenbench")
USERS, CONTEXT, MOST_OUTPUT = 2, 512, 16
STARTS, POINTS = 2, 2 * 4


def sweep(pace: Pace) -> dict[str, Any]:
    """Windows in which each user gets its answers, and an open load that the server can keep up with."""
    rate_per_s = min(2.0, float(f"{0.5 / pace.alone_s(CONTEXT, MOST_OUTPUT):.2g}"))
    measure_s = max(4.0, pace.window_s(USERS, CONTEXT, MOST_OUTPUT), 12 / rate_per_s)
    return {
        "name": "e2e",
        "models": ["tiny-llama"],
        "backends": ["cpu_attn", "sdpa"],
        "contexts": [CONTEXT],
        "tasks": ["retrieve", "perplexity"],
        "loads": [
            {"kind": "closed", "users": USERS},
            {"kind": "open", "rate_per_s": rate_per_s, "arrivals": "constant"},
        ],
        "prompts_per_point": 6,
        "server": {"max_num_seqs": 8, "kv_cache_gib": 0.5},
        "phases": {"warmup_s": 1, "measure_s": measure_s, "drain_s": 20 + measure_s},
        "slo": {"ttft_s": 5.0},
    }


@pytest.fixture(scope="module")
def limit_s(pace: Pace) -> float:
    """When a whole sweep must have ended."""
    phases = sweep(pace)["phases"]
    return pace.limit_s(POINTS * (phases["warmup_s"] + phases["measure_s"]), boots=STARTS)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory, pace: Pace) -> Iterator[Path]:
    """A sweep directory; whatever server a failing test leaves behind is killed at the end."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "e2e.yaml").write_text(yaml.safe_dump(sweep(pace)))
    yield folder
    for directory in (folder / "runs" / "servers").glob("*"):
        process = living_server(directory)
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)


def argv(place: Path) -> list[str]:
    return [GREENBENCH, "run", str(place / "e2e.yaml"), "--out", str(place / "runs")]


def manifests(place: Path) -> list[Manifest]:
    return [run.manifest() for run in list_runs(place / "runs")]


def measuring(place: Path, done: int) -> bool:
    """True while a point beyond the first ``done`` runs has sent measured requests."""
    running = [run for run in list_runs(place / "runs") if run.manifest().status == "running"]
    events = [run.events_path for run in running if run.events_path.exists()]
    return len(list_runs(place / "runs")) > done and any(
        '"measure_start"' in path.read_text() for path in events
    )


def start(place: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        argv(place), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, cwd=ROOT
    )


def server_pids(place: Path) -> list[int]:
    found = (living_server(path) for path in (place / "runs" / "servers").glob("*"))
    return [process.pid for process in found if process is not None]


def wait_until_measuring(
    place: Path, done: int, process: subprocess.Popen[str], limit_s: float
) -> None:
    def reached() -> bool:
        ended = process.poll() is not None and not measuring(place, done)
        assert not ended, f"the sweep ended early: {process.communicate()[0]}"
        return measuring(place, done)

    wait_until(reached, f"a point beyond the first {done} that is measured", limit_s)


def test_1_a_killed_sweep_leaves_a_server_that_the_next_start_names_and_stops(
    place: Path, limit_s: float
) -> None:
    first = start(place)
    wait_until_measuring(place, 0, first, limit_s)
    first.kill()
    first.wait()
    (orphan,) = server_pids(place)
    assert [m.status for m in manifests(place)].count("running") == 1

    second = start(place)  # resumes; then its first server is killed in the middle of a point
    wait_until_measuring(place, 1, second, limit_s)
    assert not psutil.pid_exists(orphan)
    complete_before = [m.status for m in manifests(place)].count("complete")
    (victim,) = server_pids(place)
    os.killpg(victim, signal.SIGKILL)
    output, _ = second.communicate(timeout=limit_s)
    assert f"stopped orphan server process {orphan}" in output
    assert second.returncode == 1
    assert "the server died" in output
    states = [m.status for m in manifests(place)]
    assert states.count("failed") >= 2  # the interrupted point and the one whose server died
    died = [m for m in manifests(place) if "server_died" in m.invalid_reasons]
    assert len(died) == 1
    # the sweep went on to the next server and measured all its points; a busy machine may make one invalid
    measured = states.count("complete") + states.count("invalid")
    assert measured == complete_before + POINTS // STARTS


def test_2_the_next_start_measures_only_what_is_missing(place: Path, limit_s: float) -> None:
    before = {m.run_id for m in manifests(place) if m.status == "complete"}
    for _ in range(3):  # what a busy machine made invalid is measured again, and only that
        done = subprocess.run(
            argv(place), capture_output=True, text=True, cwd=ROOT, timeout=limit_s
        )
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    after = [m for m in manifests(place) if m.status == "complete"]
    assert before < {m.run_id for m in after}
    assert len(after) == len({m.config_hash for m in after}) == POINTS
    assert server_pids(place) == []


def test_3_a_complete_sweep_starts_nothing(place: Path, limit_s: float) -> None:
    started = len(list((place / "runs" / "servers").glob("*")))
    done = subprocess.run(argv(place), capture_output=True, text=True, cwd=ROOT, timeout=limit_s)
    assert done.returncode == 0
    assert f"0 points to measure, {POINTS} already complete" in done.stdout
    assert len(list((place / "runs" / "servers").glob("*"))) == started


def test_4_every_point_holds_what_the_contract_promises(place: Path) -> None:
    complete = [r for r in list_runs(place / "runs") if r.manifest().status == "complete"]
    assert len(complete) == POINTS
    for run in complete:
        manifest = run.manifest()
        assert manifest.server.proof == "proven"
        assert manifest.counts.ok + manifest.counts.failed == manifest.counts.rows > 0
        assert set(manifest.phases) == {"warmup", "measure", "drain"}
        rows = [row for path in run.requests_dir.glob("*.jsonl") for row in read_jsonl(path)]
        good = [row for row in rows if row["error_type"] is None]
        assert good
        assert {row["prompt_tokens"] for row in good} == {512}
        sources = json.loads((run.telemetry_dir / "sources.json").read_text())
        assert sources.pop("facts")
        assert all(entry["status"] in ("available", "unavailable") for entry in sources.values())
        host = list(read_jsonl(run.telemetry_dir / "host.jsonl"))
        assert any((row["server_rss_bytes"] or 0) > 10**8 for row in host)
        server = {row["metric"] for row in read_jsonl(run.telemetry_dir / "server.jsonl")}
        assert "vllm:num_requests_running" in server
    shas: dict[str, set[str]] = {"cpu_attn": set(), "sdpa": set()}
    for run in complete:
        for path in run.requests_dir.glob("*.jsonl"):
            shas[run.manifest().point["backend"]] |= {r["prompt_sha256"] for r in read_jsonl(path)}
    assert shas["cpu_attn"] & shas["sdpa"], "the backends were asked different prompts"


def test_5_the_report_and_the_check_accept_the_sweep(place: Path) -> None:
    report = subprocess.run(
        [GREENBENCH, "report", str(place / "runs")], capture_output=True, text=True, cwd=ROOT
    )
    assert report.returncode == 0, report.stderr
    html = (place / "runs" / "report.html").read_text()
    for said in ("cpu_attn", "sdpa", "random", "unavailable"):
        assert said in html
    checked = subprocess.run(
        [GREENBENCH, "check", str(place / "runs")], capture_output=True, text=True, cwd=ROOT
    )
    # the killed and the died point were measured again, so that nothing is wrong with the sweep now
    assert checked.returncode == 0, checked.stdout
    again = sum(m.status != "complete" for m in manifests(place))
    assert again >= 2 and f"{again} of them measured again" in checked.stdout


def test_6_one_changed_byte_in_a_run_is_found(place: Path) -> None:
    run = next(r for r in list_runs(place / "runs") if r.manifest().status == "complete")
    copy = place / "tampered" / run.path.name
    shutil.copytree(run.path, copy)
    victim = next(RunDir(copy).requests_dir.glob("*.jsonl"))
    victim.write_text(victim.read_text().replace('"measure"', '"warmup"', 1))
    checked = subprocess.run([GREENBENCH, "check", str(copy)], capture_output=True, text=True)
    assert checked.returncode == 1
    assert victim.name in checked.stdout

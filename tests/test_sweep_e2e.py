"""The main job on real vLLM servers: a sweep that is killed, loses a server, resumes, and reports."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import yaml

from greenbench.config import ROOT
from greenbench.manifest import Manifest
from greenbench.rundir import RunDir, list_runs, read_jsonl
from greenbench.stages import living_server

pytestmark = pytest.mark.e2e
GREENBENCH = str(ROOT / ".venv" / "bin" / "greenbench")
SWEEP = {
    "name": "e2e",
    "models": ["tiny-llama"],
    "backends": ["cpu_attn", "sdpa"],
    "contexts": [512],
    "tasks": ["retrieve", "perplexity"],
    "loads": [{"kind": "closed", "users": 2}, {"kind": "open", "rate_per_s": 2.0}],
    "prompts_per_point": 6,
    "server": {"max_num_seqs": 8, "kv_cache_gib": 0.5},
    "phases": {"warmup_s": 1, "measure_s": 4, "drain_s": 20},
    "slo": {"ttft_s": 5.0},
}
STARTS, POINTS = 2, 2 * 4


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A sweep directory; whatever server a failing test leaves behind is killed at the end."""
    folder = tmp_path_factory.mktemp("sweep")
    (folder / "e2e.yaml").write_text(yaml.safe_dump(SWEEP))
    yield folder
    for directory in (folder / "runs" / "servers").glob("*"):
        process = living_server(directory)
        if process is not None:
            os.killpg(process.pid, signal.SIGKILL)


def argv(place: Path) -> list[str]:
    return [GREENBENCH, "run", str(place / "e2e.yaml"), "--out", str(place / "runs")]


def manifests(place: Path) -> list[Manifest]:
    return [run.manifest() for run in list_runs(place / "runs")]


def wait_until(
    condition: Callable[[], bool], limit_s: float, process: subprocess.Popen[str]
) -> None:
    deadline = time.monotonic() + limit_s
    while not condition():
        assert process.poll() is None, f"the sweep ended early: {process.communicate()[0]}"
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.05)


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


def test_1_a_killed_sweep_leaves_a_server_that_the_next_start_names_and_stops(place: Path) -> None:
    first = start(place)
    wait_until(lambda: measuring(place, 0), 300, first)
    first.kill()
    first.wait()
    (orphan,) = server_pids(place)
    assert [m.status for m in manifests(place)].count("running") == 1

    second = start(place)  # resumes; then its first server is killed in the middle of a point
    wait_until(lambda: measuring(place, 1), 300, second)
    assert not psutil.pid_exists(orphan)
    complete_before = [m.status for m in manifests(place)].count("complete")
    (victim,) = server_pids(place)
    os.killpg(victim, signal.SIGKILL)
    output, _ = second.communicate(timeout=600)
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


def test_2_the_next_start_measures_only_what_is_missing(place: Path) -> None:
    before = {m.run_id for m in manifests(place) if m.status == "complete"}
    for _ in range(3):  # what a busy machine made invalid is measured again, and only that
        done = subprocess.run(argv(place), capture_output=True, text=True, cwd=ROOT, timeout=600)
        if done.returncode == 0:
            break
    assert done.returncode == 0, done.stdout + done.stderr
    after = [m for m in manifests(place) if m.status == "complete"]
    assert before < {m.run_id for m in after}
    assert len(after) == len({m.config_hash for m in after}) == POINTS
    assert server_pids(place) == []


def test_3_a_complete_sweep_starts_nothing(place: Path) -> None:
    started = len(list((place / "runs" / "servers").glob("*")))
    done = subprocess.run(argv(place), capture_output=True, text=True, cwd=ROOT, timeout=60)
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

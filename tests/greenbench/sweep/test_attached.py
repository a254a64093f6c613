"""A sweep against a running server, whole and as processes: the golden server in place of vLLM."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from greenbench.contract.config import PointConfig, load_sweep
from greenbench.contract.installation import ROOT
from greenbench.contract.manifest import Manifest
from greenbench.contract.run_dir import RunDir, list_runs
from greenbench.sweep import directory, point_run, runner
from greenbench.sweep.live import Live
from greenbench.sweep.order import ServerStart
from tests.fakes.openai_server import GoldenServer, Script, Seen, json_script, well_behaved
from tests.fakes.waiting import HUNG_S, wait_until

LONG_S, SHORT_S = 120.0, 8.0
COMMAND = [sys.executable, "-c", "from greenbench.cli import main; main()", "run"]
ENV = {**os.environ, "PYTHONPATH": str(ROOT)}


def sweep_file(folder: Path, url: str, measure_s: float = SHORT_S, **changes: object) -> Path:
    path = folder / "attached.yaml"
    whole = {
        "name": "attached", "models": ["retriever"], "backends": ["sdpa"], "contexts": [256],
        "tasks": [{"name": "retrieve", "output_tokens": 8}], "loads": [{"users": 2}],
        "prompts_per_point": 4, "server": {"base_url": url},
        "phases": {"warmup_s": 0, "measure_s": measure_s, "drain_s": 5}, **changes,
    }  # fmt: skip
    path.write_text(json.dumps(whole))
    return path


def run(sweep: Path, out: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, str(sweep), "--out", str(out), *options],
        capture_output=True, text=True, timeout=HUNG_S, env=ENV, check=False,
    )  # fmt: skip


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen[str]]]:
    processes: list[subprocess.Popen[str]] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait(HUNG_S)


def begin(sweep: Path, out: Path, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    """A sweep that has got as far as its measured phase."""
    process = subprocess.Popen(
        [*COMMAND, str(sweep), "--out", str(out)],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=ENV,
    )  # fmt: skip
    started.append(process)

    def measuring() -> bool:
        assert process.poll() is None, process.communicate()[0]
        return any('"measure_start"' in path.read_text() for path in out.glob("*/events.jsonl"))

    wait_until(measuring, "a point that is measured")
    return process


def manifests(out: Path) -> list[dict[str, Any]]:
    return [json.loads(run.manifest_path.read_text()) for run in list_runs(out)]


def test_a_second_run_leaves_the_first_alone_and_a_server_that_dies_fails_its_point(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    with GoldenServer() as server:
        sweep = sweep_file(tmp_path, server.url, LONG_S)
        first = begin(sweep, out, started)
        before = sorted(out.rglob("*"))
        second = run(sweep, out)
        assert second.returncode == 2 and second.stdout == ""
        assert second.stderr.startswith(
            f"error: {out}: the sweep with process id {first.pid} is still at work here; "
        )
        assert second.stderr.count("\n") == 1
        assert set(before) <= set(out.rglob("*")) and len(list_runs(out)) == 1
        assert first.poll() is None and not first_is_over(out)
    output, _ = first.communicate(timeout=HUNG_S)  # the server is gone, half a minute in at most
    (failed,) = manifests(out)
    assert (first.returncode, failed["status"]) == (1, "failed")
    assert failed["invalid_reasons"] == ["server_died"]
    assert "the server died during the point" in output.splitlines()[-1] + output.splitlines()[-2]
    assert "no longer there" in output and "left running" not in output
    assert failed["counts"]["ok"] > 0  # what was answered is kept
    port = int(server.url.rpartition(":")[2])
    with GoldenServer(well_behaved(0.2, 0.03), port=port):
        for _ in range(3):  # what a busy machine makes invalid is measured again
            again = run(sweep_file(tmp_path, server.url), out)
            if again.returncode == 0:
                break
        assert again.returncode == 0, again.stdout + again.stderr
        states = [m["status"] for m in manifests(out)]
        assert states[0] == "failed" and states[-1] == "complete"
        skipped = run(sweep_file(tmp_path, server.url), out)
        assert "0 points to measure, 1 already complete" in skipped.stdout


def first_is_over(out: Path) -> bool:
    return any(RunDir(run.path).manifest().status != "running" for run in list_runs(out))


def test_an_interrupted_sweep_says_what_is_kept_and_how_to_go_on(
    tmp_path: Path, started: list[subprocess.Popen[str]]
) -> None:
    out = tmp_path / "out"
    with GoldenServer() as server:
        process = begin(sweep_file(tmp_path, server.url, LONG_S), out, started)
        process.send_signal(signal.SIGINT)
        output, _ = process.communicate(timeout=HUNG_S)
    assert process.returncode == 130
    assert output.splitlines()[-1] == (
        "interrupted: no point is complete yet; run the same command again to go on"
    )
    assert [m["invalid_reasons"] for m in manifests(out)] == [["interrupted"]]


@pytest.mark.parametrize("stage", ["locust", "telemetry"])
def test_a_killed_client_or_recorder_is_a_sentence_and_the_point_no_result(
    tmp_path: Path, started: list[subprocess.Popen[str]], stage: str
) -> None:
    with GoldenServer() as server:
        process = begin(sweep_file(tmp_path, server.url, LONG_S), tmp_path / "out", started)
        (victim,) = [
            child
            for child in psutil.Process(process.pid).children()
            if stage in " ".join(child.cmdline()[:5])
        ]
        victim.send_signal(signal.SIGKILL)
        output, _ = process.communicate(timeout=HUNG_S)
    name = {"locust": "the load generator", "telemetry": "the recorder"}[stage]
    assert f"{name} ended with SIGKILL" in output
    (failed,) = manifests(tmp_path / "out")
    assert (failed["status"], failed["failure"]) == ("failed", f"{name} ended with SIGKILL")


def test_a_server_that_refuses_says_why_in_the_sweeps_last_lines(tmp_path: Path) -> None:
    words = "this model supports /v1/chat/completions only"

    answer = well_behaved()

    def refuse(seen: Seen) -> Script:
        """One token it gives, so that it is known where it completes, and no more."""
        if seen.body.get("max_tokens") == 1:
            return answer(seen)
        body = {"error": {"message": words, "code": 400}}
        return json_script(body, "400 Bad Request")

    with GoldenServer(refuse) as server:
        done = run(sweep_file(tmp_path, server.url, 1.0), tmp_path / "out")
    assert done.returncode == 1
    assert words in done.stdout.splitlines()[-1]


def test_a_server_that_completes_nowhere_is_refused_in_its_own_words_before_any_point(
    tmp_path: Path,
) -> None:
    words = "this model only embeds"

    def refuse(seen: Seen) -> Script:
        return json_script({"error": {"message": words, "code": 400}}, "400 Bad Request")

    with GoldenServer(refuse) as server:
        done = run(sweep_file(tmp_path, server.url, 1.0), tmp_path / "out")
    assert (done.returncode, manifests(tmp_path / "out")) == (2, [])
    assert words in done.stderr


def test_a_server_that_fails_to_the_end_makes_the_point_invalid_at_once(tmp_path: Path) -> None:
    """One behind a gateway: connections are taken, and each request is answered with 502."""
    answer, asked = well_behaved(), [0]

    def script(seen: Seen) -> Script:
        asked[0] += seen.path.endswith("/completions")
        if asked[0] > 60:
            return json_script({"error": "no upstream"}, "502 Bad Gateway", after_s=0.02)
        return answer(seen)

    with GoldenServer(script) as server:
        done = run(sweep_file(tmp_path, server.url), tmp_path / "out")
    (point,) = manifests(tmp_path / "out")
    assert point["status"] == "invalid" and "server_gone" in point["invalid_reasons"]
    assert done.returncode == 1 and "the server was gone" in done.stdout.splitlines()[-1]


def test_nobody_listens_is_said_with_the_address(tmp_path: Path) -> None:
    sweep = sweep_file(tmp_path, "http://127.0.0.1:9")
    done = run(sweep, tmp_path / "out")
    assert done.returncode == 1
    said = done.stdout.splitlines()[-1]
    assert (
        "http://127.0.0.1:9" in said and "Connection refused" in said and "ended with" not in said
    )
    dry = run(sweep, tmp_path / "dry", "--dry-run")
    assert dry.returncode == 0 and "Connection refused" in dry.stdout.splitlines()[-1]
    assert "where a server runs; none is started" in dry.stdout and "vllm" not in dry.stdout
    assert not (tmp_path / "dry").exists()


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_a_malformed_address_is_refused_before_anything_starts(
    tmp_path: Path, options: list[str]
) -> None:
    done = run(sweep_file(tmp_path, "127.0.0.1:9101"), tmp_path / "out", *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert "server.base_url: '127.0.0.1:9101' does not start with http://" in done.stderr
    assert not (tmp_path / "out").exists()


def test_a_bad_trace_is_said_before_a_server_is_asked(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text("{\n")
    load = [{"kind": "open", "trace": "t.jsonl"}]
    done = run(sweep_file(tmp_path, "http://127.0.0.1:9", loads=load), tmp_path / "out")
    assert done.returncode == 2
    assert "t.jsonl" in done.stderr and done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_full_disk_stops_the_sweep_and_keeps_what_is_complete(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In this process, for the disk is a stand-in: it has no room from the second point on."""
    out = tmp_path / "out"
    full = "3 MiB of disk are free"

    def shortage(_: Path) -> str | None:
        return full if len(list_runs(out)) > 1 else None

    monkeypatch.setattr(point_run, "shortage", shortage)
    monkeypatch.setattr(runner, "shortage", shortage)
    assert directory.shortage(tmp_path) is None
    with GoldenServer() as server:
        sweep = load_sweep(sweep_file(tmp_path, server.url, contexts=[256, 320, 384]))
        outcome = runner.run_sweep(sweep, out, Silent())
    assert outcome.pending == 1
    assert outcome.failures[-1] == full
    kept, failed = sorted(manifests(out), key=lambda m: m["created_unix_ns"])
    assert kept["status"] != "failed" and kept["counts"]["ok"] > 0
    assert (failed["status"], failed["failure"]) == ("failed", full)
    assert failed["invalid_reasons"] == ["disk_full"]
    assert not list(out.rglob("*.tmp")) and not (out / "runners").exists()


class Silent:
    """A view that shows nothing."""

    def start(self, points: int, skipped: int) -> None: ...
    def server(self, start: ServerStart, state: str) -> None: ...
    def point(self, point: PointConfig) -> None: ...
    def point_done(self, point: PointConfig, manifest: Manifest, run: RunDir) -> None: ...
    def note(self, sentence: str) -> None: ...
    def tick(self) -> None: ...
    def alive(self, point: PointConfig, live: Live) -> None: ...

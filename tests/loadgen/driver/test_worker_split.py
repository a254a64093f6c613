"""One run by several Locust processes: together they send exactly the run, and a lost one shows."""

import itertools
import json
import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import kstest

from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import GoldenServer
from tests.fakes.waiting import HUNG_S, wait_until

pytestmark = pytest.mark.e2e  # six Locust processes: half a minute on two cores
ROOT = Path(__file__).resolve().parents[3]
LOCUST = [sys.executable, "-m", "locust", "-f", "loadgen/longctx.py", "--headless"]


def start(run: Path, *extra: str, port: int) -> subprocess.Popen[str]:
    argv = [*LOCUST, "--run-dir", str(run), "--only-summary", *extra]
    argv += ["--master-bind-port", str(port), "--master-port", str(port)]
    return subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def rows(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for file in run.glob("requests/*.jsonl") for line in file.open()]


@pytest.mark.parametrize(
    "load",
    [{"kind": "closed", "users": 4}, {"kind": "open", "rate_per_s": 60}],
    ids=["closed", "open"],
)
def test_two_workers_send_one_run(load: dict[str, Any], tmp_path: Path) -> None:
    with GoldenServer() as server:
        phases = {"warmup_s": 0.5, "measure_s": 2.5, "drain_s": 2}
        run = make_run(tmp_path, server.url, load=load, phases=phases)
        process = start(run, "--processes", "2", port=free_port())
        out, _ = process.communicate(timeout=HUNG_S)
        seen = list(server.seen)
    assert process.returncode == 0, out
    records = rows(run)
    assert {r["client_id"] for r in records} == {"locust0", "locust1"}
    assert Counter(r["request_id"] for r in records) == Counter(s.request_id for s in seen)
    assert {r["error_type"] for r in records} == {None}
    numbers = sorted(int(r["request_id"].rsplit("-", 1)[1]) for r in records)
    if load["kind"] == "open":  # every number once: the union is the one schedule
        assert numbers == list(range(len(numbers)))
        arrived = sorted(s.received_ns for s in seen)
        gaps = [(b - a) / 1e9 for a, b in itertools.pairwise(arrived)]
        assert kstest(gaps, "expon", args=(0, 1 / 60)).pvalue > 0.001
    names = [json.loads(line)["name"] for line in (run / "events.jsonl").open()]
    assert names == ["warmup_start", "measure_start", "measure_end", "drain_end"]
    master = json.loads((run / "client_audit" / "master.json").read_text())
    assert (master["over_budget"], master["lost_workers"]) == (False, [])
    assert sum(w["counts"]["rows"] for w in master["workers"].values()) == len(records)


def test_a_worker_killed_in_mid_run_shows(tmp_path: Path) -> None:
    with GoldenServer() as server:
        run = make_run(tmp_path, server.url, phases={"measure_s": 6, "warmup_s": 0})
        port = free_port()
        master = start(run, "--master", "--expect-workers", "2", port=port)
        workers = [
            subprocess.Popen(
                [*LOCUST, "--worker", "--master-port", str(port)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(2)
        ]
        wait_until(lambda: len(server.seen) >= 50, "fifty requests")
        os.kill(workers[0].pid, signal.SIGKILL)
        out, _ = master.communicate(timeout=HUNG_S)
        for worker in workers:
            worker.kill()
            worker.wait(HUNG_S)
    assert master.returncode == 1, out
    audit = json.loads((run / "client_audit" / "master.json").read_text())
    assert audit["over_budget"] and len(audit["lost_workers"]) == 1
    assert audit["reasons"] == ["1 of 2 workers were lost in mid-run"]
    assert len(rows(run)) > 50  # what the lost one had written is there

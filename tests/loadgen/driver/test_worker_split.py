"""One run by several Locust processes: together they send exactly the run, and a lost one shows."""

import json
import os
import random
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import GoldenServer
from tests.fakes.ports import free_port
from tests.fakes.waiting import HUNG_S, wait_until

pytestmark = pytest.mark.e2e  # eleven Locust processes: half a minute on two cores
ROOT = Path(__file__).resolve().parents[3]
LOCUST = [sys.executable, "-m", "locust", "-f", "loadgen/longctx.py", "--headless"]


def start(run: Path, *extra: str, port: int) -> subprocess.Popen[str]:
    argv = [*LOCUST, "--run-dir", str(run), "--only-summary", *extra]
    argv += ["--master-bind-port", str(port), "--master-port", str(port)]
    return subprocess.Popen(
        argv, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


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
    numbers = sorted(map(number, records))
    if load["kind"] == "open":  # every number once: the union is the one schedule
        assert numbers == list(range(len(seeded_offsets(60, 3.0))))
        assert_on_schedule(run, records, seeded_offsets(60, 3.0))
    names = [json.loads(line)["name"] for line in (run / "events.jsonl").open()]
    assert names == ["warmup_start", "measure_start", "measure_end", "drain_end"]
    master = json.loads((run / "client_audit" / "master.json").read_text())
    assert (master["over_budget"], master["lost_workers"]) == (False, [])
    assert sum(w["counts"]["rows"] for w in master["workers"].values()) == len(records)


RATE, MEASURE_S, SEED, WORKERS = 80.0, 7.0, 7, 4


def seeded_offsets(rate_per_s: float, length_s: float) -> list[float]:
    """The stream of one process, in plain arithmetic: exponential gaps of the seed's generator."""
    rng, due, offsets = random.Random(f"{SEED}/arrivals"), 0.0, list[float]()
    while (due := due + rng.expovariate(1.0)) / rate_per_s < length_s:
        offsets.append(due / rate_per_s)
    return offsets


def assert_on_schedule(run: Path, records: list[dict[str, Any]], wanted: list[float]) -> None:
    """Request n is due when the n-th arrival of the stream is, whoever sends it."""
    first, *_ = map(json.loads, (run / "events.jsonl").open())
    for record in records:
        due_s = (record["scheduled_unix_ns"] - first["unix_ns"]) / 1e9
        assert due_s == pytest.approx(wanted[number(record)], abs=0.005)


def test_of_four_workers_one_is_killed(tmp_path: Path) -> None:
    """The others send their parts of the seeded stream to the last arrival; the point is marked."""
    with GoldenServer() as server:
        load = {"kind": "open", "rate_per_s": RATE}
        phases = {"measure_s": MEASURE_S, "warmup_s": 0, "drain_s": 5}
        run = make_run(tmp_path, server.url, load=load, phases=phases, seed=SEED)
        port = free_port()
        master = start(run, "--master", "--expect-workers", str(WORKERS), port=port)
        workers = [
            subprocess.Popen(
                [*LOCUST, "--worker", "--master-port", str(port)],
                cwd=ROOT,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for _ in range(WORKERS)
        ]
        try:
            wait_until(lambda: len(server.seen) >= RATE, "a second of requests")
            os.kill(workers[0].pid, signal.SIGKILL)
            out, _ = master.communicate(timeout=HUNG_S)
        finally:
            for process in (master, *workers):
                process.kill()
                process.wait(HUNG_S)
        seen = Counter(s.request_id for s in server.seen)
    assert master.returncode == 1, out
    audit = json.loads((run / "client_audit" / "master.json").read_text())
    assert audit["over_budget"] and len(audit["lost_workers"]) == 1
    assert audit["reasons"] == ["1 of 4 workers were lost in mid-run"]
    living = {int(w["client"].removeprefix("locust")) for w in audit["workers"].values()}
    (lost,) = set(range(WORKERS)) - living

    records = {number(r): r for r in rows(run)}
    assert len(records) == len(rows(run))  # each once, over all files
    wanted = seeded_offsets(RATE, MEASURE_S)
    of_lost = {n for n in records if n % WORKERS == lost}
    assert set(records) == {n for n in range(len(wanted)) if n % WORKERS != lost} | of_lost
    assert of_lost == set(range(lost, lost + WORKERS * len(of_lost), WORKERS))  # to its death
    assert 0 < len(of_lost) < len(wanted) / WORKERS
    assert_on_schedule(run, rows(run), wanted)

    sent = {r["request_id"] for r in records.values() if r["error_type"] != "not_sent"}
    assert set(seen.values()) == {1}
    assert sent <= set(seen)
    # what the killed one had open, or had not yet written, is all that has no row
    assert {int(each.rsplit("-", 1)[1]) % WORKERS for each in set(seen) - sent} <= {lost}


def number(row: dict[str, Any]) -> int:
    return int(row["request_id"].rsplit("-", 1)[1])

"""What held a point back, on real vLLM servers that are made to run into one limit each.

A pool of KV blocks for not quite three sequences, ``max_num_seqs`` 1, an offered load far below what the
server can do, and a load generator that is stopped for most of the time: the report must call each by
its name. Two server starts, two points each, as long and as dense as this machine's pace makes them.
"""

import json
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from greenbench.contract.config import ROOT
from greenbench.contract.run_dir import list_runs
from tests.fakes.serving import STOP_LIMIT_S, Pace

pytestmark = pytest.mark.e2e
GREENBENCH = str(ROOT / ".venv" / "bin" / "greenbench")
OUTPUT = 48
COMMON: dict[str, Any] = {
    "models": ["tiny-llama"],
    "backends": ["cpu_attn"],
    "tasks": [{"name": "summarize", "output_tokens": OUTPUT}],
    "prompts_per_point": 6,
    "telemetry": {"scrape_s": 0.2},
}
POOL_BLOCKS = 25  # beside vLLM's null block; a sequence takes 8, and 9 once it passed 1,024 tokens
IDLE_SHARE = 0.3  # of the time one request is open, where the load is to be the bound
STOPPED_S, GOING_S = 0.4, 0.1


def tiny_pool(pace: Pace) -> dict[str, Any]:
    context, users = 1000, 6
    alone_s = pace.alone_s(context, OUTPUT)
    rate_per_s = float(f"{IDLE_SHARE / alone_s:.2g}")
    measure_s = max(10.0, pace.window_s(users, context, OUTPUT), 12 / rate_per_s)
    return COMMON | {
        "name": "pool",
        "contexts": [context],
        "loads": [
            {"kind": "closed", "users": users},
            {"kind": "open", "rate_per_s": rate_per_s, "arrivals": "constant"},
        ],
        "server": {"max_num_seqs": 16, "max_model_len": 1152, "num_gpu_blocks": POOL_BLOCKS + 1},
        "phases": {"warmup_s": 1 + users * alone_s, "measure_s": measure_s, "drain_s": measure_s},
    }


def one_sequence(pace: Pace) -> dict[str, Any]:
    context, users = 512, 4
    alone_s = pace.alone_s(context, OUTPUT)
    measure_s = max(5.0, pace.window_s(users, context, OUTPUT))
    return COMMON | {
        "name": "seqs",
        "contexts": [context],
        "loads": [
            {"kind": "closed", "users": users},
            {"kind": "open", "rate_per_s": float(f"{0.5 / alone_s:.2g}")},
        ],
        "server": {"max_num_seqs": 1},
        "phases": {"warmup_s": 1 + users * alone_s, "measure_s": measure_s, "drain_s": measure_s},
    }


def measure(sweep: dict[str, Any], place: Path, pace: Pace, hold_back: str | None = None) -> None:
    """Run a sweep; a load generator whose command line names ``hold_back`` is stopped most of the time."""
    path = place / f"{sweep['name']}.yaml"
    path.write_text(yaml.safe_dump(sweep))
    command = [GREENBENCH, "run", str(path), "--out", str(place / "runs" / sweep["name"])]
    phases_s = sum(sweep["phases"].values()) * len(sweep["loads"])
    deadline = time.monotonic() + pace.limit_s(phases_s)
    with (place / "run.log").open("w+") as log:
        running = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)
        try:
            while running.poll() is None and time.monotonic() < deadline:
                for client in clients(running.pid, hold_back):
                    with suppress(psutil.Error):
                        client.suspend()
                        time.sleep(STOPPED_S)
                        client.resume()
                time.sleep(GOING_S)
        finally:
            running.terminate()  # a sweep that hangs stops its server on the way out
            running.wait(STOP_LIMIT_S)
        log.seek(0)
        assert running.returncode in (0, 1), log.read()  # 1: a point is invalid; its test says why


def clients(parent: int, named: str | None) -> list[psutil.Process]:
    if named is not None:
        with suppress(psutil.Error):
            return [c for c in psutil.Process(parent).children() if named in " ".join(c.cmdline())]
    return []


@pytest.fixture(scope="module")
def bounds(tmp_path_factory: pytest.TempPathFactory, pace: Pace) -> dict[str, tuple[str, str]]:
    """Server and load → (bound, sentence), out of the summary that the report writes."""
    place = tmp_path_factory.mktemp("bounds")
    measure(tiny_pool(pace), place, pace)
    measure(one_sequence(pace), place, pace, hold_back="loadgen.openloop")
    done = subprocess.run(
        [GREENBENCH, "report", str(place / "runs")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((place / "runs" / "summary.json").read_text())
    found = {b["run_id"]: (b["bound"], b["sentence"]) for b in summary["bottlenecks"]}
    why = {point["run_id"]: point["reasons"] for point in summary["points"]}
    named: dict[str, tuple[str, str]] = {}
    for run in list_runs(place / "runs"):
        manifest = run.manifest()
        none = ("unclassified", str(why[manifest.run_id]))
        named[f"{manifest.sweep} {manifest.load['kind']}"] = found.get(manifest.run_id, none)
    return named


def test_a_pool_for_not_quite_three_sequences_is_kv_capacity(
    bounds: dict[str, tuple[str, str]],
) -> None:
    bound, sentence = bounds["pool closed"]
    assert bound == "kv-capacity", sentence
    for words in ("KV usage", "preemptions", "of 16", "waiting"):
        assert words in sentence
    running = float(sentence.split("running ")[1].split(" of")[0])
    assert 1.5 < running <= POOL_BLOCKS / 8  # three until two of them have grown, then two


def test_one_sequence_at_a_time_is_the_schedulers_limit(bounds: dict[str, tuple[str, str]]) -> None:
    bound, sentence = bounds["seqs closed"]
    assert bound == "scheduler-limit", sentence
    assert "limited by max_num_seqs: running 1 of 1, waiting" in sentence
    waiting = float(sentence.split("waiting ")[1].split(",")[0])
    assert waiting == pytest.approx(3, abs=0.5)  # four users, one served


def test_a_load_far_below_capacity_is_the_load(bounds: dict[str, tuple[str, str]]) -> None:
    bound, sentence = bounds["pool open"]
    assert bound == "load", sentence
    assert "requests/s served" in sentence and "of the time" in sentence


def test_a_client_held_back_is_the_client(bounds: dict[str, tuple[str, str]]) -> None:
    bound, sentence = bounds["seqs open"]
    assert bound == "client", sentence
    assert "schedule lag p99 is" in sentence

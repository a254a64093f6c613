"""The page's tab: figures of the last seconds, workers' included, and no number without a source."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import pytest

from greenbench.contract.schema import RequestRecord
from loadgen.locust_tab import Live, read_joules
from tests.fakes.loadruns import make_run
from tests.fakes.openai_server import GoldenServer
from tests.fakes.ports import free_port
from tests.fakes.waiting import HUNG_S

ROOT = Path(__file__).resolve().parents[2]
PAGE = """\
# TYPE greenbench_gpu_energy_joules_total counter
greenbench_gpu_energy_joules_total{gpu="0"} 100.5
greenbench_gpu_energy_joules_total{gpu="1"} 50
greenbench_cpu_energy_joules_total{zone="package-0"} 7
"""


def record(ttft_ms: float, gap_ms: float, tokens: int) -> RequestRecord:
    chunk_ns = [round((ttft_ms + gap_ms * i) * 1e6) for i in range(tokens)]
    return RequestRecord(
        "run", "c", "r", "measure", "retrieve", 0, "", 9, tokens, 0,
        output_tokens=tokens, first_token_ns=chunk_ns[0], end_ns=chunk_ns[-1], chunk_ns=chunk_ns,
    )  # fmt: skip


def table(live: Live) -> dict[str, object]:
    return {row["name"]: row["value"] for row in live.rows()}


def test_figures_are_those_of_the_requests_and_absent_ones_say_why() -> None:
    live = Live()
    assert set(table(live).values()) == {
        "no request yet",
        "no exporter (python -m telemetry serve)",
    }
    for ttft_ms in (10.0, 20.0, 30.0):
        live.add(record(ttft_ms, 5.0, 11))
    shown = table(live)
    assert (shown["TTFT p50, ms"], shown["TTFT p99, ms"]) == ("20", "30")
    assert shown["Time between chunks p50, ms"] == "5"
    assert shown["Output tokens/s"] == "3.3"  # 33 tokens in the last 10 s
    assert "J/output token" not in shown


def test_a_master_shows_what_its_workers_send_once() -> None:
    worker, master = Live(), Live()
    worker.add(record(10, 5, 11))
    master.merge(json.loads(json.dumps(worker.take_unreported())))
    master.merge(worker.take_unreported())
    assert table(master)["Output tokens/s"] == "1.1"


def test_joules_are_summed_over_gpus_and_fall_back_to_the_cpu() -> None:
    assert read_joules(PAGE) == 150.5
    assert read_joules(PAGE.replace("_gpu_", "_other_")) == 7
    assert read_joules("up 1\n") is None


def test_locusts_page_has_the_tab_and_its_figures(tmp_path: Path) -> None:
    with GoldenServer() as server:
        run = make_run(tmp_path, server.url, phases={"measure_s": 20, "warmup_s": 0})
        argv = [sys.executable, "-m", "locust", "-f", "loadgen/longctx.py", "--autostart"]
        port = free_port()
        argv += ["--run-dir", str(run), "--web-port", str(port), "--web-host", "127.0.0.1"]
        process = subprocess.Popen(
            argv, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        try:
            stats = _poll(f"http://127.0.0.1:{port}", process)
            page = httpx.get(f"http://127.0.0.1:{port}/").text
        finally:
            process.terminate()
            process.wait(10)
    rows = _figures(stats)
    assert float(rows["Output tokens/s"]) > 0
    assert float(rows["TTFT p50, ms"]) >= 5  # the script's
    assert "Tokens and joules" in page
    # Locust's own table: TTFT has a row, and a request counts once in the totals
    count = {row["name"]: row["num_requests"] for row in stats["stats"]}
    assert count["TTFT"] > 0
    assert count["Aggregated"] == count["E2E"]


def _figures(stats: dict[str, Any]) -> dict[str, str]:
    (extended,) = stats["extendedStats"]
    return {row["name"]: row["value"] for row in extended["data"]}


def _poll(url: str, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    deadline = time.monotonic() + HUNG_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            stats = httpx.get(f"{url}/stats/requests").json()
        except (httpx.HTTPError, ValueError):
            continue
        named = {row["name"] for row in stats["stats"]}  # Locust keeps these for 2 s
        if _figures(stats)["Output tokens/s"] != "no request yet" and "E2E" in named:
            return stats
        time.sleep(0.1)
    pytest.fail("the page never showed a figure")

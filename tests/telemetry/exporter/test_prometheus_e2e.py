"""Debian's Prometheus over our exporter and a real vLLM server, against the recorder's own files.

The bound: a query over the run and the recorder's difference over the same time may part by what the card
took between Prometheus' last scrape and the end, or the start: it knows a counter only at its scrapes.
"""

import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pandas as pd
import pytest

from analysis.energy.series import energy_curve
from greenbench.contract.run_dir import read_jsonl
from greenbench.vllm_python import vllm_python
from telemetry.exporter.exporter import Exporter
from telemetry.recorder import Recorder, RecordRequest
from tests.fakes.nvml import FakeGpu, FakeReader, square
from tests.fakes.ports import free_port
from tests.fakes.serving import launched, ready
from tests.fakes.waiting import wait_until

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
    pytest.mark.skipif(not vllm_python().exists(), reason="no vLLM python; run `make setup`"),
]
LOW_W, HIGH_W = 200.0, 700.0  # of the card, in turn
REFRESH_S = 0.2  # of its counter, at both ends
ENERGY = "greenbench_gpu_energy_joules_total"
CONFIG = """\
global: {{scrape_interval: 1s, scrape_timeout: 1s}}
scrape_configs:
  - job_name: greenbench
    static_configs: [{{targets: ['127.0.0.1:{exporter}']}}]
  - job_name: vllm
    static_configs: [{{targets: ['{vllm}']}}]
"""


@pytest.fixture(scope="module")
def vllm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """server.json's ``server`` of a real vLLM on the CPU."""
    out = tmp_path_factory.mktemp("server")
    with launched("cpu_attn", out) as launcher:
        yield ready(launcher, out)


@pytest.fixture
def started(tmp_path: Path, vllm: dict[str, Any]) -> Iterator[str]:
    """Recorder, exporter (one fake card each look at, by the host's clock) and Prometheus; its address."""

    def reader() -> FakeReader:
        return FakeReader([FakeGpu(square(LOW_W, HIGH_W, 3.0), uuid="GPU-a")], time.monotonic_ns)

    request = RecordRequest(tmp_path, vllm["pid"], vllm["base_url"], period_s=0.05, scrape_s=0.25)
    recorder = Recorder(request, reader, watch_s=0.0)
    ports: list[int] = []
    exporter = Exporter(
        reader, port=0, pid=vllm["pid"], ready=ports.append, period_s=0.05, watch_s=0.0
    )
    threads = [threading.Thread(target=part.run) for part in (recorder, exporter)]
    for thread in threads:
        thread.start()
    wait_until(lambda: ports, "the exporter's port")
    config = tmp_path / "prometheus.yml"
    address = vllm["base_url"].removeprefix("http://")
    config.write_text(CONFIG.format(exporter=ports[0], vllm=address))
    url = f"127.0.0.1:{free_port()}"
    with (tmp_path / "prometheus.log").open("w") as log:
        prometheus = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={tmp_path / 'tsdb'}",
                f"--web.listen-address={url}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            yield f"http://{url}"
        finally:
            prometheus.terminate()
            prometheus.wait(20)
            for part in (recorder, exporter):
                part.stop.set()
            for thread in threads:
                thread.join(10)


def query(prometheus: str, expression: str, at_s: float | None = None) -> float | None:
    """Value of a query with one result, now or at a Unix time; None when it has none, or is not up yet."""
    params: dict[str, Any] = {"query": expression} | ({"time": at_s} if at_s else {})
    try:
        answer = httpx.get(f"{prometheus}/api/v1/query", params=params, timeout=5)
    except httpx.TransportError:
        return None
    if answer.status_code == 503:  # it listens, and still reads its storage
        return None
    found = answer.raise_for_status().json()["data"]["result"]
    return float(found[0]["value"][1]) if found else None


def recorded_j(file: Path, start_s: float, end_s: float) -> float | None:
    """Joules between two Unix times by the recorder's rows; None while they do not enclose them."""
    rows = pd.DataFrame(list(read_jsonl(file)))
    curve = energy_curve(rows["mono_ns"], rows["energy_mj"])
    offset_ns = int((rows["unix_ns"] - rows["mono_ns"]).median())
    return curve and curve.energy_j(*(round(at * 1e9) - offset_ns for at in (start_s, end_s)))


def behind_s(prometheus: str, at_s: float) -> float:
    """How old the joules are that Prometheus knows at a Unix time: its last scrape, and the sample in it."""
    scraped_s = query(prometheus, f"timestamp({ENERGY})", at_s)
    age_s = query(prometheus, "greenbench_gpu_sample_age_seconds", at_s)
    assert scraped_s is not None and age_s is not None
    return at_s - scraped_s + age_s


def test_prometheus_and_the_recorder_agree_within_one_scrape(
    started: str, vllm: dict[str, Any], tmp_path: Path
) -> None:
    up = 'sum(up{job=~"greenbench|vllm"})'
    wait_until(lambda: query(started, up) == 2.0, "both targets scraped")
    tokens = "vllm:generation_tokens_total"
    start_s = time.time()
    before = query(started, f"sum({tokens})", start_s)
    assert before is not None
    asked = {
        "model": vllm["served_model"],
        "prompt": "The harbour",
        "max_tokens": 40,
        "ignore_eos": True,
    }
    for _ in range(6):
        answer = httpx.post(f"{vllm['base_url']}/v1/completions", json=asked, timeout=600)
        assert answer.json()["usage"]["completion_tokens"] == 40
    # all that was generated, and no token more, arrives there
    wait_until(lambda: query(started, f"sum({tokens})") == before + 6 * 40, "a scrape after that")

    def long_enough() -> tuple[float, float] | None:
        """An end so far away that what one scrape leaves open, the bound, is a small part of the joules."""
        end_s = time.time()
        open_s = max(behind_s(started, start_s), behind_s(started, end_s)) + REFRESH_S
        bound_j = HIGH_W * open_s
        return (end_s, bound_j) if (end_s - start_s) * LOW_W > 3 * bound_j else None

    end_s, bound_j = wait_until(long_enough, "an end that is far enough away", every_s=0.5)
    ends = [query(started, ENERGY, at) for at in (start_s, end_s)]
    assert ends[0] is not None and ends[1] is not None
    recorder_says = partial(recorded_j, tmp_path / "telemetry/gpu.jsonl", start_s, end_s)
    # the counter's next change after the end has yet to come, and to be written
    recorder_j = wait_until(recorder_says, "the recorder's row past the end")
    print(
        f"Prometheus {ends[1] - ends[0]:.0f} J, recorder {recorder_j:.0f} J, bound {bound_j:.0f} J"
    )
    assert abs((ends[1] - ends[0]) - recorder_j) <= bound_j < recorder_j / 3

    def recorded_tokens() -> float:
        rows = list(read_jsonl(tmp_path / "telemetry/server.jsonl"))
        counted = [row["value"] for row in rows if row["metric"] == tokens]
        return counted[-1] - counted[0]

    wait_until(lambda: recorded_tokens() == 6 * 40, "the recorder's scrape after the last request")
    rss = query(started, "greenbench_server_resident_memory_bytes")
    assert rss is not None and rss > 200 * 2**20  # the whole tree of a vLLM server

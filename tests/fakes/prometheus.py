"""Debian's Prometheus, started with deploy/'s own configuration over pages that were recorded."""

import gzip
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import msgspec
from prometheus_client import CollectorRegistry, generate_latest

from greenbench.contract.installation import ROOT
from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.schema import GpuSample, HostSample
from telemetry.exporter.collectors import GreenbenchCollector, Latest, lateness_histogram
from telemetry.sensors.capability import available, unavailable
from telemetry.sensors.gpu import GpuIdentity
from tests.fakes.ports import free_port
from tests.fakes.waiting import wait_until

DATA = ROOT / "tests" / "deploy" / "data"
PROMETHEUS = ROOT / "deploy" / "prometheus"
TARGETS = "/etc/greenbench/targets"
PAGES_APART_S = 4
Pages = list[bytes]


def recorded(name: str) -> Pages:
    return [gzip.decompress(page.read_bytes()) for page in sorted((DATA / name).glob("*.txt.gz"))]


def exporter_pages(run: Path, pages: int) -> Pages:
    """What the exporter would have served while the run was recorded, some seconds apart."""
    rows = [
        msgspec.convert(row, GpuSample, strict=False)
        for row in read_jsonl(run / "telemetry" / "gpu.jsonl")
    ]
    hosts = [
        msgspec.convert(row, HostSample, strict=False)
        for row in read_jsonl(run / "telemetry" / "host.jsonl")
    ]
    cards = {row.gpu_uuid: row.gpu_index for row in rows}
    identities = [
        GpuIdentity(index, uuid, "NVIDIA H100 80GB HBM3", memory_bytes=85_520_809_984)
        for uuid, index in cards.items()
    ]
    registry, latest = CollectorRegistry(), Latest()
    sources = {"counter": available(), "rapl": unavailable("no powercap")}
    registry.register(GreenbenchCollector(latest, identities, sources, {}))
    lateness = lateness_histogram(registry)
    made: Pages = []
    middle_ns = (rows[0].mono_ns + rows[-1].mono_ns) // 2  # the load is on by then
    for number in range(pages):
        until_ns = middle_ns + number * PAGES_APART_S * 10**9
        latest.take_gpu([row for row in rows if row.mono_ns <= until_ns])
        latest.take_host([row for row in hosts if row.mono_ns <= until_ns][-1])
        lateness.observe(0.002)
        made.append(generate_latest(registry))
    return made


@contextmanager
def served(pages: Pages) -> Iterator[str]:
    """host:port of a /metrics that gives each page once, and the last one for ever."""
    left = list(pages)
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            with lock:
                page = left.pop(0) if len(left) > 1 else left[0]
            self.send_response(200)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(page)))
            self.end_headers()
            self.wfile.write(page)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def configured(place: Path, targets: dict[str, list[tuple[str, dict[str, str]]]]) -> Path:
    """deploy/'s prometheus.yml, whose targets lie elsewhere and are looked at each second."""
    text = (PROMETHEUS / "prometheus.yml").read_text()
    assert text.count(TARGETS) == 3
    text = text.replace(TARGETS, str(place))
    for seconds in ("15s", "10s"):
        assert f": {seconds}" in text
        text = text.replace(f": {seconds}", ": 1s")
    (place / "prometheus.yml").write_text(text)
    shutil.copy(PROMETHEUS / "alerts.yaml", place)
    for kind, scraped in targets.items():
        entries = [{"targets": [address], "labels": labels} for address, labels in scraped]
        (place / f"{kind}.yaml").write_bytes(msgspec.yaml.encode(entries))
    return place / "prometheus.yml"


class Prometheus:
    """``url`` of a running one. ``at_s``: the Unix time that is asked about; None: now."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.at_s: float | None = None

    def get(self, path: str, **params: str) -> Any:
        """``data`` of an answer; a query that is malformed is an AssertionError with Prometheus' words."""
        answer = httpx.get(f"{self.url}/api/v1/{path}", params=params, timeout=30)
        assert answer.status_code == 200, f"{params}: {answer.text}"
        return answer.json()["data"]

    def query(self, expression: str) -> list[tuple[dict[str, str], float]]:
        at = {} if self.at_s is None else {"time": str(self.at_s)}
        found = self.get("query", query=expression, **at)
        assert found["resultType"] == "vector"
        return [(each["metric"], float(each["value"][1])) for each in found["result"]]

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}/-/ready", timeout=5).status_code == 200
        except httpx.TransportError:
            return False


@contextmanager
def prometheus(
    place: Path, scraped: dict[str, list[tuple[Pages, dict[str, str]]]]
) -> Iterator[Prometheus]:
    """One that has scraped every page. ``scraped``: by kind of target, pages and the labels of the target."""
    with ExitStack() as stack:
        targets = {
            kind: [(stack.enter_context(served(pages)), labels) for pages, labels in each]
            for kind, each in scraped.items()
        }
        config = configured(place, targets)
        address = f"127.0.0.1:{free_port()}"
        log = stack.enter_context((place / "prometheus.log").open("w"))
        process = subprocess.Popen(
            [
                "prometheus",
                f"--config.file={config}",
                f"--storage.tsdb.path={place / 'tsdb'}",
                f"--web.listen-address={address}",
            ],
            stdout=log,
            stderr=log,
        )
        try:
            running = Prometheus(f"http://{address}")
            wait_until(lambda: process.poll() is not None or running.is_up(), "Prometheus")
            assert process.poll() is None, (place / "prometheus.log").read_text()
            pages = max(len(pages) for each in scraped.values() for pages, _ in each)
            number = sum(map(len, scraped.values()))
            wait_until(_all_scraped(running, number, pages), "each page scraped", every_s=0.5)
            running.at_s = time.time()  # tests that take long ask about the same moment
            yield running
        finally:
            process.terminate()
            process.wait(20)


def _all_scraped(running: Prometheus, number: int, pages: int) -> Callable[[], bool]:
    enough = f"count(count_over_time(up[5m]) > {pages} and up == 1)"
    return lambda: [value for _, value in running.query(enough)] == [number]

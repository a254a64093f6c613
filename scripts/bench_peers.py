"""The peers of the client's benchmark: how each is started, and what it says of each request.

Every peer is launched as its own documentation says and writes its own per-request output, which is
only read here. Each is told to send as many requests as keep it busy for some seconds.
"""

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from bench_rig import ROOT, CpuMeter, Result, Scenario, Told, Truth, run_pinned

from greenbench.vllm_python import vllm_python

TOKENIZER = ROOT / "models/retriever/model"
PEERS_FOLDER = ROOT / "scripts/peers"
VLLM_PYTHON = vllm_python()
GUIDELLM, AIPERF = ROOT / ".venv-guidellm/bin/guidellm", ROOT / ".venv-aiperf/bin/aiperf"
OFFLINE = {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}

Report = dict[str, Told]  # by the request's id, or by that of its reply


@dataclass(frozen=True)
class Peer:
    """``start`` runs it and gives its meter and what it tells; ``needs``: a file of its installation.

    ``requests_s``: about as many requests as it manages in a second when they take no time at all.
    """

    needs: Path
    start: Callable[[str, Scenario, int, Path], tuple[CpuMeter, Report]]
    requests_s: int

    def run(
        self, url: str, scenario: Scenario, folder: Path, finish: Callable[[], list[Truth]]
    ) -> Result:
        """One run, figured over the time from its first request to its last chunk."""
        count = request_count(scenario, self.requests_s)
        meter, report = self.start(url, scenario, count, folder)
        result = Result()
        asked: list[Truth] = []
        for number, true in enumerate(finish()):
            told = report.get(true.request_id) or report.get(f"cmpl-{number:016x}")
            if told is not None:
                asked.append(true)
                result.compare(told, true)
        result.failed = count - len(asked)
        if asked:
            start, end = asked[0].received_ns, max(true.sent_ns[-1] for true in asked)
            result.requests, result.seconds = len(asked), (end - start) / 1e9
            result.chunks = sum(len(true.sent_ns) for true in asked)
            result.take_cpu(meter, start, end)
        return result


def request_count(scenario: Scenario, requests_s: int) -> int:
    """Whole rounds of all streams, about as long as the scenario measures."""
    took_s = (scenario.ttft_us + scenario.gap_us * (scenario.tokens - 1)) / 1e6
    if took_s < 0.001:
        return round(requests_s * scenario.measure_s)
    return scenario.streams * max(2, round(scenario.measure_s / took_s))


def run_vllm(url: str, scenario: Scenario, count: int, folder: Path) -> tuple[CpuMeter, Report]:
    argv = [str(VLLM_PYTHON), str(PEERS_FOLDER / "vllm_bench_serve.py"), "--backend", "vllm"]
    argv += ["--base-url", url, "--model", "golden", "--tokenizer", str(TOKENIZER)]
    argv += ["--dataset-name", "random", "--random-input-len", str(scenario.context)]
    argv += ["--random-output-len", str(scenario.tokens), "--ignore-eos", "--disable-tqdm"]
    argv += ["--num-prompts", str(count), "--max-concurrency", str(scenario.streams)]
    argv += ["--request-id-prefix", "bench-", "--save-result", "--save-detailed"]
    argv += ["--result-dir", str(folder), "--result-filename", "vllm.json"]
    meter = run_pinned(argv, folder / "vllm.log", OFFLINE)
    return meter, read_vllm(folder / "vllm.json")


def read_vllm(path: Path) -> Report:
    """Requests are named by their number; seconds."""
    raw = json.loads(path.read_text())
    rows = enumerate(zip(raw["errors"], raw["ttfts"], raw["itls"], strict=True))
    return {
        f"bench-{number}": Told(1e3 * ttft, [1e3 * gap for gap in itls])
        for number, (error, ttft, itls) in rows
        if not error
    }


def run_guidellm(url: str, scenario: Scenario, count: int, folder: Path) -> tuple[CpuMeter, Report]:
    out = folder / "guidellm.json"
    argv = [str(GUIDELLM), "run", "--disable-console", "--output", f"kind=json,path={out}"]
    argv += [
        "--backend",
        f"kind=openai_http,target={url},model=golden,request_format=/v1/completions",
    ]
    argv += ["--profile", f"kind=concurrent,streams={scenario.streams}"]
    argv += ["--constraint", f"kind=max_requests,count={count}"]
    argv += ["--tokenizer", f"kind=hf_auto,model={TOKENIZER}"]
    argv += ["--data", f"kind=synthetic_text,prompt_tokens={scenario.context},"]
    argv[-1] += f"output_tokens={scenario.tokens}"
    return run_pinned(argv, folder / "guidellm.log", OFFLINE), read_guidellm(out)


def read_guidellm(path: Path) -> Report:
    """Requests are named by the reply's id; a mean gap each, and no gap of its own."""
    (benchmark,) = json.loads(path.read_text())["benchmarks"]
    return {
        row["response_id"]: Told(
            row["time_to_first_token_ms"], None, mean_gap_ms=row["inter_token_latency_ms"]
        )
        for row in benchmark["requests"]["successful"]
    }


def run_aiperf(url: str, scenario: Scenario, count: int, folder: Path) -> tuple[CpuMeter, Report]:
    out = folder / "aiperf"
    argv = [str(AIPERF), "profile", "-m", "golden", "--endpoint-type", "completions", "--streaming"]
    argv += ["-u", url, "--tokenizer", str(TOKENIZER), "--concurrency", str(scenario.streams)]
    argv += ["--request-count", str(count), "--isl", str(scenario.context)]
    argv += ["--osl", str(scenario.tokens), "--use-legacy-max-tokens", "--use-server-token-count"]
    argv += ["--output-artifact-dir", str(out), "--export-level", "records", "--ui", "none"]
    argv += ["--no-gpu-telemetry", "--no-server-metrics", "--no-auto-plot"]
    # with HF_HUB_OFFLINE it takes the tokenizer's folder for a repository's name
    return run_pinned(argv, folder / "aiperf.log"), read_aiperf(out / "profile_export.jsonl")


def read_aiperf(path: Path) -> Report:
    told: Report = {}
    for row in map(json.loads, path.open()):
        metrics = row["metrics"]
        if "time_to_first_token" in metrics:
            gaps = metrics.get("inter_chunk_latency", {}).get("value", [])
            told[row["metadata"]["x_request_id"]] = Told(
                metrics["time_to_first_token"]["value"], gaps
            )
    return told


def read_plain(path: Path) -> Report:
    return {
        row["request_id"]: Told(
            row["chunk_ns"][0] / 1e6, [(b - a) / 1e6 for a, b in pairwise(row["chunk_ns"])]
        )
        for row in map(json.loads, path.open())
    }


def plain(python: Path, script: str) -> Peer:
    """An asyncio script of our own, with nothing but a library."""

    def start(url: str, scenario: Scenario, count: int, folder: Path) -> tuple[CpuMeter, Report]:
        out = folder / "plain.jsonl"
        argv = [str(python), str(PEERS_FOLDER / script), url, str(scenario.streams)]
        argv += [str(scenario.tokens), str(count), str(out)]
        return run_pinned(argv, folder / "plain.log"), read_plain(out)

    return Peer(python, start, 1000)


PEERS = {
    "vllm bench serve": Peer(VLLM_PYTHON, run_vllm, 3000),
    "GuideLLM": Peer(GUIDELLM, run_guidellm, 150),
    "AIPerf": Peer(AIPERF, run_aiperf, 350),
    "aiohttp": plain(VLLM_PYTHON, "plain_aiohttp.py"),
    "httpx": plain(Path(sys.executable), "plain_httpx.py"),
}


def installed() -> dict[str, Peer]:
    return {name: peer for name, peer in PEERS.items() if os.access(peer.needs, os.X_OK)}

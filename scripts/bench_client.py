"""How far the load generator's own error reaches, measured against a server that logs the truth.

    python scripts/bench_client.py [--runs 3] [--out docs/client-bench.md] [--clients ours,vllm,…]

Builds tests/fakes/golden.c with the system's compiler, pins server and client to a core each, and runs
the real locustfile (records written) and every peer that is installed, interleaved. Prints and writes
a table. Does not touch the network beyond loopback.
"""

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.fakes.loadruns import make_run  # noqa: E402


@dataclass(frozen=True)
class Scenario:
    """One load: ``streams`` users, each request ``tokens`` chunks, after ``ttft_us`` every ``gap_us``."""

    name: str
    streams: int
    tokens: int
    ttft_us: int
    gap_us: int
    measure_s: float
    context: int = 64
    rate_per_s: float | None = None  # an open loop instead of users


SCENARIOS = [
    Scenario("16 streams, 20 ms", 16, 64, 50_000, 20_000, 4),
    Scenario("64 streams, 20 ms", 64, 64, 50_000, 20_000, 4),
    Scenario("256 streams, 20 ms", 256, 64, 50_000, 20_000, 4),
    Scenario("64,000 chunks/s", 256, 256, 50_000, 4_000, 4),
    Scenario("100,000 chunks/s", 256, 256, 50_000, 2_560, 4),
    Scenario("128,000 chunks/s", 256, 256, 50_000, 2_000, 4),
    Scenario("saturation", 64, 1, 0, 0, 4),
    Scenario("32k-token prompts", 16, 1, 0, 0, 4, context=32_768),
    Scenario("pacing, 200 requests/s", 0, 64, 50_000, 10_000, 6, rate_per_s=200),
]


@dataclass
class Truth:
    """One request as the golden server logged it, CLOCK_MONOTONIC ns."""

    received_ns: int
    sent_ns: list[int]


@dataclass
class Result:
    """Figures of one run of one client. ms unless named otherwise; None: the client does not say."""

    requests: int = 0
    failed: int = 0
    seconds: float = 0.0
    chunks: int = 0
    cpu_s: float = 0.0
    ttft_errors_ms: list[float] = field(default_factory=list)
    itl_errors_ms: list[float] = field(default_factory=list)
    lags_ms: list[float] = field(default_factory=list)

    def figures(self) -> dict[str, float | None]:
        return {
            "ttft_error_p50_ms": _quantile([abs(e) for e in self.ttft_errors_ms], 0.5),
            "ttft_error_p99_ms": _quantile([abs(e) for e in self.ttft_errors_ms], 0.99),
            "itl_error_p99_ms": _quantile([abs(e) for e in self.itl_errors_ms], 0.99),
            "chunks_per_s": self.chunks / self.seconds if self.seconds else None,
            "cpu_ms_per_1000_chunks": 1e6 * self.cpu_s / self.chunks if self.chunks else None,
            "requests_per_s": self.requests / self.seconds if self.seconds else None,
            "cpu_ms_per_request": 1e3 * self.cpu_s / self.requests if self.requests else None,
            "lag_p99_ms": _quantile(self.lags_ms, 0.99),
            "lag_worst_ms": max(self.lags_ms, default=None),
            "failed": float(self.failed),
        }


def _quantile(values: list[float], share: float) -> float | None:
    if not values:
        return None
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def build(folder: Path) -> Path:
    compiler = shutil.which(os.environ.get("CC", "cc"))
    if compiler is None:
        raise SystemExit(
            "error: no C compiler found; install one (cc) to run the client's benchmark"
        )
    program = folder / "golden"
    subprocess.run(
        [compiler, "-O2", "-o", str(program), str(ROOT / "tests/fakes/golden.c")], check=True
    )
    return program


@contextmanager
def golden(program: Path, scenario: Scenario, log: Path) -> Iterator[str]:
    """The server on the first core of this host; its URL. The log is there after the block."""
    argv = [str(program), "--log", str(log), "--prompt-tokens", str(scenario.context)]
    argv += ["--ttft-us", str(scenario.ttft_us), "--gap-us", str(scenario.gap_us)]
    server = subprocess.Popen(
        argv, stdout=subprocess.PIPE, text=True, preexec_fn=lambda: os.sched_setaffinity(0, {0})
    )
    assert server.stdout is not None
    try:
        yield f"http://127.0.0.1:{server.stdout.readline().strip()}"
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(20)


def read_truth(log: Path) -> dict[str, Truth]:
    truth: dict[str, Truth] = {}
    for line in log.open():
        request_id, received, _, *sent = line.split()
        truth[request_id] = Truth(int(received), [int(t) for t in sent])
    return truth


def run_ours(
    url: str, scenario: Scenario, folder: Path, finish: Callable[[], dict[str, Truth]]
) -> Result:
    """The real locustfile with a run directory, pinned to the second core."""
    run = make_run(
        folder,
        url,
        context=scenario.context,
        count=16,
        output_tokens=scenario.tokens,
        load={"kind": "open", "rate_per_s": scenario.rate_per_s}
        if scenario.rate_per_s
        else {"kind": "closed", "users": scenario.streams},
        phases={
            "warmup_s": 1,
            "measure_s": scenario.measure_s,
            "drain_s": 20,
            "request_timeout_s": 60,
        },
    )
    argv = [sys.executable, "-m", "locust", "-f", str(ROOT / "loadgen/longctx.py"), "--headless"]
    if scenario.rate_per_s:
        argv = [sys.executable, "-m", "loadgen.openloop"]
    _pinned([*argv, "--run-dir", str(run)], folder / "ours.log")
    truth = finish()
    (audit_path,) = (run / "client_audit").glob("*.json")
    audit = json.loads(audit_path.read_text())
    events = {e["name"]: e["mono_ns"] for e in map(json.loads, (run / "events.jsonl").open())}
    start, end = events["measure_start"], events["measure_end"]
    result = Result(seconds=(end - start) / 1e9)
    result.cpu_s = audit["figures"]["cpu_share"] * result.seconds
    (rows_path,) = (run / "requests").glob("*.jsonl")
    for row in map(json.loads, rows_path.open()):
        compare(row, truth.get(row["request_id"]), start, end, result)
    return result


def compare(row: dict[str, Any], true: Truth | None, start: int, end: int, result: Result) -> None:
    """Errors of one row against the truth: TTFT from sending, gaps chunk by chunk."""
    if row["error_type"] is not None or true is None:
        result.failed += row["error_type"] != "cut_at_drain"
        return
    sent, chunk_ns = row["sent_mono_ns"], row["chunk_ns"]
    result.requests += start <= sent + row["end_ns"] < end
    result.chunks += sum(start <= sent + at < end for at in chunk_ns)
    if not start <= sent < end:
        return
    if row["scheduled_unix_ns"] is not None:
        result.lags_ms.append((row["sent_unix_ns"] - row["scheduled_unix_ns"]) / 1e6)
    result.ttft_errors_ms.append((chunk_ns[0] - (true.sent_ns[0] - true.received_ns)) / 1e6)
    for i in range(1, len(chunk_ns)):
        gap, true_gap = chunk_ns[i] - chunk_ns[i - 1], true.sent_ns[i] - true.sent_ns[i - 1]
        result.itl_errors_ms.append((gap - true_gap) / 1e6)


def _pinned(argv: list[str], log: Path, env: dict[str, str] | None = None) -> float:
    """Run a client on the second core; its CPU seconds."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    with log.open("w") as out:
        ended = subprocess.run(
            argv,
            cwd=ROOT,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=os.environ | (env or {}),
            preexec_fn=lambda: os.sched_setaffinity(0, {1}),
            timeout=120,
            check=False,
        )
    if ended.returncode:
        raise RuntimeError(f"{argv[:4]} ended with {ended.returncode}: {log.read_text()[-800:]}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


Client = Callable[[str, Scenario, Path, Callable[[], dict[str, Truth]]], Result]
CLIENTS: dict[str, Client] = {"ours": run_ours}


def measure(program: Path, client: str, scenario: Scenario) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="bench-client-") as name:
        folder = Path(name)
        log = folder / "golden.log"
        server = golden(program, scenario, log)
        url = server.__enter__()

        def finish() -> dict[str, Truth]:
            server.__exit__(None, None, None)
            return read_truth(log)

        return CLIENTS[client](url, scenario, folder, finish).figures()


FIGURES = {
    "ttft_error_p50_ms": "TTFT error p50, ms",
    "ttft_error_p99_ms": "TTFT error p99, ms",
    "itl_error_p99_ms": "ITL error p99, ms",
    "chunks_per_s": "chunks/s",
    "cpu_ms_per_1000_chunks": "CPU ms per 1,000 chunks",
    "requests_per_s": "requests/s",
    "cpu_ms_per_request": "CPU ms per request",
    "lag_p99_ms": "send lag p99, ms",
    "lag_worst_ms": "worst send lag, ms",
    "failed": "failed",
}


def cell(values: list[float]) -> str:
    """Median, and the range over the runs."""
    if not values:
        return "–"
    middle = f"{median(values):,.3g}" if median(values) < 1000 else f"{median(values):,.0f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3g}–{max(values):.3g})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", default=",".join(CLIENTS))
    parser.add_argument("--scenario", default="", help="only those whose name holds this")
    parser.add_argument("--out", type=Path, help="write the table there (Markdown)")
    options = parser.parse_args()
    lines = [
        "| load | client | " + " | ".join(FIGURES.values()) + " |",
        "|---" * (len(FIGURES) + 2) + "|",
    ]
    print("\n".join(lines), flush=True)
    with tempfile.TemporaryDirectory() as name:
        program = build(Path(name))
        for scenario in (s for s in SCENARIOS if options.scenario in s.name):
            runs: dict[str, list[dict[str, float | None]]] = {}
            for _ in range(
                options.runs
            ):  # interleaved: a busy moment of the host hits every client
                for client in options.clients.split(","):
                    runs.setdefault(client, []).append(measure(program, client, scenario))
            for client, found in runs.items():
                cells = [
                    cell([v for run in found if (v := run[key]) is not None]) for key in FIGURES
                ]
                lines.append(f"| {scenario.name} | {client} | " + " | ".join(cells) + " |")
                print(lines[-1], flush=True)
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

"""How far the load generator's own error reaches, measured against a server that logs the truth.

    python scripts/bench_client.py [--runs 3] [--clients ours,aiohttp] [--scenario saturation]

Builds tests/fakes/golden.c with the system's compiler, pins server and client to a core each, and runs
the real locustfile (records written) and every peer that is installed, interleaved. Every run is a
line of --results, so that a benchmark may be done in parts; the table is of all that stand there.
Does not touch the network beyond loopback.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

from bench_peers import installed
from bench_rig import (
    ROOT,
    SCENARIOS,
    CannotRunHere,
    Result,
    Scenario,
    Told,
    Truth,
    build,
    golden,
    read_truth,
    run_pinned,
)

sys.path.insert(0, str(ROOT))

from tests.fakes.loadruns import make_run

BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
OURS, UNSTORED = "ours", "ours storing nothing"


def run_ours(
    url: str,
    scenario: Scenario,
    folder: Path,
    finish: Callable[[], list[Truth]],
    locustfile: str = "loadgen/longctx.py",
) -> Result:
    """The real locustfile with a run directory; figures of its measured window."""
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
    argv = [sys.executable, "-m", "locust", "-f", str(ROOT / locustfile), "--headless"]
    if scenario.rate_per_s:
        argv = [sys.executable, "-m", "loadgen.openloop"]
    meter = run_pinned([*argv, "--run-dir", str(run)], folder / "ours.log")
    truth = {true.request_id: true for true in finish()}
    events = {e["name"]: e["mono_ns"] for e in map(json.loads, (run / "events.jsonl").open())}
    start, end = events["measure_start"], events["measure_end"]
    result = Result(seconds=(end - start) / 1e9)
    result.take_cpu(meter, start, end)
    (rows_path,) = (run / "requests").glob("*.jsonl")
    for row in map(json.loads, rows_path.open()):
        _add(row, truth.get(row["request_id"]), start, end, result)
    return result


def _add(row: dict[str, Any], true: Truth | None, start: int, end: int, result: Result) -> None:
    """A row: what fell into the window counts; errors are of requests that were sent in it."""
    if row["error_type"] is not None or true is None:
        result.failed += row["error_type"] != "cut_at_drain"
        return
    sent, chunk_ns = row["sent_mono_ns"], row["chunk_ns"]
    result.requests += start <= sent + row["end_ns"] < end
    result.chunks += sum(start <= sent + at < end for at in chunk_ns)
    if start <= sent < end:
        lag_ms = None
        if row["scheduled_unix_ns"] is not None:
            lag_ms = (row["sent_unix_ns"] - row["scheduled_unix_ns"]) / 1e6
        gaps = [(b - a) / 1e6 for a, b in pairwise(chunk_ns)]
        result.compare(Told(chunk_ns[0] / 1e6, gaps, lag_ms=lag_ms), true)


Run = Callable[[str, Scenario, Path, Callable[[], list[Truth]]], Result]
CLIENTS: dict[str, Run] = {
    OURS: run_ours,
    UNSTORED: partial(run_ours, locustfile="scripts/peers/ours_unstored.py"),
    **{name: peer.run for name, peer in installed().items()},
}


def measure(program: Path, client: str, scenario: Scenario) -> dict[str, float | None]:
    with tempfile.TemporaryDirectory(prefix="bench-client-") as name:
        folder = Path(name)
        log = folder / "golden.log"
        server = golden(program, scenario, log)
        url = server.__enter__()
        stopped: list[Truth] = []

        def finish() -> list[Truth]:
            server.__exit__(None, None, None)
            stopped.extend(read_truth(log))
            return stopped

        try:
            return CLIENTS[client](url, scenario, folder, finish).figures()
        finally:
            if not stopped:
                server.__exit__(None, None, None)


def run_one(
    program: Path, client: str, scenario: Scenario, results: Path, left_out: dict[str, str]
) -> None:
    """One run, a line of ``results``; a client that cannot run on this CPU goes to ``left_out``."""
    try:
        figures = measure(program, client, scenario)
    except CannotRunHere as error:
        left_out[client] = f"{client} is left out: {error}."
        print(left_out[client], flush=True)
        return
    except (RuntimeError, subprocess.TimeoutExpired) as error:
        print(f"{scenario.name} | {client} | failed: {error}", flush=True)
        return
    line = {"scenario": scenario.name, "client": client, "figures": figures}
    with results.open("a") as file:
        file.write(json.dumps(line) + "\n")
    words = [f"{k} {v:.4g}" for k, v in figures.items() if v]
    print(f"{scenario.name} | {client} | {', '.join(words)}", flush=True)


FIGURES = {
    "ttft_error_p50_ms": "TTFT error p50, ms",
    "ttft_error_p99_ms": "TTFT error p99, ms",
    "itl_error_p99_ms": "ITL error p99, ms",
    "itl_p99_off_percent": "ITL p99 off by, %",
    "mean_gap_error_p99_ms": "error of a request's mean gap p99, ms",
    "chunks_per_s": "chunks/s",
    "cpu_ms_per_1000_chunks": "CPU ms per 1,000 chunks",
    "requests_per_s": "requests/s",
    "cpu_ms_per_request": "CPU ms per request",
    "lag_p99_ms": "send lag p99, ms",
    "lag_worst_ms": "worst send lag, ms",
    "miscounted": "miscounted",
    "failed": "failed",
    "others_percent": "core taken by others, %",
}


def cell(values: list[float]) -> str:
    """Median, and the range over the runs."""
    if not values:
        return "–"
    words = [f"{v:,.3g}" if abs(v) < 1000 else f"{v:,.0f}" for v in values]
    middle = f"{median(values):,.3g}" if abs(median(values)) < 1000 else f"{median(values):,.0f}"
    if len(set(words)) == 1:
        return middle
    low, high = words[values.index(min(values))], words[values.index(max(values))]
    return f"{middle} ({low} – {high})"


def table(lines: list[dict[str, Any]]) -> str:
    """One table a load, a row a client, and only the columns that some client fills."""
    parts: list[str] = []
    for scenario in SCENARIOS:
        runs: dict[str, list[dict[str, float | None]]] = {}
        for line in lines:
            if line["scenario"] == scenario.name:
                runs.setdefault(line["client"], []).append(line["figures"])
        if not runs:
            continue
        filled = {key for many in runs.values() for one in many for key in one if one[key]}
        columns = [key for key in FIGURES if key in filled]
        head = ["client", "runs", *(FIGURES[key] for key in columns)]
        parts.append(f"\n**{scenario.name}**\n\n| {' | '.join(head)} |\n{'|---' * len(head)}|")
        for client, many in runs.items():
            cells = [
                cell([v for one in many if (v := one.get(key)) is not None]) for key in columns
            ]
            parts.append(f"| {client} | {len(many)} | {' | '.join(cells)} |")
    return "\n".join(parts) + "\n"


def write_into(path: Path, text: str) -> None:
    """Put the tables between the marks of a page, whose words stay."""
    page = path.read_text() if path.exists() else f"{BEGIN}\n{END}\n"
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--clients", help=f"of {', '.join(CLIENTS)}; default: all, by load")
    parser.add_argument("--scenario", default="", help="only those whose name holds this")
    stamp = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    default_results = ROOT / f"runs/bench-client/{stamp}.jsonl"
    parser.add_argument("--results", type=Path, default=default_results, help="appended to")
    parser.add_argument("--out", type=Path, help="write the tables into this page")
    options = parser.parse_args()
    options.results.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as name:
        program = build(Path(name))
        left_out: dict[str, str] = {}
        for scenario in (s for s in SCENARIOS if options.scenario in s.name):
            default = list(CLIENTS) if scenario.peers else [OURS]
            clients = options.clients.split(",") if options.clients else default
            for _ in range(options.runs):  # interleaved: a busy moment hits every client
                for client in (c for c in clients if c not in left_out):
                    run_one(program, client, scenario, options.results, left_out)
    known = options.results.read_text() if options.results.exists() else ""
    page = table([json.loads(line) for line in known.splitlines()])
    page += "".join(f"\n{sentence}\n" for sentence in left_out.values())
    print(page)
    if options.out:
        write_into(options.out, page)


if __name__ == "__main__":
    main()

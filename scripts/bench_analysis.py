"""How long the analysis takes, and how much memory, as runs grow:  python -m scripts.bench_analysis

Writes one generated run (requests of 100 chunks; GPU telemetry of 8 cards at 10 Hz) to a scratch folder
and analyses it in a process of its own, from JSONL with no cache to the finished summary.

    python -m scripts.bench_analysis --points 27  # CPU seconds of the report of a sweep like the demo's
"""

import argparse
import json
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from greenbench import __version__
from greenbench.contract.config import (
    BuiltModel,
    ModelConfig,
    PhaseConfig,
    PointConfig,
    SloConfig,
    SweepConfig,
    SweepLoad,
    TaskConfig,
    TelemetryConfig,
    points_of,
)
from greenbench.contract.manifest import (
    Clock,
    Code,
    Counts,
    Gpu,
    Host,
    Server,
)
from greenbench.contract.new_run import (
    NO_PROMPT_FILE,
    NewRun,
    Provenance,
    file_entries,
    point_hash,
)
from greenbench.contract.schema import GpuSample, RequestRecord
from scripts.generated_sweep import write_sweep

NS = 1_000_000_000
START_NS = 1_795_000_000 * NS
MONO_OFFSET_NS = 1_700_000_000 * NS
CHUNKS = 100
USERS = 64
GPUS = 8
PERIOD_S = 0.1
PATTERNS = 500  # distinct requests; their chunk times are rendered once


@dataclass(frozen=True)
class Timing:
    requests: int
    gpu_samples: int
    json_bytes: int
    seconds: float
    peak_bytes: int
    stages_s: dict[str, float]


def write_generated_run(root: Path, requests: int, telemetry_s: float) -> Path:
    """A closed loop of USERS users, 100 chunks a request, and telemetry of GPUS cards."""
    rng = random.Random(7)
    patterns = [_pattern(rng) for _ in range(PATTERNS)]
    mean_ns = sum(end for _, end in patterns) / len(patterns)
    length_s = max(requests / USERS * mean_ns / NS, 1.0)
    point = _point(length_s)
    new = NewRun(point, START_NS, point_hash(point))
    name = new.run_id
    run, manifest = new.create(root, _server(), NO_PROMPT_FILE, _provenance(), {})
    last_ns = _write_requests(run.requests_dir / "w0.jsonl", name, requests, patterns)
    _write_gpus(run.telemetry_dir / "gpu.jsonl", telemetry_s)
    final = manifest.model_copy(
        update={
            "status": "complete",
            "phases": {"measure": (START_NS, last_ns + 1)},
            "counts": Counts(scheduled=requests, sent=requests, ok=requests, rows=requests),
            "files": file_entries(run, sorted(run.path.rglob("*.jsonl"))),
        }
    )
    run.write_manifest(final)
    return run.path


def _pattern(rng: random.Random) -> tuple[str, int]:
    """Everything of a row that does not differ from request to request, and when it ends."""
    at, chunk_ns = rng.randint(200, 400) * 1_000_000, []
    for _ in range(CHUNKS):
        chunk_ns.append(at)
        at += rng.randint(8_000_000, 12_000_000)
    record = RequestRecord(
        run_id="RUN",
        client_id="w0",
        request_id="ID",
        phase="measure",
        task="summarize",
        prompt_index=0,
        prompt_sha256="0" * 64,
        context_tokens_target=8192,
        max_output_tokens=CHUNKS,
        in_flight_at_send=USERS - 1,
        prompt_tokens=8192,
        cached_tokens=0,
        output_tokens=CHUNKS,
        sent_unix_ns=111,
        sent_mono_ns=222,
        first_token_ns=chunk_ns[0],
        last_token_ns=chunk_ns[-1],
        end_ns=chunk_ns[-1] + 500_000,
        chunk_ns=chunk_ns,
        chunk_tokens=list(range(1, CHUNKS + 1)),
        http_status=200,
        finish_reason="length",
        user=333,
    )
    return record.to_json(), chunk_ns[-1] + 500_000


def _write_requests(path: Path, name: str, count: int, patterns: list[tuple[str, int]]) -> int:
    """Returns when the last was sent."""
    free_ns = [START_NS] * USERS
    last_ns = START_NS
    with path.open("w") as file:
        for number in range(count):
            text, length_ns = patterns[number % len(patterns)]
            user = number % USERS
            sent = free_ns[user]
            last_ns = max(last_ns, sent)
            free_ns[user] = sent + length_ns
            row = (
                text.replace('"RUN"', f'"{name}"', 1)
                .replace('"ID"', f'"r{number}"', 1)
                .replace(":111,", f":{sent},", 1)
                .replace(":222,", f":{sent - MONO_OFFSET_NS},", 1)
                .replace('"user":333', f'"user":{user}', 1)
            )
            file.write(row + "\n")
    return last_ns


def _write_gpus(path: Path, seconds: float) -> None:
    template = GpuSample(
        unix_ns=111,
        mono_ns=222,
        read_ns=4_000_000,
        host="generated",
        gpu_index=0,
        gpu_uuid="GPU-X",
        power_w=600.0,
        power_avg_w=600.0,
        energy_mj=333,
        sm_clock_mhz=1980,
        mem_clock_mhz=2619,
        temp_c=60,
        mem_used_bytes=70 << 30,
        util_pct=100,
        throttle_reasons=0,
    ).to_json()
    texts = [
        template.replace('"GPU-X"', f'"GPU-{i}"').replace('"gpu_index":0', f'"gpu_index":{i}')
        for i in range(GPUS)
    ]
    first = START_NS - NS
    with path.open("w") as file:
        for tick in range(round(seconds / PERIOD_S) + 1):
            at = first + round(tick * PERIOD_S * NS)
            energy = round(tick * PERIOD_S * 600_000)
            for text in texts:
                file.write(
                    text.replace(":111,", f":{at},", 1)
                    .replace(":222,", f":{at - MONO_OFFSET_NS},", 1)
                    .replace(":333,", f":{energy},", 1)
                    + "\n"
                )


def _point(length_s: float) -> PointConfig:
    sweep = SweepConfig(
        name="benchmark",
        seed=7,
        models=["generated"],
        backends=["generated"],
        contexts=[8192],
        tasks=[TaskConfig(name="summarize", output_tokens=CHUNKS)],
        loads=[SweepLoad(kind="closed", users=USERS)],
        phases=PhaseConfig(warmup_s=0, measure_s=length_s),
        slo=SloConfig(ttft_s=1.0),
        telemetry=TelemetryConfig(period_s=PERIOD_S),
        prompts_per_point=1,
    )
    model = ModelConfig(name="generated", build=BuiltModel(config={}), max_model_len=16_384)
    [point] = points_of(sweep, model, sweep.contenders[0])
    return point


def _provenance() -> Provenance:
    gpus = [
        Gpu(index=i, uuid=f"GPU-{i}", name="NVIDIA H200", memory_bytes=141 << 30)
        for i in range(GPUS)
    ]
    return Provenance(
        Code(git_sha=None, dirty=None, greenbench=__version__, python="3.11", packages={}),
        Host(cpu="generated", cores=1, ram_bytes=1 << 30, kernel="none", gpus=gpus),
        Clock(unix_ns=START_NS, mono_ns=START_NS - MONO_OFFSET_NS, host="generated"),
    )


def _server() -> Server:
    return Server(
        server_id="generated",
        requested_backend="generated",
        model="generated",
        model_path="none",
        weights="unknown",
        dtype="bfloat16",
        kv_cache_dtype="auto",
        execution="eager",
        base_url="http://127.0.0.1:1",
        served_model="generated",
    )


def analyse_and_print(root: Path) -> None:
    """Runs in the child: check, analyse and summarise ``root``, then print a Timing's measured part."""
    from analysis.runs.parquet import parquet_file
    from analysis.study import study
    from analysis.summary import write_summary

    stages: dict[str, float] = {}
    begin = last = time.perf_counter()
    for run in root.glob("*/manifest.json"):
        for table in ("requests", "gpu"):
            parquet_file(run.parent, table)
            stages[f"{table}: JSONL to Parquet"] = time.perf_counter() - last
            last = time.perf_counter()
    whole = study(root)
    stages["hashes, window, metrics, joules"] = time.perf_counter() - last
    write_summary(whole, root / "summary.json")
    assert all(point.usable for point in whole.points), whole.points[0].reasons
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    seconds = time.perf_counter() - begin
    print(json.dumps({"seconds": seconds, "peak_bytes": peak, "stages_s": stages}))


def time_one(requests: int, telemetry_s: float) -> Timing:
    """Generate, analyse in a fresh process, throw away."""
    with tempfile.TemporaryDirectory(prefix="greenbench-") as scratch:
        path = write_generated_run(Path(scratch), requests, telemetry_s)
        size = sum(file.stat().st_size for file in path.rglob("*.jsonl"))
        done = subprocess.run(
            [sys.executable, "-m", "scripts.bench_analysis", scratch],
            capture_output=True,
            text=True,
            check=True,
        )
        measured = json.loads(done.stdout.splitlines()[-1])
    samples = (round(telemetry_s / PERIOD_S) + 1) * GPUS
    return Timing(requests, samples, size, **measured)


def table(sizes: list[int], day_s: float = 86_400.0) -> str:
    """Markdown: requests alone by size, then the largest with a day of telemetry."""
    lines = [
        "| requests | GPU samples | JSONL | seconds | µs a request | peak memory | stages |",
        "|---|---|---|---|---|---|---|",
    ]
    for requests, telemetry_s in [*((size, 60.0) for size in sizes), (sizes[-1], day_s)]:
        t = time_one(requests, telemetry_s)
        stages = ", ".join(f"{name} {s:.1f} s" for name, s in t.stages_s.items())
        lines.append(
            f"| {t.requests:,} | {t.gpu_samples:,} | {t.json_bytes / 2**30:.2f} GiB | {t.seconds:.1f} "
            f"| {t.seconds / t.requests * 1e6:.0f} | {t.peak_bytes / 2**30:.2f} GiB | {stages} |"
        )
        print(json.dumps(asdict(t)), file=sys.stderr)
    return "\n".join(lines)


@dataclass(frozen=True)
class Cost:
    """Of one process. CPU seconds are of all its threads, user and system."""

    cpu_s: float
    wall_s: float
    peak_bytes: int


def report_table(points: int, times: int) -> str:
    """Markdown: the report of a sweep of the demo's shape without its Parquet cache and with it.

    CPU seconds are the least of ``times``: other programs only ever add to them.
    """
    lines = [
        "| points | cache | CPU seconds | wall seconds | peak memory |",
        "|---|---|---|---|---|",
    ]
    with tempfile.TemporaryDirectory(prefix="greenbench-") as scratch:
        sweep = write_sweep(Path(scratch), points)
        pairs = [(_report(sweep, cold=True), _report(sweep, cold=False)) for _ in range(times)]
    for cache, costs in zip(("none", "Parquet"), zip(*pairs, strict=True), strict=True):
        least = min(costs, key=lambda cost: cost.cpu_s)
        lines.append(
            f"| {points} | {cache} | {least.cpu_s:.1f} | {least.wall_s:.1f} "
            f"| {least.peak_bytes / 2**30:.2f} GiB |"
        )
    return "\n".join(lines)


def _report(sweep: Path, cold: bool) -> Cost:
    if cold:
        for derived in sweep.glob("*/derived"):
            shutil.rmtree(derived)
    command = [sys.executable, "-m", "analysis", "report", str(sweep)]
    begin = time.perf_counter()
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(child.pid, 0)
    wall_s = time.perf_counter() - begin
    child.returncode = os.waitstatus_to_exitcode(status)  # waited for here, not by subprocess
    if child.returncode:
        raise subprocess.CalledProcessError(child.returncode, command)
    return Cost(used.ru_utime + used.ru_stime, wall_s, used.ru_maxrss * 1024)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m scripts.bench_analysis")
    parser.add_argument("folder", type=Path, nargs="?", help=argparse.SUPPRESS)  # the child's
    parser.add_argument("--points", type=int, help="report a sweep of so many points instead")
    parser.add_argument("--times", type=int, default=3, help="how often, with --points")
    parser.add_argument(
        "--requests",
        type=int,
        nargs="+",
        default=[10_000, 100_000, 1_000_000],  # needs about 10 GB of scratch disk
        help="sizes of the one run; the largest again with a day of telemetry",
    )
    args = parser.parse_args()
    if args.folder is not None:
        analyse_and_print(args.folder)
    elif args.points is not None:
        print(report_table(args.points, args.times))
    else:
        print(table(args.requests))


if __name__ == "__main__":
    main()

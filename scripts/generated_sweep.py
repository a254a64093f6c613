"""A generated sweep of the demo's shape and size, for ``scripts.bench_analysis --points``.

Each point is a run of ``tests.fakes.rundirs`` whose telemetry, engine log and scored prompts are written anew
as large as a real point of configs/sweeps/demo.yaml has them: two users, prompts of 512 to 4,096 tokens, 52
series of /metrics and a sample of the host twice a second, a log line a step, a log-probability a token.
"""

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count, islice, product
from pathlib import Path

import numpy as np

from greenbench.contract.new_run import file_entries
from greenbench.contract.run_dir import JsonlWriter, RunDir, read_jsonl, write_atomic
from greenbench.contract.schema import HostSample, OutputRecord, RequestRecord, Row, ServerMetric
from telemetry.sensors.prometheus import COUNTERS, GAUGES, HISTOGRAMS, INFO, UP
from tests.fakes.rundirs import MONO_OFFSET_NS, NS, T0_UNIX_NS, FakeRun, write_run

BACKENDS = ("cpu_attn", "sdpa", "sink_window")
SLOWER = {"cpu_attn": 1.0, "sdpa": 1.4, "sink_window": 1.1}
CONTEXTS = (512, 2048, 4096)
REQUESTS = {"retrieve": 32, "perplexity": 12}
USERS = 2
POINT_S = 44.0
BETWEEN_S = 60.0  # from the start of one point to that of the next
PERIOD_NS = NS // 2  # of scrapes and of host samples
WINDOW = 1024  # tokens that sink_window sees
DECODE_SHARE = 0.4  # of a retrieve request's time
ENGINE = {"engine": "0", "model_name": "retriever"}
# label → its values, of the families that have more than one series
SEVERAL = {
    "vllm:num_requests_waiting_by_reason": ("reason", ("capacity", "deferred")),
    "vllm:prompt_tokens_by_source_total": (
        "source",
        ("local_compute", "local_cache_hit", "external_kv_transfer"),
    ),
    "vllm:request_success_total": (
        "finished_reason",
        ("stop", "length", "abort", "error", "repetition"),
    ),
    "vllm:admission_rejections_total": (
        "reason",
        ("max_num_queued_reqs", "max_num_queued_tokens"),
    ),
}
CACHE_CONFIG = {f"setting_{number}": "None" for number in range(36)}  # of INFO: as many as vLLM's
NEVER_COUNTED = ("vllm:prefix_cache_hits_total", "vllm:num_preemptions_total")
SOURCES = {
    "counter": {"status": "unavailable", "reason": "no GPU in this sweep"},
    "process": {"status": "available"},
    "metrics": {"status": "available", "period_s": PERIOD_NS / NS},
    "facts": {"cpu": {"name": "Fake CPU", "threads": 2, "cores": 2}, "gpus": []},
}


@dataclass(frozen=True)
class Work:
    """What the requests of a point show of its server, in order of time (unix ns)."""

    ends_ns: np.ndarray
    tokens_ns: np.ndarray  # of each output token
    prefills_ns: np.ndarray


def write_sweep(root: Path, points: int) -> Path:
    """``root/demo`` with so many points: repeat by repeat, task by task. Returns it."""
    for number, fake in enumerate(islice(_points(), points)):
        run = write_run(root, replace(fake, started_s=number * BETWEEN_S))
        _fill(run, fake)
    return root / "demo"


def _points() -> Iterator[FakeRun]:
    for repeat in count():
        for task, context, backend in product(REQUESTS, CONTEXTS, BACKENDS):
            yield _point(task, context, backend, repeat)


def _point(task: str, context: int, backend: str, repeat: int) -> FakeRun:
    scored = task == "perplexity"
    request_s = POINT_S * USERS / REQUESTS[task]
    tokens = 1 if scored else 16
    decode_s = 0.0 if scored else request_s * DECODE_SHARE
    return FakeRun(
        sweep="demo",
        model="retriever",
        weights="trained",
        backend=backend,
        task=task,
        context_tokens=context,
        output_tokens=tokens,
        ttft_s=request_s - decode_s,
        itl_s=decode_s / max(tokens - 1, 1),
        users=USERS,
        warmup_s=0.0,
        measure_s=POINT_S,
        jitter=0.01,
        start_factor=SLOWER[backend] / max(SLOWER.values()),
        repeat=repeat,
        streaming=not scored,
        correct_share=1.0,
        sees_tokens=WINDOW if backend == "sink_window" else None,
        nll_per_token=2.0 if scored else None,
        prompts=REQUESTS[task],
        slo_ttft_s=2.0,
        slo_tpot_s=0.1,
    )


def _fill(run: RunDir, fake: FakeRun) -> None:
    """The files that a real point has larger; then their hashes."""
    manifest = run.manifest()
    start_ns, end_ns = manifest.created_unix_ns - NS, manifest.phases["drain"][1] + NS
    work = _work(run)
    ticks = range(start_ns, end_ns, PERIOD_NS)
    _rewrite(run.telemetry_dir / "server.jsonl", (row for at in ticks for row in _scrape(at, work)))
    _rewrite(run.telemetry_dir / "host.jsonl", (_host(at, start_ns) for at in ticks))
    (run.logs_dir / "server.log").write_text("".join(_steps(work, fake.context_tokens)))
    write_atomic(run.telemetry_dir / "sources.json", json.dumps(SOURCES, indent=1) + "\n")
    if fake.nll_per_token is not None:
        path = run.outputs_dir / "w0.jsonl"
        rows = [OutputRecord.from_dict(row) for row in read_jsonl(path)]
        _rewrite(path, (_scored(row, fake) for row in rows))
    paths = sorted(path for path in run.path.rglob("*") if path.is_file())
    files = file_entries(run, (path for path in paths if path != run.manifest_path))
    server = manifest.server.model_copy(update={"async_scheduling": False})
    run.write_manifest(manifest.model_copy(update={"files": files, "server": server}))


def _rewrite(path: Path, rows: Iterator[Row]) -> None:
    path.unlink(missing_ok=True)
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)


def _work(run: RunDir) -> Work:
    path = run.requests_dir / "w0.jsonl"
    rows = [RequestRecord.from_dict(row) for row in read_jsonl(path)]
    sent = [row.sent_unix_ns or 0 for row in rows]
    ends = [at + (row.end_ns or 0) for at, row in zip(sent, rows, strict=True)]
    tokens = [
        at + offset for at, row in zip(sent, rows, strict=True) for offset in row.chunk_ns or ()
    ]
    first = [
        at + (row.first_token_ns or row.end_ns or 0) for at, row in zip(sent, rows, strict=True)
    ]
    return Work(
        *(np.sort(np.array(each, dtype=np.int64)) for each in (ends, tokens or ends, first))
    )


def _scrape(at: int, work: Work) -> Iterator[ServerMetric]:
    """One row a series: gauges as of a busy server, counters that grow with the requests that ended."""
    ended = float(np.searchsorted(work.ends_ns, at, side="right"))
    decoded = float(np.searchsorted(work.tokens_ns, at, side="right"))
    mono = at - MONO_OFFSET_NS
    yield ServerMetric(at, mono, UP, {}, 1.0)
    yield ServerMetric(at, mono, INFO, {**ENGINE, **CACHE_CONFIG}, 1.0)
    gauges = {"vllm:num_requests_running": float(USERS), "vllm:kv_cache_usage_perc": 0.2}
    counters = (*(f"{name}_total" for name in COUNTERS), *_histogram_series())
    known = {"vllm:generation_tokens_total": decoded, **dict.fromkeys(NEVER_COUNTED, 0.0)}
    for name in (*GAUGES, *counters):
        value = gauges.get(name, 0.0) if name in GAUGES else known.get(name, ended)
        label, values = SEVERAL.get(name, (None, ("",)))
        for number, word in enumerate(values):
            labels = {**ENGINE, label: word} if label else ENGINE
            yield ServerMetric(at, mono, name, labels, 0.0 if number else value)


def _histogram_series() -> Iterator[str]:
    for name in HISTOGRAMS:
        yield from (f"{name}_sum", f"{name}_count")


def _host(at: int, start_ns: int) -> HostSample:
    return HostSample(
        unix_ns=at,
        mono_ns=at - MONO_OFFSET_NS,
        read_ns=450_000,
        host="fake",
        cpu_busy_share=0.95,
        mem_used_bytes=7 << 30,
        server_rss_bytes=3 << 30,
        server_cpu_s=1.9 * (at - start_ns) / NS,
        server_processes=4,
    )


def _steps(work: Work, context: int) -> Iterator[str]:
    """A line a step of the engine: a prefill where a request gets its first token, else a decode."""
    moments = np.unique(np.concatenate((work.tokens_ns, work.prefills_ns)))
    prefills = set(work.prefills_ns.tolist())
    before = T0_UNIX_NS
    for number, at in enumerate(moments.tolist()):
        filled = at in prefills
        elapsed_ms = min((at - before) / 1e6, 1500.0 if filled else 70.0)
        before = at
        yield (
            f"{at // NS}.{at % NS // 1000:06d} (APIServer pid=7) INFO 11-29 14:48:34 [loggers.py:199] "
            f"Engine 000: Iteration({number}): {int(filled)} context requests, "
            f"{context if filled else 0} context tokens, {int(not filled)} generation requests, "
            f"{int(not filled)} generation tokens, iteration elapsed time: {elapsed_ms:.2f} ms, "
            "CPU KV cache usage: 0.2%\n"
        )


def _scored(row: OutputRecord, fake: FakeRun) -> OutputRecord:
    """A log-probability for every token of the prompt after its first, and their sum."""
    rng = random.Random(f"{row.prompt_index}/{fake.context_tokens}")
    told = [round(-rng.expovariate(0.5), 5) for _ in range(fake.context_tokens - 1)]
    return replace(row, grade={"logprobs": told}, nll_sum=-sum(told), nll_tokens=len(told))

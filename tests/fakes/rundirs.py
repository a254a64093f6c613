"""Run directories with known truths, written with the project's own contract code so they cannot drift.

A ``FakeRun`` says how fast the pretended server is; ``write_run`` plays the load against it and writes
what the real capture would have written. All times are exact, so expected metrics are arithmetic:
a closed loop of U users whose requests take E seconds and yield K tokens serves U·K/E tokens a second.
"""

import hashlib
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenbench import __version__
from greenbench.contract.config import (
    BackendChoice,
    BuiltModel,
    LoadConfig,
    ModelConfig,
    PhaseConfig,
    PointConfig,
    ServerConfig,
    SloConfig,
    SweepConfig,
    SweepLoad,
    TaskConfig,
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
from greenbench.contract.new_run import NewRun, Prompts, Provenance, file_entries, point_hash
from greenbench.contract.run_dir import JsonlWriter, RunDir
from greenbench.contract.schema import (
    Event,
    GpuSample,
    HostSample,
    OutputRecord,
    RequestRecord,
    ServerMetric,
)

NS = 1_000_000_000
T0_UNIX_NS = 1_795_000_000 * NS
MONO_OFFSET_NS = 1_700_000_000 * NS  # unix − mono on the pretended host
GOLDEN = 0.6180339887498949  # multiples modulo 1 spread the needles' depths evenly

TINY_LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 4096,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class FakeRun:
    """One point of one pretended server. Seconds and tokens; ``jitter`` is a relative sd per request."""

    backend: str = "alpha"
    options: dict[str, int | float | str | bool] = field(default_factory=dict)
    task: str = "retrieve"
    task_params: dict[str, int | float | str | bool] = field(default_factory=dict)
    context_tokens: int = 1024
    output_tokens: int = 11
    ttft_s: float = 0.5
    itl_s: float = 0.05
    users: int | None = 4
    rate_per_s: float | None = None  # open loop instead of users
    warmup_s: float = 2.0
    measure_s: float = 40.0
    cap_s: float | None = None  # an auto point that ended after measure_s
    ramp_s: float = 0.0  # users start evenly spread over this time
    jitter: float = 0.0
    start_factor: float = 1.0  # speed of this server start: multiplies every time
    slower_from_s: float | None = None  # after the first sending: from here on all takes …
    slower: float = 1.0  # … so many times as long
    slow_every: int | None = None  # each n-th request decodes …
    slow_decode: float = 1.0  # … so many times as long
    repeat: int = 0
    arm: int = 0
    execution: str = "eager"
    model: str = "tiny"
    seed: int = 7
    prompts_sha256: str = "0" * 64
    streaming: bool = True
    tokens_per_chunk: int = 1
    correct_share: float | None = 0.0  # None: no outputs file
    sees_tokens: int | None = None  # a needle further back than this is answered wrong
    nll_per_token: float | None = None
    logprob_shift: float = (
        0.0  # nats by which this backend's log-probabilities are off, alternating
    )
    failed_every: int | None = None  # each n-th request fails
    status: str = "complete"
    invalid_reasons: tuple[str, ...] = ()
    failure: str | None = None
    weights: str = "random"
    proof: str = "proven"
    observed_backend: str | None = "AlphaImpl"
    exactness: int | None = None  # of the backend, as a manifest says it
    kv_cache_dtype: str = "auto"
    gpu_power_w: float | None = None
    kv_usage: float | None = 0.2
    waiting: float = 0.0
    preemptions: int = 0
    kv_cache_tokens: int = 65_536
    max_num_seqs: int = 64
    slo_ttft_s: float | None = 1.0
    slo_tpot_s: float | None = None
    prompts: int = 8
    first_prompt: int = 0  # number from which its prompts' hashes are drawn
    started_s: float = 0.0  # after T0
    sweep: str = "fake"
    config: dict[str, Any] = field(default_factory=lambda: dict(TINY_LLAMA))


def point_config(fake: FakeRun) -> PointConfig:
    load = (
        LoadConfig(kind="closed", users=fake.users)
        if fake.rate_per_s is None
        else LoadConfig(kind="open", rate_per_s=fake.rate_per_s)
    )
    sweep = SweepConfig(
        name=fake.sweep,
        seed=fake.seed,
        models=[fake.model],
        backends=[BackendChoice(name=fake.backend, options=fake.options)] * (fake.arm + 1),
        contexts=[fake.context_tokens],
        tasks=[
            TaskConfig(name=fake.task, output_tokens=fake.output_tokens, params=fake.task_params)
        ],
        loads=[SweepLoad.everywhere(load)],
        server=ServerConfig(
            max_num_seqs=fake.max_num_seqs,
            execution=fake.execution,  # type: ignore[arg-type]
        ),
        phases=PhaseConfig(warmup_s=fake.warmup_s, measure_s=fake.measure_s)
        if fake.cap_s is None
        else PhaseConfig(warmup_s=fake.warmup_s, cap_s=fake.cap_s),
        slo=SloConfig(ttft_s=fake.slo_ttft_s, tpot_s=fake.slo_tpot_s),
        prompts_per_point=fake.prompts,
    )
    model = ModelConfig(
        name=fake.model,
        build=BuiltModel(config=fake.config),
        weights=fake.weights,  # type: ignore[arg-type]
        max_model_len=8192,
        dtype="bfloat16",
    )
    [point] = points_of(sweep, model, sweep.contenders[fake.arm], fake.repeat)
    return point


def write_run(root: Path, fake: FakeRun) -> RunDir:
    """Write ``root/<sweep>/<run_id>/``; returns it. The manifest is final, with counts and hashes."""
    point = point_config(fake)
    start_ns = T0_UNIX_NS + round(fake.started_s * NS)
    new = NewRun(point, start_ns, point_hash(point))
    name = new.run_id
    prompts = Prompts("../prompts/tiny.jsonl", fake.prompts_sha256)
    run, manifest = new.create(
        root / fake.sweep, _server(fake, point), prompts, _provenance(fake, start_ns)
    )
    measure = (
        start_ns + round(fake.warmup_s * NS),
        start_ns + round((fake.warmup_s + fake.measure_s) * NS),
    )
    records = list(_play(fake, name, start_ns, measure))
    last_end = (
        max((r.sent_unix_ns or start_ns) + (r.end_ns or 0) for r in records)
        if records
        else start_ns
    )
    _write(run.requests_dir / "w0.jsonl", records)
    if fake.correct_share is not None:
        _write(run.outputs_dir / "w0.jsonl", _outputs(fake, records))
    marks = {
        "warmup_start": start_ns,
        "measure_start": measure[0],
        "measure_end": measure[1],
        "drain_end": max(last_end, measure[1]),
    }
    _write(run.events_path, [Event(at, _mono(at), mark) for mark, at in marks.items()])
    _telemetry(run, fake, start_ns, marks["drain_end"])
    ok = sum(r.error_type is None for r in records)
    final = manifest.model_copy(
        update={
            "status": fake.status,
            "invalid_reasons": list(fake.invalid_reasons),
            "failure": fake.failure,
            "phases": {
                "warmup": (start_ns, measure[0]),
                "measure": measure,
                "drain": (measure[1], marks["drain_end"]),
            },
            "counts": Counts(
                scheduled=len(records),
                sent=len(records),
                ok=ok,
                failed=len(records) - ok,
                rows=len(records),
            ),
            "files": file_entries(run, sorted(run.path.rglob("*.jsonl"))),
        }
    )
    run.write_manifest(final)
    return run


def _provenance(fake: FakeRun, start_ns: int) -> Provenance:
    gpus = (
        [Gpu(index=0, uuid="GPU-0", name="NVIDIA H100 80GB HBM3", memory_bytes=80 << 30)]
        if fake.gpu_power_w is not None
        else []
    )
    code = Code(
        git_sha="0" * 40,
        dirty=False,
        greenbench=__version__,
        python="3.11",
        packages={"vllm": "0.32.0"},
    )
    host = Host(cpu="Fake CPU", cores=2, ram_bytes=16 << 30, kernel="6.1", gpus=gpus)
    return Provenance(code, host, Clock(unix_ns=start_ns, mono_ns=_mono(start_ns), host="fake"))


def _server(fake: FakeRun, point: PointConfig) -> Server:
    return Server(
        server_id=f"tiny-{fake.backend}-r{fake.repeat}",
        requested_backend=point.backend.label,
        exactness=fake.exactness,
        observed_backend=fake.observed_backend,
        proof=fake.proof,  # type: ignore[arg-type]
        model=fake.model,
        model_path="models/none",
        weights=fake.weights,  # type: ignore[arg-type]
        dtype="bfloat16",
        kv_cache_dtype=fake.kv_cache_dtype,
        execution=fake.execution,
        max_model_len=8192,
        kv_cache_tokens=fake.kv_cache_tokens,
        kv_cache_bytes=fake.kv_cache_tokens * 2048,
        weights_bytes=8_000_000,
        base_url="http://127.0.0.1:1",
        served_model="tiny",
        vllm_version="0.32.0",
    )


def _play(fake: FakeRun, name: str, start_ns: int, measure: tuple[int, int]) -> list[RequestRecord]:
    """Every request in order of sending. Closed: a user sends the next when the last has ended."""
    rng = random.Random(f"{fake.seed}/{fake.backend}/{fake.repeat}/{fake.started_s}")
    records: list[RequestRecord] = []
    if fake.rate_per_s is None:
        users = fake.users or 1
        for user in range(users):
            at = start_ns + round(user * fake.ramp_s / users * NS)
            while at < measure[1]:
                record = _request(fake, name, len(records), at, None, measure, rng, users - 1, user)
                records.append(record)
                at += record.end_ns or 0
    else:
        at = start_ns
        while at < measure[1]:
            # scheduled at ``at``, handed to the kernel 3 ms late: latency must count from the schedule
            records.append(_request(fake, name, len(records), at + 3_000_000, at, measure, rng, 0))
            at += round(rng.expovariate(fake.rate_per_s) * NS)
    return sorted(records, key=lambda r: r.sent_unix_ns or 0)


def _request(
    fake: FakeRun,
    name: str,
    number: int,
    sent_ns: int,
    scheduled_ns: int | None,
    measure: tuple[int, int],
    rng: random.Random,
    others: int,
    user: int | None = None,
) -> RequestRecord:
    factor = fake.start_factor * max(0.1, rng.gauss(1, fake.jitter) if fake.jitter else 1.0)
    since_s = (sent_ns - T0_UNIX_NS) / NS - fake.started_s
    if fake.slower_from_s is not None and since_s >= fake.slower_from_s:
        factor *= fake.slower
    slow = fake.slow_every is not None and number % fake.slow_every == 0
    itl_s = fake.itl_s * (fake.slow_decode if slow else 1.0)
    steps = range(0, fake.output_tokens, fake.tokens_per_chunk)
    counts = [min(step + fake.tokens_per_chunk, fake.output_tokens) for step in steps]
    # a chunk of several tokens arrives when its last token exists
    chunk_ns = [round((fake.ttft_s + (count - 1) * itl_s) * factor * NS) for count in counts]
    if not fake.streaming:
        chunk_ns, counts = [], []
    end_ns = chunk_ns[-1] if chunk_ns else round(fake.ttft_s * factor * NS)
    moment = scheduled_ns if scheduled_ns is not None else sent_ns
    phase = "warmup" if moment < measure[0] else "measure"
    failed = fake.failed_every is not None and number % fake.failed_every == fake.failed_every - 1
    return RequestRecord(
        run_id=name,
        client_id="w0",
        request_id=f"{name}-{number}",
        phase=phase,
        task=fake.task,
        prompt_index=number % fake.prompts,
        prompt_sha256=hashlib.sha256(
            f"{fake.task}/{fake.context_tokens}/{number % fake.prompts + fake.first_prompt}".encode()
        ).hexdigest(),
        context_tokens_target=fake.context_tokens,
        max_output_tokens=fake.output_tokens,
        in_flight_at_send=others,
        prompt_tokens=fake.context_tokens,
        cached_tokens=0,
        output_tokens=fake.output_tokens,
        scheduled_unix_ns=scheduled_ns,
        sent_unix_ns=sent_ns,
        sent_mono_ns=_mono(sent_ns),
        headers_ns=1_000_000,
        first_token_ns=chunk_ns[0] if chunk_ns and not failed else None,
        last_token_ns=chunk_ns[-1] if chunk_ns and not failed else None,
        end_ns=end_ns,
        chunk_ns=chunk_ns if chunk_ns and not failed else None,
        chunk_tokens=counts if counts and not failed else None,
        http_status=500 if failed else 200,
        finish_reason=None if failed else "length",
        error_type="http_5xx" if failed else None,
        error_message="made to fail" if failed else None,
        user=user,
    )


def _outputs(fake: FakeRun, records: list[RequestRecord]) -> list[OutputRecord]:
    """Prompts below the share are answered right, so that two backends can be paired by prompt."""
    good = [r for r in records if r.error_type is None]
    rows: list[OutputRecord] = []
    for record in good:
        depth = record.prompt_index * GOLDEN % 1.0
        back = (1 - depth) * fake.context_tokens
        seen = fake.sees_tokens is None or back <= fake.sees_tokens
        right = seen and record.prompt_index < (fake.correct_share or 0) * fake.prompts
        scored = fake.nll_per_token is not None
        rows.append(
            OutputRecord(
                request_id=record.request_id,
                task=record.task,
                prompt_index=record.prompt_index,
                text=None if scored else ("right" if right else "wrong"),
                correct=None if scored else right,
                score=None if scored else float(right),
                grade={"logprobs": _logprobs(fake, record.prompt_index)}
                if scored
                else {"expected": "right", "depth": depth},
                nll_sum=(fake.nll_per_token or 0) * 100 if scored else None,
                nll_tokens=100 if scored else None,
            )
        )
    return rows


def _logprobs(fake: FakeRun, prompt_index: int) -> list[float]:
    """The same for every backend but for its shift, whose sign alternates from token to token."""
    rng = random.Random(f"logprobs/{prompt_index}")
    return [
        round(-rng.expovariate(1.0) + fake.logprob_shift * (-1) ** i, 5)
        for i in range(min(fake.context_tokens, 256) - 1)
    ]


def _telemetry(run: RunDir, fake: FakeRun, start_ns: int, end_ns: int) -> None:
    ticks = range(start_ns - NS, end_ns + NS, NS // 4)
    if fake.gpu_power_w is not None:
        power = fake.gpu_power_w
        _write(
            run.telemetry_dir / "gpu.jsonl",
            [
                GpuSample(
                    unix_ns=at,
                    mono_ns=_mono(at),
                    read_ns=1000,
                    host="fake",
                    gpu_index=0,
                    gpu_uuid="GPU-0",
                    power_w=power,
                    power_avg_w=power,
                    energy_mj=round(power * 1000 * (at - start_ns + NS) / NS),
                    sm_clock_mhz=1980,
                    mem_clock_mhz=2619,
                    temp_c=60,
                    mem_used_bytes=70 << 30,
                    util_pct=100,
                    throttle_reasons=0,
                )
                for at in ticks
            ],
        )
    _write(
        run.telemetry_dir / "host.jsonl",
        [
            HostSample(
                unix_ns=at,
                mono_ns=_mono(at),
                read_ns=1000,
                host="fake",
                cpu_busy_share=0.5,
                mem_used_bytes=8 << 30,
                server_rss_bytes=2 << 30,
                server_cpu_s=(at - start_ns) / NS,
                server_processes=2,
            )
            for at in ticks
        ],
    )
    if fake.kv_usage is not None:
        rows: list[ServerMetric] = []
        values = {
            "vllm:num_requests_running": float(fake.users or 1),
            "vllm:num_requests_waiting": fake.waiting,
            "vllm:kv_cache_usage_perc": fake.kv_usage,
        }
        for number, at in enumerate(ticks):
            for metric, value in values.items():
                rows.append(ServerMetric(at, _mono(at), metric, {"engine": "0"}, value))
            done = fake.preemptions * number / max(1, len(ticks) - 1)
            rows.append(
                ServerMetric(
                    at, _mono(at), "vllm:num_preemptions_total", {"engine": "0"}, float(round(done))
                )
            )
        _write(run.telemetry_dir / "server.jsonl", rows)


def _write(path: Path, rows: list[Any]) -> None:
    with JsonlWriter(path) as writer:
        for row in rows:
            writer.write(row)


def _mono(unix_ns: int) -> int:
    return unix_ns - MONO_OFFSET_NS

"""Synthetic run directories whose truth is chosen, as an outside author writes them from docs/contract.md.

A ``Point`` says who serves what to whom and how fast; ``write`` plays it (``playing``) and writes what a
capture would have left: manifest.json, config.yaml, events, request rows, graded answers, telemetry.
"""

import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from tests.outside.playing import Load, Pace, Phases, Played, play

NS = 1_000_000_000
T0_NS = 1_790_000_000 * NS
MONO_OFFSET_NS = 1_789_000_000 * NS  # wall less monotonic time on the pretended hosts
GIB = 1 << 30
REFRESH_S = 0.1  # the card's counter changes this often
HOST_PERIOD_S = 1.0
GPU_PERIOD_S = 0.2
SCORED = 64  # tokens of a prompt whose log-probability is told
LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 32768,
    "max_position_embeddings": 262144,
    "tie_word_embeddings": True,
}


@dataclass(frozen=True)
class Card:
    """A GPU, its driver, and the power it draws in each phase of the server's work."""

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-11111111-1111-1111-1111-111111111111"
    memory_bytes: int = 80 * GIB
    driver: str = "580.95"
    host: str = "host-a"


@dataclass(frozen=True)
class Power:
    """Watts of the card while the server prefills, decodes and waits; bytes of its memory in use."""

    prefill_w: float = 600.0
    decode_w: float = 600.0
    idle_w: float = 120.0
    memory_bytes: int = 70 * GIB


@dataclass(frozen=True)
class Point:
    """One point of a sweep and its truth. ``factor`` multiplies all times of this start of the server.

    ``right``: numbers of the prompts that are answered right; None leaves the answers ungraded.
    ``shifts``: nats by which each prompt's log-probabilities are off, alternately up and down; makes it a
    task of log-probabilities, which generates nothing.
    """

    backend: str = "alpha"
    options: dict[str, Any] = field(default_factory=dict)
    pace: Pace = field(default_factory=Pace)
    load: Load = field(default_factory=Load)
    phases: Phases = field(default_factory=Phases)
    context: int = 8192
    task: str = "retrieve"
    params: dict[str, Any] = field(default_factory=dict)
    output_tokens: int = 64
    prompts: int = 32
    right: frozenset[int] | None = None
    shifts: tuple[float, ...] | None = None
    slo: dict[str, float] = field(default_factory=lambda: {"ttft_s": 60.0})
    repeat: int = 0
    arm: int = 0
    factor: float = 1.0
    power_factor: float = 1.0
    power: Power | None = None
    card: Card | None = None
    server: dict[str, Any] = field(default_factory=dict)
    model: str = "outside-llama"
    weights: str = "trained"
    vllm: str = "0.32.0"
    proof: str = "proven"
    proof_detail: dict[str, Any] = field(default_factory=dict)
    seed: int = 7  # of the sweep: its prompts
    noise_seed: int = 0
    sweep: str = "outside"
    folder: str | None = None  # of the sweep below the root; default its name
    status: str = "complete"
    failure: str | None = None
    started_s: float = 0.0


def write(root: Path, points: Iterable[Point]) -> list[str]:
    """Write every point below ``root``; its run ids in order."""
    return [write_point(root, point) for point in points]


def write_point(root: Path, point: Point) -> str:
    start_ns = T0_NS + round(point.started_s * NS)
    config = config_of(point)
    hashed = hashlib.sha256(_canonical(_identity(config)).encode()).hexdigest()
    stamp = datetime.fromtimestamp(start_ns / 1e9, UTC).strftime("%Y%m%dT%H%M%SZ")
    load = f"closed{point.load.users}" if point.load.users else f"open{point.load.rate_per_s:g}"
    words = re.sub(r"[^a-z0-9_.-]+", "-", f"{label(point)}-{point.task}-{point.context}-{load}")
    run_id = f"{stamp}-{words.strip('-')}-{hashed[:8]}"
    folder = root / (point.folder or point.sweep) / run_id
    for part in ("requests", "outputs", "telemetry", "logs"):
        (folder / part).mkdir(parents=True)
    played = play(
        point.pace,
        point.load,
        point.phases,
        point.output_tokens,
        _seed(point),
        point.factor,
        point.seed,
    )
    live = {
        "point": config,
        "run_id": run_id,
        "base_url": "http://127.0.0.1:8000",
        "served_model": point.model,
        "prompts_path": f"../prompts/{point.model}-{point.task}-{point.context}.jsonl",
        "prompts_sha256": _sha(f"{_prompt_key(point)}/{point.prompts}"),
    }
    (folder / "config.yaml").write_text(json.dumps(live, indent=1) + "\n")  # JSON is YAML
    measure = (
        start_ns + round(point.phases.warmup_s * NS),
        start_ns + round((point.phases.warmup_s + point.phases.measure_s) * NS),
    )
    drain_end = max(measure[1], start_ns + round(float(played.end_s.max()) * NS) + 1_000_000)
    files: dict[str, str] = {}
    if point.status != "failed":
        files["requests/w0.jsonl"] = _requests(point, run_id, played, start_ns, measure[0])
    if point.status != "failed" and (point.right is not None or point.shifts is not None):
        files["outputs/w0.jsonl"] = _outputs(point, run_id, played)
    marks = {
        "warmup_start": start_ns,
        "measure_start": measure[0],
        "measure_end": measure[1],
        "drain_end": drain_end,
    }
    files["events.jsonl"] = "".join(
        f'{{"unix_ns":{at},"mono_ns":{at - MONO_OFFSET_NS},"name":"{name}","detail":{{}}}}\n'
        for name, at in marks.items()
    )
    files["telemetry/host.jsonl"] = _host(point, start_ns, drain_end)
    sources: dict[str, Any] = {"host": {"status": "available"}}
    if point.power is not None:
        files["telemetry/gpu.jsonl"] = _gpu(point, point.power, played, start_ns, drain_end)
        sources["counter"] = {"status": "available"}
    (folder / "telemetry" / "sources.json").write_text(json.dumps(sources))
    for name, text in files.items():
        (folder / name).write_text(text)
    manifest = _manifest(point, run_id, hashed, start_ns)
    good = int((~played.failed).sum()) if point.status != "failed" else 0
    rows = len(played.sent_s) if point.status != "failed" else 0
    manifest |= {
        "status": point.status,
        "failure": point.failure,
        "phases": {
            "warmup": [start_ns, measure[0]],
            "measure": list(measure),
            "drain": [measure[1], drain_end],
        },
        "counts": {
            "scheduled": rows,
            "sent": rows,
            "ok": good,
            "failed": rows - good,
            "rows": rows,
        },
        "files": {
            name: {"rows": text.count("\n"), "sha256": _sha(text)} for name, text in files.items()
        },
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n")
    return run_id


def label(point: Point) -> str:
    """The backend with its options, as the sweep's list names it."""
    if not point.options:
        return point.backend
    return f"{point.backend}({','.join(f'{k}={v}' for k, v in sorted(point.options.items()))})"


def config_of(point: Point) -> dict[str, Any]:
    """``point`` of config.yaml, every key resolved."""
    load: dict[str, Any] = {
        "kind": "closed" if point.load.users else "open",
        "users": point.load.users,
        "turns": 1,
        "turn_pause_s": 0.0,
        "rate_per_s": point.load.rate_per_s,
        "arrivals": point.load.arrivals,
        "burstiness": point.load.burstiness,
        "ramp_to_per_s": None,
        "ramp_s": None,
        "trace": None,
        "trace_format": "mooncake",
        "trace_speed": 1.0,
        "trace_clip": False,
    } | dict(point.load.told)
    server: dict[str, Any] = {
        "base_url": None,
        "served_model": None,
        "execution": "full",
        "dtype": None,
        "kv_cache_dtype": "auto",
        "max_model_len": None,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 8192,
        "block_size": None,
        "num_gpu_blocks": None,
        "kv_cache_gib": None,
        "gpu_memory_utilization": 0.85,
        "prefix_caching": False,
        "tensor_parallel": 1,
        "seed": 0,
        "iteration_log": True,
        "boot_timeout_s": 600.0,
        "port": None,
        "extra_args": [],
    }
    return {
        "sweep": point.sweep,
        "seed": point.seed,
        "repeat": point.repeat,
        "arm": point.arm,
        "model": {
            "name": point.model,
            "path": None,
            "build": {"config": LLAMA, "seed": 1, "vocab_size": 32768},
            "weights": point.weights,
            "family": "attention",
            "max_model_len": 262144,
            "dtype": "bfloat16",
            "server_args": [],
            "note": None,
        },
        "backend": {"name": point.backend, "options": point.options},
        "server": server | point.server,
        "task": {
            "name": point.task,
            "output_tokens": point.output_tokens,
            "requests": None,
            "params": point.params,
        },
        "context_tokens": point.context,
        "load": load,
        "phases": {
            "warmup_s": point.phases.warmup_s,
            "measure_s": point.phases.measure_s,
            "drain_s": 120.0,
            "requests": None,
            "request_timeout_s": 600.0,
        },
        "slo": {"ttft_s": None, "tpot_s": None, "e2e_s": None} | point.slo,
        "telemetry": {"period_s": GPU_PERIOD_S, "scrape_s": 0.5, "idle_s": 0.0},
        "prompts_per_point": point.prompts,
        "text_file": None,
    }


def _identity(config: dict[str, Any]) -> dict[str, Any]:
    kept = {k: v for k, v in config["server"].items() if k not in ("port", "boot_timeout_s")}
    return config | {"server": kept}


def _manifest(point: Point, run_id: str, hashed: str, start_ns: int) -> dict[str, Any]:
    server = config_of(point)["server"]
    card = point.card or (Card() if point.power is not None else None)
    return {
        "schema_version": "1.0",
        "run_id": run_id,
        "sweep": point.sweep,
        "invalid_reasons": [],
        "config_hash": hashed,
        "seed": point.seed,
        "created_unix_ns": start_ns,
        "sweep_pid": None,
        "clock": {
            "unix_ns": start_ns,
            "mono_ns": start_ns - MONO_OFFSET_NS,
            "host": _host_name(point),
        },
        "code": {
            "git_sha": "0" * 40,
            "dirty": False,
            "greenbench": "0.1.0",
            "python": "3.11.9",
            "packages": {"vllm": point.vllm},
        },
        "host": {
            "cpu": "Outside CPU",
            "cores": 16,
            "ram_bytes": 128 * GIB,
            "kernel": "6.1",
            "cpu_flags": [],
            "driver": card.driver if card else None,
            "cuda": "13.0" if card else None,
            "gpus": [
                {
                    "index": 0,
                    "uuid": card.uuid,
                    "name": card.name,
                    "memory_bytes": card.memory_bytes,
                    "power_limit_w": 700.0,
                }
            ]
            if card
            else [],
        },
        "server": {
            "server_id": f"{point.model}-{label(point)}-a{point.arm}-r{point.repeat}",
            "requested_backend": label(point),
            "backend_options": point.options,
            "observed_backend": f"{point.backend.title()}Impl" if point.proof == "proven" else None,
            "proof": point.proof,
            "proof_detail": point.proof_detail,
            "model": point.model,
            "model_path": f"models/{point.model}",
            "weights": point.weights,
            "dtype": "bfloat16",
            "kv_cache_dtype": server["kv_cache_dtype"],
            "execution": server["execution"],
            "tensor_parallel": server["tensor_parallel"],
            "max_model_len": 262144,
            "kv_cache_tokens": 2_000_000,
            "kv_cache_bytes": 2_000_000 * 32768,
            "weights_bytes": 3_000_000_000,
            "base_url": "http://127.0.0.1:8000",
            "served_model": point.model,
            "vllm_version": point.vllm,
        },
        "load": config_of(point)["load"],
        "point": {"task": point.task, "context_tokens": point.context, "repeat": point.repeat},
        "client_audit": {},
    }


def _requests(
    point: Point, run_id: str, played: Played, start_ns: int, measure_start_ns: int
) -> str:
    sent = start_ns + np.rint(played.sent_s * NS).astype(np.int64)
    end = np.rint(played.end_s * NS).astype(np.int64) + start_ns - sent
    token_ns = np.nan_to_num((played.tokens_s - played.sent_s[:, None]) * NS)
    tokens = np.rint(token_ns).astype(np.int64)
    streamed = point.shifts is None
    scheduled = (
        None
        if played.scheduled_s is None
        else (start_ns + np.rint(played.scheduled_s * NS).astype(np.int64)).tolist()
    )
    ends = np.sort(sent + end)
    open_others = np.arange(len(sent)) - np.searchsorted(ends, sent, side="right")
    counts = ",".join(map(str, range(1, point.output_tokens + 1)))
    shas = [_sha(f"{_prompt_key(point)}/{i}") for i in range(point.prompts)]
    fixed = (
        f'"task":{json.dumps(point.task)},"context_tokens_target":{point.context},'
        f'"max_output_tokens":{point.output_tokens},"time_source":"kernel","connect_ns":null,'
        f'"send_ns":null,"server_metrics":null,"conversation":null,"turn":null'
    )
    well = (
        f'"prompt_tokens":{point.context},"cached_tokens":0,"output_tokens":{point.output_tokens},'
        f'"chunk_tokens":{f"[{counts}]" if streamed else "null"},"http_status":200,'
        f'"finish_reason":"length","error_type":null,"error_message":null,"headers_ns":1000000'
    )
    badly = (
        '"prompt_tokens":null,"cached_tokens":null,"output_tokens":null,"chunk_tokens":null,'
        '"http_status":500,"finish_reason":null,"error_type":"http_5xx",'
        '"error_message":"refused","headers_ns":1000000,"first_token_ns":null,"last_token_ns":null,'
        '"chunk_ns":null'
    )
    lines: list[str] = []
    for i, (at, end_ns, others, failed) in enumerate(
        zip(sent.tolist(), end.tolist(), open_others.tolist(), played.failed.tolist(), strict=True)
    ):
        moment = at if scheduled is None else scheduled[i]
        chunks = tokens[i].tolist()
        outcome = (
            badly
            if failed
            else f'{well},"first_token_ns":{chunks[0]},"last_token_ns":{chunks[-1]},'
            f'"chunk_ns":{str(chunks).replace(" ", "")}'
            if streamed
            else f'{well},"first_token_ns":null,"last_token_ns":null,"chunk_ns":null'
        )
        lines.append(
            f'{{"run_id":"{run_id}","client_id":"w0","request_id":"{run_id}-{i}",'
            f'"phase":"{"warmup" if moment < measure_start_ns else "measure"}",'
            f'"prompt_index":{i % point.prompts},"prompt_sha256":"{shas[i % point.prompts]}",'
            f'"in_flight_at_send":{max(0, others)},'
            f'"scheduled_unix_ns":{"null" if scheduled is None else moment},'
            f'"sent_unix_ns":{at},"sent_mono_ns":{at - MONO_OFFSET_NS},"end_ns":{end_ns},'
            f"{fixed},{outcome}}}\n"
        )
    return "".join(lines)


def _outputs(point: Point, run_id: str, played: Played) -> str:
    lines: list[str] = []
    for i, failed in enumerate(played.failed.tolist()):
        if failed:
            continue
        prompt = i % point.prompts
        graded = _scored(point, prompt) if point.shifts else _graded(point, prompt)
        row = {"request_id": f"{run_id}-{i}", "task": point.task, "prompt_index": prompt} | graded
        lines.append(json.dumps(row, separators=(",", ":")) + "\n")
    return "".join(lines)


def _graded(point: Point, prompt: int) -> dict[str, Any]:
    right = prompt in (point.right or ())
    depth = point.params.get("depth")
    return {
        "text": f" {100000 + prompt}" if right else " 999999",
        "correct": right,
        "score": float(right),
        "grade": {
            "expected": str(100000 + prompt),
            "depth": (prompt + 0.5) / point.prompts if depth is None else float(depth),
        },
        "nll_sum": None,
        "nll_tokens": None,
        "nll_buckets": None,
    }


def _scored(point: Point, prompt: int) -> dict[str, Any]:
    """ln p of SCORED tokens: the same for all candidates but for the shift of this prompt."""
    assert point.shifts is not None
    rng = np.random.default_rng(prompt)
    signs = np.where(np.arange(SCORED) % 2, -1.0, 1.0)
    logs = np.round(-2.0 - rng.exponential(1.0, SCORED) + signs * point.shifts[prompt], 5)
    return {
        "text": None,
        "correct": None,
        "score": None,
        "grade": {"logprobs": logs.tolist()},
        "nll_sum": float(-logs.sum()),
        "nll_tokens": SCORED,
        "nll_buckets": None,
    }


def _gpu(point: Point, power: Power, played: Played, start_ns: int, drain_end_ns: int) -> str:
    """The counter of a card that draws each phase's power, seen every GPU_PERIOD_S."""
    card = point.card or Card()
    watts = {"prefill": power.prefill_w, "decode": power.decode_w, "idle": power.idle_w}
    end_s = (drain_end_ns - start_ns) / NS + 3
    until = np.array([-3.0, 0.0, *(t for t, _ in played.busy), end_s])
    drawn = np.array([power.idle_w, *(watts[kind] for _, kind in played.busy), power.idle_w])
    drawn[1:-1] *= point.power_factor
    joules = np.concatenate(([0.0], np.cumsum(drawn * np.maximum(np.diff(until), 0))))
    at = np.arange(-2.0, end_s - 0.5, GPU_PERIOD_S)
    refreshed = np.floor(at / REFRESH_S + 1e-6) * REFRESH_S
    counter = np.interp(refreshed, until, joules)
    average = counter - np.interp(refreshed - 1.0, until, joules)
    unix = start_ns + np.rint(at * NS).astype(np.int64)
    fixed = (
        f'"host":"{card.host}","gpu_index":0,"gpu_uuid":"{card.uuid}","power_mem_w":null,'
        f'"sm_clock_mhz":1980,"mem_clock_mhz":2619,"temp_c":60,'
        f'"mem_used_bytes":{power.memory_bytes},"util_pct":100,"throttle_reasons":0,"error":null'
    )
    return "".join(
        f'{{"unix_ns":{t},"mono_ns":{t - MONO_OFFSET_NS},"read_ns":1000,"power_w":{w:.1f},'
        f'"power_avg_w":{w:.2f},"energy_mj":{mj},{fixed}}}\n'
        for t, w, mj in zip(
            unix.tolist(),
            average.tolist(),
            (np.rint(counter * 1000).astype(np.int64) + 5_000_000).tolist(),
            strict=True,
        )
    )


def _host(point: Point, start_ns: int, drain_end_ns: int) -> str:
    at = range(start_ns - NS, drain_end_ns + NS, round(HOST_PERIOD_S * NS))
    name = _host_name(point)
    return "".join(
        f'{{"unix_ns":{t},"mono_ns":{t - MONO_OFFSET_NS},"read_ns":1000,"host":"{name}",'
        f'"cpu_busy_share":0.2,"mem_used_bytes":{8 * GIB},"server_rss_bytes":{2 * GIB},'
        f'"server_cpu_s":{(t - start_ns) / NS + 10:.3f},"server_processes":2,'
        f'"cpu_energy_uj":null,"error":null}}\n'
        for t in at
    )


def _host_name(point: Point) -> str:
    return point.card.host if point.card else Card().host


def _prompt_key(point: Point) -> str:
    params = json.dumps(point.params, sort_keys=True)
    return f"{point.model}/{point.task}/{params}/{point.context}/{point.seed}"


def _seed(point: Point) -> int:
    """Of the noise of requests: another for each start of each candidate at each workload."""
    key = (
        f"{point.noise_seed}/{label(point)}/{point.server}/{point.arm}/{point.repeat}/"
        f"{_prompt_key(point)}/{point.load}/{point.folder}"
    )
    return int(_sha(key)[:15], 16)


def _canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _sha(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def write_sweep_yaml(folder: Path, points: list[Point], **chosen: Any) -> None:
    """The resolved sweep of the points; ``chosen`` are further keys, such as ``objective``."""
    configs = [config_of(point) for point in points]
    first = configs[0]

    def each(key: str) -> list[Any]:
        found: list[Any] = []
        for config in configs:
            if config[key] not in found:
                found.append(config[key])
        return found

    sweep = {
        "name": first["sweep"],
        "seed": first["seed"],
        "models": [model["name"] for model in each("model")],
        "backends": each("backend"),
        "repeats": len(each("repeat")),
        "contexts": each("context_tokens"),
        "tasks": each("task"),
        "loads": each("load"),
        "prompts_per_point": first["prompts_per_point"],
        "text_file": None,
        "server": first["server"],
        "phases": first["phases"],
        "slo": first["slo"],
        "telemetry": first["telemetry"],
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sweep.yaml").write_text(json.dumps(sweep | chosen, indent=1) + "\n")


def in_time(points: Iterable[Point], apart_s: float = 1000.0) -> list[Point]:
    """The points one after another, as a sweep runs them."""
    return [replace(p, started_s=p.started_s + i * apart_s) for i, p in enumerate(points)]

"""Write an example of a sweep's folder, from docs/contract.md alone:

    python docs/example/make.py FOLDER [SECONDS]

Two users in step, each request one second: the prompt takes half of it, then four tokens come, the last at
the end. The card takes 400 W while it serves and 100 W idle. SECONDS is the length of the measured phase:
6 in the example that lies beside this file; energy wants 60 and more.

Needs nothing but Python: it shows what a writer of run directories has to do.
"""

import hashlib
import json
import re
import sys
from pathlib import Path

NS = 1_000_000_000
START = 1_790_000_000 * NS  # unix, of the point
MONO = 5_000 * NS  # the same moment on the monotonic clock
WARMUP_S, USERS, CONTEXT, PROMPTS = 1, 2, 16, 2
CHUNKS_NS = [500_000_000, 650_000_000, 800_000_000, 1_000_000_000]
TOKENS = len(CHUNKS_NS)
BUSY_W, IDLE_W, IDLE_S = 400, 100, 34
UUID = "GPU-00000000-0000-0000-0000-000000000001"
SERVER_ID = "tiny-alpha-r0a0-20260921T141300Z"
SWEEP = "example"

point = {
    "sweep": SWEEP,
    "seed": 7,
    "repeat": 0,
    "arm": 0,
    "model": {
        "name": "tiny",
        "path": None,
        "build": {
            "config": {
                "model_type": "llama",
                "hidden_size": 256,
                "num_hidden_layers": 4,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "head_dim": 64,
                "max_position_embeddings": 8192,
            },
            "seed": 1,
            "vocab_size": 4096,
        },
        "weights": "random",
        "family": "attention",
        "max_model_len": 8192,
        "dtype": "bfloat16",
        "server_args": [],
        "note": None,
    },
    "backend": {"name": "alpha", "options": {}},
    "server": {
        "base_url": None,
        "served_model": None,
        "execution": "eager",
        "dtype": None,
        "kv_cache_dtype": "auto",
        "max_model_len": None,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
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
    },
    "task": {"name": "retrieve", "output_tokens": TOKENS, "requests": None, "params": {}},
    "context_tokens": CONTEXT,
    "load": {
        "kind": "closed",
        "users": USERS,
        "turns": 1,
        "turn_pause_s": 0.0,
        "rate_per_s": None,
        "arrivals": "poisson",
        "burstiness": 1.0,
        "ramp_to_per_s": None,
        "ramp_s": None,
        "trace": None,
        "trace_format": "mooncake",
        "trace_speed": 1.0,
        "trace_clip": False,
    },
    "phases": {
        "warmup_s": float(WARMUP_S),
        "measure_s": 6.0,  # set below
        "drain_s": 60.0,
        "requests": None,
        "request_timeout_s": 300.0,
    },
    "slo": {"ttft_s": 1.0, "tpot_s": None, "e2e_s": None},
    "telemetry": {"period_s": 1.0, "scrape_s": 3.0, "idle_s": float(IDLE_S)},
    "prompts_per_point": PROMPTS,
    "text_file": None,
}


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def config_hash() -> str:
    """Of the point without what does not make it another measurement."""
    server = {k: v for k, v in point["server"].items() if k not in ("port", "boot_timeout_s")}
    return sha256(canonical({**point, "server": server}).encode())


def lines(rows: list[dict]) -> str:
    return "".join(json.dumps(row, separators=(",", ":")) + "\n" for row in rows)


def put(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def both(at_ns: int) -> dict:
    """A moment on both clocks; ``at_ns`` counts from the point's start."""
    return {"unix_ns": START + at_ns, "mono_ns": MONO + at_ns}


def prompts() -> tuple[str, list[str]]:
    """The prompt file, and the hash of each prompt."""
    made = []
    for index in range(PROMPTS):
        token_ids = [100 + index, *range(1, CONTEXT)]
        made.append(
            {
                "prompt_index": index,
                "task": "retrieve",
                "context_tokens": CONTEXT,
                "token_ids": token_ids,
                "sha256": sha256(json.dumps(token_ids, separators=(",", ":")).encode()),
                "output_tokens": TOKENS,
                "answer": {"expected": "424242"},
            }
        )
    request = {
        "model_path": "models/tiny",
        "task": point["task"],
        "context_tokens": CONTEXT,
        "count": PROMPTS,
        "seed": point["seed"],
        "text_file": None,
    }
    body = lines(made)
    head = {"request": request, "sha256": sha256(body.encode()), "inputs": {}}
    return lines([head]) + body, [prompt["sha256"] for prompt in made]


def requests(run_id: str, hashes: list[str], cycles: int) -> list[dict]:
    return [
        {
            "run_id": run_id,
            "client_id": "client",
            "request_id": f"{run_id}-{cycle}-{user}",
            "phase": "warmup" if cycle < WARMUP_S else "measure",
            "task": "retrieve",
            "prompt_index": user,
            "prompt_sha256": hashes[user],
            "context_tokens_target": CONTEXT,
            "max_output_tokens": TOKENS,
            "in_flight_at_send": user,  # the first finds none open, the second the first
            "prompt_tokens": CONTEXT,
            "cached_tokens": 0,
            "output_tokens": TOKENS,
            "sent_unix_ns": START + cycle * NS,
            "sent_mono_ns": MONO + cycle * NS,
            "first_token_ns": CHUNKS_NS[0],
            "last_token_ns": CHUNKS_NS[-1],
            "end_ns": NS,
            "chunk_ns": CHUNKS_NS,
            "chunk_tokens": [1, 2, 3, 4],
            "http_status": 200,
            "finish_reason": "length",
            "error_type": None,
            "user": user,
        }
        for cycle in range(cycles)
        for user in range(USERS)
    ]


def answers(rows: list[dict]) -> list[dict]:
    """The first prompt is answered right, the second wrong."""
    return [
        {
            "request_id": row["request_id"],
            "task": "retrieve",
            "prompt_index": row["prompt_index"],
            "text": " 424242." if row["prompt_index"] == 0 else " 171717.",
            "correct": row["prompt_index"] == 0,
            "score": 1.0 if row["prompt_index"] == 0 else 0.0,
            "grade": {"expected": "424242", "depth": 0.25 + row["prompt_index"] / 2},
        }
        for row in rows
    ]


def gpu(first_s: int, last_s: int, watts: int, start_mj: int) -> list[dict]:
    return [
        {
            **both(second * NS),
            "read_ns": 1_000_000,
            "host": "example-host",
            "gpu_index": 0,
            "gpu_uuid": UUID,
            "power_avg_w": float(watts),
            "energy_mj": start_mj + (second - first_s) * watts * 1000,
            "sm_clock_mhz": 1980,
            "mem_clock_mhz": 2619,
            "mem_used_bytes": 8 << 30,
            "util_pct": 100 if watts == BUSY_W else 0,
            "throttle_reasons": 0,
        }
        for second in range(first_s, last_s + 1)
    ]


def host(first_s: int, last_s: int) -> list[dict]:
    return [
        {
            **both(second * NS),
            "read_ns": 1_000_000,
            "host": "example-host",
            "cpu_busy_share": 0.1,
            "mem_used_bytes": 4 << 30,
            "server_rss_bytes": 2 << 30,
            "server_cpu_s": float(second - first_s),
            "server_processes": 2,
        }
        for second in range(first_s, last_s + 1, 3)
    ]


def scrapes(cycles: int) -> list[dict]:
    """One before the first request, then every three seconds, the last after the last request."""
    rows = []
    for second in [-1, *range(2, cycles, 3), cycles + 1]:
        running = USERS if 0 <= second < cycles else 0
        done = min(max(second, 0), cycles)
        for metric, value in (
            ("vllm:num_requests_running", running),
            ("vllm:num_requests_waiting", 0),
            ("vllm:kv_cache_usage_perc", 0.2 if running else 0.0),
            ("vllm:generation_tokens_total", 1000 + done * USERS * TOKENS),
        ):
            row = {"metric": metric, "labels": {"engine": "0"}, "value": float(value)}
            rows.append(both(second * NS) | row)
    return rows


def iterations(cycles: int) -> str:
    """The engine's log: a step that reads both prompts, then one for each further token."""
    text = []
    for cycle in range(cycles):
        for step, at_ns in enumerate(CHUNKS_NS):
            at = START + cycle * NS + at_ns
            took_ms = (at_ns - (CHUNKS_NS[step - 1] if step else 0)) / 1e6
            context = USERS if step == 0 else 0
            text.append(
                f"{at // NS}.{at % NS // 1000:06d} (EngineCore pid=1) INFO 09-21 14:13:20 [loggers.py:199] "
                f"Engine 000: Iteration({cycle * TOKENS + step}): {context} context requests, "
                f"{context * CONTEXT} context tokens, {USERS - context} generation requests, "
                f"{USERS - context} generation tokens, iteration elapsed time: {took_ms:.2f} ms, "
                f"GPU KV cache usage: 20.0%\n"
            )
    return "".join(text)


def sources() -> dict:
    there = {"status": "available", "reason": None}
    return {
        "counter": {**there, "refresh_s": {UUID: 1.0}},
        "average": {**there, "refresh_s": {UUID: 1.0}},
        "instant": {"status": "unavailable", "reason": "not read in this example"},
        "rapl": {"status": "unavailable", "reason": "no counters in this example"},
        "metrics": there,
        "facts": {
            "cpu": {"name": "Example CPU", "threads": 8, "cores": 8, "ram_bytes": 16 << 30},
            "gpus": [
                {
                    "index": 0,
                    "uuid": UUID,
                    "name": "NVIDIA H200",
                    "scope": "gpu",
                    "visible": True,
                    "mig": False,
                    "virtual": False,
                    "own_pids": [4711],
                    "foreign_pids": [],
                }
            ],
            "sampler": None,
        },
    }


def server() -> dict:
    return {
        "server_id": SERVER_ID,
        "requested_backend": "alpha",
        "backend_options": {},
        "observed_backend": "AlphaImpl x4",
        "proof": "proven",
        "proof_detail": {},
        "model": "tiny",
        "model_path": "models/tiny",
        "weights": "random",
        "dtype": "bfloat16",
        "kv_cache_dtype": "auto",
        "execution": "eager",
        "tensor_parallel": 1,
        "max_model_len": 8192,
        "kv_cache_tokens": 65536,
        "kv_cache_bytes": 65536 * 2048,
        "weights_bytes": 8_000_000,
        "base_url": "http://127.0.0.1:8000",
        "served_model": "tiny",
        "pid": 4711,
        "argv": ["vllm", "serve", "models/tiny"],
        "env": {},
        "vllm_version": "0.32.0",
        "async_scheduling": False,
        "ready_s": 12.5,
        "boot_stages_s": {},
    }


def main(out: Path, seconds: int) -> None:
    point["phases"]["measure_s"] = float(seconds)
    cycles = WARMUP_S + seconds
    hashed = config_hash()
    run_id = f"20260921T141320Z-alpha-retrieve-{CONTEXT}-closed{USERS}-{hashed[:8]}"
    run = out / run_id
    prompt_text, hashes = prompts()
    hash8 = sha256(canonical(json.loads(prompt_text.splitlines()[0])["request"]).encode())[:8]
    prompt_path = out / "prompts" / f"tiny-retrieve-{CONTEXT}-{hash8}.jsonl"
    put(prompt_path, prompt_text)
    live = {
        "point": point,
        "run_id": run_id,
        "base_url": "http://127.0.0.1:8000",
        "served_model": "tiny",
        "prompts_path": f"prompts/{prompt_path.name}",
        "prompts_sha256": sha256(prompt_text.encode()),
        "server_pid": 4711,
    }
    put(run / "config.yaml", json.dumps(live, indent=1) + "\n")
    marks = {
        "clock_anchor": -NS,
        "warmup_start": 0,
        "measure_start": WARMUP_S * NS,
        "measure_end": cycles * NS,
        "drain_end": cycles * NS,
    }
    put(run / "events.jsonl", lines([{**both(at), "name": name} for name, at in marks.items()]))
    rows = requests(run_id, hashes, cycles)
    put(run / "requests" / "client.jsonl", lines(rows))
    put(run / "outputs" / "client.jsonl", lines(answers(rows)))
    put(run / "telemetry" / "gpu.jsonl", lines(gpu(-1, cycles + 1, BUSY_W, 1_000_000)))
    put(run / "telemetry" / "host.jsonl", lines(host(-1, cycles + 1)))
    put(run / "telemetry" / "server.jsonl", lines(scrapes(cycles)))
    put(run / "telemetry" / "sources.json", json.dumps(sources(), indent=1) + "\n")
    put(run / "logs" / "server.log", iterations(cycles))
    home = out / "servers" / SERVER_ID
    state = {"state": "stopped", "error": None, "server": server()}
    put(home / "server.json", json.dumps(state, indent=1) + "\n")
    put(home / "server.log", "1789999990.000000 INFO 1.50 GiB for peak activation\n")
    idle_s = IDLE_S if seconds >= 60 else 4  # a short one is refused, and stands for its form
    for name, first_s in (("idle_before", -idle_s - 10), ("idle_after", cycles + 10)):
        put(
            home / name / "telemetry" / "gpu.jsonl",
            lines(gpu(first_s, first_s + idle_s, IDLE_W, 1)),
        )
        put(home / name / "telemetry" / "sources.json", json.dumps(sources(), indent=1) + "\n")
    files = sorted(path for path in run.rglob("*") if path.is_file())
    manifest = {
        "schema_version": "1.0",
        "run_id": run_id,
        "sweep": SWEEP,
        "status": "complete",
        "invalid_reasons": [],
        "failure": None,
        "config_hash": hashed,
        "seed": point["seed"],
        "created_unix_ns": START - NS,
        "sweep_pid": None,
        "clock": {**both(-NS), "host": "example-host"},
        "code": {
            "git_sha": None,
            "dirty": None,
            "greenbench": "0.1.0",
            "python": "3.11",
            "packages": {},
        },
        "host": {
            "cpu": "Example CPU",
            "cores": 8,
            "ram_bytes": 16 << 30,
            "kernel": "6.1",
            "cpu_flags": [],
            "driver": "580.0",
            "cuda": None,
            "gpus": [{"index": 0, "uuid": UUID, "name": "NVIDIA H200", "memory_bytes": 141 << 30}],
        },
        "server": server(),
        "load": point["load"],
        "point": {
            "model": "tiny",
            "backend": "alpha",
            "task": "retrieve",
            "context_tokens": CONTEXT,
            "load": f"closed{USERS}",
            "repeat": 0,
            "arm": 0,
            "slo": point["slo"],
        },
        "phases": {
            "warmup": [START, START + WARMUP_S * NS],
            "measure": [START + WARMUP_S * NS, START + cycles * NS],
            "drain": [START + cycles * NS, START + cycles * NS],
        },
        "counts": {
            "scheduled": 0,
            "sent": len(rows),
            "ok": len(rows),
            "failed": 0,
            "rows": len(rows),
        },
        "client_audit": {},
        "files": {
            path.relative_to(run).as_posix(): {
                "rows": path.read_bytes().count(b"\n") if path.suffix == ".jsonl" else None,
                "sha256": sha256(path.read_bytes()),
            }
            for path in files
        },
    }
    text = json.dumps(manifest, indent=1)
    text = re.sub(r"\[\s+(\d+),\s+(\d+)\s+\]", r"[\1, \2]", text)  # a phase on one line
    put(run / "manifest.json", text + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 6)

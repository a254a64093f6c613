"""Small result files in the forms that other load generators' versions write, with figures chosen by hand.

Every request is sent at a whole second, its first token comes after 0.2 s, and four more 0.1 s apart: five
tokens, 0.6 s. ``PROMPT`` tokens in.
"""

import json
from pathlib import Path
from typing import Any

T0 = 1_795_000_000  # unix seconds of the first request
PROMPT, TOKENS, TTFT_S, GAP_S, E2E_S = 100, 5, 0.2, 0.1, 0.6
NS = 1_000_000_000


def write_json(path: Path, *values: Any) -> Path:
    """The values one after the other, a line each."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(value) + "\n" for value in values))
    return path


def vllm_bench(requests: int = 4, **changes: Any) -> dict[str, Any]:
    """As vLLM 0.15 and later write it; a change to None takes the key away."""
    whole = {
        "date": "20261123-101500",
        "endpoint_type": "vllm",
        "backend": "vllm",
        "model_id": "acme/llm",
        "num_prompts": requests,
        "request_rate": 1.0,
        "burstiness": 1.0,
        "max_concurrency": None,
        "duration": float(requests),
        "completed": requests,
        "total_output_tokens": requests * TOKENS,
        "input_lens": [PROMPT] * requests,
        "output_lens": [TOKENS] * requests,
        "ttfts": [TTFT_S] * requests,
        "itls": [[GAP_S] * (TOKENS - 1)] * requests,
        "start_times": [1000.0 + n for n in range(requests)],
        "errors": [""] * requests,
    } | changes
    return {key: value for key, value in whole.items() if value is not None}


def guidellm_request(number: int, **timings: Any) -> dict[str, Any]:
    """One request as GuideLLM writes it since 0.4."""
    sent = T0 + number
    return {
        "type_": "generative_request_stats",
        "info": {
            "error": None,
            "timings": {
                "targeted_start": sent - 0.01,
                "request_start": sent,
                "first_token_iteration": sent + TTFT_S,
                "last_token_iteration": sent + E2E_S,
                "request_end": sent + E2E_S,
                "resolve_end": sent + E2E_S,
            }
            | timings,
        },
        "prompt_tokens": PROMPT,
        "output_tokens": TOKENS,
    }


def guidellm(
    good: int = 3,
    cut: int = 0,
    unsent: int = 0,
    strategy: dict[str, Any] | None = None,
    version: str | None = "0.8.1",
    **config: Any,
) -> dict[str, Any]:
    """A file of one benchmark as GuideLLM writes it since 0.4; 0.5 added ``metadata``."""
    started = [guidellm_request(n) for n in range(good)]
    ended_none = {"request_end": T0 + 3.5, "last_token_iteration": None}
    benchmark = {
        "type_": "generative_benchmark",
        "config": {
            "strategy": strategy or {"type_": "constant", "rate": 1.0},
            "backend": {"model": "acme/llm"},
            "sample_size": None,
            "warmup": {"percent": None, "value": None},
            "cooldown": {"percent": None, "value": None},
        }
        | config,
        "scheduler_metrics": {
            "requests_made": {
                "successful": good,
                "errored": 0,
                "incomplete": cut + unsent,
                "total": good + cut + unsent,
            }
        },
        "requests": {
            "successful": started,
            "errored": [],
            "incomplete": [guidellm_request(good + n, **ended_none) for n in range(cut)],
        },
    }
    head = {"metadata": {"guidellm_version": version}} if version else {"args": {}}
    return head | {"benchmarks": [benchmark]}


def guidellm_0_3(good: int = 3) -> dict[str, Any]:
    """A file of one benchmark before GuideLLM 0.4: flat requests, −1 for no time."""
    rows = [
        {
            "type_": "generative_text_response",
            "scheduler_info": {"targeted_start_time": T0 + n - 0.01},
            "prompt_tokens": PROMPT,
            "output_tokens": TOKENS,
            "start_time": T0 + n,
            "end_time": T0 + n + E2E_S,
            "first_token_time": T0 + n + TTFT_S,
            "last_token_time": T0 + n + E2E_S,
        }
        for n in range(good)
    ]
    failed = {
        **rows[0],
        "type_": "generative_text_error",
        "error": "HTTP 500",
        "output_tokens": 0,
        "first_token_time": None,
        "last_token_time": -1,
    }
    return {
        "benchmarks": [
            {
                "type_": "generative_benchmark",
                "args": {"strategy": {"type_": "concurrent", "streams": 2}},
                "worker": {"backend_model": "acme/llm"},
                "request_totals": {
                    "successful": good,
                    "errored": 1,
                    "incomplete": 0,
                    "total": good + 1,
                },
                "requests": {"successful": rows, "errored": [failed], "incomplete": []},
            }
        ]
    }


def aiperf_row(number: int, issued: bool = True, **metrics: Any) -> dict[str, Any]:
    sent = (T0 + number) * NS
    meta = {
        "request_start_ns": sent,
        "request_end_ns": sent + round(E2E_S * NS),
        "benchmark_phase": "profiling",
        "was_cancelled": False,
    }
    if issued:
        meta["credit_issued_ns"] = sent - NS // 100
    measured = {
        "time_to_first_token": {"value": TTFT_S * 1e3, "unit": "ms"},
        "inter_chunk_latency": {"value": [GAP_S * 1e3] * (TOKENS - 1), "unit": "ms"},
        "input_sequence_length": {"value": PROMPT, "unit": "tokens"},
        "output_sequence_length": {"value": TOKENS, "unit": "tokens"},
    }
    return {"metadata": meta, "metrics": measured | metrics, "error": None}


def write_aiperf(
    folder: Path, config: dict[str, Any], issued: bool = True, prefix: str | None = None
) -> Path:
    """Both files, three requests; ``config``: what the summary says of models and load."""
    rows = [aiperf_row(n, issued) for n in range(3)]
    names = (f"{prefix}.jsonl", f"{prefix}.json") if prefix else ("profile_export.jsonl", "")
    records = write_json(folder / names[0], *rows)
    whole = {"aiperf_version": "0.6.0", "input_config": config}
    write_json(folder / (names[1] or "profile_export_aiperf.json"), whole)
    return records


INFERENCE_PERF_CONFIG = """\
load: {type: constant, stages: [{rate: 1.0, duration: 3}]}
server: {model_name: acme/llm}
"""


def inference_perf_rows(form: str) -> list[dict[str, Any]]:
    """Three requests; ``form`` is the version after which the answer's figures moved."""
    return [_inference_perf_row(100.0 + n, form) for n in range(3)]


def _inference_perf_row(sent: float, form: str) -> dict[str, Any]:
    times = [sent + TTFT_S + GAP_S * n for n in range(TOKENS)]
    answer: dict[str, Any] = {"output_tokens": TOKENS, "output_token_times": times}
    info: dict[str, Any] = {
        "0.2": {"input_tokens": PROMPT, **answer},
        "0.5": {"input_tokens": PROMPT, "response_info": answer},
        "0.6": {
            "request_metrics": {"text": {"input_tokens": PROMPT}},
            "response_metrics": {"output_tokens": TOKENS, "chunk_times": times},
        },
    }[form]
    return {"start_time": sent, "end_time": sent + E2E_S, "info": info, "error": None}


def write_inference_perf(folder: Path, form: str, config: str = INFERENCE_PERF_CONFIG) -> Path:
    path = folder / "per_request_lifecycle_metrics.json"
    write_json(path, inference_perf_rows(form))
    (folder / "config.yaml").write_text(config)
    return path

"""Run directories for the load generator's tests: a prompt file of made-up ids and a config.yaml."""

import random
from pathlib import Path
from typing import Any

from greenbench.contract.config import LivePoint, PromptRequest, TaskConfig, dump_yaml, parse
from greenbench.contract.run_dir import file_sha256
from loadgen.prompts.prompt_file import Prompt, token_sha256, write_prompts
from loadgen.tasks import TASKS


def make_prompts(task: str, context: int, count: int, output_tokens: int) -> list[Prompt]:
    rng = random.Random(f"{task}/{context}")
    answers: dict[str, dict[str, Any]] = {
        "perplexity": {"buckets": 4},
        "retrieve": {"expected": "12345", "subject": "a harbour", "depth": 0.5},
        "summarize": {"expected": ["12345"]},
    }
    rows: list[Prompt] = []
    for index in range(count):
        ids = [rng.randrange(10, 4000) for _ in range(context)]
        rows.append(
            Prompt(index, task, context, ids, token_sha256(ids), output_tokens, answers[task])
        )
    return rows


def make_run(
    folder: Path,
    base_url: str,
    *,
    task: str = "retrieve",
    context: int = 64,
    count: int = 4,
    output_tokens: int = 8,
    load: dict[str, Any] | None = None,
    phases: dict[str, Any] | None = None,
    seed: int = 7,
) -> Path:
    """A point's directory, ready for ``--run-dir``; its path."""
    run = folder / "run"
    run.mkdir(parents=True)
    prompts_path = folder / "prompts.jsonl"
    tokens = output_tokens if TASKS[task].streaming else 1
    request = PromptRequest(
        model_path="none",
        task=TaskConfig(name=task),
        context_tokens=context,
        count=count,
        seed=seed,
    )
    write_prompts(prompts_path, request, make_prompts(task, context, count, tokens))
    point = {
        "sweep": "test",
        "seed": seed,
        "repeat": 0,
        "model": {"name": "golden", "path": "none", "max_model_len": 8192},
        "backend": {"name": "sdpa"},
        "server": {"base_url": base_url},
        "task": {"name": task},
        "context_tokens": context,
        "load": load or {"kind": "closed", "users": 2},
        "phases": {"warmup_s": 0.2, "measure_s": 0.6, "drain_s": 1, "request_timeout_s": 5}
        | (phases or {}),
        "slo": {},
        "telemetry": {},
        "prompts_per_point": count,
    }
    live = {
        "point": point,
        "run_id": "20261123T000000Z-sdpa-test",
        "base_url": base_url,
        "served_model": "golden",
        "prompts_path": str(prompts_path),
        "prompts_sha256": file_sha256(prompts_path),
    }
    (run / "config.yaml").write_text(dump_yaml(parse(LivePoint, live, "test")))
    return run

"""A run outside a sweep: ask the server which model it serves, make prompts, write a point directory.

The directory has the shape of a sweep's point (config.yaml, requests/, outputs/, events.jsonl) but no
manifest: it proves nothing about the server, and no report is made of it.
"""

import argparse
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from greenbench.contract.config import (
    BackendChoice,
    LivePoint,
    LoadConfig,
    ModelConfig,
    PhaseConfig,
    PromptRequest,
    ServerConfig,
    SweepConfig,
    TaskConfig,
    dump_yaml,
    points_of,
)
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import file_sha256, write_atomic
from loadgen.make_prompts import make_files

DEFAULT_URL = "http://127.0.0.1:8000"  # where `make serve` listens
DAY_S = 86_400.0  # measure until a person stops


@dataclass(frozen=True, slots=True)
class Options:
    """What may be chosen for a run outside a sweep."""

    task: str
    context_tokens: int
    prompts: int
    seed: int
    model_path: str  # of the tokenizer; empty: where the server says its model is
    users: int = 1

    @classmethod
    def of(cls, options: argparse.Namespace) -> "Options":
        return cls(
            task=options.task,
            context_tokens=options.context_tokens,
            prompts=options.prompts,
            seed=options.seed,
            model_path=options.model_path,
            users=getattr(options, "num_users", None) or 1,
        )


def prepare(host: str | None, options: argparse.Namespace) -> Path:
    """Make the prompts and the directory of one run of the locustfile; the directory's path."""
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    run_path = Path(options.out) / f"{stamp}-{options.task}-{options.context_tokens}"
    write_point(run_path, host, Options.of(options))
    return run_path


def write_point(run_path: Path, host: str | None, options: Options) -> None:
    """Write prompts and config.yaml for a server that runs. What is wrong raises UserError."""
    base_url = (host or DEFAULT_URL).rstrip("/")
    served, root, window = served_model(base_url)
    task = TaskConfig(name=options.task)
    request = PromptRequest(
        model_path=options.model_path or root,
        task=task,
        context_tokens=options.context_tokens,
        count=options.prompts,
        seed=options.seed,
    )
    prompts_path = run_path / "prompts.jsonl"
    make_files([(request, prompts_path)])
    sweep = SweepConfig(
        name="adhoc",
        seed=options.seed,
        models=[served],
        backends=["unknown"],
        contexts=[options.context_tokens],
        tasks=[task],
        loads=[LoadConfig(kind="closed", users=options.users)],
        server=ServerConfig(base_url=base_url),
        phases=PhaseConfig(warmup_s=0, measure_s=DAY_S),
        prompts_per_point=options.prompts,
    )
    model = ModelConfig(name=served, path=root, max_model_len=window)
    [point] = points_of(sweep, model, BackendChoice(name="unknown"))
    live = LivePoint(
        point=point,
        run_id=run_path.name,
        base_url=base_url,
        served_model=served,
        prompts_path=str(prompts_path.resolve()),
        prompts_sha256=file_sha256(prompts_path),
    )
    write_atomic(run_path / "config.yaml", dump_yaml(live))


def served_model(base_url: str) -> tuple[str, str, int]:
    """(name to ask for, path of its files, window in tokens) of the first model that is served."""
    try:
        reply = httpx.get(f"{base_url}/v1/models", timeout=10, trust_env=False)
        reply.raise_for_status()
        first: dict[str, Any] = reply.json()["data"][0]
    except (httpx.HTTPError, ValueError, LookupError) as error:
        raise UserError(
            f"no model server answers at {base_url} ({error}); start one with `make serve`, "
            "or give its address with -H http://host:port"
        ) from error
    return first["id"], first.get("root") or first["id"], first.get("max_model_len") or 1 << 20

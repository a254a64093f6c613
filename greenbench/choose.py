"""``greenbench choose``: which backends run here is asked, and a sweep of them is planned."""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.backend_names import parse_choices
from greenbench.contract.candidates import choice_of
from greenbench.contract.config import (
    BackendChoice,
    ModelConfig,
    ServerConfig,
    ServerRequest,
    SloConfig,
    SweepConfig,
    load_model,
    parse,
)
from greenbench.contract.errors import UserError
from greenbench.contract.launch import LaunchPlan
from greenbench.contract.run_dir import slug
from greenbench.sweep.child_processes import call_json, python_module

CONTEXTS = (2048, 8192, 32768)  # unless a person names others: those that fit the model's window
OUTPUT_ROOM = 512  # tokens of the window that a default context leaves for the answer
REPEATS = 3  # the fewest whose differences are tested; fewer where the time does not allow them
ANSWERS = (
    64  # prompts of a graded task: enough to pass the gate where two answers differ (docs/tasks.md)
)
LINES = 3


NO_SLO = SloConfig()


@dataclass(frozen=True)
class Machine:
    """What a sweep is planned with, by whether a GPU serves."""

    users: int
    batched_tokens: int
    tasks: tuple[dict[str, Any], ...]
    random_tasks: tuple[dict[str, Any], ...]  # answers of random weights say nothing
    phases: dict[str, Any]


CPU = Machine(
    users=2,
    batched_tokens=2048,
    tasks=({"name": "retrieve", "requests": ANSWERS},),
    random_tasks=({"name": "retrieve", "requests": ANSWERS},),
    phases={"warmup_s": 1, "measure_s": 120, "drain_s": 60},
)
GPU = Machine(
    users=8,
    batched_tokens=8192,
    tasks=(
        {"name": "retrieve", "output_tokens": 128},
        {"name": "multi_key", "requests": ANSWERS},
        {"name": "variables", "requests": ANSWERS},
    ),
    random_tasks=({"name": "retrieve", "output_tokens": 128},),
    phases={"warmup_s": 5, "measure": "auto", "cap_s": 180, "drain_s": 60},
)


@dataclass(frozen=True)
class Wish:
    """What a person asked for. ``contexts`` and ``backends``: None where the tool is to choose."""

    model: str
    contexts: tuple[int, ...] | None = None
    backends: tuple[BackendChoice, ...] | None = None
    objective: str | None = None
    slo: SloConfig = NO_SLO
    users: int | None = None


def parse_contexts(text: str) -> tuple[int, ...]:
    """``2k,8k,32768`` as tokens, shortest first; k is 1,024."""
    found: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d{1,9})(k?)", part.strip().lower())
        if match is None or int(match[1]) == 0:
            raise UserError(f"--contexts wants lengths such as 2k,8k,32k, found '{part.strip()}'")
        found.append(int(match[1]) * (1024 if match[2] else 1))
    return tuple(sorted(set(found)))


def parse_backends(text: str) -> tuple[BackendChoice, ...]:
    return tuple(parse_choices(text))


def plan_choice(wish: Wish, gpus: bool, say: Callable[[str], None]) -> SweepConfig:
    """The sweep that answers the wish on this machine. UserError where fewer than two backends can run."""
    model = load_model(wish.model)
    machine = GPU if gpus else CPU
    server = ServerConfig(max_num_batched_tokens=machine.batched_tokens)
    rows = call_json(python_module("servers", "backends", "--json"))
    choices = list(wish.backends or [choice_of(row["name"]) for row in rows if row["can_run"]])
    plans = _plans(model, choices, server)
    able = [c for c, plan in zip(choices, plans, strict=True) if not plan.refusals]
    for choice, plan in zip(choices, plans, strict=True):
        if plan.refusals and wish.backends:
            say(f"skipped {choice.label}: {'; '.join(plan.refusals)}")
    chosen = able if wish.backends else best_of(able, rows)
    if not chosen:
        why = "; ".join(dict.fromkeys(reason for plan in plans for reason in plan.refusals))
        raise UserError(
            f"no backend can serve {model.name} here: {why or 'none runs on this host'}"
        )
    window = min((p.max_model_len for p in plans if p.max_model_len), default=None)
    contexts = wish.contexts or default_contexts(window)
    say(f"candidates: {', '.join(choice.label for choice in chosen)}; contexts: "
        f"{', '.join(f'{context:,}' for context in contexts)} tokens")  # fmt: skip
    tasks = machine.random_tasks if model.weights == "random" else machine.tasks
    wanted = {
        "name": f"choose-{slug(model.name)}",
        "models": [wish.model],
        "backends": [*chosen],
        "repeats": REPEATS,
        "contexts": [*contexts],
        "tasks": [*tasks],
        "loads": [{"kind": "closed", "users": wish.users or machine.users}],
        "objective": wish.objective,
        "prompts_per_point": ANSWERS,
        "server": server.model_copy(update={"execution": common_execution(chosen, rows, gpus)}),
        "phases": machine.phases,
        "slo": wish.slo,
    }
    return parse(SweepConfig, wanted, "choose")


def _plans(
    model: ModelConfig, choices: Sequence[BackendChoice], server: ServerConfig
) -> list[LaunchPlan]:
    requests = [ServerRequest(model=model, backend=choice, server=server) for choice in choices]
    asked = [request.model_dump(mode="json") for request in requests]
    told = call_json(python_module("servers", "plan"), asked)
    return [parse(LaunchPlan, one, "python -m servers plan") for one in told]


Rows = Sequence[dict[str, Any]]  # of ``python -m servers backends --json``


def best_of(able: Sequence[BackendChoice], rows: Rows) -> list[BackendChoice]:
    """The exact backends of vLLM itself; with one of ours where there is only one of those.

    A row that leaves to vLLM which version runs gives way to the rows of the versions.
    """
    by_name = {row["name"]: row for row in rows}
    known = [by_name[choice.name] for choice in able]
    versioned = {row["vllm_name"] for row in known if row["flash_attn_version"] is not None}
    exact = [
        choice
        for choice, row in zip(able, known, strict=True)
        if row["exact"]
        and (row["flash_attn_version"] is not None or row["vllm_name"] not in versioned)
    ]
    own = [choice for choice in exact if not by_name[choice.name]["ours"]]
    ours = [choice for choice in exact if choice not in own]
    return own if len(own) > 1 else [*own, *ours][:2]


def common_execution(choices: Sequence[BackendChoice], rows: Rows, gpus: bool) -> str:
    """The fastest mode that all of them can run: CUDA graphs where a GPU serves."""
    if not gpus:
        return "eager"
    by_name = {row["name"]: set(row["executions"]) for row in rows}
    sets = [by_name.get(choice.name, {"eager"}) for choice in choices]
    return next(mode for mode in ("full", "piecewise", "eager") if all(mode in s for s in sets))


def default_contexts(window: int | None) -> tuple[int, ...]:
    """Those of CONTEXTS that fit; of a shorter window half of it."""
    fit = tuple(c for c in CONTEXTS if window is None or c + OUTPUT_ROOM <= window)
    return fit or (max(1, (window or CONTEXTS[0]) // 2),)


def answer(summary: Path) -> list[str]:
    """The first sentences of a report: what to use, what it costs, what may not be used.

    Empty where nothing could be compared. UserError when it cannot be read.
    """
    try:
        told = json.loads(summary.read_text())
        headline, said = told["headline"], told["sentences"]
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{summary}: no summary of a report can be read ({error})") from error
    if not headline:
        return []
    return [sentence.replace("**", "").replace("`", "") for sentence in said[:LINES]]

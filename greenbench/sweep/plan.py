"""What a sweep will run: server starts and their points, checked before the first server boots."""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from greenbench.contract.access import access
from greenbench.contract.candidates import Contender
from greenbench.contract.config import (
    ServerConfig,
    SweepConfig,
    check_files,
    load_model,
    parse,
)
from greenbench.contract.connection import NO_MEASUREMENT
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.launch import LaunchPlan
from greenbench.contract.served import find_endpoint, served_models
from greenbench.sweep.child_processes import (
    call,
    call_json,
    python_module,
)
from greenbench.sweep.order import (
    ServerStart,
    check_names,
    check_window,
    expand,
    quality_warnings,
)


@dataclass(frozen=True, slots=True)
class Plan:
    """A server start, and how the launcher would start it."""

    start: ServerStart
    launch: LaunchPlan


def plan_sweep(sweep: SweepConfig, blocks: frozenset[int] | None = None) -> list[Plan]:
    """Expand the sweep, or some repeats, and have the other stages check every name. Raises UserError."""
    check_files(sweep)
    candidates = _attached(sweep.contenders)
    models = [load_model(name) for name in sweep.models]
    check_names(sweep, models)
    every = expand(sweep, models, candidates)
    starts = [start for start in every if blocks is None or start.repeat in blocks]
    tasks = call_json(python_module("loadgen", "tasks"))
    check_tasks(sweep, tasks)
    check_objective(sweep)
    if traces := traces_of(sweep):
        call(python_module("loadgen", "traces"), traces)
    requests = [start.request.model_dump(mode="json") for start in starts]
    launches = [
        parse(LaunchPlan, launch, "python -m servers plan")
        for launch in call_json(python_module("servers", "plan"), requests)
    ]
    plans = [Plan(start, launch) for start, launch in zip(starts, launches, strict=True)]
    windows = [
        (_window_owner(plan.start), plan.launch.max_model_len)
        for plan in plans
        if not plan.launch.refusals
    ]
    check_window(sweep, windows, {name: task["output_tokens"] for name, task in tasks.items()})
    return plans


def _window_owner(start: ServerStart) -> str:
    model = f"model '{start.request.model.name}'"
    return (
        model if start.request.server.max_model_len is None else f"{start.candidate} with {model}"
    )


def _attached(candidates: Sequence[Contender]) -> list[Contender]:
    """Each with its server as it is reached; one server is asked once."""
    reached: dict[str, ServerConfig] = {}
    for who in candidates:
        key = who.server.model_dump_json()
        reached[key] = reached.get(key) or attached(who.server)
    return [replace(who, server=reached[who.server.model_dump_json()]) for who in candidates]


def unknown_shapes(plans: list[Plan]) -> list[str]:
    """A sentence for each model of which too little could be found out before its server starts."""
    said = (
        _unknown(plan.launch, plan.start.request.model.name)
        for plan in plans
        if not plan.launch.refusals and plan.start.request.server.base_url is None
    )
    return list(dict.fromkeys(sentence for sentence in said if sentence))


def _unknown(launch: LaunchPlan, model: str) -> str | None:
    if launch.unknown is not None:
        return f"{model}: its window, head size and cache are not known, because {launch.unknown}"
    if launch.max_model_len is None:
        return (
            f"{model}: its config gives no window, and vLLM then serves 2048 tokens: "
            "set server.max_model_len"
        )
    return None


def environment_notes(plans: list[Plan]) -> list[str]:
    """A sentence on the variables that are set here and do not reach the servers that are started."""
    started = [plan for plan in plans if plan.start.request.server.base_url is None]
    names = dict.fromkeys(name for plan in started for name in plan.launch.env_left_out)
    if not names:
        return []
    return [
        f"set here and not passed on to vLLM: {', '.join(names)}; `env:` under `server:` passes more"
    ]


def traces_of(sweep: SweepConfig) -> list[dict[str, Any]]:
    """What ``python -m loadgen traces`` is to read: each recorded load at each context that clips it."""
    return [
        {"load": load.alone.model_dump(mode="json"), "context_tokens": context}
        for load in sweep.loads
        for context in sweep.contexts
        if load.trace is not None and load.at(context)
    ]


def attached(server: ServerConfig) -> ServerConfig:
    """Of a running server: where it completes, and the CA file from any folder. UserError where it cannot be.

    One that does not answer yet is left as it was written: the probe says why.
    """
    if server.base_url is None:
        if idle := sorted(key for key in NO_MEASUREMENT if getattr(server, key)):
            raise UserError(
                f"server.{idle[0]}: it says how a running server is reached; give that one's 'base_url' "
                "too, or take it out"
            )
        return server
    update: dict[str, Any] = {}
    if server.ca_file is not None:
        update["ca_file"] = str(Path(server.ca_file).expanduser().resolve())
    reached = access(server.base_url, {**server.connection, **update})
    if server.endpoint == "auto":
        with contextlib.suppress(OSError, IndexError):
            served = server.served_model or served_models(reached)[0]["id"]
            if find_endpoint(reached, served, "auto") == "chat":
                update["endpoint"] = "chat"
    return server.model_copy(update=update)


def undecided_quality(sweep: SweepConfig) -> list[str]:
    """What the plan leaves open of the answers, a sentence each."""
    tasks = call_json(python_module("loadgen", "tasks"))
    return quality_warnings(sweep, [name for name, task in tasks.items() if not task["streaming"]])


def check_tasks(sweep: SweepConfig, table: dict[str, dict[str, Any]]) -> None:
    for task in sweep.task_configs:
        if task.name not in table:
            raise UserError(f"Unknown task '{task.name}'; {nearest(task.name, table)}")
        known = table[task.name]["params"]
        for key in task.params:
            if key not in known:
                raise UserError(
                    f"Task '{task.name}' has no parameter '{key}'; {nearest(key, known)}"
                )


def check_objective(sweep: SweepConfig) -> None:
    """The report's headline goes by it, after hours of measuring perhaps."""
    if sweep.objective is None:
        return
    known = call_json(python_module("analysis", "objectives"))
    if sweep.objective not in known:
        raise UserError(
            f"objective: no '{sweep.objective}' is known; {nearest(sweep.objective, known)}"
        )


def dtype_notes(plans: list[Plan]) -> list[str]:
    """A sentence for each dtype that ``auto`` chose: it is the same for all backends, by the CPU alone."""
    chosen: dict[str, list[str]] = {}
    for plan in plans:
        dtype, request = plan.launch.dtype, plan.start.request
        if dtype.why is not None and request.server.base_url is None:
            sentence = f"served in {dtype.name} by every backend: {dtype.why}"
            chosen.setdefault(sentence, []).append(request.model.name)
    return [
        f"{', '.join(dict.fromkeys(models))} {'is' if len(set(models)) == 1 else 'are'} {sentence}"
        for sentence, models in chosen.items()
    ]


def split_refused(plans: list[Plan], skip: bool) -> tuple[list[Plan], dict[str, list[str]]]:
    """The plans that this host can run, and of the others the reasons by label.

    UserError where nothing is left, or something is refused that may not be skipped.
    """
    refused = {p.start.candidate: p.launch.refusals for p in plans if p.launch.refusals}
    if refused and skip and all(plan.launch.refusals for plan in plans):
        said = "; ".join(f"{label}: {'; '.join(reasons)}" for label, reasons in refused.items())
        raise UserError(f"this host can run none of the candidates. {said}")
    if refused and not skip:
        label, reasons = next(iter(refused.items()))
        raise UserError(
            f"{label} cannot run on this host: {'; '.join(reasons)}. "
            "Take it out of the sweep, or pass --skip-refused to measure the others."
        )
    return [plan for plan in plans if not plan.launch.refusals], refused

"""What a sweep will run: server starts and their points, checked before the first server boots."""

from dataclasses import dataclass
from typing import Any

from greenbench.contract.config import (
    SweepConfig,
    load_model,
    parse,
)
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.launch import LaunchPlan
from greenbench.sweep.child_processes import (
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
    models = [load_model(name) for name in sweep.models]
    check_names(sweep, models)
    starts = [s for s in expand(sweep, models) if blocks is None or s.repeat in blocks]
    tasks = call_json(python_module("loadgen", "tasks"))
    check_tasks(sweep, tasks)
    requests = [start.request.model_dump(mode="json") for start in starts]
    launches = [
        parse(LaunchPlan, launch, "python -m servers plan")
        for launch in call_json(python_module("servers", "plan"), requests)
    ]
    plans = [Plan(start, launch) for start, launch in zip(starts, launches, strict=True)]
    windows = {plan.start.request.model.name: plan.launch.max_model_len for plan in plans}
    check_window(sweep, windows, {name: task["output_tokens"] for name, task in tasks.items()})
    return plans


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


def undecided_quality(sweep: SweepConfig) -> list[str]:
    """What the plan leaves open of the answers, a sentence each."""
    tasks = call_json(python_module("loadgen", "tasks"))
    return quality_warnings(sweep, [name for name, task in tasks.items() if not task["streaming"]])


def check_tasks(sweep: SweepConfig, table: dict[str, dict[str, Any]]) -> None:
    for task in sweep.task_configs:
        if task.name not in table:
            raise UserError(f"Unknown task '{task.name}'. {nearest(task.name, table)}")
        known = table[task.name]["params"]
        for key in task.params:
            if key not in known:
                raise UserError(
                    f"Task '{task.name}' has no parameter '{key}'; {nearest(key, known)}"
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
    """The plans that this host can run, and of the others the reasons by label."""
    refused = {p.launch.label: p.launch.refusals for p in plans if p.launch.refusals}
    if refused and not skip:
        label, reasons = next(iter(refused.items()))
        raise UserError(
            f"{label} cannot run on this host: {'; '.join(reasons)}. "
            "Take it out of the sweep, or pass --skip-refused to measure the others."
        )
    return [plan for plan in plans if not plan.launch.refusals], refused

"""Expand a sweep into server starts and points. Pure: no files, no processes.

The unit of replication is the server start. Starts of one repeat form a block whose order is drawn
from the sweep's seed, so that drift of the machine does not fall on one backend; points inside a start
are in seeded random order too.
"""

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from greenbench.contract.candidates import Contender
from greenbench.contract.config import (
    ModelConfig,
    PointConfig,
    PromptRequest,
    ServerRequest,
    SweepConfig,
    points_of,
)
from greenbench.contract.counted import counted
from greenbench.contract.enough import needed as requests_for
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import NAME_CHARS, config_hash, slug

# Prompts that a point must answer for equal answers to pass the report's gate (docs/method.md, section 7):
FEWEST_ANSWERS = 29  # graded
FEWEST_SCORED = 8  # by log-probabilities


@dataclass(frozen=True, slots=True)
class ServerStart:
    """One server process and the points measured on it. ``candidate``: its label in the sweep."""

    request: ServerRequest
    candidate: str
    repeat: int
    arm: int
    points: tuple[PointConfig, ...]

    @property
    def server(self) -> str:
        """What is started, the same for every repeat and arm."""
        return f"{self.request.model.name} {self.candidate}"

    @property
    def label(self) -> str:
        again = f" replicate {self.arm}" if self.arm else ""
        return f"{self.server} repeat {self.repeat}{again}"

    @property
    def slug(self) -> str:
        candidate = slug(self.candidate)[:NAME_CHARS]
        return f"{slug(self.request.model.name)[:NAME_CHARS]}-{candidate}-r{self.repeat}a{self.arm}"


def expand(
    sweep: SweepConfig, models: list[ModelConfig], candidates: Sequence[Contender]
) -> list[ServerStart]:
    """All server starts of the sweep, in the order they are to run."""
    return [
        _start(sweep, model, who, repeat)
        for repeat in range(sweep.repeats)
        for model, who in _block_order(sweep, models, candidates, repeat)
    ]


def _block_order(
    sweep: SweepConfig, models: list[ModelConfig], candidates: Sequence[Contender], repeat: int
) -> list[tuple[ModelConfig, Contender]]:
    block = [(model, who) for model in models for who in candidates]
    random.Random(f"{sweep.seed}/block/{repeat}").shuffle(block)
    return block


def _start(sweep: SweepConfig, model: ModelConfig, who: Contender, repeat: int) -> ServerStart:
    points = points_of(sweep, model, who, repeat)
    random.Random(f"{sweep.seed}/points/{repeat}/{model.name}/{who.label}/{who.arm}").shuffle(
        points
    )
    request = ServerRequest(model=model, backend=who.backend, server=who.server)
    return ServerStart(request, who.label, repeat, who.arm, tuple(points))


def check_names(sweep: SweepConfig, models: list[ModelConfig]) -> None:
    """Points are told apart by their model's name."""
    names = [model.name for model in models]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"sweep '{sweep.name}': 'models' has two that are called '{twice}'; give one a YAML file with "
            "a name of its own"
        )


def check_window(
    sweep: SweepConfig, windows: Iterable[tuple[str, int | None]], outputs: dict[str, int]
) -> None:
    """Every prompt with its output must fit what its server takes.

    ``windows``: of each server its name and tokens, None where nobody knows; ``outputs``: task → default
    tokens.
    """
    for name, window in windows:
        if window is None:
            continue
        for task in sweep.task_configs:
            context, output = max(sweep.contexts), task.output_tokens or outputs[task.name]
            if context + output > window:
                raise UserError(
                    f"sweep '{sweep.name}': context {context} plus {output} output tokens of task "
                    f"'{task.name}' is longer than the window of {name} ({window}); "
                    "shorten 'contexts' or choose another model"
                )


def quality_warnings(sweep: SweepConfig, scored: Collection[str]) -> list[str]:
    """A sentence for each task whose points answer too few prompts for the report to judge quality.

    ``scored``: the tasks that are judged by log-probabilities.
    """
    said: list[str] = []
    for task in sweep.task_configs:
        needed = FEWEST_SCORED if task.name in scored else FEWEST_ANSWERS
        asked = task.requests or sweep.phases.requests
        prompts = min(sweep.prompts_per_point, asked or sweep.prompts_per_point)
        if prompts < needed:
            limit = "requests" if asked and asked < needed else "prompts_per_point"
            said.append(
                f"{task.name}: {counted(prompts, 'prompt')} a point {'is' if prompts == 1 else 'are'} too "
                "few to show that answers are no worse, so its quality will be undecided; "
                f"{needed} are needed at least: raise '{limit}'"
            )
        elif asked is None and (unsure := _may_be_fewer(sweep, needed)) is not None:
            said.append(f"{task.name}: {unsure}")
    return said


def _may_be_fewer(sweep: SweepConfig, needed: int) -> str | None:
    """Whether the time a point is measured may hold fewer prompts than quality needs."""
    phases = sweep.phases
    if not phases.auto:
        return (
            f"fewer than {needed} prompts answered in {phases.longest_s:g} s leave its quality undecided; "
            f"'requests: {sweep.prompts_per_point}' and a long enough 'measure_s' make sure of them"
        )
    if requests_for(phases.percentile) >= needed:
        return None
    return (
        f"a point measured until p{phases.percentile} is known may answer fewer than the {needed} prompts "
        "that decide its quality; a higher 'percentile' makes sure of them"
    )


def prompt_request(point: PointConfig, model_path: str) -> PromptRequest:
    """The prompts a point needs; the same for every backend, repeat and load."""
    return PromptRequest(
        model_path=model_path,
        task=point.task,
        context_tokens=point.context_tokens,
        count=point.prompts_per_point,
        seed=point.seed,
        text_file=point.text_file,
        endpoint="chat" if point.server.endpoint == "chat" else "completions",
    )


def prompt_file_name(point: PointConfig, request: PromptRequest) -> str:
    name = f"{slug(point.model.name)[:NAME_CHARS]}-{slug(point.task.name)}-{point.context_tokens}"
    return f"{name}-{config_hash(request.model_dump(mode='json'))[:8]}.jsonl"

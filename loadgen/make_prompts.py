"""Make the prompts of one request: deterministic from (seed, task, index), exact in length."""

import random
from pathlib import Path

from greenbench.contract.config import PromptRequest
from greenbench.contract.errors import UserError, nearest
from loadgen.prompts.chat_template import load_chat_encoder
from loadgen.prompts.corpus import open_source
from loadgen.prompts.encoder import Encoder, load_encoder
from loadgen.prompts.prompt_file import Prompt, holds_request, token_sha256, write_prompts
from loadgen.tasks import TASKS
from loadgen.tasks.task import Params, Recipe, Task


def make_prompts(request: PromptRequest, encoder: Encoder) -> list[Prompt]:
    """``request.count`` prompts. Unknown task or parameter, or too short a context: UserError."""
    task, params = resolve_task(request)
    source = open_source(request.text_file)
    output_tokens = request.task.output_tokens or task.output_tokens
    prompts: list[Prompt] = []
    for index in range(request.count):
        rng = random.Random(f"{request.seed}/{task.name}/{index}")
        try:
            draft = task.make(Recipe(rng, index, source, encoder, request.context_tokens, params))
        except UserError as error:
            raise UserError(f"task '{task.name}': {error}") from error
        prompts.append(
            Prompt(
                prompt_index=index,
                task=task.name,
                context_tokens=len(draft.token_ids),
                token_ids=draft.token_ids,
                sha256=token_sha256(draft.token_ids),
                output_tokens=output_tokens,
                answer=draft.answer,
            )
        )
    return prompts


def resolve_task(request: PromptRequest) -> tuple[Task, Params]:
    """The task by name, and its parameters with the request's own on top."""
    name = request.task.name
    if name not in TASKS:
        raise UserError(f"Unknown task '{name}'; {nearest(name, TASKS)}")
    task = TASKS[name]
    for key in request.task.params:
        if key not in task.params:
            raise UserError(
                f"task '{name}': unknown parameter '{key}'; {nearest(key, task.params)}"
            )
    return task, task.params | request.task.params


def open_encoder(request: PromptRequest) -> Encoder:
    """The model's tokenizer, with its chat template around the prompt when the task asks for it."""
    chat = request.task.params.get("chat", False)
    if not isinstance(chat, bool):
        raise UserError(f"task parameter 'chat' must be true or false, found {chat!r}")
    return load_chat_encoder(request.model_path) if chat else load_encoder(request.model_path)


def make_files(orders: list[tuple[PromptRequest, Path]]) -> list[Path]:
    """Write each prompt file that does not hold its request yet; returns those written.

    All prompts of a file are made before it is written, so bad input leaves nothing half-written.
    """
    for request, _ in orders:
        resolve_task(request)
    encoders: dict[tuple[str, bool], Encoder] = {}
    written: list[Path] = []
    for request, path in orders:
        if holds_request(path, request):
            continue
        key = (request.model_path, bool(request.task.params.get("chat")))
        if key not in encoders:
            encoders[key] = open_encoder(request)
        write_prompts(path, request, make_prompts(request, encoders[key]))
        written.append(path)
    return written


def describe_tasks() -> dict[str, dict[str, object]]:
    """The task table as ``python -m loadgen tasks`` prints it."""
    shown = ("streaming", "output_tokens", "params", "describe")
    return {name: {key: getattr(task, key) for key in shown} for name, task in TASKS.items()}

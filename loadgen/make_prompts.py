"""Make the prompts of one request: deterministic from (seed, task, index), exact in length."""

import random
from collections.abc import Callable
from pathlib import Path

from greenbench.contract.config import PromptRequest
from greenbench.contract.errors import UserError, nearest
from loadgen.prompts.chat_template import load_chat_encoder, user_turn
from loadgen.prompts.corpus import open_source
from loadgen.prompts.encoder import Encoder, load_encoder, load_tokenizer
from loadgen.prompts.message import SLACKS, Message, MessageEncoder, no_exact_length
from loadgen.prompts.prompt_file import Prompt, holds_request, token_sha256, write_prompts
from loadgen.tasks import TASKS
from loadgen.tasks.task import Draft, Params, Recipe, Task


def make_prompts(request: PromptRequest, encoder: Encoder) -> list[Prompt]:
    """``request.count`` prompts. Unknown task or parameter, or too short a context: UserError."""
    task, params = resolve_task(request)
    source = open_source(request.text_file)
    output_tokens = request.task.output_tokens or task.output_tokens
    prompts: list[Prompt] = []
    for index in range(request.count):

        def draft(context_tokens: int, index: int = index) -> Draft:
            rng = random.Random(f"{request.seed}/{task.name}/{index}")
            return task.make(Recipe(rng, index, source, encoder, context_tokens, params))

        try:
            made, message = _draft_and_message(draft, encoder, request.context_tokens)
        except UserError as error:
            raise UserError(f"task '{task.name}': {error}") from error
        token_ids = message.token_ids if message else made.token_ids
        prompts.append(
            Prompt(
                prompt_index=index,
                task=task.name,
                context_tokens=len(token_ids),
                token_ids=token_ids,
                sha256=token_sha256(token_ids),
                output_tokens=output_tokens,
                answer=made.answer,
                message=message.content if message else None,
            )
        )
    return prompts


def _draft_and_message(
    draft: Callable[[int], Draft], encoder: Encoder, context_tokens: int
) -> tuple[Draft, Message | None]:
    """The draft; for a chat one a little shorter, with the message of the right length made from it."""
    if not isinstance(encoder, MessageEncoder):
        return draft(context_tokens), None
    for slack in SLACKS:
        made = draft(context_tokens - slack)
        if message := encoder.message(made.token_ids, len(made.token_ids) + slack):
            return made, message
    raise no_exact_length(context_tokens)


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
    if request.endpoint == "chat":
        return MessageEncoder(load_tokenizer(request.model_path), user_turn(request.model_path))
    return load_chat_encoder(request.model_path) if chat else load_encoder(request.model_path)


def make_files(orders: list[tuple[PromptRequest, Path]]) -> list[Path]:
    """Write each prompt file that does not hold its request yet; returns those written.

    All prompts of a file are made before it is written, so bad input leaves nothing half-written.
    """
    for request, _ in orders:
        resolve_task(request)
    encoders: dict[tuple[str, bool, str], Encoder] = {}
    written: list[Path] = []
    for request, path in orders:
        if holds_request(path, request):
            continue
        key = (request.model_path, bool(request.task.params.get("chat")), request.endpoint)
        if key not in encoders:
            encoders[key] = open_encoder(request)
        write_prompts(path, request, make_prompts(request, encoders[key]))
        written.append(path)
    return written


def describe_tasks() -> dict[str, dict[str, object]]:
    """The task table as ``python -m loadgen tasks`` prints it."""
    shown = ("streaming", "output_tokens", "params", "describe")
    return {name: {key: getattr(task, key) for key in shown} for name, task in TASKS.items()}

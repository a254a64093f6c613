"""What a task is: how its prompts are made, what is sent, and how a reply is graded."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from loadgen.prompts.corpus import Source
from loadgen.prompts.encoder import Encoder
from loadgen.prompts.prompt_file import Prompt

Params = dict[str, int | float | str | bool]


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that may enter one prompt. Same recipe, same prompt."""

    rng: random.Random  # seeded by (seed, task, index)
    index: int
    source: Source  # where filler sentences come from
    encoder: Encoder
    context_tokens: int
    params: Params  # the task's defaults, overridden by the request


@dataclass(frozen=True, slots=True)
class Draft:
    token_ids: list[int]  # exactly context_tokens of them
    answer: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Grade:
    """``correct`` and ``score`` are None where a task has no right answer."""

    correct: bool | None = None
    score: float | None = None
    detail: dict[str, Any] = field(default_factory=dict[str, Any])
    nll_sum: float | None = None
    nll_tokens: int | None = None
    nll_buckets: list[dict[str, float]] | None = None


@dataclass(frozen=True, slots=True)
class Task:
    """``make`` and ``grade`` are pure. ``grade`` gets the reply's text (streamed) or JSON body (not)."""

    name: str
    describe: str
    output_tokens: int
    params: Params  # every parameter with its default
    make: Callable[[Recipe], Draft]
    grade: Callable[[Prompt, str | None, dict[str, Any] | None], Grade]
    streaming: bool = True

    def body(self, model: str, prompt: Prompt) -> dict[str, Any]:
        """JSON body of POST /v1/completions, or of a chat's for a prompt with a message.

        ``ignore_eos``: every candidate decodes as many tokens.
        """
        said: dict[str, Any] = {"prompt": prompt.token_ids}
        if prompt.message is not None:
            said = {"messages": [{"role": "user", "content": prompt.message}]}
        common = {"model": model, **said, "temperature": 0}
        if not self.streaming:
            return common | {"max_tokens": 1, "stream": False, "prompt_logprobs": 0}
        return common | {
            "max_tokens": prompt.output_tokens,
            "ignore_eos": True,
            "stream": True,
            "stream_options": {"include_usage": True, "continuous_usage_stats": True},
        }

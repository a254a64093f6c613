"""Perplexity proxy: a long document is scored token by token; nothing is generated.

In generated documents records are stated twice, so a model that reads far back finds the second
statement likely. A person's own text is left as it is.
"""

import math
from itertools import pairwise
from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.corpus import GeneratedText
from loadgen.prompts.haystack import draw_records, record
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

MOST_RECALLS = 400


def make(recipe: Recipe) -> Draft:
    rng = recipe.rng
    buckets = whole(recipe.params, "buckets", 1, 1000)
    recalls = whole(recipe.params, "recalls_per_1k", 0, 20) * recipe.context_tokens // 1000
    if not isinstance(recipe.source, GeneratedText):
        recalls = 0
    inserts = [
        Insert(rng.random(), " " + record(*pair))
        for pair in draw_records(rng, min(recalls, MOST_RECALLS))
        for _ in range(2)
    ]
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        question=None,
    )
    return Draft(token_ids, {"buckets": buckets})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Sums of -ln p (nats) over the tokens after the first, whole and by position bucket.

    ``body``: a completion with ``prompt_logprobs``: one ``{"<token id>": {"logprob": …}}`` a prompt
    token, the first null. A reply without them, or with other lengths, gives nulls and the reason.
    """
    logprobs, fault = token_logprobs(prompt.token_ids, body)
    if logprobs is None:
        return Grade(detail={"fault": fault})
    return Grade(
        nll_sum=-math.fsum(logprobs),
        nll_tokens=len(logprobs),
        nll_buckets=bucket_sums(logprobs, prompt.answer["buckets"]),
        detail={"logprobs": [round(value, 5) for value in logprobs]},
    )


def token_logprobs(
    token_ids: list[int], body: dict[str, Any] | None
) -> tuple[list[float] | None, str | None]:
    """ln p of each prompt token after the first, or None and why not."""
    choices = (body or {}).get("choices") or [{}]
    entries = choices[0].get("prompt_logprobs")
    if not isinstance(entries, list) or len(entries) != len(token_ids):
        count = len(entries) if isinstance(entries, list) else "none"
        return None, f"prompt_logprobs for {len(token_ids)} tokens expected, found {count}"
    try:
        return [
            float(entry[str(token)]["logprob"])
            for token, entry in zip(token_ids[1:], entries[1:], strict=True)
        ], None
    except (KeyError, TypeError, ValueError) as error:
        return None, f"prompt_logprobs not of the expected form ({error!r})"


def bucket_sums(logprobs: list[float], buckets: int) -> list[dict[str, float]]:
    """``buckets`` equal stretches of prompt positions 1..n; ``end`` is exclusive; empty ones left out."""
    count = len(logprobs)
    edges = [1 + count * i // buckets for i in range(buckets + 1)]
    return [
        {
            "start": start,
            "end": end,
            "nll_sum": -math.fsum(logprobs[start - 1 : end - 1]),
            "tokens": end - start,
        }
        for start, end in pairwise(edges)
        if end > start
    ]


TASK = Task(
    name="perplexity",
    describe="mean negative log-likelihood of a long document, by position",
    output_tokens=1,
    params={"buckets": 8, "recalls_per_1k": 8},
    make=make,
    grade=grade,
    streaming=False,
)

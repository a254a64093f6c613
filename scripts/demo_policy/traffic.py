"""Prompts and requests: equal traffic in a closed loop, its answers graded; each kind measured by itself."""

import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp

from greenbench.contract.config import PromptRequest, TaskConfig, load_model
from loadgen.make_prompts import make_files
from loadgen.prompts.prompt_file import Prompt, read_prompts
from loadgen.tasks.grading import grade_reply
from scripts.demo_policy.choice import verdict
from scripts.demo_policy.experiment import (
    BACKENDS,
    DEPTH,
    LENGTHS,
    MODEL,
    USED,
    Answer,
    Measured,
    Prompts,
)

Ask = Callable[[Prompt], tuple[str, str]]  # (base address, pool; "" where the gateway decides)


async def ask(
    session: aiohttp.ClientSession, base: str, prompt: Prompt
) -> tuple[float, float, str, Any]:
    """(first, end) on the monotonic clock, the text, and the headers."""
    body = {
        "model": MODEL,
        "prompt": prompt.token_ids,
        "max_tokens": prompt.output_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
    }
    first, text, rest = 0.0, "", b""
    async with session.post(f"{base}/v1/completions", json=body) as answer:
        answer.raise_for_status()
        async for piece in answer.content.iter_any():
            first = first or time.monotonic()
            *events, rest = (rest + piece).split(b"\n\n")
            for event in events:
                data = event.removeprefix(b"data: ")
                if data != b"[DONE]":
                    choices = json.loads(data)["choices"]
                    text += choices[0]["text"] if choices else ""
        return first, time.monotonic(), text, answer.headers


async def closed_loop(
    users: int, work: Sequence[Any], do: Callable[[int, Any], Awaitable[None]]
) -> None:
    """Each user takes the next piece of work when the last one is done."""
    left = iter(work)

    async def user(number: int) -> None:
        for piece in left:
            await do(number, piece)

    await asyncio.gather(*(user(number) for number in range(users)))


async def traffic(
    strategy: str, number: int, prompts: Sequence[Prompt], users: int, where: Ask
) -> list[Answer]:
    """All prompts, in order, each once."""
    answers: list[Answer] = []
    # a server closes idle connections; one that it closes as it is taken again would fail a request
    connector = aiohttp.TCPConnector(limit=0, force_close=True)
    timeout = aiohttp.ClientTimeout(total=None)
    start = time.monotonic()

    async def one(user: int, prompt: Prompt) -> None:
        base, chosen = where(prompt)
        sent = time.monotonic()
        first, end, text, headers = await ask(session, base, prompt)
        answers.append(
            Answer(
                strategy=strategy,
                round=number,
                user=user,
                context=prompt.context_tokens,
                index=prompt.prompt_index,
                pool=chosen or headers["x-greenbench-pool"],
                rule=headers.get("x-greenbench-rule", ""),
                why=headers.get("x-greenbench-reason", "").partition(";")[0],
                sent_s=sent - start,
                first_s=first - start,
                end_s=end - start,
                right=bool(grade_reply(prompt, "", text, None).correct),
            )
        )

    async with aiohttp.ClientSession(connector=connector, timeout=timeout) as session:
        await closed_loop(users, prompts, one)
    return answers


def make_prompts(folder: Path, seed: int, count: int) -> Prompts:
    path = load_model(MODEL).path
    assert path is not None
    files = {length: folder / f"{length}-{seed}.jsonl" for length in LENGTHS}
    task = TaskConfig(name="retrieve", params={"depth": DEPTH})
    make_files([
        (PromptRequest(model_path=path, task=task, context_tokens=n, count=count, seed=seed), file)
        for n, file in files.items()
    ])  # fmt: skip
    return {length: read_prompts(file) for length, file in files.items()}


async def calibrate(urls: dict[str, str], prompts: Prompts) -> list[Measured]:
    """Each kind on both cores, each server one request at a time, one length after the other."""
    told: dict[tuple[str, int], list[Answer]] = {}
    for name in BACKENDS:
        for length, each in prompts.items():
            halves = await asyncio.gather(*(
                traffic(name, 0, each[number::2], 1, lambda _, at=(urls[server], server): at)
                for number, server in enumerate(USED[name])
            ))  # fmt: skip
            told[name, length] = [answer for half in halves for answer in half]
    return [
        Measured(
            pool=name,
            context=length,
            ttft_s=statistics.median(a.ttft_s for a in answers),
            e2e_s=statistics.median(a.e2e_s for a in answers),
            right=sum(a.right for a in answers),
            count=len(answers),
            verdict="" if name == "exact" else verdict(told["exact", length], answers),
        )
        for (name, length), answers in told.items()
    ]

"""Requests that a server must answer before it is called ready.

/health is green before anything ran: several backends and models die on the first request, or on the
first concurrent ones. These requests find that out, and pay one-off costs (JIT, the first logprobs)
before anything is measured.
"""

import asyncio
from typing import Any

import httpx

from servers.backends.host_facts import Device

OUTPUT_TOKENS = 8
CONCURRENT = 4
GPU_TOKENS = (2_000, 8_000, 32_000)
_SEED_TEXT = (
    "A clerk counted 1234 crates in the river port before the evening bell and wrote it down. "
)


class SmokeFailure(Exception):
    """A request failed; the text says which and how."""


def prompt_lengths(
    max_model_len: int | None, max_num_batched_tokens: int, device: Device
) -> list[int]:
    """Lengths in tokens: one block and less, several blocks, and one longer than a scheduler step.

    On a GPU, where it costs a second, also long ones: kernels split the context by its length.
    """
    wanted = [16, 130, 700, max_num_batched_tokens + 64]
    if device == "cuda":
        wanted += GPU_TOKENS
    if max_model_len is None:
        return wanted
    return sorted({min(length, max_model_len - OUTPUT_TOKENS) for length in wanted})


def run(base_url: str, model: str, lengths: list[int], timeout_s: float) -> None:
    """Send all. The first wrong answer raises SmokeFailure."""
    asyncio.run(_run(base_url, model, lengths, timeout_s))


async def _run(base_url: str, model: str, lengths: list[int], timeout_s: float) -> None:
    async with httpx.AsyncClient(
        base_url=base_url, timeout=timeout_s, limits=httpx.Limits(), trust_env=False
    ) as client:
        tokens = await _tokens(client, model)
        await _complete(client, model, _prompt(tokens, lengths[0], 0), {})
        scored = _prompt(tokens, lengths[min(1, len(lengths) - 1)], 1)
        await _complete(client, model, scored, {"prompt_logprobs": 0})
        together = [
            _complete(client, model, _prompt(tokens, lengths[index % len(lengths)], 2 + index), {})
            for index in range(max(CONCURRENT, len(lengths)))
        ]
        await asyncio.gather(*together)
        await client.post("/reset_prefix_cache")  # 404 outside dev mode: nothing to reset then


async def _tokens(client: httpx.AsyncClient, model: str) -> list[int]:
    response = await client.post("/tokenize", json={"model": model, "prompt": _SEED_TEXT})
    if response.is_error:
        raise SmokeFailure(f"/tokenize answered HTTP {response.status_code}: {response.text[:200]}")
    tokens = response.json()["tokens"]
    return tokens[1:] or tokens


def _prompt(tokens: list[int], length: int, shift: int) -> list[int]:
    """``length`` tokens that start at another place for each ``shift``, so that no prefix is shared."""
    return [tokens[(shift + index) % len(tokens)] for index in range(length)]


async def _complete(
    client: httpx.AsyncClient, model: str, prompt: list[int], extra: dict[str, Any]
) -> None:
    body = {
        "model": model,
        "prompt": prompt,
        "max_tokens": OUTPUT_TOKENS,
        "temperature": 0,
        "ignore_eos": True,
        **extra,
    }
    what = f"the smoke request of {len(prompt)} tokens"
    try:
        response = await client.post("/v1/completions", json=body)
    except httpx.HTTPError as error:
        raise SmokeFailure(f"{what} was not answered ({type(error).__name__})") from error
    if response.is_error:
        raise SmokeFailure(f"{what} got HTTP {response.status_code}: {response.text[:200]}")
    usage = response.json()["usage"]
    counted = (usage["prompt_tokens"], usage["completion_tokens"])
    if counted != (len(prompt), OUTPUT_TOKENS):
        raise SmokeFailure(
            f"{what} asked for {OUTPUT_TOKENS} tokens; the server counted {counted[0]} in, {counted[1]} out"
        )

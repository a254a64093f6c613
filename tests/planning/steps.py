"""A pretended engine whose step times are known."""

from dataclasses import astuple

import numpy as np

from analysis.model.work import ModelWork, model_work
from planning.batches import Batch, Lengths, Logged
from planning.step_time import Shape, Terms

LLAMA = {
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "num_hidden_layers": 16,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 64,
    "vocab_size": 128_256,
}
KNOWN = Terms(
    launch=0.002, weights=0.0, linear=2e-15, attention=4e-15, kv=3e-13, sequence=2e-5
)  # a large card


def model(**changed: object) -> ModelWork:
    made = model_work(LLAMA | changed)
    assert made is not None
    return made


def closed_loop(
    users: int, prompt: int, output: int, budget: int, steps: int
) -> tuple[list[Batch], list[Logged], list[Lengths]]:
    """What vLLM computes with so many users who ask again at once: a second way beside the simulator, one
    token after another.
    """
    done = dict.fromkeys(range(users), 0)  # tokens computed, by user
    order = list(range(users))
    served: list[Lengths] = []
    batches: list[Batch] = []
    for _ in range(steps):
        decoding = [u for u in order if done[u] >= prompt]
        left = budget - len(decoding)
        chunks: list[tuple[int, int]] = []
        for user in order:
            new = min(left, prompt - done[user])
            if new > 0:
                chunks.append((new, done[user]))
                done[user] += new
                left -= new
                if done[user] == prompt:
                    served.append(Lengths(prompt, 0, output))
        batches.append(Batch(tuple(chunks), tuple(done[u] + 1 for u in decoding)))
        for user in decoding:
            done[user] += 1
            if done[user] == prompt + output - 1:
                done[user] = 0
                order.remove(user)
                order.append(user)
    served += [Lengths(prompt, 0, output) for u in order if 0 < done[u] < prompt]
    log = [Logged(sum(new for new, _ in b.chunks), len(b.contexts)) for b in batches]
    return batches, log, served


def took(shape: Shape, terms: Terms, batches: list[Batch], sd: float, seed: int) -> np.ndarray:
    """Seconds of each step, with log-normal noise of mean 1."""
    exact = np.array([astuple(shape.row(b)) for b in batches]) @ np.array(astuple(terms))
    noise = np.random.default_rng(seed).normal(-(sd**2) / 2, sd, len(exact))
    return exact * np.exp(noise)

"""A pretended engine whose step times are known."""

from collections.abc import Sequence

import numpy as np

from analysis.model.work import ModelWork, model_work
from analysis.runs.identity import Block
from planning.batches import Batch, Lengths, Line, Timed
from planning.candidates import Front, Hull, Measured, Power
from planning.simulator import Settings
from planning.step_time import Shape, StepTime, Terms, fit, shape_of, steps_of

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


SHAPE = shape_of(model())


def closed_loop(
    users: int, prompt: int, output: int, budget: int, steps: int
) -> tuple[list[Batch], list[Line], list[Lengths]]:
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
    log = [Line(sum(new for new, _ in b.chunks), len(b.contexts)) for b in batches]
    return batches, log, served


def took(shape: Shape, terms: Terms, batches: list[Batch], sd: float, seed: int) -> np.ndarray:
    """Seconds of each step, with log-normal noise of mean 1."""
    exact = np.array([shape.row(b).each for b in batches]) @ np.array(terms.each)
    noise = np.random.default_rng(seed).normal(-(sd**2) / 2, sd, len(exact))
    return exact * np.exp(noise)


def fitted(runs: Sequence[Timed], exact: Timed | None = None) -> StepTime:
    forwards = None if exact is None else steps_of(SHAPE, exact)
    return fit(SHAPE, [steps_of(SHAPE, run) for run in runs], forwards)


def candidate(blocks: int = 2, sd: float = 0.05, settings: Settings | None = None) -> Measured:
    """Measured at 1 to 32 users and 1k to 16k tokens."""
    runs: list[tuple[Block, Timed]] = []
    for block in range(blocks):
        for users, prompt in ((1, 1024), (8, 16_384), (32, 1024)):
            made, _, _ = closed_loop(users, prompt, 64, 2048, 300)
            seconds = took(SHAPE, KNOWN, made, sd, 7 * block + users)
            runs.append(
                (Block("f", block, "d"), Timed(f"{block}-{users}", tuple(made), seconds, 0))
            )
    return Measured(
        label="alpha",
        shape=SHAPE,
        model=fitted([run for _, run in runs]),
        timed=tuple((block, steps_of(SHAPE, run)) for block, run in runs),
        settings=settings or Settings(256, 2048, 16, 1_000_000),
        front=Front(0.001, 1e-7),
        hull=Hull(32, (1024, 16_384)),
        power=Power(600.0, 400.0, 100.0),
        no_power=None,
        cards=1,
        barred=(),
    )

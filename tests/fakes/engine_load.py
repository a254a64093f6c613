"""A point whose GPU draws what the engine's steps cost, by known prices: both phases, in lockstep.

Two users send at the same moment. Their prompts are prefilled one after the other in chunks, so that pairs
a token grow within each; then both decode, so that context a token grows too. That tells the four prices
apart.
"""

import numpy as np
import pandas as pd

from analysis.energy.attribution import WORK, step_work
from analysis.runs.clocks import WallClock
from analysis.runs.engine_steps import parse_steps
from tests.fakes.nvml import SECOND, Truth
from tests.fakes.rundirs import MONO_OFFSET_NS, T0_UNIX_NS, FakeRun, _mono

IDLE_W = 120.0
PRICES = {  # J a unit, of such a size that each kind of work takes a good part of the energy
    "prefill_tokens": 0.8,
    "prefill_pairs": 4e-3,
    "decode_tokens": 0.2,
    "decode_context": 2e-3,
}
USERS, PROMPT, OUTPUT, CHUNK, GROUP = 2, 512, 1500, 64, 10
PREFILL_S, DECODE_S = 10.0, 10.0
CYCLE_S = PREFILL_S + DECODE_S
CYCLES = 18


def mixed_load(backend: str) -> tuple[FakeRun, list[str], Truth]:
    """The point, its server log, and the power of its card."""
    fake = FakeRun(
        backend=backend,
        users=USERS,
        context_tokens=PROMPT,
        output_tokens=OUTPUT,
        tokens_per_chunk=GROUP,
        ttft_s=PREFILL_S,
        itl_s=DECODE_S / (OUTPUT - 1),
        warmup_s=2.0,
        measure_s=CYCLES * CYCLE_S - 2.0,
    )
    log = [line for cycle in range(CYCLES + 1) for line in _cycle(cycle * CYCLE_S)]
    return fake, log, _truth(log)


def _cycle(start_s: float) -> list[str]:
    chunks = USERS * PROMPT // CHUNK
    prefill_s = PREFILL_S / chunks
    lines = [_line(start_s + (i + 1) * prefill_s, CHUNK, 0, prefill_s) for i in range(chunks)]
    steps = OUTPUT // GROUP
    decode_s = DECODE_S / steps
    begin_s = start_s + PREFILL_S
    return lines + [
        _line(begin_s + (i + 1) * decode_s, 0, USERS * GROUP, decode_s) for i in range(steps)
    ]


def _line(end_s: float, prefill: int, decode: int, elapsed_s: float) -> str:
    return (
        f"{T0_UNIX_NS // SECOND + end_s:.6f} (EngineCore pid=1) INFO Engine 000: Iteration(1): "
        f"{prefill > 0:d} context requests, {prefill} context tokens, {USERS * (decode > 0)} generation "
        f"requests, {decode} generation tokens, iteration elapsed time: {elapsed_s * 1e3:.3f} ms, "
        "CPU KV cache usage: 1.0%"
    )


def _truth(log: list[str]) -> Truth:
    """Idle power, and the price of each step spread over its time."""
    work = step_work(parse_steps(log), _traces(), WallClock(MONO_OFFSET_NS, 0))
    joules = work[list(WORK)].to_numpy() @ np.array([PRICES[name] for name in WORK])
    ends = work["end_ns"].to_numpy() / SECOND
    times = np.concatenate(([_mono(T0_UNIX_NS) / SECOND], ends))
    above = np.concatenate(([0.0], np.cumsum(joules)))

    def energy(t: float) -> float:
        return IDLE_W * t + float(np.interp(t, times, above))

    return Truth(lambda t: (energy(t + 1e-3) - energy(t - 1e-3)) / 2e-3, energy)


def _traces() -> pd.DataFrame:
    """The requests as FakeRun plays them: the first chunk brings GROUP tokens at once."""
    itl_s = DECODE_S / (OUTPUT - 1)
    first_ns = round((PREFILL_S + (GROUP - 1) * itl_s) * SECOND)
    return pd.DataFrame(
        {
            "sent_mono_ns": _mono(T0_UNIX_NS) + round(cycle * CYCLE_S * SECOND),
            "first_token_ns": first_ns,
            "last_token_ns": round(CYCLE_S * SECOND),
            "end_ns": round(CYCLE_S * SECOND),
            "prompt_tokens": PROMPT,
            "output_tokens": OUTPUT,
        }
        for cycle in range(CYCLES + 1)
        for _ in range(USERS)
    )

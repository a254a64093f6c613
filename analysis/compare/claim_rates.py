"""How often the pipeline claims a difference that is not there, and how often it finds one that is.

    python -m analysis simulate

Server starts are drawn with known noise and run through the same functions as measured ones. The
promised power is worked out by a second method, the noncentral t distribution.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import nct, t

from analysis.compare.differences import Floor
from analysis.statistics.ratios import LEVEL, MANY_BLOCKS, paired_ratio

Draw = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]

# standard deviation 1 each; starts of a server are not promised to be normal
NOISES: dict[str, Draw] = {
    "normal": lambda rng, shape: rng.standard_normal(shape),
    "skewed (gamma 4)": lambda rng, shape: (rng.gamma(4, size=shape) - 4) / 2,
    "heavy tails (t5)": lambda rng, shape: rng.standard_t(5, shape) / math.sqrt(5 / 3),
}


@dataclass(frozen=True)
class Outcome:
    """Shares of ``trials``: interval excludes 1; interval excludes 1 and the effect beats the A/A floor."""

    noise: str
    blocks: int
    effect: float  # true ratio
    interval_excludes: float
    claimed: float
    promised: (
        float | None
    )  # power of the t test by noncentral t, for normal noise below MANY_BLOCKS
    trials: int


def simulate(
    noise: str, blocks: int, effect: float, sd: float = 0.03, trials: int = 2000, seed: int = 1
) -> Outcome:
    """Draw two arms and an A/A arm of ``blocks`` starts each, with relative noise ``sd`` a start."""
    rng = np.random.default_rng(seed)
    draw = NOISES[noise]
    logs = draw(rng, (trials, blocks, 3)) * sd
    ratios = logs[:, :, 0] - logs[:, :, 1] + math.log(effect)
    equal_arms = logs[:, :, 2] - logs[:, :, 1]
    excluded = claimed = 0
    for ratio, equal in zip(ratios, equal_arms, strict=True):
        found = paired_ratio(list(ratio))
        assert found.ratio is not None and found.low is not None and found.high is not None
        outside = not found.low <= 1 <= found.high
        floor = Floor(math.sqrt(float(np.mean(equal**2))), blocks).half_width(blocks)
        excluded += outside
        claimed += outside and abs(math.log(found.ratio)) > floor
    promised = t_power(effect, sd, blocks) if noise == "normal" and blocks < MANY_BLOCKS else None
    return Outcome(noise, blocks, effect, excluded / trials, claimed / trials, promised, trials)


def t_power(effect: float, sd: float, blocks: int, level: float = LEVEL) -> float:
    """Chance that a paired t interval excludes 1; the difference of two starts has sd·√2."""
    shift = math.log(effect) / (sd * math.sqrt(2) / math.sqrt(blocks))
    limit = t.ppf((1 + level) / 2, blocks - 1)
    return float(nct.sf(limit, blocks - 1, shift) + nct.cdf(-limit, blocks - 1, shift))


GRID: tuple[tuple[str, int, float], ...] = (
    *((noise, blocks, 1.0) for noise in NOISES for blocks in (3, 5, 8, 12)),
    *(("normal", blocks, effect) for blocks in (3, 5, 8, 12) for effect in (1.03, 1.05, 1.10)),
)


def table(trials: int = 2000) -> str:
    """Markdown, one row a setting of GRID."""
    lines = [
        "| noise of a start (3 %) | blocks | true ratio | interval excludes 1 | promised | claimed |",
        "|---|---|---|---|---|---|",
    ]
    for noise, blocks, effect in GRID:
        found = simulate(noise, blocks, effect, trials=trials)
        promised = LEVEL_LOSS if effect == 1.0 else _share(found.promised)
        lines.append(
            f"| {noise} | {blocks} | {effect:.2f} | {_share(found.interval_excludes)} "
            f"| {promised} | {_share(found.claimed)} |"
        )
    return "\n".join(lines)


LEVEL_LOSS = f"{1 - LEVEL:.1%}"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{value:.1%}"

"""Traffic to replay: arrival times and lengths, recorded or generated from a seed."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from greenbench.contract.errors import UserError
from greenbench.contract.traces import format_of, read_lengths
from planning.curves import Floats, Ints


@dataclass(frozen=True)
class Traffic:
    """Requests in order of time; ``at_s`` starts at 0. ``words`` say what it is."""

    at_s: Floats
    prompt_tokens: Ints
    output_tokens: Ints
    words: str

    def __len__(self) -> int:
        return len(self.at_s)

    def of(self, kept: npt.NDArray[np.bool_]) -> "Traffic":
        """The requests where ``kept`` is true, at their times."""
        return Traffic(
            self.at_s[kept], self.prompt_tokens[kept], self.output_tokens[kept], self.words
        )


def recorded(path: Path, form: str | None, speed: float, most: int) -> Traffic:
    """The first ``most`` requests of a trace, ``speed`` times as fast. UserError."""
    name = form or format_of(path)
    rows = read_lengths(path, name)
    at, prompts, outputs = (np.array(column) for column in zip(*rows[:most], strict=True))
    cut = f", the first {most:,} of {len(rows):,}" if len(rows) > most else ""
    fast = f", {speed:g} times as fast" if speed != 1 else ""
    return Traffic(
        (at - at[0]).astype(float) / speed,
        prompts.astype(np.int64),
        outputs.astype(np.int64),
        f"{name} trace {path.name}{cut}{fast}",
    )


def generated(
    count: int, rate_per_s: float, lengths: tuple[int, int], output_tokens: int, seed: int
) -> Traffic:
    """Poisson arrivals; prompt lengths log-uniform between two. UserError for lengths that are none."""
    low, high = lengths
    if not 0 < low <= high:
        raise UserError(f"--lengths wants two lengths such as 2k-32k, found {low}-{high}")
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(1 / rate_per_s, count))
    prompts = np.exp(rng.uniform(np.log(low), np.log(high), count)).round().astype(np.int64)
    return Traffic(
        at - at[0],
        prompts,
        np.full(count, output_tokens, dtype=np.int64),
        f"generated (seed {seed}): Poisson, {rate_per_s:.3g} requests/s, {low:,} to {high:,} tokens, "
        f"{output_tokens} tokens out",
    )

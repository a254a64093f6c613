"""The mixed traffic, and what the policy should gain on it."""

import random
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from greenbench.contract.config import SloConfig
from greenbench.contract.policy import Policy
from loadgen.prompts.prompt_file import Prompt
from planning.curves import Curves, grid
from planning.fresh import REQUESTS, SHARE, Course, Fresh, every
from planning.playing import Fold
from scripts.demo_policy.choice import by_place, quicker
from scripts.demo_policy.experiment import BACKENDS, LENGTHS, ROUND_S, USERS, Measured, Prompts


def shares(measured: Sequence[Measured]) -> dict[int, float]:
    """Of the requests, by length: so many that both kinds have as much to do, each with those that it is
    quicker at, and as much at each of its lengths.
    """
    at = by_place(measured)
    best = {n: quicker(measured, n) for n in LENGTHS}
    counts = Counter(best.values())
    weights = {n: 1 / (counts[name] * at[name, n].e2e_s) for n, name in best.items()}
    return {n: weight / sum(weights.values()) for n, weight in weights.items()}


def requests_a_round(measured: Sequence[Measured]) -> int:
    """So that two servers, each with the lengths that it is quicker at, take about ROUND_S."""
    at = by_place(measured)
    mean_s = sum(share * at[quicker(measured, n), n].e2e_s for n, share in shares(measured).items())
    return max(USERS * 4, round(2 * ROUND_S / mean_s))


def mixed(prompts: Prompts, of: Mapping[int, float], count: int, seed: int) -> list[Prompt]:
    """The same traffic for all strategies of a round."""
    rng = random.Random(seed)
    lengths = [n for n, share in of.items() for _ in range(round(share * count))]
    rng.shuffle(lengths)
    return [rng.choice(prompts[length]) for length in lengths]


def expected(made: Policy, measured: Sequence[Measured]) -> list[Fresh]:
    """The trial of `greenbench policy`, on the measured times and this traffic: its gain over two servers of
    whichever kind does best alone.
    """
    tokens = 16  # of an answer of the task

    def curves(name: str) -> Curves:
        own = [each for each in measured if each.pool == name]
        ttft = grid({(1.0, each.context): each.ttft_s for each in own})
        tpot = grid(
            {(1.0, each.context): (each.e2e_s - each.ttft_s) / (tokens - 1) for each in own}
        )
        assert ttft is not None and tpot is not None, "every kind is measured"
        return Curves(ttft, tpot, None)

    of = shares(measured)
    lengths = np.repeat(list(of), [round(1000 * share) for share in of.values()])
    fold = Fold(made, {name: curves(name) for name in BACKENDS})
    return every(Course(fold, 2, "e2e", SloConfig(), lengths, tokens), 1)


def told_before(found: Sequence[Fresh]) -> str:
    """What was to be expected, before the servers were compared."""
    last = found[-1]
    gain = statistics.fmean(last.gains)
    how = f"{last.won} of {len(last.gains)} simulated traces of {REQUESTS} requests ({last.busy:.0%} busy)"
    if last.shown:
        each = ", ".join(f"{f.won} of {len(f.gains)} at {f.busy:.0%} busy" for f in found)
        return (
            f"Before the comparison, by the trial of greenbench policy on the measured times: it pays; it "
            f"is at least as good as two servers of the better kind in {each} (simulated traces of "
            f"{REQUESTS} requests)."
        )
    return (
        "Before the comparison, by the trial of greenbench policy on the measured times: no policy. It is "
        f"at least as good as two servers of the better kind in {how}, its mean gain there is {gain:+.1%}, "
        f"and {SHARE:.0%} must be shown."
    )

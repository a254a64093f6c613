"""Is a policy at least as good as the best single candidate in 95 % of traces? Asked of traces drawn anew.

A mean gain above 0 is not enough: one that is smaller than a trace's noise loses many traces. So wins are
counted: 95 % are shown once Clopper and Pearson's lower limit of their share is 95 %. Four looks are taken,
each with an error of 1.25 %, so that together they err in at most 5 % (Bonferroni).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from scipy.special import betaincinv

from greenbench.contract.config import SloConfig
from greenbench.contract.policy import PolicyObjective
from planning.curves import Ints
from planning.playing import Fold, play, usual_rate
from planning.requests import Traffic
from planning.score import NOTHING, values

REQUESTS = 500  # of a trace
SHARE = 0.95  # of the traces
BUSY = (0.7, 0.5, 0.3)  # the hardest first
LOOKS = (100, 200, 400, 800)  # traces, after which it is decided or more are drawn
ERROR = 0.05 / len(LOOKS)


@dataclass(frozen=True)
class Fresh:
    """``gains``: of each trace, the best single candidate's mean cost over the policy's, less one."""

    busy: float
    gains: tuple[float, ...]

    @property
    def won(self) -> int:
        return sum(gain >= -NOTHING for gain in self.gains)

    @property
    def words(self) -> str:
        return f"{self.won} of {len(self.gains)} ({self.busy:.0%} busy)"

    @property
    def shown(self) -> bool:
        return least_share(self.won, len(self.gains)) >= SHARE


def least_share(won: int, n: int) -> float:
    """Clopper and Pearson's lower limit of the share that is won, with ERROR on one side."""
    return float(betaincinv(won, n - won + 1, ERROR)) if won else 0.0


@dataclass(frozen=True)
class Course:
    """What a policy is played for: each trace draws its prompts from ``lengths``, with replacement, and has
    ``output`` tokens a request.
    """

    fold: Fold
    servers: int
    objective: PolicyObjective
    slo: SloConfig
    lengths: Ints
    output: int

    @cached_property
    def full_rate(self) -> float:
        """Requests/s that keep the servers busy with the default alone."""
        n = len(self.lengths)
        whole = Traffic(np.zeros(n), self.lengths, np.full(n, self.output), "all lengths")
        default = self.fold.truth[self.fold.policy.default]
        return usual_rate(default, whole, self.servers, 1.0)

    def trace(self, busy: float, count: int, seed: int) -> Traffic:
        """Poisson arrivals at which the servers are ``busy`` with the default alone."""
        rng = np.random.default_rng([seed, round(1000 * busy)])
        at = np.cumsum(rng.exponential(1 / (busy * self.full_rate), count))
        outputs = np.full(count, self.output)
        return Traffic(at - at[0], rng.choice(self.lengths, count), outputs, "drawn anew")

    def gain(self, traffic: Traffic, seed: int) -> float:
        done = play(
            self.fold,
            traffic,
            self.servers,
            self.objective,
            self.slo,
            seed,
            ("policy", "best single"),
        )
        policy, single = (
            float(np.nanmean(values(done[who][0], traffic.output_tokens, self.objective, self.slo)))
            for who in ("policy", "best single")
        )
        more_is_better = self.objective == "capacity"
        return (policy / single if more_is_better else single / policy) - 1


def asked(course: Course, busy: float, seed: int, looks: Sequence[int] = LOOKS) -> Fresh:
    """Traces until it is shown that the policy wins SHARE of them, or can no longer be, by ``looks[-1]``."""
    most = looks[-1]
    gains: list[float] = []
    for upto in looks:
        while len(gains) < upto:
            number = most * seed + len(gains)
            gains.append(course.gain(course.trace(busy, REQUESTS, number), number))
            found = Fresh(busy, tuple(gains))
            if least_share(found.won + most - len(gains), most) < SHARE:
                return found
        if found.shown:
            break
    return found


def every(course: Course, seed: int) -> list[Fresh]:
    """At each of BUSY, up to the first at which it is not shown."""
    found: list[Fresh] = []
    for busy in BUSY:
        found.append(asked(course, busy, seed))
        if not found[-1].shown:
            break
    return found

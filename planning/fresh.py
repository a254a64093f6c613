"""Is a policy at least as good as the best single candidate in 95 % of traces? Asked of traces drawn anew.

A mean gain above 0 is not enough: one that is smaller than a trace's noise loses many traces. The gains of n
traces, mean m and deviation s, tell the share that is won: Φ(m / s), where gains are normal. The error of
z = m / s is √(1/n + z²/2n) (delta method), so z less 1.645 errors bounds the share from below (95 %, one
side).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from greenbench.contract.config import SloConfig
from greenbench.contract.policy import PolicyObjective
from planning.curves import Ints
from planning.playing import Fold, play, usual_rate
from planning.requests import Traffic
from planning.score import values

REQUESTS = 500  # of a trace
SHARE = 0.95  # of the traces
Z = 1.645  # the normal quantile of 95 %: of SHARE, and of a limit on one side
BUSY = (0.7, 0.5, 0.3)  # the hardest first
LOOKS = (25, 50, 100, 200)  # traces, after which it is decided or more are drawn


@dataclass(frozen=True)
class Fresh:
    """``gains``: of each trace, the best single candidate's mean cost over the policy's, less one."""

    busy: float
    gains: tuple[float, ...]

    @property
    def won(self) -> int:
        return sum(gain >= 0 for gain in self.gains)

    @property
    def limits(self) -> tuple[float, float]:
        """Of z, 95 % on either side; infinite where all gains are equal."""
        n, mean, sd = len(self.gains), float(np.mean(self.gains)), float(np.std(self.gains, ddof=1))
        if sd == 0:
            return (math.inf, math.inf) if mean >= 0 else (-math.inf, -math.inf)
        z = mean / sd
        error = math.sqrt(1 / n + z * z / (2 * n))
        return z - Z * error, z + Z * error

    @property
    def shown(self) -> bool:
        """Whether at least SHARE of the traces are won: these, and by the limit all such."""
        return self.limits[0] >= Z and self.won >= SHARE * len(self.gains)


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

    def trace(self, busy: float, count: int, seed: int) -> Traffic:
        """Poisson arrivals at which the servers are ``busy`` with the default alone."""
        rng = np.random.default_rng([seed, round(1000 * busy)])
        outputs = np.full(count, self.output)
        whole = Traffic(
            np.zeros(len(self.lengths)),
            self.lengths,
            np.full(len(self.lengths), self.output),
            "all",
        )
        default = self.fold.truth[self.fold.policy.default]
        rate = usual_rate(default, whole, self.servers, busy)
        at = np.cumsum(rng.exponential(1 / rate, count))
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
    """Traces until it is decided whether the policy wins SHARE of them, at most ``looks[-1]``."""
    gains: list[float] = []
    for upto in looks:
        while len(gains) < upto:
            number = 1000 * seed + len(gains)
            gains.append(course.gain(course.trace(busy, REQUESTS, number), number))
        found = Fresh(busy, tuple(gains))
        if found.shown or found.limits[1] < Z:
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

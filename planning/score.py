"""What each way of routing came to, and how surely: means, regret, intervals over resampled traces."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from greenbench.contract.policy import PolicyObjective
from greenbench.contract.slo import is_good
from planning.curves import Floats, Ints
from planning.requests import Traffic
from planning.simulate import Outcome

Who = Literal["foreseeing", "oracle", "policy", "best single", "random"]
WHO: tuple[Who, ...] = ("foreseeing", "oracle", "policy", "best single", "random")
DRAWS = 1_000
NOTHING = 1e-12


@dataclass(frozen=True)
class Score:
    """Mean of the objective over the requests, with 95 % intervals over resampled traces.

    ``regret``: how much worse than the oracle, as a share. ``over_single``: how many times better than the
    best single pool; ``as_good``: of the resampled traces, the share in which it is at least as good.
    """

    who: Who
    mean: float
    regret: tuple[float, float, float]
    over_single: tuple[float, float, float]
    as_good: float
    shares: dict[str, float]  # of the requests, by pool
    unserved: int


Play = Mapping[Who, tuple[Outcome, list[str]]]


def scored(
    plays: Sequence[Play],
    traffic: Traffic,
    objective: PolicyObjective,
    slo: SloConfig,
    seed: int,
) -> tuple[Score, ...]:
    """Over the requests that all of them served in every fold. Traces are resampled in stretches of
    consecutive requests, because neighbours stand in one queue; all of them by the same draws.
    """
    outputs = traffic.output_tokens
    by_who = {
        who: np.stack([values(play[who][0], outputs, objective, slo) for play in plays])
        for who in plays[0]
    }
    told = np.all([np.isfinite(each).all(axis=0) for each in by_who.values()], axis=0)
    if not told.any():
        raise UserError(
            f"no request of the traffic has a figure for {objective} with every pool; give longer outputs, "
            "or another objective"
        )
    per_request = {who: each[:, told].mean(axis=0) for who, each in by_who.items()}
    picks = _stretches(int(told.sum()), np.random.default_rng(seed))
    drawn = {who: each[picks].mean(axis=1) for who, each in per_request.items()}
    means = {who: float(each.mean()) for who, each in per_request.items()}
    sign = -1 if objective == "capacity" else 1
    return tuple(
        Score(
            who=who,
            mean=means[who],
            regret=_spread(
                _times(means[who], means["oracle"], sign) - 1,
                _times(drawn[who], drawn["oracle"], sign) - 1,
            ),
            over_single=_spread(
                _times(means["best single"], means[who], sign),
                _times(drawn["best single"], drawn[who], sign),
            ),
            as_good=float((sign * drawn[who] <= sign * drawn["best single"] + NOTHING).mean()),
            shares=_shares(plays, who),
            unserved=sum(play[who][0].unserved for play in plays) // len(plays),
        )
        for who in plays[0]
    )


def _times(a: Any, b: Any, sign: int) -> Any:
    """How many times b's cost a's is; of a rate, whose cost is its inverse, b over a."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.divide(a, b) if sign > 0 else np.divide(b, a)


def _spread(value: Any, drawn: Floats) -> tuple[float, float, float]:
    """(value, low, high), the ends 95 % over the draws; NaN where two of them have no ratio."""
    low, high = np.percentile(drawn, [2.5, 97.5])
    return float(value), float(low), float(high)


def _stretches(n: int, rng: np.random.Generator) -> Ints:
    """draws × n places: stretches of √n consecutive ones, around the end to the start."""
    length = max(1, math.isqrt(n))
    starts = rng.integers(0, n, (DRAWS, math.ceil(n / length)))
    places = (starts[:, :, None] + np.arange(length)) % n
    return places.reshape(DRAWS, -1)[:, :n]


def _shares(plays: Sequence[Play], who: Who) -> dict[str, float]:
    """Of the served requests, by pool, over all folds."""
    counts: dict[str, int] = {}
    for play in plays:
        outcome, pools = play[who]
        for number, pool in enumerate(pools):
            counts[pool] = counts.get(pool, 0) + int((outcome.server == number).sum())
    total = sum(counts.values()) or 1
    return {pool: count / total for pool, count in counts.items()}


def values(
    outcome: Outcome, traffic_output: Ints, objective: PolicyObjective, slo: SloConfig
) -> Floats:
    """By request; of capacity 1 where the SLO is met."""
    if objective == "capacity":
        good = is_good(
            slo,
            outcome.server >= 0,
            outcome.ttft_s,
            outcome.tpot_s,
            outcome.e2e_s,
            traffic_output,
        )
        return np.asarray(good, dtype=float)
    of = {
        "ttft": outcome.ttft_s,
        "tpot": outcome.tpot_s,
        "e2e": outcome.e2e_s,
        "energy": outcome.joules,
    }
    return of[objective]

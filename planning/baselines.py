"""What a plan must do better than: the nearest measured point, and a straight line through them all."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from planning.held_out import Figures, Load

ROUNDS = 30  # of a rate's concurrency by Little's law


@dataclass(frozen=True)
class Known:
    """A measured point: mean prompt, tokens, mean number of open requests, and its figures."""

    prompt_tokens: float
    open: float
    figures: Figures


def nearest(known: Sequence[Known], load: Load) -> Figures | None:
    """Of the closest length, and there of the closest number of open requests. An open loop gets its rate,
    and no more than was seen.
    """
    if not known:
        return None

    def far(one: Known, users: float) -> tuple[float, float]:
        return abs(np.log(one.prompt_tokens / load.prompt_tokens)), abs(np.log(one.open / users))

    if load.users is not None:
        users = float(load.users)
        return min(known, key=lambda one: far(one, users)).figures
    rate = len(load.arrivals) / load.end_s
    closest = min(far(one, 1.0)[0] for one in known)
    here = [one for one in known if far(one, 1.0)[0] == closest]
    best = min(here, key=lambda one: abs(np.log(one.figures.throughput / rate)))
    return _at_rate(best.figures, rate)


def line(known: Sequence[Known], load: Load) -> Figures | None:
    """Each figure linear in the prompt's length and in the number of open requests, by least squares."""
    if len(known) < 2:
        return None

    def at(name: str, users: float) -> float | None:
        rows = [one for one in known if getattr(one.figures, name) is not None]
        if not rows:
            return None
        x = np.array([[1.0, one.prompt_tokens, one.open] for one in rows])
        y = np.array([getattr(one.figures, name) for one in rows])
        fit = np.linalg.lstsq(x, y, rcond=None)[0]
        return max(0.0, float(fit @ [1.0, load.prompt_tokens, users]))

    users = float(load.users or 1)
    rate = len(load.arrivals) / load.end_s if load.users is None else None
    for _ in range(ROUNDS if rate is not None else 0):
        users = (users + (rate or 0.0) * (at("e2e_mean_s", users) or 0.0)) / 2
    slowest = at("e2e_mean_s", users)
    made = Figures(
        throughput=users / slowest if slowest else 0.0,
        ttft_p50_s=at("ttft_p50_s", users),
        ttft_p90_s=at("ttft_p90_s", users),
        e2e_p50_s=at("e2e_p50_s", users),
        e2e_p90_s=at("e2e_p90_s", users),
        e2e_mean_s=slowest,
        waiting_s=at("waiting_s", users),
    )
    return made if rate is None else _at_rate(made, rate)


def _at_rate(figures: Figures, rate: float) -> Figures:
    return replace(figures, throughput=min(rate, figures.throughput))

"""Sweeps of pretended servers whose curves are known: processor sharing, so that n open requests of one
server take n times as long as one alone (tests.outside.playing).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from planning.curves import Curves, Grid, grid
from tests.outside.generator import Point, Power, write
from tests.outside.playing import Load, Pace, Phases
from tests.outside.sweeps import ALL_RIGHT, starts

CONTEXTS = (2048, 8192, 32768)
TOKENS = 32


@dataclass(frozen=True)
class Cost:
    """Seconds alone: prefill a·x + b·x², with x the prompt in units of 8,192 tokens; ``step`` a token."""

    a: float
    b: float
    step: float = 0.004

    def prefill_s(self, context: float) -> float:
        x = context / 8192
        return self.a * x + self.b * x * x

    def e2e_s(self, context: float) -> float:
        return self.prefill_s(context) + (TOKENS - 1) * self.step


SHORT = Cost(0.10, 0.10)  # alpha: better below …
LONG = Cost(0.24, 0.03)  # beta: … and above 0.14 / 0.07 · 8,192 = 16,384 tokens
CROSSING = {"alpha": SHORT, "beta": LONG}


def crossing_tokens(one: Cost, other: Cost) -> float:
    """Where both prefills take the same: a₁x + b₁x² = a₂x + b₂x²."""
    return 8192 * (other.a - one.a) / (one.b - other.b)


def points(
    costs: Mapping[str, Cost],
    contexts: Sequence[int] = CONTEXTS,
    users: int = 4,
    change: Callable[[Point], Point] = lambda point: point,
) -> list[Point]:
    one = Point(
        load=Load(users, "staggered"),
        right=ALL_RIGHT,
        power=Power(),
        phases=Phases(5.0, 75.0),
        output_tokens=TOKENS,
    )
    return [
        change(
            replace(
                one,
                backend=name,
                context=context,
                pace=Pace(cost.prefill_s(context), cost.step, "shared", request_sd=0.005),
            )
        )
        for name, cost in costs.items()
        for context in contexts
    ]


def written(root: Path, made: Sequence[Point], repeats: int = 4, sd: float = 0.005) -> Path:
    """``made`` started so often, below ``root``."""
    write(root, starts(made, repeats, sd=sd, seed=11))
    return root


def truth(cost: Cost) -> Curves:
    """The known curves, dense enough that nothing between is guessed."""
    contexts = np.unique(np.geomspace(512, 131_072, 400).round().astype(int)).tolist()

    def figure(of: Callable[[float], float]) -> Grid:
        found = grid({(float(n), c): n * of(c) for n in (1, 1024) for c in contexts})
        assert found is not None
        return found

    return Curves(figure(cost.prefill_s), figure(lambda _: cost.step), None)

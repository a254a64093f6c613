"""What candidates are compared by: one entry a figure, read by tables, crossovers and sentences alike."""

from dataclasses import dataclass
from typing import Literal

from analysis.point.point import Point
from greenbench.contract.errors import UserError, nearest

Form = Literal["linear", "quadratic"]
# A smaller difference is of no use to anybody, however surely it is there.
MARGIN = 0.02


@dataclass(frozen=True)
class Objective:
    """A figure of a point. ``path`` leads to one value a start inside Point.

    ``better`` is what the better candidate has, as in "1.3× higher goodput than". ``sample`` names the
    per-request values behind it; ``form`` how it grows with context, where a crossover is looked for.
    ``shown``: has a column of the decision table.
    """

    name: str
    title: str
    unit: str
    higher_is_better: bool
    path: tuple[str, ...]
    better: str
    sample: str | None = None
    form: Form | None = None
    shown: bool = True
    margin: float = MARGIN

    def value(self, point: Point) -> float | None:
        """The point's value, 0 included; None where it has none or the point may not be used."""
        found: object = getattr(point, self.path[0]) if point.usable else None
        for key in self.path[1:]:
            found = found.get(key) if isinstance(found, dict) else None
        if isinstance(found, bool) or not isinstance(found, int | float):
            return None
        return float(found)

    @property
    def worse(self) -> str:
        """What the worse candidate has: ``better`` with its adjective turned."""
        adjective, rest = self.better.split(" ", 1)
        return f"{OPPOSITES[adjective]} {rest}"


OPPOSITES = {"higher": "lower", "lower": "higher", "fewer": "more"}

OBJECTIVES: tuple[Objective, ...] = (
    Objective("goodput", "Goodput", "req/s", True, ("goodput", "per_s"), "higher goodput"),
    Objective(
        "output",
        "Output tokens/s",
        "tok/s",
        True,
        ("throughput", "output_tokens_per_s"),
        "higher output tokens/s",
    ),
    Objective(
        "total",
        "Total tokens/s",
        "tok/s",
        True,
        ("throughput", "total_tokens_per_s"),
        "higher total tokens/s",
    ),
    Objective(
        "requests",
        "Requests/s",
        "req/s",
        True,
        ("throughput", "requests_per_s"),
        "higher requests/s",
        shown=False,
    ),
    Objective(
        "ttft",
        "TTFT p50",
        "s",
        False,
        ("latency", "ttft_s", "p50"),
        "lower TTFT",
        sample="ttft_s",
        form="quadratic",
    ),
    # a request's own mean: tokens that arrive in bursts give the median gap no meaning
    Objective(
        "tpot",
        "TPOT p50",
        "s",
        False,
        ("latency", "tpot_s", "p50"),
        "lower TPOT",
        sample="tpot_s",
        form="linear",
    ),
    Objective(
        "e2e",
        "E2E p50",
        "s",
        False,
        ("latency", "e2e_s", "p50"),
        "lower E2E time",
        sample="e2e_s",
        form="quadratic",
    ),
    Objective(
        "energy",
        "J per output token",
        "J",
        False,
        ("energy", "gross", "j_per_output_token"),
        "fewer J per output token",
        form="quadratic",
    ),
    Objective(
        "energy_total",
        "J per total token",
        "J",
        False,
        ("energy", "gross", "j_per_total_token"),
        "fewer J per total token",
        shown=False,
    ),
    Objective(
        "energy_request",
        "J per request",
        "J",
        False,
        ("energy", "gross", "j_per_request"),
        "fewer J per request",
        shown=False,
    ),
    Objective("memory", "Peak memory", "B", False, ("memory", "peak_bytes"), "lower peak memory"),
    Objective(
        "sequence",
        "KV pool a sequence takes",
        "share",
        False,
        ("extra", "kv_share_per_sequence"),
        "lower KV pool a sequence",
        form="linear",
        shown=False,
    ),
)
FALLBACK = "e2e"  # of the headline, where the objective that was chosen has no value
BY_NAME = {objective.name: objective for objective in OBJECTIVES}


def objective(name: str) -> Objective:
    """By its name; one that is not there is a UserError that names the nearest."""
    if name not in BY_NAME:
        raise UserError(f"objective: no '{name}' is known; {nearest(name, BY_NAME)}")
    return BY_NAME[name]

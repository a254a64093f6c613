"""How much of a point must be measured for the report to give its figures, and how that is asked.

``python -m analysis enough`` answers a ``Question`` a line with an ``Answer``.
"""

from pydantic import Field

from greenbench.contract.strict import StrictModel

JOULES_S = 60.0  # the shortest window whose energy is given (docs/energy.md)
JOULES_REQUESTS = 30
WINDOW_REQUESTS = 6  # the fewest completions of a steady window
PERCENTILES = (50, 90, 95, 99)


def needed(percentile: int) -> int:
    """Values that a percentile needs: of a tail ten beyond it (p90: 10 of 100, p99: 10 of 1,000), of the
    median 6, the fewest for which two order statistics enclose it with 95 % (1 − 2·0.5⁶ = 0.969).
    """
    return 6 if percentile == 50 else -(-10 * 100 // (100 - percentile))


class Question(StrictModel):
    """Whether a run, as far as it is written, has a steady window of so many seconds and requests."""

    path: str
    seconds: float = Field(ge=0)
    completions: int = Field(ge=0)


class Answer(StrictModel):
    """``steady_s`` and ``completions`` of what would be the report's window; ``lacking``: sentences.

    ``took_s``: processor time of the answer.
    """

    path: str  # the question's
    enough: bool
    steady_s: float
    completions: int
    lacking: list[str]
    took_s: float = 0.0

"""Joules with their origin. What was measured and what was estimated are two types that do not add up.

Measured(9_000, "gpu", "nvml_counter") + Estimated(…)   # TypeError
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Scope = Literal["gpu", "module", "memory", "cpu_package", "dram"]
Provenance = Literal["nvml_counter", "rapl"]


@dataclass(frozen=True, slots=True)
class Measured:
    """Energy that a sensor counted. ``joules`` is finite; scopes and provenances never mix in a sum."""

    joules: float
    scope: Scope
    provenance: Provenance

    @classmethod
    def from_microjoules(cls, uj: float, scope: Scope, provenance: Provenance) -> "Measured":
        return cls(_number(uj) / 1e6, scope, provenance)

    def __add__(self, other: "Measured") -> "Measured":
        if not isinstance(other, Measured):
            raise TypeError(f"only measured energy adds to measured energy, not {_kind(other)}")
        if (self.scope, self.provenance) != (other.scope, other.provenance):
            raise TypeError(
                f"{self.scope} by {self.provenance} and {other.scope} by {other.provenance} do not add up"
            )
        return Measured(self.joules + other.joules, self.scope, self.provenance)


@dataclass(frozen=True, slots=True)
class Estimated:
    """Energy that a model thinks was used: an interval, and the model's name. It adds to nothing measured."""

    low_j: float
    high_j: float
    model: str


def total(parts: Iterable[Measured]) -> Measured:
    """Sum of at least one measured energy; anything else in it raises TypeError."""
    first, *rest = parts
    for part in rest:
        first = first + part
    return first


def _number(value: float) -> float:
    """Refuses a quantity where a bare number in the named unit is wanted."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a number is wanted, found {_kind(value)}")
    return float(value)


def _kind(value: object) -> str:
    return type(value).__name__

"""What many values say: a median and a share with their intervals, the percentiles they can carry."""

from dataclasses import dataclass, field

import numpy as np
from scipy.special import bdtr

from greenbench.contract.enough import needed as needed


def refusal(percentile: int, n: int) -> str | None:
    """Why there is no such percentile of ``n`` values; None where there is."""
    need = needed(percentile)
    return f"p{percentile} needs {need:,}, has {n:,}" if n < need else None


PERCENTILES = (50, 90, 99)


@dataclass(frozen=True)
class Statistic:
    """Of ``n`` values. A percentile is None when refused; ``refused`` says what it would need."""

    n: int
    mean: float | None = None
    minimum: float | None = None
    maximum: float | None = None
    p50: float | None = None
    p50_low: float | None = None  # 95 % order-statistic interval of the median
    p50_high: float | None = None
    p90: float | None = None
    p99: float | None = None
    refused: list[str] = field(default_factory=list)


def statistic(values: np.ndarray, interval: bool = True) -> Statistic:
    """Mean, range and the percentiles that n allows (linear interpolation). NaN values are left out."""
    values = np.asarray(values, dtype=float) if len(values) < 1_000_000 else np.asarray(values)
    values = values[~np.isnan(values)]
    n = len(values)
    if n == 0:
        return Statistic(0, refused=["no values"])
    wanted = [p for p in PERCENTILES if n >= needed(p)]
    percentiles = dict(zip(wanted, np.percentile(values, wanted), strict=True)) if wanted else {}
    refused = [why for p in PERCENTILES if (why := refusal(p, n)) is not None]
    low, high = _median_interval(values) if interval and 50 in percentiles else (None, None)
    return Statistic(
        n,
        mean=float(np.mean(values, dtype=float)),
        minimum=float(values.min()),
        maximum=float(values.max()),
        p50=as_float(percentiles.get(50)),
        p50_low=low,
        p50_high=high,
        p90=as_float(percentiles.get(90)),
        p99=as_float(percentiles.get(99)),
        refused=refused,
    )


def as_float(value: float | None) -> float | None:
    return None if value is None else float(value)


def _median_interval(values: np.ndarray) -> tuple[float, float]:
    """The order statistics x(k), x(n+1−k) with the largest k whose coverage is at least 95 %.

    Coverage is 1 − 2·P(Binomial(n, ½) < k) and holds for any continuous distribution.
    """
    n = len(values)
    k = max(1, int(n / 2 - 0.98 * np.sqrt(n)) + 2)  # above it, by the normal distribution
    while k > 1 and 2 * bdtr(k - 1, n, 0.5) > 0.05:
        k -= 1
    ordered = np.partition(values, [k - 1, n - k])
    return float(ordered[k - 1]), float(ordered[n - k])


def wilson(successes: float, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % score interval of a share (Wilson 1927)."""
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * np.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    return max(0.0, float(centre - half)), min(1.0, float(centre + half))

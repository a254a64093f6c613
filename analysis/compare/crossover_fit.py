"""From which context length does another backend become the better one?

Each backend's cost is fitted against context length in its physical form: time per token linear (every
step reads the whole KV cache), time to first token quadratic (causal attention), and their sum for a
request. Two fits are solved for the break-even length. Its interval comes from redrawing the
measurements: over server starts where there are enough, else over the requests, which
leaves out what differs from start to start and is marked so. "No crossover in the measured range" and
"within noise" are answers, not failures.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal

import numpy as np
from scipy.optimize import nnls

FORMS: dict[str, int] = {"linear": 1, "quadratic": 2}
DRAWS = 2000
SURE = 0.95
LEAST_SHARE_SAID = 0.05  # rarer outcomes of the draws stay in summary.json
MIN_STARTS = 3
GRID_POINTS = 61
MISFIT = 0.15  # a form that misses a measured point by more says nothing between the points

Verdict = Literal[
    "crossover", "none", "within noise", "indicative", "form does not fit", "too few contexts"
]


class Course(Enum):
    """Who of a and b is better along the contexts. The value stands in summary.json."""

    A_AT_BOTH_ENDS = "a but for a middle"
    A_THEN_B = "a then b"
    A_THROUGHOUT = "a throughout"
    B_AT_BOTH_ENDS = "b but for a middle"
    B_THEN_A = "b then a"
    B_THROUGHOUT = "b throughout"

    @property
    def throughout(self) -> bool:
        return self in (Course.A_THROUGHOUT, Course.B_THROUGHOUT)

    @property
    def twice(self) -> bool:
        """It crosses and crosses back."""
        return self in (Course.A_AT_BOTH_ENDS, Course.B_AT_BOTH_ENDS)

    def first_and_other(self, names: tuple[str, str]) -> tuple[str, str]:
        """The names of the one that is better at the shortest context, and of the other."""
        a_first = self in (Course.A_THROUGHOUT, Course.A_THEN_B, Course.A_AT_BOTH_ENDS)
        return names if a_first else (names[1], names[0])

    def words(self, names: tuple[str, str]) -> str:
        first, other = self.first_and_other(names)
        if self.throughout:
            return f"{first} throughout"
        return f"{first} at both ends" if self.twice else f"{first}, then {other}"


COURSES = tuple(Course)


@dataclass(frozen=True)
class Fit:
    """cost(L) = Σ coefficients[i]·Lⁱ, constant first. ``misfit``: largest relative residual."""

    coefficients: tuple[float, ...]
    misfit: float = 0.0

    def __call__(self, context: np.ndarray | float) -> np.ndarray:
        return np.polynomial.polynomial.polyval(context, self.coefficients)


def fit(contexts: Sequence[float], costs: Sequence[float], form: str) -> Fit:
    """Non-negative least squares on relative errors: no part of a cost may shrink with context."""
    degree = FORMS[form]
    x, y = np.asarray(contexts, dtype=float), np.asarray(costs, dtype=float)
    scale = x.max()
    design = np.vander(x / scale, degree + 1, increasing=True) / y[:, None]
    found, _ = nnls(design, np.ones(len(y)))
    coefficients = tuple(float(c / scale**i) for i, c in enumerate(found))
    misfit = float(np.max(np.abs(design @ found - 1)))
    return Fit(coefficients, misfit)


def fit_many(contexts: Sequence[float], costs: np.ndarray, form: str) -> np.ndarray:
    """``fit`` for many redrawn measurements: costs draws × contexts → coefficients draws × (degree + 1).

    One batch of unconstrained solutions; only those with a negative part are solved again, as ``fit`` does.
    """
    x = np.asarray(contexts, dtype=float)
    scale = x.max()
    design = np.vander(x / scale, FORMS[form] + 1, increasing=True) / costs[:, :, None]
    found = np.linalg.pinv(design).sum(axis=2)  # times a vector of ones: relative targets
    ones = np.ones(len(x))
    for row in np.flatnonzero((found < 0).any(axis=1)):
        found[row], _ = nnls(design[row], ones)
    return found / scale ** np.arange(FORMS[form] + 1)


def break_evens(a: Fit, b: Fit, low: float, high: float) -> list[float]:
    """Lengths in [low, high] at which both cost the same and the better one changes, ascending."""
    size = max(len(a.coefficients), len(b.coefficients))
    difference = np.zeros(size)
    difference[: len(a.coefficients)] += a.coefficients
    difference[: len(b.coefficients)] -= b.coefficients
    if not np.any(difference):
        return []
    roots = np.roots(np.trim_zeros(difference[::-1], "f"))
    real = np.sort(roots[np.abs(roots.imag) < 1e-9 * np.maximum(1, np.abs(roots))].real)
    step = (high - low) * 1e-6
    return [
        float(root)
        for root in real
        if low <= root <= high
        and np.sign(_cost_gap(a, b, root - step)) != np.sign(_cost_gap(a, b, root + step))
    ]


def _cost_gap(a: Fit, b: Fit, context: float) -> float:
    return float(a(context) - b(context))


@dataclass(frozen=True)
class Curve:
    """A backend's cost at each context. ``starts``: array starts × contexts, one statistic each.

    ``requests``: per context the single values behind it, for redrawing when starts are few.
    """

    contexts: tuple[int, ...]
    starts: np.ndarray
    requests: list[np.ndarray] = field(default_factory=list)

    @property
    def centre(self) -> np.ndarray:
        """Geometric mean over starts."""
        return np.exp(np.mean(np.log(self.starts), axis=0))


@dataclass(frozen=True)
class Band:
    """A fitted curve with its 95 % band, for plotting."""

    contexts: list[float]
    middle: list[float]
    low: list[float]
    high: list[float]


@dataclass(frozen=True)
class Crossover:
    """``short`` is better below ``context`` and ``long`` above. With "none", ``short`` is throughout; where
    the curves cross twice, ``short`` is at both ends and ``long`` between.
    """

    verdict: Verdict
    sentence: str
    short: str | None = None
    long: str | None = None
    context: float | None = None
    low: float | None = None
    high: float | None = None
    unit: str = "server starts"  # what was redrawn
    shares: dict[Course, float] = field(default_factory=dict)  # of the draws
    fits: dict[str, tuple[float, ...]] = field(default_factory=dict)
    bands: dict[str, Band] = field(default_factory=dict)


def redraw(
    pair: tuple[Curve, Curve], rng: np.random.Generator, draws: int
) -> tuple[np.ndarray, str]:
    """Costs as they might have come out: array draws × 2 × contexts, and what was redrawn.

    With n ≥ MIN_STARTS shared starts: mean + Σ gₖ·devₖ / √(n(n−1)) · √((n−1)/χ²) on log costs with standard
    normal gₖ. That is a t distribution with n−1 degrees of freedom along the observed deviations and
    keeps the two arms of a block together. Resampling so few blocks would make intervals too narrow.
    """
    logs = np.log(np.stack([curve.starts for curve in pair], axis=1))  # starts × 2 × contexts
    n = len(logs)
    mean = logs.mean(axis=0)
    if n >= MIN_STARTS:
        deviation = (logs - mean).reshape(n, -1)
        noise = rng.standard_normal((draws, n)) @ deviation / np.sqrt(n * (n - 1))
        widen = np.sqrt((n - 1) / rng.chisquare(n - 1, draws))
        return np.exp(mean + (noise * widen[:, None]).reshape(draws, *mean.shape)), "server starts"
    drawn = np.empty((draws, *mean.shape))
    for arm, curve in enumerate(pair):
        for place, values in enumerate(curve.requests):
            picks = rng.integers(0, len(values), (draws, len(values)))
            drawn[:, arm, place] = np.median(values[picks], axis=1)
    return drawn, "requests"


def crossover(
    names: tuple[str, str], pair: tuple[Curve, Curve], form: str, seed: int = 7
) -> Crossover:
    """Compare two curves over the same contexts.

    The verdict needs 95 % of the draws: crossing in one direction gives "crossover", one backend
    cheaper throughout gives "none" (of a crossover), anything else is "within noise".
    """
    contexts = pair[0].contexts
    assert contexts == pair[1].contexts, "curves must share their contexts"
    low, high = float(contexts[0]), float(contexts[-1])
    needed = FORMS[form] + 1
    if len(contexts) < needed:
        return Crossover(
            "too few contexts",
            f"a {form} form needs {needed} context lengths, there are {len(contexts)}",
        )
    fits = tuple(fit(contexts, curve.centre.tolist(), form) for curve in pair)
    coefficients = {name: found.coefficients for name, found in zip(names, fits, strict=True)}
    worst = max(found.misfit for found in fits)
    if worst > MISFIT:
        sentence = f"a {form} form misses a measured point by {worst:.0%}: no length is stated"
        return Crossover("form does not fit", sentence, fits=coefficients)
    drawn, unit = redraw(pair, np.random.default_rng(seed), DRAWS)
    refits = np.stack([fit_many(contexts, drawn[:, arm], form) for arm in (0, 1)], axis=1)
    courses, lengths = along(refits, low, high)
    numbers, counts = np.unique(courses, return_counts=True)
    shares = {COURSES[k]: float(n) / len(courses) for k, n in zip(numbers, counts, strict=True)}
    fitted = Crossover(
        "within noise",
        "",
        unit=unit,
        shares=shares,
        fits=coefficients,
        bands=_bands(names, fits, refits, low, high),
    )
    return _conclude(fitted, names, fits, (courses, lengths), (low, high))


def along(refits: np.ndarray, low: float, high: float) -> tuple[np.ndarray, np.ndarray]:
    """Of each pair of fits: its place in COURSES, and the break-even length where the ends differ, else NaN.
    ``refits``: draws × 2 × coefficients.
    """
    gap = refits[:, 0] - refits[:, 1]
    c, b = gap[:, 0], gap[:, 1]
    a = gap[:, 2] if gap.shape[1] == 3 else np.zeros(len(gap))

    def cost(context: np.ndarray | float) -> np.ndarray:
        return c + context * (b + context * a)

    first, last = cost(low) < 0, cost(high) < 0
    with np.errstate(divide="ignore", invalid="ignore"):
        vertex = -b / (2 * a)
        half = -0.5 * (b + np.copysign(np.sqrt(np.maximum(0, b * b - 4 * a * c)), b))
        roots = np.stack([half / a, c / half], axis=1)  # the pair that loses no digits
    turns = (vertex > low) & (vertex < high) & ((cost(np.nan_to_num(vertex)) < 0) != first)

    def number(a: Course, b: Course) -> np.ndarray:
        return np.where(first, COURSES.index(a), COURSES.index(b))

    courses = np.where(
        first != last,
        number(Course.A_THEN_B, Course.B_THEN_A),
        np.where(
            turns,
            number(Course.A_AT_BOTH_ENDS, Course.B_AT_BOTH_ENDS),
            number(Course.A_THROUGHOUT, Course.B_THROUGHOUT),
        ),
    )
    inside = np.where((roots >= low) & (roots <= high), roots, np.nan)
    at = np.where(np.isnan(inside[:, 0]), inside[:, 1], inside[:, 0])
    return courses, np.where(first != last, at, np.nan)


def _conclude(
    fitted: Crossover,
    names: tuple[str, str],
    fits: tuple[Fit, ...],
    courses: tuple[np.ndarray, np.ndarray],
    span: tuple[float, float],
) -> Crossover:
    low, high = span
    course, share = max(fitted.shares.items(), key=lambda item: item[1])
    words = f"between {low:,.0f} and {high:,.0f} tokens"
    if share < SURE:
        listed = ", ".join(
            f"{part:.0%} {each.words(names)}"
            for each, part in sorted(fitted.shares.items(), key=lambda i: -i[1])
            if part >= LEAST_SHARE_SAID
        )
        return replace(
            fitted, sentence=f"not settled {words}: of the redrawn measurements {listed}"
        )
    short, long = course.first_and_other(names)
    if course.twice:
        sentence = f"{short} at both ends {words}, not between: it crosses twice"
        return replace(fitted, short=short, long=long, sentence=sentence)
    if course.throughout:
        sentence = f"no crossover {words}: {short} below {long} throughout"
        return replace(fitted, verdict="none", short=short, sentence=sentence)
    numbers, lengths = courses
    roots = lengths[(numbers == COURSES.index(course)) & ~np.isnan(lengths)]
    # the fit itself can fail to cross only when the draws barely do; their median stands in
    at = (break_evens(fits[0], fits[1], low, high) or [float(np.median(roots))])[-1]
    lower, upper = (float(v) for v in np.percentile(roots, [2.5, 97.5]))
    return replace(
        fitted,
        verdict="crossover",
        sentence=f"{long} overtakes {short} at {at:,.0f} tokens [{lower:,.0f}, {upper:,.0f}]",
        short=short,
        long=long,
        context=at,
        low=lower,
        high=upper,
    )


def _bands(
    names: tuple[str, str],
    fits: tuple[Fit, ...],
    refits: np.ndarray,
    low: float,
    high: float,
) -> dict[str, Band]:
    grid = np.linspace(low, high, GRID_POINTS)
    bands: dict[str, Band] = {}
    for arm, name in enumerate(names):
        all_costs = refits[:, arm] @ np.vander(grid, refits.shape[2], increasing=True).T
        lower, upper = np.percentile(all_costs, [2.5, 97.5], axis=0)
        bands[name] = Band(grid.tolist(), fits[arm](grid).tolist(), lower.tolist(), upper.tolist())
    return bands

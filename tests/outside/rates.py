"""How often a whole report claims what is not so, and how often it finds what is: sweeps of chosen truth.

Each sweep of a scenario draws its own server (pace, load, warm-up, so where the window's edges cut) and its
own noise; what is true of all of them is the scenario's truth. Seeds are fixed by the sweep's number.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import beta

from tests.outside.generator import Point, Power, write
from tests.outside.playing import Load, Pace, Phases, Schedule, Start
from tests.outside.reading import summarised
from tests.outside.sweeps import ALL_RIGHT, starts

Draw = np.random.Generator
STARTS: tuple[Start, ...] = ("in step", "staggered", "random")
SPLIT_DIFFERS = {"ttft", "tpot", "itl"}  # what another split of one throughput does change
GAIN = 1.05


@dataclass(frozen=True)
class Shape:
    """What a sweep looks like: how many candidates and contexts, and what else it has."""

    name: str
    candidates: int = 2
    contexts: tuple[int, ...] = (8192,)
    shared: bool = True  # a start slows all of its points alike
    arms: bool = False  # the first candidate is listed twice (A/A)
    telemetry: bool = True


PLAIN = Shape("2 candidates")
ARMS = Shape("2 candidates, A/A arms", arms=True)
CONTEXTS = Shape("2 × 3 contexts", contexts=(2048, 8192, 32768))
APART = Shape("2 × 3 contexts, points independent", contexts=(2048, 8192, 32768), shared=False)
FOUR = Shape("4 × 3 contexts", 4, (2048, 8192, 32768), telemetry=False)
SHAPES = (PLAIN, CONTEXTS, ARMS, PLAIN, APART, PLAIN, ARMS, PLAIN, FOUR, PLAIN)  # by turns
SMALL = (PLAIN, ARMS)  # for the test in CI
NAMES = ("alpha", "beta", "gamma", "delta")


@dataclass(frozen=True)
class Sweep:
    points: list[Point]
    shape: str


Drawn = Callable[[Draw, int, Sequence[Shape]], Sweep]


@dataclass(frozen=True)
class Scenario:
    """``differs``: objectives by which the candidates are not equal, so that a claim of them is none of the
    false ones unless it names the other; ``better`` is who is better by them. ``finds``: what is to be found.
    ``apart``: by which they differ by so much that "equivalent" is false.
    """

    name: str
    draw: Drawn
    differs: frozenset[str] = frozenset()
    better: dict[str, str] = field(default_factory=dict)
    finds: tuple[str, ...] = ()
    apart: frozenset[str] = frozenset()


def equal(n: int) -> Drawn:
    """Candidates that are the same, 2 % noise a start."""

    def draw(rng: Draw, number: int, shapes: Sequence[Shape]) -> Sweep:
        shape = shapes[number % len(shapes)]
        return Sweep(_points(shape, rng, n, 0.02, number), shape.name)

    return draw


def better_by_5(n: int) -> Drawn:
    """alpha takes 1 / 1.05 of the time for everything, 2 % noise a start, in closed loops: an open one serves
    what arrives.
    """

    def draw(rng: Draw, number: int, shapes: Sequence[Shape]) -> Sweep:
        shape = shapes[number % len(shapes)]
        points = _points(shape, rng, n, 0.02, number, open_share=0.0)
        faster = [replace(p, factor=p.factor / GAIN) if p.backend == "alpha" else p for p in points]
        return Sweep(faster, shape.name)

    return draw


def other_splits(n: int) -> Drawn:
    """Equal throughput and power, alpha with a smaller share of prefill; noise from none to 2 % a start."""

    def draw(rng: Draw, number: int, shapes: Sequence[Shape]) -> Sweep:
        start = STARTS[number % 3]
        schedule: Schedule = "alternating" if number // 3 % 3 else "shared"
        users, tokens = int(rng.choice([4, 8, 16])), 64
        cycle_s, share = rng.uniform(4, 12), rng.uniform(0.4, 0.7)
        weight = users if schedule == "alternating" else 1
        one_s = cycle_s if schedule == "alternating" else cycle_s / users
        paces = [
            Pace(part * one_s / weight, (1 - part) * one_s / (tokens - 1), schedule)
            for part in (share * rng.uniform(0.4, 0.8), share)
        ]
        sd = float(rng.choice([0.0005, 0.005, 0.02]))
        warmup_s = rng.uniform(5, 20)
        by_phase = schedule == "alternating" and number % 2 == 1
        pair = [
            Point(
                backend=name,
                pace=replace(pace, request_sd=0.01),
                load=Load(users, start),
                phases=Phases(warmup_s, 70.0),
                output_tokens=tokens,
                right=ALL_RIGHT,
                power=_mean_power(pace.prefill_s * users / cycle_s) if by_phase else Power(),
            )
            for name, pace in zip(NAMES, paces, strict=False)
        ]
        return Sweep(starts(pair, n, sd=sd, seed=number), f"{start}, {schedule}")

    return draw


def _mean_power(prefilling: float, mean_w: float = 560.0, prefill_w: float = 650.0) -> Power:
    """Another power in each phase, with the same mean: ``prefilling`` is the share of time in prefill."""
    return Power(prefill_w, (mean_w - prefilling * prefill_w) / (1 - prefilling))


def long_prompts(n: int) -> Drawn:
    """131k tokens, 2 users evenly staggered, cycles of 18 s in 70 s, two splits; 0.1 to 1 % noise."""

    def draw(rng: Draw, number: int, shapes: Sequence[Shape]) -> Sweep:
        tokens = 64
        first, second = np.sort(rng.uniform(2.0, 7.0, 2))
        warmup_s = rng.uniform(3, 25)
        pair = [
            Point(
                backend=name,
                context=131_072,
                pace=Pace(float(p), (18.0 - 2 * float(p)) / (tokens - 1), request_sd=0.005),
                load=Load(2, "staggered"),
                phases=Phases(warmup_s, 70.0),
                output_tokens=tokens,
                right=ALL_RIGHT,
                slo={"ttft_s": 100.0},
                power=Power(),
            )
            for name, p in (("alpha", first), ("beta", second))
        ]
        sd = float(rng.choice([0.001, 0.003, 0.01]))
        return Sweep(starts(pair, n, sd=sd, seed=number), "2 users")

    return draw


def _points(
    shape: Shape, rng: Draw, n: int, sd: float, number: int, open_share: float = 0.25
) -> list[Point]:
    """Equal candidates of a drawn pace, ``open_share`` of them in an open loop."""
    tokens, users = 64, int(rng.choice([4, 8]))
    cycle_s, part = rng.uniform(3, 9), rng.uniform(0.2, 0.6)
    warmup_s = rng.uniform(5, 20)
    opened = rng.random() < open_share
    points: list[Point] = []
    for context in shape.contexts:
        grown = (context / 8192) ** 0.5
        if opened:
            e2e_s = cycle_s / 3 * grown
            pace = Pace(part * e2e_s, (1 - part) * e2e_s / (tokens - 1), "alone", 0.02)
            load = Load(None, rate_per_s=2.0, arrivals="poisson")
        else:
            prefill_s = part * cycle_s / users * grown
            pace = Pace(prefill_s, (1 - part) * cycle_s / (tokens - 1), request_sd=0.02)
            load = Load(users, STARTS[number % 3])
        one = Point(
            pace=pace,
            load=load,
            seed=number,
            phases=Phases(warmup_s, 70.0),
            context=context,
            output_tokens=tokens,
            right=ALL_RIGHT,
            power=Power() if shape.telemetry else None,
        )
        points += [replace(one, backend=name) for name in NAMES[: shape.candidates]]
        if shape.arms:
            points.append(replace(one, backend=NAMES[0], arm=1))
    return starts(points, n, sd=sd, seed=number, shared=shape.shared)


SPLIT_BETTER = {"ttft": "alpha", "tpot": "beta", "itl": "beta"}
BY_5 = ("goodput", "output", "total", "e2e", "ttft", "tpot", "energy")
SCENARIOS: tuple[Scenario, ...] = (
    Scenario("equal, 1 start", equal(1)),
    Scenario("equal, 3 starts", equal(3)),
    Scenario("equal, 5 starts", equal(5)),
    Scenario(
        "other split, 3 starts",
        other_splits(3),
        frozenset(SPLIT_DIFFERS),
        SPLIT_BETTER,
        ("ttft", "tpot"),
    ),
    Scenario(
        "131k × 2 users, 3 starts",
        long_prompts(3),
        frozenset(SPLIT_DIFFERS),
        SPLIT_BETTER,
        ("ttft", "tpot"),
    ),
    Scenario(
        "5 % better, 5 starts",
        better_by_5(5),
        frozenset({*BY_5, "requests", "energy_total", "energy_request", "itl"}),
        {o: "alpha" for o in (*BY_5, "requests", "energy_total", "energy_request", "itl")},
        ("goodput", "output", "total", "e2e", "energy"),
        frozenset(BY_5),
    ),
)


@dataclass(frozen=True)
class Outcome:
    """One sweep: its false claims in words, which objectives' truth was found, and the seconds it took."""

    shape: str
    false: list[str]
    found: list[str]
    unusable: int
    points: int
    writing_s: float
    analysing_s: float


def judge(scenario: Scenario, number: int, shapes: Sequence[Shape] = SHAPES) -> Outcome:
    """Play, write and report sweep ``number`` of a scenario, and read what the report claims."""
    sweep = scenario.draw(np.random.default_rng([20260101, number]), number, shapes)
    with tempfile.TemporaryDirectory(prefix="claims-") as folder:
        began = time.perf_counter()
        write(Path(folder), sweep.points)
        written = time.perf_counter()
        summary = summarised(Path(folder))
        done = time.perf_counter()
    return Outcome(
        shape=sweep.shape,
        false=false_claims(summary, scenario),
        found=found_claims(summary, scenario),
        unusable=sum(p["status"] != "ok" for p in summary["points"]),
        points=len(summary["points"]),
        writing_s=written - began,
        analysing_s=done - written,
    )


def false_claims(summary: dict[str, Any], scenario: Scenario) -> list[str]:
    """Settled differences, equivalences, crossovers and winners that the truth does not have."""
    found: list[str] = []
    for d in summary["differences"]:
        objective, verdict = d["objective"], d["verdict"]
        apart = objective in scenario.apart and scenario.better[objective] in (d["a"], d["b"])
        if verdict == "equivalent" and apart:
            found.append(f"equivalent {objective}: at {d['context_tokens']}")
        if verdict not in ("better", "worse"):
            continue
        winner = d["a"] if verdict == "better" else d["b"]
        if not _true(scenario, objective, winner, (d["a"], d["b"])):
            found.append(f"{objective}: {winner} at {d['context_tokens']}")
    for d in summary["decisions"]:
        others = (d["winner"], "")
        if d["winner"] and not _true(scenario, d["objective"], d["winner"], others):
            found.append(f"decision {d['objective']}: {d['winner']}")
    for c in summary["crossings"]:
        objective = c.get("cost") or c.get("objective")  # the name, or an object that has it
        objective = objective["name"] if isinstance(objective, dict) else objective
        if c["found"]["verdict"] == "crossover":
            found.append(f"crossover {objective}")
        elif c["found"]["verdict"] == "none" and objective not in scenario.differs | {"sequence"}:
            found.append(f"no crossover {objective}")
    return found


def _true(scenario: Scenario, objective: str, winner: str, sides: tuple[str, str]) -> bool:
    """Whether ``winner`` is better by ``objective``. Of two that are equal nobody is."""
    best = scenario.better.get(objective)
    if objective not in scenario.differs or best is None:
        return False
    return winner.startswith(best) and (sides[1] == "" or sides[0] != sides[1])


def found_claims(summary: dict[str, Any], scenario: Scenario) -> list[str]:
    """Objectives of ``finds`` by which the better one is shown to be better than some other, anywhere."""
    found: set[str] = set()
    for d in summary["differences"]:
        if d["verdict"] in ("better", "worse") and d["objective"] in scenario.finds:
            winner = d["a"] if d["verdict"] == "better" else d["b"]
            if winner.startswith(scenario.better[d["objective"]]):
                found.add(d["objective"])
    return sorted(found)


@dataclass(frozen=True)
class Rate:
    """``hits`` of ``n`` with Clopper and Pearson's 95 % interval."""

    hits: int
    n: int

    @property
    def share(self) -> float:
        return self.hits / self.n if self.n else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        k, n = self.hits, self.n
        low = 0.0 if k == 0 else float(beta.ppf(0.025, k, n - k + 1))
        high = 1.0 if k == n else float(beta.ppf(0.975, k + 1, n - k))
        return low, high

    def words(self) -> str:
        low, high = self.interval
        return f"{self.share:.1%} [{low:.1%}, {high:.1%}] ({self.hits} of {self.n})"


def tabled(name: str, outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """The figures of one scenario, for JSON."""
    n = len(outcomes)
    shapes = sorted({o.shape for o in outcomes})
    kinds = Counter(kind for o in outcomes for kind in {_kind(words) for words in o.false})
    return {
        "scenario": name,
        "sweeps": n,
        "false_sweeps": sum(bool(o.false) for o in outcomes),
        "false_by_objective": dict(kinds.most_common()),
        "false_by_shape": {
            s: [
                sum(bool(o.false) for o in outcomes if o.shape == s),
                sum(o.shape == s for o in outcomes),
            ]
            for s in shapes
        },
        "found_by_objective": dict(Counter(k for o in outcomes for k in o.found).most_common()),
        "found_any": sum(bool(o.found) for o in outcomes),
        "found_by_shape": {
            s: [
                sum(bool(o.found) for o in outcomes if o.shape == s),
                sum(o.shape == s for o in outcomes),
            ]
            for s in shapes
        },
        "unusable_points": sum(o.unusable for o in outcomes),
        "points": sum(o.points for o in outcomes),
        "writing_s_a_sweep": sum(o.writing_s for o in outcomes) / n,
        "analysing_s_a_sweep": sum(o.analysing_s for o in outcomes) / n,
        "outcomes": [asdict(o) for o in outcomes],
    }


def _kind(words: str) -> str:
    """The objective of a false claim, without who and where."""
    return words.partition(":")[0]

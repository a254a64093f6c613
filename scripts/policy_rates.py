"""How often `greenbench policy` finds a policy between equal candidates, and between ones that cross.

python scripts/policy_rates.py [--sweeps 100] [--only equal] [--objectives ttft,e2e]
python scripts/policy_rates.py --traces 1000 [--requests 300]

Equal candidates are those of tests/outside/rates.py. ``--traces``: a policy of two candidates whose curves
are known (tests/planning/sweeps.py), against traces drawn anew. Prints Markdown tables for docs/policy.md.
"""

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from analysis.study import study
from greenbench.contract.errors import UserError
from planning.evidence import OBJECTIVE, evidence_of, gather
from planning.fit import policy_of
from planning.playing import Fold, play
from planning.requests import Traffic, generated
from planning.score import WHO
from tests.outside.generator import Point, Power, write
from tests.outside.playing import Load, Pace, Phases
from tests.outside.rates import SCENARIOS, SHAPES, Rate, Sweep
from tests.outside.sweeps import ALL_RIGHT, starts
from tests.planning.sweeps import CROSSING, SHORT, TOKENS, truth, written
from tests.planning.sweeps import points as crossing_points

NAMED = {scenario.name: scenario for scenario in SCENARIOS}
EQUAL = ("equal, 3 starts", "equal, 5 starts")
CONTEXTS = (2048, 8192, 32768)
ALL_PLAYED = 50  # traces that all routers play


@dataclass(frozen=True)
class Case:
    name: str
    draw: Callable[[np.random.Generator, int], list[Point]]


def equal(name: str) -> Case:
    def draw(rng: np.random.Generator, number: int) -> list[Point]:
        sweep: Sweep = NAMED[name].draw(rng, number, SHAPES)
        return sweep.points

    return Case(name, draw)


def crossing(n: int, sd: float) -> Case:
    """alpha is 20 % faster at 2k, beta 20 % at 32k; equal at 8k."""

    def draw(rng: np.random.Generator, number: int) -> list[Point]:
        base = rng.uniform(0.1, 0.4)
        points: list[Point] = []
        for context in CONTEXTS:
            skew = (context / 8192) ** (np.log(1.2) / np.log(4))  # 1/1.2, 1, 1.2
            for name, factor in (("alpha", skew), ("beta", 1.0)):
                grown = float(base * (context / 8192) * factor)
                pace = Pace(grown, 0.02 * float(factor), request_sd=0.02)
                points.append(
                    Point(
                        backend=name,
                        context=context,
                        pace=pace,
                        load=Load(4, "staggered"),
                        phases=Phases(10.0, 120.0),
                        right=ALL_RIGHT,
                        power=Power(),
                    )
                )
        return starts(points, n, sd=sd, seed=number)

    return Case(f"crossing by 20 %, {n} starts, {sd:.0%} noise", draw)


CASES = (*map(equal, EQUAL), crossing(3, 0.02), crossing(5, 0.02))


def decided(case: Case, number: int, objectives: Sequence[str]) -> dict[str, bool | None]:
    """Of one sweep, by objective: whether there is a policy; None where the objective has no value."""
    rng = np.random.default_rng([20260202, number])
    points = [replace(p, sweep=f"s{number}") for p in case.draw(rng, number)]
    with tempfile.TemporaryDirectory(prefix="policy-") as folder:
        write(Path(folder), points)
        found = study(Path(folder), across_executions=True)
        out: dict[str, bool | None] = {}
        for name in objectives:
            try:
                made = policy_of(evidence_of(found, name))  # type: ignore[arg-type]
            except UserError:  # a shape without telemetry has no energy
                made = None
            out[name] = None if made is None else made.decided
    return out


def against_known_curves(traces: int, count: int) -> None:
    """Regret and wins over the best single pool, by how busy the servers are. Traces are resampled: lengths
    with replacement from one recorded set, arrivals anew.
    """
    lengths = generated(5_000, 1.0, (2048, 32768), TOKENS, 1).prompt_tokens
    alone_s = float(np.mean([SHORT.e2e_s(tokens) for tokens in lengths]))
    known = {name: truth(cost) for name, cost in CROSSING.items()}
    with tempfile.TemporaryDirectory(prefix="policy-") as folder:
        policy = policy_of(gather(written(Path(folder), crossing_points(CROSSING)), "e2e"))
    assert policy is not None and policy.decided
    print(f"| busy | {' | '.join(WHO)} | policy at least as good as best single |")
    print(f"|---|{'---|' * (len(WHO) + 1)}")
    for busy in (0.3, 0.5, 0.7):
        sums, won = dict.fromkeys(WHO, 0.0), 0  # of the first ALL_PLAYED, of all
        for seed in range(traces):
            rng = np.random.default_rng([seed, round(100 * busy)])
            at = np.cumsum(rng.exponential(alone_s / busy / 2, count))
            picked = rng.choice(lengths, count)
            traffic = Traffic(at - at[0], picked, np.full(count, TOKENS), "resampled")
            whom = WHO if seed < ALL_PLAYED else ("policy", "best single")
            done = play(Fold(policy, known), traffic, 2, "e2e", policy.slo, seed, whom)
            means = {who: float(np.mean(done[who][0].e2e_s)) for who in whom}
            sums |= {who: sums[who] + means[who] for who in whom if seed < ALL_PLAYED}
            won += means["policy"] <= means["best single"]
        regrets = [f"{sums[who] / sums['oracle'] - 1:+.1%}" for who in WHO]
        print(f"| {busy:.0%} | {' | '.join(regrets)} | {Rate(won, traces).words()} |", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=100, help="of each case")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--objectives", default=",".join(OBJECTIVE))
    parser.add_argument("--traces", type=int, help="regret over so many traces, and no sweeps")
    parser.add_argument("--requests", type=int, default=300, help="of a trace; default 300")
    args = parser.parse_args()
    if args.traces:
        against_known_curves(args.traces, args.requests)
        return 0
    objectives = args.objectives.split(",")
    print(f"| sweeps | {' | '.join(objectives)} |")
    print(f"|---|{'---|' * len(objectives)}")
    for case in CASES:
        if args.only not in case.name:
            continue
        found = [decided(case, number, objectives) for number in range(args.sweeps)]
        cells: list[str] = []
        for name in objectives:
            known = [each[name] for each in found if each[name] is not None]
            cells.append(Rate(sum(map(bool, known)), len(known)).words())
        print(f"| {case.name} | {' | '.join(cells)} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""How often `greenbench policy` finds a policy between equal candidates, and between ones that cross.

python scripts/policy_rates.py [--sweeps 100] [--only equal] [--objectives ttft,e2e]
python scripts/policy_rates.py --traces 1000 [--requests 500] [--pair "at 8k"] [--lengths 1] [--regret 50]

Equal candidates are those of tests/outside/rates.py. ``--traces``: policies of two candidates whose curves
are known (PAIRS), against traces drawn anew. Prints Markdown tables for docs/policy.md.
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
from planning.fresh import REQUESTS, Course
from planning.playing import Fold, play
from planning.requests import generated
from planning.score import WHO
from tests.outside.generator import Point, Power, write
from tests.outside.playing import Load, Pace, Phases
from tests.outside.rates import SCENARIOS, SHAPES, Rate, Sweep
from tests.outside.sweeps import ALL_RIGHT, starts
from tests.planning.sweeps import CONTEXTS as KNOWN_CONTEXTS
from tests.planning.sweeps import CROSSING, TOKENS, Cost, truth, written
from tests.planning.sweeps import points as crossing_points

NAMED = {scenario.name: scenario for scenario in SCENARIOS}
EQUAL = ("equal, 3 starts", "equal, 5 starts")
CONTEXTS = (2048, 8192, 32768)
SEEDS_FROM = 1_000_000  # of traces that no policy was tried on


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


@dataclass(frozen=True)
class Pair:
    """alpha, better at short prompts, and beta; ``contexts`` are measured, and traffic lies within them."""

    name: str
    alpha: Cost
    beta: Cost
    contexts: tuple[int, ...] = KNOWN_CONTEXTS

    @property
    def costs(self) -> dict[str, Cost]:
        return {"alpha": self.alpha, "beta": self.beta}


PAIRS = (
    Pair("at 16k", CROSSING["alpha"], CROSSING["beta"]),
    Pair("at 16k, flatter", Cost(0.12, 0.07), Cost(0.20, 0.03)),
    Pair("at 8k", Cost(0.16, 0.60), Cost(0.60, 0.16), (1024, 4096, 16384)),
    # one of the two has so much less work over all lengths that two servers of it do better than one of each
    Pair("uneven, at 8k", Cost(0.08, 0.12), Cost(0.16, 0.04)),
    Pair("uneven, at 12k", Cost(0.12, 0.06), Cost(0.18, 0.02)),
    Pair("uneven, at 24k", Cost(0.05, 0.12), Cost(0.35, 0.02)),
)


def against_known_curves(pair: Pair, traces: int, count: int, recorded: int, regret: int) -> None:
    """Wins over the best single pool by how busy the servers are; regret over the first ``regret`` traces.

    Traces are resampled: lengths with replacement from one recorded set, of seed ``recorded``, arrivals anew.
    Rules that `greenbench policy` refuses after its fresh traces are played all the same, and marked.
    """
    ends = min(pair.contexts), max(pair.contexts)
    lengths = generated(5_000, 1.0, ends, TOKENS, recorded).prompt_tokens
    known = {name: truth(cost) for name, cost in pair.costs.items()}
    with tempfile.TemporaryDirectory(prefix="policy-") as folder:
        made = crossing_points(pair.costs, pair.contexts)
        evidence = gather(written(Path(folder), made), "e2e")
        emitted, policy = policy_of(evidence), policy_of(evidence, on_fresh=False)
    if emitted is None or policy is None or not policy.decided:
        print(f"| {pair.name} | no policy |{' |' * (len(WHO) + 2)}", flush=True)
        return
    name = pair.name if emitted.decided else f"{pair.name}: no policy, these rules are refused"
    course = Course(Fold(policy, known), 2, "e2e", policy.slo, lengths, TOKENS)
    for busy in (0.3, 0.5, 0.7):
        sums, gains = dict.fromkeys(WHO, 0.0), list[float]()
        for seed in range(SEEDS_FROM, SEEDS_FROM + traces):
            traffic = course.trace(busy, count, seed)
            gains.append(course.gain(traffic, seed))
            if seed < SEEDS_FROM + regret:
                done = play(course.fold, traffic, 2, "e2e", policy.slo, seed)
                sums |= {who: sums[who] + float(np.mean(done[who][0].e2e_s)) for who in WHO}
        over = [f"{sums[who] / sums['oracle'] - 1:+.1%}" if regret else "" for who in WHO]
        won = Rate(sum(gain >= 0 for gain in gains), traces).words()
        gained = f"{np.mean(gains):.1%} ± {np.std(gains):.1%}"
        print(f"| {name} | {busy:.0%} | {' | '.join(over)} | {gained} | {won} |", flush=True)
    print(f"\n{emitted.said[0] if not emitted.decided else emitted.said[-1]}\n", file=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=100, help="of each case")
    parser.add_argument("--only", default="", help="cases whose name holds this")
    parser.add_argument("--objectives", default=",".join(OBJECTIVE))
    parser.add_argument("--traces", type=int, help="regret over so many traces, and no sweeps")
    parser.add_argument(
        "--requests", type=int, default=REQUESTS, help=f"of a trace; default {REQUESTS}"
    )
    parser.add_argument("--pair", default="", help="with --traces: only the pair of this name")
    parser.add_argument("--lengths", type=int, default=1, help="seed of the recorded lengths")
    parser.add_argument("--regret", type=int, default=50, help="traces that all routers play")
    args = parser.parse_args()
    if args.traces:
        print(f"| crossing | busy | {' | '.join(WHO)} | gain of a trace | at least as good |")
        print(f"|---|---|{'---|' * (len(WHO) + 2)}")
        for pair in PAIRS:
            if args.pair in ("", pair.name):
                against_known_curves(pair, args.traces, args.requests, args.lengths, args.regret)
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

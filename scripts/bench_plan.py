"""How long the plan's simulator takes for an hour of traffic, on one core, against its bound.

    .venv/bin/python scripts/bench_plan.py [--rate 50] [--replicas 8]

Poisson arrivals, prompts of 512 and 4,096 tokens (0.7 and 0.3), 128 out, at servers of a model of a billion
parameters whose step times are known. Ends with 1 where it is slower than 360 times as fast as the clock.
"""

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from planning.demand import Demand, TrafficFile
from planning.simulator import Engine, Settings, costs, play
from planning.step_time import shape_of
from tests.planning.steps import KNOWN, model

HOUR_S = 3600
LEAST_SPEED = 360.0
BUDGET = 2048


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rate", type=float, default=50.0, help="requests/s")
    parser.add_argument("--replicas", type=int, default=8)
    args = parser.parse_args()
    count = round(args.rate * HOUR_S)
    file = TrafficFile.model_validate(
        {
            "rate_per_s": args.rate,
            "prompt_tokens": {512: 0.7, 4096: 0.3},
            "output_tokens": 128,
        }
    )
    asked = Demand(file, few=count, most=count).traffic(1.0, 7)
    of = costs(shape_of(model()), KNOWN, BUDGET)
    engines = [Engine("", Settings(256, BUDGET, 16, 800_000), of) for _ in range(args.replicas)]
    began = time.process_time()
    done = play(asked, engines)
    took = time.process_time() - began
    speed = float(asked.at_s[-1]) / took
    print(
        f"{count:,} requests in {asked.at_s[-1]:,.0f} s at {args.replicas} servers, "
        f"{done.utilisation:.0%} busy: {took:.1f} s of one core, {speed:,.0f} x real time "
        f"(at least {LEAST_SPEED:.0f})"
    )
    return 0 if speed >= LEAST_SPEED else 1


if __name__ == "__main__":
    sys.exit(main())

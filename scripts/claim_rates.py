"""How often a report claims what is not so, and finds what is: 200 sweeps a scenario.

python scripts/claim_rates.py [--sweeps 200] [--processes 1] [--only "equal"] [--out claim_rates.json]

Prints a Markdown table for docs/claims.md; the JSON holds every sweep. The scenarios and their truths are
in tests/outside/rates.py.
"""

import argparse
import json
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tests.outside.rates import SCENARIOS, Outcome, Rate, Scenario, judge, tabled

NAMED = {scenario.name: scenario for scenario in SCENARIOS}


def _judge(name: str, number: int) -> Outcome:
    """By name: a scenario's functions do not travel to another process."""
    return judge(NAMED[name], number)


def outcomes(scenario: Scenario, numbers: range, processes: int) -> list[Outcome]:
    one = partial(_judge, scenario.name)
    if processes == 1:
        return [one(number) for number in numbers]
    with ProcessPoolExecutor(processes) as pool:
        return list(pool.map(one, numbers, chunksize=4))


def table(results: list[dict[str, Any]]) -> str:
    """Markdown, one row a scenario."""
    lines = [
        "| scenario | sweeps with a false claim | false claims of | truth found | seconds a sweep |",
        "|---|---|---|---|---|",
    ]
    for result in results:
        n = result["sweeps"]
        false = Rate(result["false_sweeps"], n).words()
        of = ", ".join(f"{k} {v}" for k, v in result["false_by_objective"].items()) or "–"
        hits = result["found_by_objective"]
        truths = ", ".join(f"{name} {hits[name] / n:.0%}" for name in sorted(hits)) or "–"
        seconds = f"{result['writing_s_a_sweep']:.2f} + {result['analysing_s_a_sweep']:.2f}"
        lines.append(f"| {result['scenario']} | {false} | {of} | {truths} | {seconds} |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sweeps", type=int, default=200, help="of each scenario")
    parser.add_argument("--first", type=int, default=0, help="number of the first sweep")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--only", default="", help="scenarios whose name holds this")
    parser.add_argument("--out", type=Path, help="every sweep's outcome as JSON")
    args = parser.parse_args()
    results: list[dict[str, Any]] = []
    for scenario in SCENARIOS:
        if args.only not in scenario.name:
            continue
        began = time.perf_counter()
        numbers = range(args.first, args.first + args.sweeps)
        results.append(tabled(scenario.name, outcomes(scenario, numbers, args.processes)))
        print(f"{scenario.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
        if args.out:
            args.out.write_text(json.dumps(results, indent=1) + "\n")
    print(table(results))
    return 0


if __name__ == "__main__":
    sys.exit(main())

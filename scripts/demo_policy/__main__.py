"""`make demo-policy`: real vLLM servers behind the gateway, and whether a policy pays: at most 15 min.

    .venv/bin/python -m scripts.demo_policy [--out runs/demo-policy] [--rounds 2] [--requests N]

One small trained model, one server a core, two cores: `exact` (cpu_attn) and `window` (sink_window, sees
512 tokens). Each answers the same graded prompts at each length; a policy comes out of that, or none. Then
equal traffic of mixed lengths goes to two exact servers, to two window servers, and to one of each, at random
and by the policy, in shuffled order: always two servers, one a core. index.html says what each gave:
throughput, TTFT, right answers; what went where and why.
"""

import argparse
import asyncio
import os
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.policy import dump_policy
from scripts.demo_policy.choice import both_servers, policy_of
from scripts.demo_policy.comparison import Home, Servers, compare
from scripts.demo_policy.experiment import (
    BACKENDS,
    CALIBRATION_PROMPTS,
    CORES,
    MODEL,
    STRATEGIES,
    TRAFFIC_PROMPTS,
    USERS,
    kind,
    say,
)
from scripts.demo_policy.gain import expected, requests_a_round, shares, told_before
from scripts.demo_policy.page import page, row, sentences
from scripts.demo_policy.servers import address, gateway, pool
from scripts.demo_policy.traffic import calibrate, make_prompts


def run(options: argparse.Namespace) -> int:
    begun = time.monotonic()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < 2:
        raise UserError("the demo wants two cores, one for each pool; this process may use one")
    out: Path = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        homes = {
            name: Home(cores[at], stack.enter_context(pool(name, cores[at], out / name)))
            for name, at in CORES.items()
        }
        say("starting four vLLM servers on two cores, of which two serve at a time (two minutes)")
        asked = make_prompts(out / "prompts", 1, CALIBRATION_PROMPTS)
        traffic_prompts = make_prompts(out / "prompts", 2, TRAFFIC_PROMPTS)
        urls = {name: address(out / name) for name in CORES}
        say(f"ready after {time.monotonic() - begun:.0f} s; measuring each kind by itself")
        measured = asyncio.run(calibrate(urls, asked))
        for each in measured:
            say(
                f"  {each.pool} at {each.context}: {each.e2e_s:.2f} s, {each.right} of {each.count} right"
                f"{f' ({each.verdict})' if each.verdict else ''}"
            )
        made, of = policy_of(measured), shares(measured)
        found = expected(made, measured)
        say(told_before(found))
        (out / "policy.yaml").write_text(dump_policy(both_servers("exact")))  # it names every pool
        count = options.requests or requests_a_round(measured)
        say(f"{count} requests a round, {options.rounds} rounds")
        url, pid = stack.enter_context(gateway(out, urls))
        servers = Servers(urls, homes, url, pid)
        answers, turns = asyncio.run(
            compare(out, servers, made, traffic_prompts, of, count, options.rounds)
        )
        (out / "policy.yaml").write_text(dump_policy(made))
    facts = {
        "model": MODEL,
        "servers": "; ".join(
            f"{name}: {BACKENDS[kind(name)]}, core {home.core}" for name, home in homes.items()
        ),
        "traffic": ", ".join(f"{share:.0%} of {n:,} tokens" for n, share in of.items()),
        "load": f"closed loop, {USERS} users, {count} requests a round, {options.rounds} rounds",
        "took": f"{(time.monotonic() - begun) / 60:.1f} minutes",
    }
    (out / "index.html").write_text(page(made, measured, found, answers, turns, facts))
    for sentence in sentences({s: row(s, answers) for s in STRATEGIES}, turns, measured, found):
        say(sentence)
    say(f"{out / 'index.html'} ({facts['took']})")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs/demo-policy"))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument(
        "--requests", type=int, help="a round; default: by how fast the servers are"
    )
    options = parser.parse_args()
    return exit_on_user_error(lambda: run(options))


if __name__ == "__main__":
    sys.exit(main())

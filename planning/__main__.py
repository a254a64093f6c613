"""Command line of planning.

python -m planning fit runs/demo --objective e2e
python -m planning replay policy.yaml --generate
python -m planning export policy.yaml --to llm-d
python -m planning plan runs/demo --traffic traffic.yaml --slo ttft=2
"""

import argparse
import json
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenbench.contract.command_name import typed_as
from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.policy import ALLOW_UNJUDGED, Policy, dump_policy, load_policy
from greenbench.contract.run_dir import write_atomic
from greenbench.contract.slo import parse_slo
from greenbench.contract.terminal import visible
from greenbench.contract.traces import FORMATS

if TYPE_CHECKING:
    from planning.demand import Demand
    from planning.evidence import Evidence
    from planning.requests import Traffic

HARDWARE = "card, or the host's CPU, where runs are of several"
OBJECTIVES = ("ttft", "tpot", "e2e", "energy", "capacity")
MOST_REQUESTS = 2_000  # of a trace, unless a person asks for more
SETTINGS = """
settings of RUNS:
  --objective ttft      median time to the first token
              tpot      median time a token after the first
              e2e       median time of a request (default)
              energy    joules an output token, of the GPU boards
              capacity  requests/s that meet the SLO
  --slo ttft=2,tpot=50ms,e2e=30s
                        capacity: what a good request is; else: who misses it in more than a
                        tenth of the requests of a length may not serve that length
  --allow-unjudged      let candidates serve whose answers nobody judged, though they may change them
                        (approximate by design, or a quantised KV cache); the policy says so
  --out policy.yaml     where the policy goes

  greenbench policy replay POLICY --help    play traffic against the policy
  greenbench policy export POLICY --help    the same rules for llm-d, production-stack, Gateway API

A policy of equal candidates is "no policy": its file names one pool and no rule.
"""


def fit(args: argparse.Namespace) -> int:
    """Which pool should take which request, from measured runs: writes policy.yaml."""
    from planning.evidence import gather
    from planning.fit import policy_of
    from planning.told import told

    slo: SloConfig | None = None if args.slo is None else parse_slo(args.slo)
    out: Path = args.out
    if out.is_dir():
        raise UserError(f"{out}: is a folder; --out wants a file, such as {out}/policy.yaml")
    made = policy_of(gather(args.runs, args.objective, slo, args.allow_unjudged, args.hardware))
    if made is None:
        raise UserError(
            f"{args.runs}: no candidate may serve any measured length; `greenbench report` says why"
        )
    write_atomic(out, dump_policy(made))
    for line in told(made):
        print(visible(line))
    print(visible(str(out)))
    return 0


def replay(args: argparse.Namespace) -> int:
    """Play held-out traffic against the policy, the best single pool, a random one and an oracle."""
    from planning.evidence import gather
    from planning.replay import replay as play
    from planning.told import table

    policy = load_policy(args.policy)
    runs: Path = args.runs or _runs_of(policy, args.policy)
    bounded = any(limit is not None for limit in policy.slo.model_dump().values())
    slo = policy.slo if bounded else None
    evidence = gather(runs, policy.objective, slo, policy.allow_unjudged, args.hardware)
    traffic = _traffic(args, policy, evidence)
    found = play(policy, evidence, traffic, args.seed)
    if args.json:
        write_atomic(args.json, json.dumps(asdict(found), indent=1) + "\n")
    for line in table(found, traffic, policy):
        print(visible(line))
    return 0


def _traffic(args: argparse.Namespace, policy: Policy, evidence: "Evidence") -> "Traffic":
    """The trace, or what is generated: by default within the measured lengths, and as much as keeps the best
    single pool busy for most of the time.
    """
    from planning.playing import fold_of, usual_rate
    from planning.requests import generated, recorded

    if args.traffic is not None:
        return recorded(args.traffic, args.format, args.speed, args.most)
    contexts = [place.context for place in evidence.places]
    lengths = (min(contexts), max(contexts)) if args.lengths is None else args.lengths
    output: int = args.output or evidence.places[0].output_tokens
    rate: float | None = args.rate
    if rate is None:
        pattern = generated(args.generate, 1.0, lengths, output, args.seed)
        single = fold_of(policy, evidence).truth[policy.default]
        rate = usual_rate(single, pattern, len(policy.pools))
    return generated(args.generate, rate, lengths, output, args.seed)


def _runs_of(policy: Policy, path: Path) -> Path:
    there = [Path(text) for text in policy.provenance.runs]
    if not there or not there[0].exists():
        named = there[0] if there else "no folder"
        raise UserError(
            f"{path}: it was made of {named}, which is not here; give the runs with --runs RUNS"
        )
    return there[0]


def export(args: argparse.Namespace) -> int:
    """The same rules for another router, as far as it can say them; what it cannot goes to stderr."""
    from planning.export import EXPORTS

    policy = load_policy(args.policy)
    made = EXPORTS[args.to](policy)
    if args.out:
        write_atomic(args.out, made.text)
    else:
        print(made.text, end="")
    for sentence in made.cannot:
        print(visible(f"not said: {sentence}"), file=sys.stderr)
    return 0


def plan(args: argparse.Namespace) -> int:
    """Replicas of each measured candidate that a traffic takes under an SLO, what binds, W and kWh."""
    from planning.forward import read_forward
    from planning.plan import dump, load_prices, plan, what_to_measure
    from planning.plan_page import write_page
    from planning.plan_told import BRACKETS, answer, circumstances, said, table

    slo = SloConfig() if args.slo is None else parse_slo(args.slo)
    if args.what_to_measure:
        print(what_to_measure(args.traffic and _demand(args), slo, args.seed), end="")
        return 0
    _wanted(args)
    forwards: dict[str, Path] = dict(args.forward)
    if len(forwards) < len(args.forward):
        names = ", ".join(label for label, _ in args.forward)
        raise UserError(f"--forward wants one file a candidate, found {names}")
    _writes_apart(args, forwards)
    made = plan(
        root=args.runs,
        demand=_demand(args),
        slo=slo,
        hardware=args.hardware,
        prices=args.prices and load_prices(args.prices),
        policy=args.policy and load_policy(args.policy),
        seed=args.seed,
        exact={label: read_forward(path) for label, path in forwards.items()},
    )
    if args.json:
        write_atomic(args.json, dump(made))
    write_page(made, args.page)
    for line in (circumstances(made), *table(made), BRACKETS, *said(made), answer(made)):
        print(visible(line.replace("`", "")))
    print(visible(str(args.page)))
    return 0


def _writes_apart(args: argparse.Namespace, forwards: Mapping[str, Path]) -> None:
    """Each output has a folder, and is neither the other one nor something that is read."""
    taken = {"--prices": args.prices, "--policy": args.policy, "--traffic": args.traffic}
    taken |= {f"--forward {label}": path for label, path in forwards.items()}
    if args.slo is not None:
        taken["--slo"] = Path(args.slo)
    for flag, out in (("--json", args.json), ("--page", args.page)):
        if out is None:
            continue
        if out.is_dir():
            raise UserError(f"{out}: is a folder; a file is wanted")
        if not out.parent.is_dir():
            raise UserError(
                f"{out}: there is no folder {out.parent}; make it, or name another file"
            )
        for other, path in taken.items():
            if isinstance(path, Path) and path.resolve() == out.resolve():
                raise UserError(f"{out}: it is {other} and {flag}; name another file for {flag}")
        taken[flag] = out


def _wanted(args: argparse.Namespace) -> None:
    if args.runs is None:
        raise UserError(
            "plan wants a folder of runs: greenbench plan RUNS --traffic FILE --slo ttft=2"
        )
    for name, example in (("traffic", "--traffic traffic.yaml"), ("slo", "--slo ttft=2,tpot=50ms")):
        if getattr(args, name) is None:
            raise UserError(f"plan wants --{name}, as in {example}")
    if args.window is not None and isinstance(args.traffic, Path):
        raise UserError(
            f"--window is of --traffic prometheus=URL, found the file {args.traffic}; leave it out"
        )


FROM_PROMETHEUS = "prometheus="


def demand_from(text: str) -> Path | str:
    """A file, or the address after ``prometheus=``."""
    return text if text.startswith(FROM_PROMETHEUS) else Path(text)


def forward(text: str) -> tuple[str, Path]:
    """``CANDIDATE=FILE``; a candidate's name may hold ``=`` too."""
    label, _, path = text.rpartition("=")
    if not label or not path:
        raise argparse.ArgumentTypeError(f"CANDIDATE=FILE is wanted, found '{text}'")
    return label, Path(path)


def _demand(args: argparse.Namespace) -> "Demand":
    from planning.demand import load_demand
    from planning.prometheus import production

    if isinstance(args.traffic, Path):
        return load_demand(args.traffic)
    return production(args.traffic.removeprefix(FROM_PROMETHEUS), args.window or "1h")


def lengths(text: str) -> tuple[int, int]:
    """``2k-32k`` as tokens; k is 1,024."""
    found = re.fullmatch(r"(\d{1,9})(k?)-(\d{1,9})(k?)", text.strip().lower())
    if found is None:
        raise argparse.ArgumentTypeError(f"two lengths such as 2k-32k are wanted, found '{text}'")
    low, high = (int(found[i]) * (1024 if found[i + 1] else 1) for i in (1, 3))
    if not 0 < low <= high:
        raise argparse.ArgumentTypeError(
            f"the first length must be the shorter one, found '{text}'"
        )
    return low, high


def positive(kind: Callable[[str], float]) -> Callable[[str], Any]:
    def read(text: str) -> Any:
        try:
            value = kind(text)
        except ValueError:
            value = 0
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"a number above 0 is wanted, found '{text}'")
        return value

    return read


COUNT, NUMBER = positive(int), positive(float)


def seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"a whole number from 0 is wanted, found '{text}'")
    return int(text)


def command(
    commands: Any, name: str, action: Callable[[argparse.Namespace], int], **more: Any
) -> argparse.ArgumentParser:
    """A command whose help is the first line of its action's docstring."""
    said = (action.__doc__ or "").splitlines()[0]
    made: argparse.ArgumentParser = commands.add_parser(
        name,
        prog=typed_as(f"python -m planning {name}"),
        help=said,
        description=said,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        **more,
    )
    made.set_defaults(action=action, told=made)
    return made


def add_fit(commands: Any) -> None:
    made = command(commands, "fit", fit, epilog=SETTINGS, usage="%(prog)s RUNS [options]")
    made.add_argument("runs", type=Path, metavar="RUNS", help="a sweep, or a folder of sweeps")
    made.add_argument("--objective", choices=OBJECTIVES, default="e2e", help="default: e2e")
    made.add_argument("--slo", metavar="BOUNDS", help="as ttft=2,tpot=50ms")
    made.add_argument(ALLOW_UNJUDGED, action="store_true", help="see below")
    made.add_argument("--hardware", metavar="NAME", help=HARDWARE)
    made.add_argument("--out", type=Path, metavar="FILE", default=Path("policy.yaml"))


def add_replay(commands: Any) -> None:
    made = command(commands, "replay", replay)
    made.add_argument("policy", type=Path, metavar="POLICY", help="policy.yaml")
    source = made.add_mutually_exclusive_group(required=True)
    source.add_argument("--traffic", type=Path, metavar="FILE", help="a recorded trace")
    source.add_argument(
        "--generate",
        type=COUNT,
        nargs="?",
        const=1000,
        metavar="N",
        help="so many requests (1000) at random: Poisson arrivals, lengths log-uniform",
    )
    made.add_argument(
        "--format", choices=tuple(FORMATS), help="of the trace; default: seen from it"
    )
    made.add_argument("--speed", type=NUMBER, default=1.0, help="of the trace; 2: twice as fast")
    made.add_argument(
        "--most",
        type=COUNT,
        default=MOST_REQUESTS,
        help=f"requests of the trace; default {MOST_REQUESTS}",
    )
    made.add_argument(
        "--rate", type=NUMBER, help="generated requests/s; default: servers 70 %% busy"
    )
    made.add_argument("--lengths", type=lengths, metavar="2k-32k", help="default: those measured")
    made.add_argument("--output", type=COUNT, help="generated tokens out; default: as measured")
    made.add_argument("--seed", type=seed, default=7)
    made.add_argument("--runs", type=Path, help="the truth; default: what the policy was made of")
    made.add_argument("--hardware", metavar="NAME", help=HARDWARE)
    made.add_argument("--json", type=Path, metavar="FILE", help="also write the figures there")


def add_export(commands: Any) -> None:
    from planning.export import EXPORTS

    made = command(commands, "export", export)
    made.add_argument("policy", type=Path, metavar="POLICY", help="policy.yaml")
    made.add_argument("--to", choices=tuple(EXPORTS), required=True)
    made.add_argument("--out", type=Path, metavar="FILE", help="default: stdout")


def add_plan(commands: Any) -> None:
    made = command(commands, "plan", plan)
    made.add_argument(
        "runs", type=Path, nargs="?", metavar="RUNS", help="measured runs of one card"
    )
    made.add_argument(
        "--traffic",
        type=demand_from,
        metavar="FILE",
        help="rate and lengths (docs/plan.md), or prometheus=URL",
    )
    made.add_argument("--window", help="of the busiest stretch, with prometheus=URL; default: 1h")
    made.add_argument("--slo", metavar="BOUNDS", help="as ttft=2,tpot=50ms, or a file slo.yaml")
    made.add_argument("--hardware", metavar="NAME", help=HARDWARE)
    made.add_argument("--prices", type=Path, metavar="FILE", help="per_card_hour, per_kwh, pue")
    made.add_argument("--policy", type=Path, metavar="FILE", help="also a fleet of its pools")
    made.add_argument(
        "--forward",
        type=forward,
        action="append",
        default=[],
        metavar="CANDIDATE=FILE",
        help="exact batches of a candidate: --output-json of vllm bench forward",
    )
    made.add_argument("--json", type=Path, metavar="FILE", help="also write all figures there")
    made.add_argument("--page", type=Path, metavar="FILE", default=Path("plan.html"))
    made.add_argument("--seed", type=seed, default=7)
    made.add_argument(
        "--what-to-measure", action="store_true", help="print a sweep that is enough, and end"
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m planning", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (add_fit, add_replay, add_export, add_plan):
        add(commands)
    args, unknown = parser.parse_known_args()
    if unknown:  # by the command's own parser, which is called what the person typed
        args.told.error(f"unrecognized arguments: {' '.join(unknown)}")
    return exit_on_user_error(lambda: args.action(args))


if __name__ == "__main__":
    sys.exit(main())

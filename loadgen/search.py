"""The highest rate or number of users that meets an SLO, on a running server.

  python -m loadgen.search --base-url URL --over rate --ttft-s 1 --tpot-s 0.05
  python -m loadgen.search --base-url URL --over users --ladder 1,2,4,8

A value holds when the share of good requests is at least the target (90 %): its
Wilson interval lies above; it fails when the interval lies below; in between
the probe is repeated, then decided by the share itself and said to be
uncertain. Doubling finds the first value that fails, bisection narrows. Every
probe is a point directory with raw records; started again, finished probes are
read.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from greenbench.contract.config import (
    LoadConfig,
    PhaseConfig,
    SloConfig,
    dump_yaml,
    load_live_point,
)
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.run_dir import write_atomic
from loadgen import direct_run
from loadgen.driver.slo_search import Probe, Search, count_good, run_search
from loadgen.tasks import TASKS

BOUNDS = {"ttft-s": "TTFT", "tpot-s": "TPOT", "e2e-s": "E2E time"}
UNITS = {"rate": "requests/s", "users": "users"}


class Runner:
    """Runs one value as a point directory under ``out``, or reads it when it has been run."""

    def __init__(self, base: Path, out: Path, over: str, phases: PhaseConfig) -> None:
        self._base = load_live_point(base)
        self._out = out
        self._over = over
        self._phases = phases

    def run(self, value: float, number: int, slo: SloConfig) -> tuple[int, int]:
        run_path = self._out / f"{self._over}-{value:g}-{number}"
        if not (run_path / "done").exists():
            self._start(value, number, run_path)
            (run_path / "done").touch()
        return count_good(run_path, slo)

    def _start(self, value: float, number: int, run_path: Path) -> None:
        if run_path.exists():  # interrupted: its rows stay, beside the new ones
            run_path.rename(run_path.with_name(f"{run_path.name}-interrupted-{_stamp(run_path)}"))
        load = (
            LoadConfig(kind="open", rate_per_s=value)
            if self._over == "rate"
            else LoadConfig(kind="closed", users=round(value))
        )
        point = self._base.point.model_copy(
            update={"load": load, "phases": self._phases, "seed": self._base.point.seed + number}
        )
        run_path.mkdir(parents=True)
        live = self._base.model_copy(update={"point": point, "run_id": run_path.name})
        write_atomic(run_path / "config.yaml", dump_yaml(live))
        module = ["loadgen.openloop"]
        if self._over == "users":
            module = ["locust", "-f", str(Path(__file__).parent / "longctx.py"), "--headless"]
        with (run_path / "load.log").open("w") as log:
            argv = [sys.executable, "-m", *module, "--run-dir", str(run_path)]
            ended = subprocess.run(argv, stdout=log, stderr=subprocess.STDOUT, check=False)
        if ended.returncode:
            raise UserError(f"a probe ended with {ended.returncode}; see {run_path}/load.log")


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m loadgen.search",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--base-url", help="a running server")
    direct_run.add_connection_arguments(parser)
    parser.add_argument(
        "--run-dir", type=Path, help="take server, task and prompts from this point"
    )
    parser.add_argument(
        "--over",
        choices=("rate", "users"),
        default="rate",
        help="what is raised: requests a second, or requests open at once (default: rate)",
    )
    parser.add_argument("--start", type=float, default=1, help="the first value (default: 1)")
    parser.add_argument("--most", type=float, default=1e6, help="no value above it (default: 1e6)")
    parser.add_argument(
        "--step",
        type=float,
        default=1.1,
        help="stop when two neighbours' ratio is no more (default: 1.1)",
    )
    parser.add_argument(
        "--target", type=float, default=0.9, help="share of good requests (default: 0.9)"
    )
    parser.add_argument("--ladder", default="", help="probe just these values, e.g. 1,2,4,8")
    for bound, what in BOUNDS.items():
        parser.add_argument(f"--{bound}", type=float, help=f"a good request's longest {what}, s")
    parser.add_argument("--warmup-s", type=float, default=3, help="of each probe (default: 3)")
    parser.add_argument(
        "--measure-s", type=float, default=20, help="of each probe, after that (default: 20)"
    )
    parser.add_argument(
        "--task",
        choices=sorted(TASKS),
        default="retrieve",
        metavar="TASK",
        help="what prompts ask (default: retrieve; `python -m loadgen tasks` lists them)",
    )
    parser.add_argument(
        "--context-tokens", type=int, default=1024, help="length of a prompt (default: 1024)"
    )
    parser.add_argument("--prompts", type=int, default=32, help="different ones (default: 32)")
    parser.add_argument("--seed", type=int, default=7, help="of prompts and arrivals (default: 7)")
    parser.add_argument("--model-path", default="", help="tokenizer; default: as served")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/search"),
        help="a folder for each probe and search.json (default: runs/search)",
    )
    return exit_on_user_error(lambda: _run(parser.parse_args()))


def _run(options: argparse.Namespace) -> int:
    slo = SloConfig(ttft_s=options.ttft_s, tpot_s=options.tpot_s, e2e_s=options.e2e_s)
    if not options.ladder and slo == SloConfig():
        raise UserError("a search needs an SLO: give --ttft-s, --tpot-s or --e2e-s")
    phases = PhaseConfig(warmup_s=options.warmup_s, measure_s=options.measure_s)
    runner = Runner(_base_point(options), options.out, options.over, phases)
    search = Search(
        options.start, options.target, options.step, options.over == "users", options.most
    )
    log = SearchLog(options.out / "search.json", options.over, slo, bool(options.ladder), search)

    def probe(value: float, number: int) -> tuple[int, int]:
        return runner.run(value, number, slo)

    if options.ladder:
        for value in ladder_values(options.ladder):
            search.probes[value] = Probe(value, *probe(value, 0), runs=1)
            log.add(search.probes[value])
        print(ladder_conclusion(search, options.over, slo))
        return 0
    best = run_search(search, probe, log.add)
    print(conclusion(search, options.over, slo))
    return 1 if best is None else 0


def ladder_values(text: str) -> list[float]:
    """``1,2,4`` as numbers above 0, each once; anything else raises UserError."""
    try:
        values = [float(word) for word in text.split(",")]
    except ValueError:
        values = []
    if not values or not all(0 < value < float("inf") for value in values):
        raise UserError(f"--ladder wants numbers above 0, such as 1,2,4,8, found '{text}'")
    return list(dict.fromkeys(values))


def conclusion(search: Search, over: str, slo: SloConfig) -> str:
    """The answer of a search in one sentence: the value, how sure it is, and what lies above it."""
    best, worst = search.best, search.worst
    if best is None:
        lowest = min(search.probes.values(), key=lambda probe: probe.value)
        return (
            f"no {over} from {search.start:g} down meets the SLO ({words_of(slo)}): "
            f"at {lowest.value:g} {lowest.share:.1%} of {lowest.total} requests do, "
            f"{search.target:.0%} wanted"
        )
    held = search.probes[best]
    above = "nothing above it was probed (--most)"
    if worst is not None:
        above = f"at {worst:g} {search.probes[worst].share:.1%} do"
    return (
        f"highest {over} that meets the SLO: {best:g} {UNITS[over]}; "
        f"{held.share:.1%} of {held.total} requests meet {words_of(slo)}, "
        f"{search.target:.0%} wanted{_doubt(search, held)}; {above}"
    )


def ladder_conclusion(search: Search, over: str, slo: SloConfig) -> str:
    """Which of the probed values hold, which fail, and which are undecided, in one sentence."""
    told = {True: "meets the SLO", None: "undecided", False: "fails"}
    parts: list[str] = []
    for verdict, words in told.items():
        values = [p.value for p in search.probes.values() if search.verdict(p) is verdict]
        if values:
            parts.append(f"{words} at {', '.join(f'{value:g}' for value in sorted(values))}")
    return f"{over}, {words_of(slo)} for {search.target:.0%} of requests: {'; '.join(parts)}"


def words_of(slo: SloConfig) -> str:
    """e.g. ``TTFT 1 s, TPOT 0.05 s``; without a bound a request has to succeed."""
    bounds = {"TTFT": slo.ttft_s, "TPOT": slo.tpot_s, "E2E": slo.e2e_s}
    given = [f"{name} {limit:g} s" for name, limit in bounds.items() if limit is not None]
    return ", ".join(given) or "success"


def _doubt(search: Search, probe: Probe) -> str:
    low, high = probe.interval
    if low >= search.target:
        return ""
    return f", which is uncertain (95 % interval {low:.1%} to {high:.1%})"


def _base_point(options: argparse.Namespace) -> Path:
    """The directory of the point whose server, task and prompts every probe uses; made where needed."""
    base = options.run_dir or options.out / "base"
    if not (base / "config.yaml").exists():
        if options.run_dir:
            raise UserError(f"{base}: has no config.yaml; give a point's run directory")
        direct_run.write_point(base, options.base_url, direct_run.Options.of(options))
    return base


@dataclass(frozen=True)
class SearchLog:
    """What a person reads while it runs, and search.json after every probe."""

    path: Path
    over: str
    slo: SloConfig
    ladder: bool
    search: Search

    def add(self, probe: Probe) -> None:
        low, high = probe.interval
        verdict = {True: "holds", False: "fails", None: "undecided"}[self.search.verdict(probe)]
        print(
            f"{self.over} {probe.value:g}: {probe.good} of {probe.total} good "
            f"({probe.share:.1%}, 95 % interval {low:.1%} to {high:.1%}): {verdict}",
            flush=True,
        )
        probes = sorted(self.search.probes.values(), key=lambda p: p.value)
        content = {
            "over": self.over,
            "target": self.search.target,
            "slo": self.slo.model_dump(),
            "best": None if self.ladder else self.search.best,
            "first_failing": None if self.ladder else self.search.worst,
            "probes": [asdict(p) | {"share": p.share, "interval": p.interval} for p in probes],
        }
        write_atomic(self.path, json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())

"""The highest rate or number of users that meets an SLO, or a ladder of them, on a running server.

    python -m loadgen.search --base-url http://127.0.0.1:8000 --over rate --ttft-s 1 --tpot-s 0.05
    python -m loadgen.search --base-url http://127.0.0.1:8000 --over users --ladder 1,2,4,8

A value holds when the share of good requests is at least the target (90 %): its Wilson interval lies
above; it fails when the interval lies below; in between the probe is repeated, then decided by the
share itself and said to be uncertain. Doubling finds the first value that fails, bisection narrows.
Every probe is a point directory with raw records; started again, finished probes are read, not run.
"""

import argparse
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from greenbench.contract.config import (
    LoadConfig,
    PhaseConfig,
    SloConfig,
    dump_yaml,
    load_live_point,
)
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.run_dir import read_jsonl, write_atomic
from greenbench.contract.slo import is_good, time_per_token_ns
from loadgen import direct_run
from loadgen.tasks import TASKS

Z_95: Final = 1.959964  # two-sided 95 % of the normal distribution
REPEATS: Final = 3  # of a probe whose interval holds the target
MAX_PROBES: Final = 40


@dataclass
class Probe:
    """Requests of the measured phase at one value, over all its runs."""

    value: float
    good: int = 0
    total: int = 0
    runs: int = 0

    @property
    def share(self) -> float:
        return self.good / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.good, self.total)


def wilson(good: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927). Without requests: nothing is known."""
    if total == 0:
        return 0.0, 1.0
    share, spread = good / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class Search:
    """What to probe next, from what is known. ``step``: smallest ratio of neighbours worth telling apart."""

    start: float
    target: float = 0.9
    step: float = 1.1
    whole: bool = False  # users are counted, rates are not
    most: float = 1e6
    probes: dict[float, Probe] = field(default_factory=dict[float, Probe])

    def verdict(self, probe: Probe) -> bool | None:
        """True: holds. False: fails. None: the interval holds the target and more runs may decide."""
        low, high = probe.interval
        if probe.total == 0 and probe.runs:
            return False  # nothing came back at all
        if low >= self.target:
            return True
        if high < self.target:
            return False
        return probe.share >= self.target if probe.runs >= REPEATS else None

    def next(self) -> float | None:
        """The value to probe, or None when the answer stands."""
        for probe in self.probes.values():
            if self.verdict(probe) is None:
                return probe.value
        best, worst = self.best, self.worst
        if best is None and worst is None:
            return self.start
        if worst is None:
            assert best is not None
            return None if best >= self.most else min(2 * best, self.most)
        if best is None:
            lower = worst / 2
            return None if lower < (1 if self.whole else self.start / 64) else self._rounded(lower)
        between = self._rounded(math.sqrt(best * worst))
        near = worst / best <= self.step or (self.whole and worst - best <= 1)
        return None if near or between in self.probes else between

    def _rounded(self, value: float) -> float:
        return float(round(value)) if self.whole else float(f"{value:.3g}")

    @property
    def best(self) -> float | None:
        """The highest value that holds, below every value that fails."""
        held = [p.value for p in self.probes.values() if self.verdict(p)]
        worst = self.worst
        return max((v for v in held if worst is None or v < worst), default=None)

    @property
    def worst(self) -> float | None:
        """The lowest value that fails."""
        return min(
            (p.value for p in self.probes.values() if self.verdict(p) is False), default=None
        )


def meets(row: dict[str, Any], slo: SloConfig) -> bool:
    """Whether a request's row is good, by ``greenbench.contract.slo``. A reply that is not streamed comes at
    once: its first token is its end.
    """
    end_ns, sent_ns = _number(row["end_ns"]), row["sent_unix_ns"]
    first_ns = _number(row["first_token_ns"] if row["first_token_ns"] is not None else end_ns)
    late_ns = 0.0 if row["scheduled_unix_ns"] is None else sent_ns - row["scheduled_unix_ns"]
    tokens = row["output_tokens"] or 0
    pace_ns = time_per_token_ns(
        first_ns, _number(row["last_token_ns"]), tokens, row.get("chunk_tokens")
    )
    return is_good(
        slo,
        row["error_type"] is None and row["end_ns"] is not None,
        (first_ns + late_ns) / 1e9,
        pace_ns / 1e9,
        (end_ns + late_ns) / 1e9,
        tokens,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def count_good(run_path: Path, slo: SloConfig) -> tuple[int, int]:
    """(good, all) requests of the measured phase of a run."""
    rows = [
        row
        for file in (run_path / "requests").glob("*.jsonl")
        for row in read_jsonl(file)
        if row["phase"] == "measure"
    ]
    return sum(meets(row, slo) for row in rows), len(rows)


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


def run_search(
    search: Search, probe: Callable[[float, int], tuple[int, int]], save: Callable[[Probe], object]
) -> float | None:
    """Probe until the answer stands. ``probe(value, number)`` gives (good, all) of one run."""
    for _ in range(MAX_PROBES):
        value = search.next()
        if value is None:
            return search.best
        known = search.probes.setdefault(value, Probe(value))
        good, total = probe(value, known.runs)
        known.good, known.total, known.runs = known.good + good, known.total + total, known.runs + 1
        save(known)
    return search.best


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m loadgen.search", description=__doc__)
    parser.add_argument("--base-url", help="a running server")
    parser.add_argument(
        "--run-dir", type=Path, help="take server, task and prompts from this point"
    )
    parser.add_argument("--over", choices=("rate", "users"), default="rate")
    parser.add_argument("--start", type=float, default=1)
    parser.add_argument("--most", type=float, default=1e6)
    parser.add_argument(
        "--step", type=float, default=1.1, help="stop when neighbours are this close"
    )
    parser.add_argument("--target", type=float, default=0.9, help="share of good requests")
    parser.add_argument("--ladder", default="", help="probe just these values, e.g. 1,2,4,8")
    for bound in ("ttft-s", "tpot-s", "e2e-s"):
        parser.add_argument(f"--{bound}", type=float)
    parser.add_argument("--warmup-s", type=float, default=3)
    parser.add_argument("--measure-s", type=float, default=20)
    parser.add_argument("--task", choices=sorted(TASKS), default="retrieve")
    parser.add_argument("--context-tokens", type=int, default=1024)
    parser.add_argument("--prompts", type=int, default=32)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--model-path", default="")
    parser.add_argument("--out", type=Path, default=Path("runs/search"))
    return exit_on_user_error(lambda: _run(parser.parse_args()))


def _run(options: argparse.Namespace) -> int:
    slo = SloConfig(ttft_s=options.ttft_s, tpot_s=options.tpot_s, e2e_s=options.e2e_s)
    if not options.ladder and slo == SloConfig():
        raise UserError("a search needs an SLO: give --ttft-s, --tpot-s or --e2e-s")
    base = options.run_dir or options.out / "base"
    if not (base / "config.yaml").exists():
        if options.run_dir:
            raise UserError(f"{base}: holds no config.yaml; give a point's run directory")
        direct_run.write_point(base, options.base_url, direct_run.Wish.of(options))
    phases = PhaseConfig(warmup_s=options.warmup_s, measure_s=options.measure_s)
    runner = Runner(base, options.out, options.over, phases)
    search = Search(
        options.start, options.target, options.step, options.over == "users", options.most
    )

    def show(probe: Probe) -> None:
        low, high = probe.interval
        word = {True: "holds", False: "fails", None: "undecided"}[search.verdict(probe)]
        print(
            f"{options.over} {probe.value:g}: {probe.good} of {probe.total} good "
            f"({probe.share:.1%}, 95 % interval {low:.1%} to {high:.1%}): {word}",
            flush=True,
        )
        write_atomic(
            options.out / "search.json",
            json.dumps(
                {
                    "over": options.over,
                    "target": options.target,
                    "slo": slo.model_dump(),
                    "best": None if options.ladder else search.best,
                    "first_failing": None if options.ladder else search.worst,
                    "probes": [
                        asdict(p) | {"share": p.share, "interval": p.interval}
                        for p in sorted(search.probes.values(), key=lambda p: p.value)
                    ],
                },
                indent=1,
            )
            + "\n",
        )

    def probe(value: float, number: int) -> tuple[int, int]:
        return runner.run(value, number, slo)

    if options.ladder:
        for word in options.ladder.split(","):
            value = float(word)
            good, total = probe(value, 0)
            search.probes[value] = Probe(value, good, total, 1)
            show(search.probes[value])
        return 0
    best = run_search(search, probe, show)
    if best is None:
        print(f"no {options.over} from {options.start:g} down meets the SLO")
        return 1
    print(f"highest {options.over} that meets the SLO: {best:g}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

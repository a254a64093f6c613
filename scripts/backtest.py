"""A plan's proof: predictions of points that nobody measured, frozen before they are, and scored after.

python scripts/backtest.py freeze RUNS --heldout SWEEP.yaml [SWEEP.yaml …] -o predictions.json
python scripts/backtest.py score predictions.json HELDOUT_RUNS [--json score.json]
python scripts/backtest.py explain RUNS HELDOUT_RUNS

`freeze` predicts each point of the sweeps from the runs below RUNS, with the arrivals that the sweep's seed
will give, and prints the file's sha256. `score` compares them with the runs of those sweeps; beside the plan
stand the nearest measured point and a straight line. `explain`, which is no prediction, gives the plan what
it could not know: how fast the machine was in each run; in each 5 s of it; and in each step, which leaves the
scheduler alone. Run from the repository's root.
"""

import argparse
import hashlib
import itertools
import json
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import numpy.typing as npt
from pydantic import TypeAdapter

from analysis.point.point import measured_phase
from analysis.runs.engine_steps import between_lines, in_engine
from analysis.runs.run import Run
from analysis.study import Study, study
from greenbench.contract.config import PointConfig, SloConfig, load_model, load_sweep
from greenbench.contract.errors import UserError
from greenbench.sweep.order import expand
from loadgen.driver.dispatch import schedule
from planning.back_test import (
    Compared,
    Whose,
    bars,
    candidate_key,
    knee,
    known,
    no_knee,
    point_key,
    seen,
)
from planning.baselines import Known, line, nearest
from planning.batches import batches, log_of, timed
from planning.candidates import Measured, candidates_of, left_out
from planning.closed_loop import play_users
from planning.front import Front
from planning.held_out import Figures, Load, figures, most_rate, predict
from planning.requests import Traffic
from planning.simulator import Engine, costs, play
from scripts.backtest_told import WHOSE, bars_told, points_told, rest_told

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

SEED = 5
FROZEN = TypeAdapter(Figures)


@dataclass(frozen=True)
class Calibrated:
    """A candidate of the runs, and what its runs measured."""

    one: Measured
    known: list[Known]


def calibrated(
    root: Path, hardware: str | None, slo: SloConfig
) -> tuple[dict[str, Calibrated], str, list[str]]:
    """By candidate key; the card; the runs' ids with the hashes of their tables."""
    found = study(root, across_executions=True, slo=slo)
    made, refused, device = candidates_of(found, hardware)
    for sentence in left_out(refused):
        print(f"left out: {sentence}", file=sys.stderr)
    runs = {str(run.path): run for run in found.runs}
    by_label = {one.label: one for one in made}
    of: dict[str, Calibrated] = {}
    hashes: list[str] = []
    for point in sorted(found.usable, key=lambda p: p.run_id):
        one, run = by_label.get(point.backend), runs[point.path]
        if one is None:
            continue
        whole = of.setdefault(candidate_key(run.point), Calibrated(one, []))
        if (measured_here := known(run, point, one.front)) is not None:
            whole.known.append(measured_here)
        hashes.append(f"{point.run_id} {_hash_of(run.path)}")
    return of, device.words, hashes


def _hash_of(run: Path) -> str:
    """Of its requests and steps, whether archived or not."""
    total = hashlib.sha256()
    for path in sorted((*run.glob("requests/*"), *run.glob("logs/*"), run / "config.yaml")):
        if path.is_file():
            total.update(path.name.encode() + path.read_bytes())
    return total.hexdigest()[:16]


def points(sweeps: Sequence[Path]) -> Iterator[PointConfig]:
    for path in sweeps:
        sweep = load_sweep(path)
        for start in expand(sweep, [load_model(name) for name in sweep.models], sweep.contenders):
            yield from sorted(start.points, key=point_key)


def load_of(point: PointConfig) -> Load:
    output = point.task.output_tokens
    if output is None:
        raise UserError(f"{point_key(point)}: tasks: output_tokens is wanted of a held-out point")
    span = point.phases.warmup_s, point.phases.longest_s
    if point.load.users is not None:
        return Load(*span, point.load.users, point.context_tokens, output)
    coming = itertools.takewhile(lambda one: one.offset_s < sum(span), schedule(point))
    return Load(
        *span,
        arrivals=tuple(
            (one.offset_s, one.context_tokens or point.context_tokens, one.output_tokens or output)
            for one in coming
        ),
    )


def freeze(args: argparse.Namespace) -> int:
    held = list(points(args.heldout))
    if not held:
        raise UserError("--heldout: no point")
    of, device, hashes = calibrated(args.runs, args.hardware, held[0].slo)
    rows: list[dict[str, Any]] = []
    for point in held:
        who = of.get(candidate_key(point))
        if who is None:
            raise UserError(
                f"{args.runs}: a candidate '{candidate_key(point)}' is wanted; found {'; '.join(of)}"
            )
        load = load_of(point)
        made = predict(who.one, load, point.slo, SEED)
        rows.append(
            {
                "key": point_key(point),
                "candidate": candidate_key(point),
                "context_tokens": point.context_tokens,
                "load": point.load.label,
                "rate_per_s": point.load.rate_per_s,
                "prompt_tokens": load.prompt_tokens,
                "requests": len(load.arrivals) or None,
                "slo": point.slo.model_dump(),
                "reach": made.reach,
                "extrapolated": made.reach > 1,
                "of_most": made.of_most,
                "front": asdict(who.one.front) | {"spread": [1.0]},
                "plan": asdict(made.figures),
                "nearest": _dumped(nearest(who.known, load)),
                "line": _dumped(line(who.known, load)),
            }
        )
    body: dict[str, Any] = {
        "device": device,
        "commit": _git("rev-parse", "HEAD"),
        "changed": sorted(_git("status", "--porcelain", "--untracked-files=no").splitlines()),
        "calibration": hashes,
        "sweeps": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in args.heldout
        },
        "points": rows,
        "knees": _knees(rows, "plan"),
        "no_knee": _no_knees(rows, "plan"),
        "order": _orders(rows, "plan"),
    }
    digest = _digest(body)
    args.output.write_text(
        json.dumps({"sha256": digest, **body}, indent=1) + "\n", encoding="utf-8"
    )
    print(f"{args.output}: {len(rows)} points, sha256 {digest}")
    return 0


def _git(*words: str) -> str:
    return subprocess.run(
        ["git", *words], capture_output=True, text=True, check=True
    ).stdout.strip()


def _digest(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()


def _dumped(made: Figures | None) -> dict[str, Any] | None:
    return None if made is None else asdict(made)


def _figures(found: dict[str, Any] | None) -> Figures | None:
    return None if found is None else FROZEN.validate_python(found)


def _rates(
    rows: Sequence[dict[str, Any]], whose: str
) -> dict[str, tuple[list[float], list[float], float]]:
    """Rates, p90 of TTFT and its limit by candidate and length, of those with at least two rates."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        figure = row.get(whose)
        if row["rate_per_s"] is not None and figure and figure["ttft_p90_s"] is not None:
            groups.setdefault(f"{row['candidate']} | {row['context_tokens']}", []).append(row)
    return {
        name: (
            [r["rate_per_s"] for r in group],
            [r[whose]["ttft_p90_s"] for r in group],
            group[0]["slo"]["ttft_s"],
        )
        for name, group in groups.items()
        if len(group) > 1 and group[0]["slo"]["ttft_s"] is not None
    }


def _knees(rows: Sequence[dict[str, Any]], whose: str) -> dict[str, float | None]:
    return {name: knee(*of) for name, of in _rates(rows, whose).items()}


def _no_knees(rows: Sequence[dict[str, Any]], whose: str) -> dict[str, str]:
    """Why, of those without one."""
    found = _rates(rows, whose).items()
    return {name: no_knee(*of) for name, of in found if knee(*of) is None}


def _orders(rows: Sequence[dict[str, Any]], whose: str) -> dict[str, list[str]]:
    """Where several candidates have one load: by E2E p50, the shortest first."""
    groups: dict[str, dict[str, list[float]]] = {}
    for row in rows:
        if row.get(whose) is not None and row[whose]["e2e_p50_s"] is not None:
            place = f"{row['context_tokens']} | {row['load']}"
            of = groups.setdefault(place, {}).setdefault(row["candidate"], [])
            of.append(row[whose]["e2e_p50_s"])
    return {
        place: sorted(each, key=lambda name, each=each: statistics.median(each[name]))
        for place, each in groups.items()
        if len(each) > 1
    }


def score(args: argparse.Namespace) -> int:
    frozen = json.loads(args.predictions.read_text(encoding="utf-8"))
    said_digest = frozen.pop("sha256")
    if _digest(frozen) != said_digest:
        raise UserError(
            f"{args.predictions}: its sha256 is not that of its content; it was changed after freezing"
        )
    rows = {row["key"]: row for row in frozen["points"]}
    compared = list(_compared(rows, study(args.runs, across_executions=True, slo=SloConfig())))
    if not compared:
        raise UserError(f"{args.runs}: no run is one of the {len(rows)} frozen points")
    measured_rows = [rows[one.key] | {"saw": asdict(one.saw)} for one in compared]
    knees = {
        name: (frozen["knees"].get(name), at) for name, at in _knees(measured_rows, "saw").items()
    }
    orders = {
        place: (frozen["order"].get(place), order)
        for place, order in _orders(measured_rows, "saw").items()
    }
    why = (frozen.get("no_knee", {}), _no_knees(measured_rows, "saw"))
    found = bars(compared)
    print(f"predictions sha256 {said_digest}, frozen at commit {frozen['commit'][:12]}")
    print(f"{len(compared)} of {len(rows)} points measured\n")
    print(
        "\n".join(
            [*points_told(compared), "", *bars_told(found), "", *rest_told(knees, why, orders)]
        )
    )
    if args.json is not None:
        args.json.write_text(
            json.dumps(
                {
                    "sha256": said_digest,
                    "points": [
                        {"key": c.key, "note": c.note, "saw": asdict(c.saw)} for c in compared
                    ],
                    "bars": [asdict(b) | {"met": b.met, "beats": b.beats} for b in found],
                    "knees": knees,
                    "orders": orders,
                },
                indent=1,
            )
            + "\n",
            encoding="utf-8",
        )
    return 0


def explain(args: argparse.Namespace) -> int:
    """Not blind: how fast each held-out run's own steps were, and what is left when that is known."""
    compared: list[Compared] = []
    speeds: list[float] = []
    of, _, _ = calibrated(args.runs, args.hardware, SloConfig())
    found = study(args.heldout, across_executions=True, slo=SloConfig())
    for run in sorted(found.runs, key=lambda r: point_key(r.point)):
        phase = measured_phase(run)
        steps = None if phase is None else timed(run, log_of(run), phase)
        if steps is None or not steps.batches or run.point.load.trace is not None:
            continue
        one, load = of[candidate_key(run.point)].one, load_of(run.point)
        terms = one.model.at(run.requests["prompt_tokens"].dropna().astype(float).to_numpy())
        said_s = sum(terms.seconds(one.shape.row(batch)) for batch in steps.batches)
        speeds.append(float(steps.seconds.sum()) / said_s)
        own = replace(one, model=replace(one.model, terms=one.model.terms.times(speeds[-1])))
        saw = seen(run, None, one.front)
        if saw is not None:
            made = predict(own, load, run.point.slo, SEED)
            said: dict[Whose, Figures | None] = {"plan": made.figures}
            compared.append(Compared(point_key(run.point), said, saw, made.of_most))
    print(f"steps took {min(speeds):.2f} to {max(speeds):.2f} of what the calibration says\n")
    print("\n".join([*points_told(compared), "", *bars_told(bars(compared))]))
    for words, every_s in (("each 5 s", 5.0), ("each step", None)):
        went = list(_as_it_went(found, of, every_s))
        print(f"\nwith the speed of {words}\n")
        print("\n".join([*points_told(went), "", *bars_told(bars(went))]))
    return 0


def _as_it_went(
    found: Study, of: dict[str, Calibrated], every_s: float | None
) -> Iterator[Compared]:
    """Each run played by a clock that went as fast as the machine did."""
    for run in sorted(found.runs, key=lambda r: point_key(r.point)):
        one = of[candidate_key(run.point)].one
        phase, clock = measured_phase(run), _clock(run, one, every_s)
        saw = seen(run, None, one.front)
        if phase is None or saw is None or clock is None:
            continue
        said: dict[Whose, Figures | None] = {"plan": _replayed(run, one, clock, phase)}
        used = None if run.point.load.users is not None else _used(run, one)
        yield Compared(point_key(run.point), said, saw, used)


def _used(run: Run, one: Measured) -> float:
    """An open loop's rate over the most."""
    arrivals = tuple(zip(*(column.tolist() for column in _sent(run)), strict=True))
    load = Load(run.point.phases.warmup_s, run.point.phases.longest_s, arrivals=arrivals)
    return len(arrivals) / load.end_s / most_rate(one, load)


def _sent(run: Run) -> tuple[Floats, Ints, Ints]:
    """Of each request when it was due, unix s, and its prompt and output tokens."""
    rows = run.requests[run.requests["prompt_tokens"].notna()]
    due = rows["scheduled_unix_ns"].astype("Int64").fillna(rows["sent_unix_ns"])
    return (
        due.to_numpy(np.int64) / 1e9,
        rows["prompt_tokens"].to_numpy(np.int64),
        rows["output_tokens"].fillna(1).to_numpy(np.int64),
    )


def _clock(run: Run, one: Measured, every_s: float | None) -> tuple[Floats, Floats] | None:
    """Knots (unix s, seconds by the terms): a step takes of the second what the terms say, and what lies
    between steps as long as it took. Known every ``every_s``, or at each step. None without time stamps.
    """
    log = log_of(run)
    lines = log.lines
    if not lines:
        return None
    took = between_lines(run.steps, in_engine(run.requests)).to_numpy(dtype=float)
    played = batches(lines, log.lengths)
    wall, own = [lines[0].unix_ns / 1e9], [0.0]
    for line_, batch, seconds in zip(lines, played, took, strict=True):
        end = line_.unix_ns / 1e9
        if not (seconds > 0) or batch is None:
            continue
        begin = max(end - seconds, wall[-1])
        own += [own[-1] + begin - wall[-1], own[-1] + begin - wall[-1]]
        own[-1] += one.model.seconds(batch)
        wall += [begin, max(end, begin)]
    at, terms = np.array(wall), np.array(own)
    if every_s is not None:
        grid = np.append(np.arange(at[0], at[-1], every_s), at[-1])
        at, terms = grid, np.interp(grid, at, terms)
    return at, terms


def _replayed(
    run: Run, one: Measured, clock: tuple[Floats, Floats], phase: tuple[int, int]
) -> Figures:
    """The run's own requests by the clock, each at its time or when its user's last reply is over; figures of
    its measured phase.
    """
    sent, prompts, outputs = _sent(run)
    wall, own = clock
    front, users = one.front, run.point.load.users
    engine = Engine(
        "",
        one.settings,
        costs(one.shape, one.model.terms, one.settings.max_num_batched_tokens),
    )

    def on_the_wall(there: Floats | float) -> Floats:
        """Past the last step the clocks go alike."""
        return np.interp(there, own, wall) + np.maximum(there - own[-1], 0)

    def coming_s(at: float, prompt: int) -> float:
        back = float(on_the_wall(at)) + front.reply_s
        return float(np.interp(back + front.before_s(prompt), wall, own))

    if users is None:
        came = sent + front.request_s + front.token_s * prompts
        order = np.argsort(came, kind="stable")
        sent, came, prompts, outputs = sent[order], came[order], prompts[order], outputs[order]
        asked = Traffic(np.interp(came, wall, own), prompts, outputs, "as it went")
        done = play(asked, [engine])
    else:
        requests = zip(prompts.tolist(), outputs.tolist(), strict=True)
        asked, done = play_users(users, requests, engine, coming_s, np.inf)
        came = on_the_wall(asked.at_s)
        sent = came - front.request_s - front.token_s * asked.prompt_tokens
    start, end = (ns / 1e9 for ns in phase)
    return figures(
        Load(0.0, end - start, users),
        sent - start,
        on_the_wall(asked.at_s + done.ttft_s) + front.reply_s - sent,
        on_the_wall(asked.at_s + done.e2e_s) + front.reply_s - sent,
        on_the_wall(asked.at_s + done.waited_s) - came,
    )


def _compared(rows: dict[str, dict[str, Any]], found: Study) -> Iterator[Compared]:
    by_path = {point.path: point for point in found.points}
    for run in sorted(found.runs, key=lambda r: point_key(r.point)):
        row = rows.get(point_key(run.point))
        if row is None:
            continue
        point = by_path.get(str(run.path))
        saw = seen(
            run, point if point is not None and point.usable else None, Front(**row["front"])
        )
        if saw is None:
            continue
        yield Compared(
            row["key"],
            {whose: _figures(row[whose]) for whose in WHOSE},
            saw,
            row["of_most"],
            "; ".join(point.reasons) if point is not None and not point.usable else "",
        )


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True)
    one = commands.add_parser("freeze")
    one.add_argument("runs", type=Path)
    one.add_argument("--heldout", type=Path, nargs="+", required=True)
    one.add_argument("-o", "--output", type=Path, required=True)
    one.add_argument("--hardware")
    one.set_defaults(run=freeze)
    two = commands.add_parser("score")
    two.add_argument("predictions", type=Path)
    two.add_argument("runs", type=Path)
    two.add_argument("--json", type=Path)
    two.set_defaults(run=score)
    three = commands.add_parser("explain")
    three.add_argument("runs", type=Path, help="of the calibration")
    three.add_argument("heldout", type=Path)
    three.add_argument("--hardware")
    three.set_defaults(run=explain)
    args = parser.parse_args()
    try:
        return args.run(args)
    except UserError as fault:
        print(fault, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())

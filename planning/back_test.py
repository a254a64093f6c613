"""A plan's frozen predictions beside what was measured: errors, and the bars they must clear."""

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from analysis.point.point import Point, measured_phase
from analysis.runs.run import Run
from planning.baselines import Known
from planning.batches import served
from planning.front import Front, waiting_s
from planning.held_out import Figures, Load, figures

Whose = Literal["plan", "nearest", "line"]
BELOW_KNEE = 0.8
BUSY = (0.5, 0.9)
# of the server's settings those that make another candidate
SETTINGS = (
    "execution",
    "dtype",
    "kv_cache_dtype",
    "max_num_seqs",
    "max_num_batched_tokens",
    "tensor_parallel",
    "prefix_caching",
    "extra_args",
    "vllm",
)


def candidate_key(point: Any) -> str:
    """Model, backend and the server's settings that make a candidate; the same of a run and a sweep."""
    asked = point.server.model_dump()
    settings = " ".join(f"{name}={asked[name]}" for name in SETTINGS if asked[name])
    return f"{point.model.name} {point.backend.label} {settings}"


def point_key(point: Any) -> str:
    return f"{candidate_key(point)} | {point.context_tokens} | {point.load.label}"


def seen(run: Run, point: Point | None, front: Front) -> Figures | None:
    """What a run measured, by the definitions of a prediction; None without its measured phase."""
    phase = measured_phase(run)
    if phase is None:
        return None
    rows = run.requests
    rows = rows[rows["error_type"].isna()]
    base = (
        rows["scheduled_unix_ns"]
        .astype("Int64")
        .fillna(rows["sent_unix_ns"])
        .to_numpy(dtype=np.int64)
    )
    lag = (rows["sent_unix_ns"].to_numpy(dtype=np.int64) - base) / 1e9
    start, end = phase
    load = Load(0.0, (end - start) / 1e9, run.point.load.users)
    sent = (base - start) / 1e9
    ttft = rows["first_token_ns"].to_numpy(dtype=float) / 1e9 + lag
    e2e = rows["end_ns"].to_numpy(dtype=float) / 1e9 + lag
    found = figures(load, sent, ttft, e2e, _waited(run, rows, front))
    power = None if point is None or point.energy is None else point.energy.result.power_w
    return replace(
        found,
        watts=None if power is None else (power, power),
        joules_per_request=None if power is None else (power / found.throughput,) * 2,
    )


def _waited(run: Run, rows: Any, front: Front) -> np.ndarray:
    by = {
        one.sent_ns: float(s)
        for (one, _), s in zip(served(run), waiting_s(run, front), strict=True)
    }
    return np.array([by.get(int(ns), np.nan) for ns in rows["sent_unix_ns"]])


def known(run: Run, point: Point | None, front: Front) -> Known | None:
    """A calibration run as a baseline takes it."""
    found = seen(run, point, front)
    if found is None or found.e2e_mean_s is None:
        return None
    prompts = run.requests["prompt_tokens"].dropna().astype(float)
    users = run.point.load.users
    return Known(float(prompts.mean()), float(users or found.throughput * found.e2e_mean_s), found)


@dataclass(frozen=True)
class Compared:
    """A held-out point: predictions by whose, and what was measured. ``of_most``: its rate over the
    predicted most, None in a closed loop.
    """

    key: str
    said: dict[Whose, Figures | None]
    saw: Figures
    of_most: float | None
    note: str = ""


Pick = Callable[[Figures], float | None]


def error(said: Figures | None, saw: Figures, pick: Pick) -> float | None:
    """Relative, signed; None where either has no such figure."""
    if said is None:
        return None
    a, b = pick(said), pick(saw)
    return None if a is None or b is None or b == 0 else a / b - 1


@dataclass(frozen=True)
class Bar:
    """``errors``: by whose, the median absolute error over ``points``; ``most``: what is allowed."""

    name: str
    most: float
    points: int
    errors: dict[Whose, float | None]

    @property
    def met(self) -> bool | None:
        of_plan = self.errors["plan"]
        return None if of_plan is None else of_plan <= self.most

    @property
    def beats(self) -> bool | None:
        own = self.errors["plan"]
        others = [e for whose, e in self.errors.items() if whose != "plan" and e is not None]
        return None if own is None or not others else own < min(others)


def _middle(watts: tuple[float, float] | None) -> float | None:
    return None if watts is None else sum(watts) / 2


FIGURES: dict[str, Pick] = {
    "throughput": lambda f: f.throughput,
    "E2E p50": lambda f: f.e2e_p50_s,
    "E2E p90": lambda f: f.e2e_p90_s,
    "TTFT p50": lambda f: f.ttft_p50_s,
    "TTFT p90": lambda f: f.ttft_p90_s,
    "waiting": lambda f: f.waiting_s,
    "W": lambda f: _middle(f.watts),
}


def _everywhere(_: Compared) -> bool:
    return True


def _below(one: Compared) -> bool:
    return one.of_most is None or one.of_most < BELOW_KNEE


def _queueing(one: Compared) -> bool:
    return one.of_most is not None and BUSY[0] <= one.of_most <= BUSY[1]


RULES: tuple[tuple[str, str, float, Callable[[Compared], bool]], ...] = (
    ("E2E p50", "E2E p50", 0.06, _everywhere),
    ("throughput", "throughput", 0.06, _everywhere),
    ("TTFT p50 below 0.8 of the knee", "TTFT p50", 0.12, _below),
    ("TTFT p90 below 0.8 of the knee", "TTFT p90", 0.12, _below),
    ("mean waiting at utilisation 0.5 to 0.9", "waiting", 0.10, _queueing),
    ("W (kWh)", "W", 0.05, _everywhere),
)


def bars(points: Sequence[Compared]) -> list[Bar]:
    return [
        _bar(name, FIGURES[figure], most, [p for p in points if where(p)])
        for name, figure, most, where in RULES
    ]


def _bar(name: str, pick: Pick, most: float, points: Sequence[Compared]) -> Bar:
    whose: tuple[Whose, ...] = ("plan", "nearest", "line")
    errors: dict[Whose, list[float]] = {
        w: [e for p in points if (e := error(p.said.get(w), p.saw, pick)) is not None]
        for w in whose
    }
    medians: dict[Whose, float | None] = {
        w: statistics.median(map(abs, each)) if each else None for w, each in errors.items()
    }
    return Bar(name, most, len(errors["plan"]), medians)


def knee(rates: Sequence[float], ttft_p90_s: Sequence[float], limit_s: float) -> float | None:
    """The rate at which the 90th percentile of TTFT reaches the limit, by a power law between the rates; None
    where they are all on one side.
    """
    order = np.argsort(rates)
    x, y = np.log(np.array(rates)[order]), np.log(np.array(ttft_p90_s)[order] / limit_s)
    for i in range(len(x) - 1):
        if y[i] <= 0 < y[i + 1]:
            return float(np.exp(x[i] - y[i] * (x[i + 1] - x[i]) / (y[i + 1] - y[i])))
    return None


def no_knee(rates: Sequence[float], ttft_p90_s: Sequence[float], limit_s: float) -> str:
    """Of rates without a knee, on which side of the limit they are."""
    if max(ttft_p90_s) <= limit_s:
        side = f"at most {limit_s:g} s"
    elif min(ttft_p90_s) > limit_s:
        side = f"above {limit_s:g} s"
    else:
        side = f"above {limit_s:g} s at the lowest, and never passes it upwards,"
    return (
        f"p90 of TTFT is {side} at {min(rates):g} to {max(rates):g} requests/s "
        f"({min(ttft_p90_s):.3g} to {max(ttft_p90_s):.3g} s)"
    )

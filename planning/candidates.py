"""What a plan knows of each measured candidate: its step time, its limits, its power, what was measured."""

import gc
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from scipy.optimize import nnls

from analysis.bottleneck.peaks import run_ceilings
from analysis.bottleneck.roofline import model_of
from analysis.model.work import ModelWork
from analysis.point.point import Point
from analysis.point.resources import kernel_share
from analysis.runs.identity import Block, DeviceKind
from analysis.runs.run import Run
from analysis.study import Study, study
from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from planning.batches import Timed, log_of, timed
from planning.evidence import may_lose, unjudged
from planning.folder import holds_all
from planning.front import Front, front
from planning.hardware import the_hardware
from planning.simulator import Settings
from planning.step_time import Floats, NotEnough, Shape, Steps, StepTime, fit, shape_of, steps_of

LeftOut = tuple[str, str]  # a candidate's label, and why
BLOCK_TOKENS = 16  # vLLM's own on a GPU, where the run does not say
WORSE, AGAINST = (
    2.0,
    0.1,
)  # forwards that make a run's steps so much worse, and so bad, are of another


@dataclass(frozen=True)
class Hull:
    """What was measured. ``sequences``: the most in one step; ``prompts``: shortest and longest, tokens;
    ``longest``: tokens of the longest request with its output; ``chunk``: the most tokens of one prompt that
    a step computed, which are few where the prefix cache held the rest; ``cached``: the least and the most
    that it held of a run's prompts. None: not known.
    """

    sequences: int
    prompts: tuple[int, int]
    longest: int | None = None
    chunk: int | None = None
    cached: tuple[float, float] | None = None


@dataclass(frozen=True)
class Power:
    """Watts of a server's cards: while it computes prompts, while it decodes, without a request (None: not
    measured).
    """

    computing_w: float
    decoding_w: float
    idle_w: float | None


@dataclass(frozen=True)
class Metered:
    """Watts of a run's cards over its window; ``idle_w`` before it, None: not measured."""

    watts: float
    idle_w: float | None


@dataclass(frozen=True)
class Measured:
    """A candidate. ``timed``: its steps by block of starts. ``metered``: its power by run. ``barred``: why it
    may not serve, and where. ``unjudged``: of one that may change answers, which nobody judged, why.
    ``weights_s``: seconds in which the cards' memory can read the weights of a dense model, None: not known.
    ``host_s``: seconds of a step in which no kernel ran on its cards, None: not sampled.
    ``exact``: forwards that its step time is fitted to beside its steps. ``fits``: of draws that were made.
    """

    label: str
    shape: Shape
    model: StepTime
    timed: tuple[tuple[Block, Steps], ...]
    settings: Settings
    front: Front
    hull: Hull
    power: Power | None
    no_power: str | None
    cards: int
    barred: tuple[str, ...]
    unjudged: str | None = None
    metered: Mapping[str, Metered] = field(default_factory=dict[str, Metered])
    weights_s: float | None = None
    host_s: float | None = None
    exact: Steps | None = None
    fits: dict[tuple[Block, ...], StepTime] = field(
        default_factory=dict[tuple[Block, ...], StepTime]
    )

    def drawn(self, rng: np.random.Generator) -> "Measured | None":
        """It by as many blocks drawn with replacement: step times and power. None of a draw that tells too
        little.
        """
        blocks = sorted({block for block, _ in self.timed})
        picked = tuple(sorted(blocks[i] for i in rng.integers(len(blocks), size=len(blocks))))
        if picked not in self.fits:  # a few blocks make few draws
            runs = [run for block in picked for own, run in self.timed if own == block]
            try:
                self.fits[picked] = fit(self.shape, runs, self.exact)
            except NotEnough:
                return None
        model = self.fits[picked]
        return replace(self, model=model, power=power_of(self.metered, model) or self.power)

    def told(self, exact: Timed) -> "Measured":
        """It, with its step time fitted to these forwards too. UserError where its steps are against it."""
        forwards = steps_of(self.shape, exact)
        model = fit(self.shape, [run for _, run in self.timed], forwards)
        before, after = self.model.residuals().worst_run, model.residuals().worst_run
        if after > max(WORSE * before, AGAINST):
            raise UserError(
                f"{exact.run_id}: its batches are not of {self.label}: with them the steps of a run are off "
                f"by {100 * after:.0f} %, without them by {100 * before:.0f} %; time them with its model, "
                "backend and card"
            )
        power = power_of(self.metered, model) or self.power
        hull = self.hull
        if hull.chunk is not None:
            hull = replace(hull, chunk=max(hull.chunk, forwards.chunk))
        return replace(self, model=model, power=power, exact=forwards, fits={}, hull=hull)

    @property
    def blocks(self) -> int:
        return len({block for block, _ in self.timed})


def measured(
    root: Path, slo: SloConfig, hardware: str | None
) -> tuple[list[Measured], list[LeftOut], DeviceKind]:
    """The candidates below ``root``, those that cannot be planned with, and the card."""
    holds_all(root)
    found = study(root, across_executions=True, slo=slo)
    gc.freeze()  # it stays: a collection, of which the steps below make many, need not look at it
    return candidates_of(found, hardware)


def candidates_of(
    found: Study, hardware: str | None
) -> tuple[list[Measured], list[LeftOut], DeviceKind]:
    """``measured`` of a study across executions."""
    root = found.root
    if not found.usable:
        raise UserError(f"{root}: no usable run; `greenbench report` says why")
    device = the_hardware(root, found.usable, hardware, "a plan")
    groups: dict[str, list[Point]] = {}
    for point in found.usable:
        if point.scenario.device == device:
            groups.setdefault(point.backend, []).append(point)
    runs = {str(run.path): run for run in found.runs}
    made: list[Measured] = []
    refused: list[LeftOut] = []
    for label, points in sorted(groups.items()):
        try:
            made.append(_measured(label, points, runs, found))
        except NotEnough as why:
            refused.append((label, str(why)))
    if not made:
        raise UserError(
            f"{root}: no candidate can be planned with ({'; '.join(left_out(refused)) or 'no usable run'}); "
            "`greenbench plan --what-to-measure` prints a sweep that is enough"
        )
    return made, refused, device


def _measured(label: str, points: Sequence[Point], runs: dict[str, Run], found: Study) -> Measured:
    """NotEnough where its runs do not carry a plan."""
    first = runs[points[0].path]
    work = model_of(first)
    if work is None:
        raise NotEnough("its model's shape or the format of its KV cache is not known")
    shape = shape_of(work)
    own: list[tuple[Block, Steps]] = []
    cached: list[float] = []
    idle: list[tuple[float, int]] = []  # seconds of steps without a kernel, steps
    here = [runs[point.path] for point in points]
    logs = [log_of(run) for run in here]
    for point, run, log in zip(points, here, logs, strict=True):
        window = point.window
        if window is None or point.proof != "proven":
            continue
        steps = timed(run, log, (window.start_unix_ns, window.end_unix_ns))
        if steps is not None and steps.batches and steps.unmet <= len(steps.batches) / 20:
            own.append((point.block, steps_of(shape, steps)))
            cached.append(log.cached_share)
            kernels = kernel_share(run, window)
            if kernels is not None:
                idle.append(
                    (
                        idle_s(
                            steps.seconds,
                            (window.end_unix_ns - window.start_unix_ns) / 1e9,
                            kernels,
                        ),
                        len(steps.seconds),
                    )
                )
    if not own:
        raise NotEnough(
            "no proven run of it has an iteration log that fits its requests (server.iteration_log)"
        )
    model = fit(shape, [run for _, run in own])
    settings = _settings(here)
    metered = _metered(points)
    power = power_of(metered, model)
    return Measured(
        label=label,
        shape=shape,
        model=model,
        timed=tuple(own),
        settings=settings,
        front=front(here, logs, settings),
        hull=Hull(
            max(run.sequences for _, run in own),
            (min(p.context_tokens for p in points), max(p.context_tokens for p in points)),
            max((n for run in here if (n := _longest(run)) is not None), default=None),
            max(run.chunk for _, run in own),
            (min(cached), max(cached)),
        ),
        power=power,
        no_power=None if power is not None else _no_power(points, metered),
        cards=max(1, len(points[0].scenario.device.gpus)) * first.manifest.server.tensor_parallel
        if points[0].scenario.device.gpus
        else 0,
        barred=_barred(points, found),
        unjudged=_unjudged(points, runs, found),
        metered=metered,
        weights_s=_weights_s(work, first, found),
        host_s=sum(s for s, _ in idle) / sum(n for _, n in idle) if idle else None,
    )


def left_out(each: Iterable[LeftOut]) -> list[str]:
    """A clause for each cause, with all that it is of."""
    of: dict[str, list[str]] = {}
    for label, why in each:
        of.setdefault(why, []).append(label)
    return [f"{', '.join(labels)}: {why}" for why, labels in of.items()]


def idle_s(steps: Floats, window_s: float, kernels: float) -> float:
    """Of a window's steps the seconds in which no kernel ran, when one ran for the share ``kernels`` of the
    window: the time outside of steps is not the steps'.
    """
    took = float(steps.sum())
    return max(0.0, took - kernels * window_s)


def _longest(run: Run) -> int | None:
    """Tokens of its longest request, output included."""
    tokens = run.requests["prompt_tokens"] + run.requests["output_tokens"]
    return int(tokens.max()) if tokens.notna().any() else None


def _weights_s(work: ModelWork, run: Run, found: Study) -> float | None:
    """By the highest bandwidth that is known of the cards; None of a model with experts, whose reads are a
    term of their own.
    """
    if any(layer.experts is not None for layer in work.layers):
        return None
    rates = [ceiling.bytes_per_s for ceiling in run_ceilings(run, found.host_ceilings)]
    return work.step_weights(1).bytes / max(rates) if rates else None


def _settings(runs: Sequence[Run]) -> Settings:
    asked = runs[0].point.server
    kv = [n for run in runs if (n := run.manifest.server.kv_cache_tokens)]
    argv = runs[0].manifest.server.argv
    block = int(argv[argv.index("--block-size") + 1]) if "--block-size" in argv else BLOCK_TOKENS
    return Settings(
        max_num_seqs=asked.max_num_seqs,
        max_num_batched_tokens=asked.max_num_batched_tokens,
        block_size=block,
        total_kv_tokens=min(kv, default=None),
        max_model_len=runs[0].manifest.server.max_model_len,
        ahead=bool(runs[0].manifest.server.async_scheduling),
    )


def _metered(points: Sequence[Point]) -> dict[str, Metered]:
    found = {p.run_id: p.energy.result for p in points if p.energy is not None}
    return {run: Metered(r.power_w, r.idle_w) for run, r in found.items() if r.power_w is not None}


def _no_power(points: Sequence[Point], metered: Mapping[str, Metered]) -> str:
    if metered:
        return "no run with a step log has its power"
    said = [
        sentence for p in points if p.energy is not None for sentence in p.energy.result.explain
    ]
    return said[0] if said else "no power was recorded"


def power_of(metered: Mapping[str, Metered], model: StepTime) -> Power | None:
    """Watts by what a server does, not negative, over the model's runs whose power was measured; None
    without one.
    """
    shares, known = [], []
    ends = np.cumsum(model.steps_of_run)[:-1]
    took = np.split(model.predicted, ends)
    prefilling = np.split(model.prefilling, ends)
    for run, own, mask in zip(model.run_ids, took, prefilling, strict=True):
        if run in metered:
            share = float(own[mask].sum() / own.sum())
            shares.append((share, 1 - share))
            known.append(metered[run])
    if not shares:
        return None
    watts = [one.watts for one in known]
    (computing, decoding), _ = nnls(np.array(shares), np.array(watts, dtype=float))
    if len({round(share, 2) for share, _ in shares}) < 2 or 0.0 in (computing, decoding):
        computing = decoding = statistics.fmean(watts)
    idle = [one.idle_w for one in known if one.idle_w is not None]
    return Power(float(computing), float(decoding), statistics.fmean(idle) if idle else None)


def _barred(points: Sequence[Point], found: Study) -> tuple[str, ...]:
    said: dict[str, None] = {}
    for point in points:
        able = found.eligible.get((point.scenario, point.candidate))
        if able is not None and not able.may_win:
            said[f"{able.why_not or 'it may not win'} at {point.context_tokens:,} tokens"] = None
    return tuple(said)


def _unjudged(points: Sequence[Point], runs: dict[str, Run], found: Study) -> str | None:
    candidate = points[0].candidate
    loses = may_lose(candidate, [runs[point.path].manifest.server for point in points])
    reasons = unjudged(found)
    why = [w for p in points if (w := reasons.get((p.context_tokens, candidate))) is not None]
    return f"{loses}, and its answers are not judged ({why[0]})" if loses and why else None

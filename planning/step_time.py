"""How long a step of the engine takes, from what it computes: a sum of few physical terms.

    seconds = launch + weights · bytes of experts read + linear · FLOPs of the linear layers
            + attention · FLOPs of the prefill's query–key pairs + kv · bytes of KV cache that decodes read
            + sequence · sequences in the step

A dense model reads the same weights in every step, so launch holds their time and there is no term of its
own. Coefficients are not negative: more work never takes less time. They are fitted to the engine's own steps
by least squares of the relative error, weighted by the predicted time so that noise draws no step down
(iteratively reweighted).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls

from analysis.model.work import Attention, Mla, ModelWork, State, causal_pairs
from planning.batches import Batch, Timed

Floats = npt.NDArray[np.float64]
ROUNDS = 5  # of reweighting
LEAST_STEPS = 30  # about five a term


class NotEnough(Exception):
    """The steps do not tell the terms apart; its text says what is missing."""


@dataclass(frozen=True, slots=True)
class Mix:
    """Attention layers of one window together: FLOPs a query–key pair, KV bytes a token and step."""

    window: int | None
    flops_per_pair: float
    bytes_per_token: float

    def pairs(self, new: int, past: int) -> float:
        return causal_pairs(new, past, self.window)

    def seen(self, contexts: Iterable[int]) -> int:
        """Tokens that decodes of such contexts attend to, in all."""
        window = self.window
        return sum(contexts if window is None else [min(each, window) for each in contexts])


@dataclass(frozen=True, slots=True)
class Shape:
    """What of a model decides a step's time. State layers work a token like linear ones."""

    model: ModelWork
    mixes: tuple[Mix, ...]
    linear_flops: float  # a token
    routed: bool

    def row(self, batch: Batch) -> "Terms":
        return Terms(*self.amounts(batch))

    def amounts(self, batch: Batch) -> tuple[float, ...]:
        """In the order of ``Terms``; a sweep has hundreds of thousands of batches."""
        tokens = batch.tokens
        mixes, chunks = self.mixes, batch.chunks
        return (
            1.0,
            self.weight_bytes(tokens),
            self.linear_flops * tokens,
            sum([m.flops_per_pair * m.pairs(*chunk) for m in mixes for chunk in chunks]),
            sum([m.bytes_per_token * m.seen(batch.contexts) for m in mixes]),
            batch.sequences,
        )

    def weight_bytes(self, tokens: float) -> float:
        """Of a model with experts; of a dense one 0, since they are the same in every step."""
        return self.model.step_weights(tokens).bytes if self.routed else 0.0


@dataclass(frozen=True, slots=True)
class Terms:
    """By term: of a batch its amounts, of a model its seconds an amount."""

    launch: float
    weights: float
    linear: float
    attention: float
    kv: float
    sequence: float

    @property
    def each(self) -> tuple[float, ...]:
        return self.launch, self.weights, self.linear, self.attention, self.kv, self.sequence

    def seconds(self, amounts: "Terms") -> float:
        return sum(a * b for a, b in zip(self.each, amounts.each, strict=True))

    def times(self, factor: float) -> "Terms":
        return Terms(*(factor * one for one in self.each))


def shape_of(model: ModelWork) -> Shape:
    flops: dict[int | None, float] = {}
    read: dict[int | None, float] = {}
    state = 0.0
    for mixer in (mixer for layer in model.layers for mixer in layer.mixers):
        match mixer:
            case Attention():
                window, per_pair, elements = (
                    mixer.window,
                    mixer.flops_per_pair(),
                    mixer.kv_elements(),
                )
            case Mla():
                window = None
                per_pair = 2.0 * mixer.heads * (mixer.nope + mixer.rope + mixer.value)
                elements = mixer.latent + mixer.rope
            case State():
                state += mixer.prefill_flops_per_token
                continue
        flops[window] = flops.get(window, 0.0) + per_pair
        read[window] = read.get(window, 0.0) + elements * model.kv_item
    mixes = tuple(Mix(window, flops[window], read[window]) for window in flops)
    routed = any(layer.experts is not None for layer in model.layers)
    return Shape(model, mixes, model.linear(1).flops + state, routed)


@dataclass(frozen=True)
class StepTime:
    """``terms``: seconds an amount. ``predicted`` and ``observed``: of the steps it was fitted to."""

    shape: Shape
    terms: Terms
    observed: Floats
    predicted: Floats
    prefilling: npt.NDArray[np.bool_]
    run_ids: tuple[str, ...]
    steps_of_run: tuple[int, ...]
    prompts_of_run: tuple[float | None, ...] = ()  # mean prompt, tokens

    def seconds(self, batch: Batch) -> float:
        return self.terms.seconds(self.shape.row(batch))

    def at(self, prompts: npt.ArrayLike) -> Terms:
        """For a traffic of such prompts, tokens: scaled by what runs of the nearest lengths took over what
        the terms say. Long prompts keep a card at its power limit, and its clock falls, which no term knows.
        """
        lengths = np.asarray(prompts, dtype=float)
        found = self._factors()
        if not found:
            return self.terms
        tokens, factors = np.array(sorted(found.items())).T
        at = float((lengths**2).sum() / lengths.sum())  # where the mean token is
        return self.terms.times(
            float(np.exp(np.interp(np.log(at), np.log(tokens), np.log(factors))))
        )

    def _factors(self) -> dict[float, float]:
        """By mean prompt of a run: time that its steps took over what the terms say."""
        ends = np.cumsum(self.steps_of_run)[:-1]
        took: dict[float, list[tuple[float, float]]] = {}
        parts = zip(np.split(self.observed, ends), np.split(self.predicted, ends), strict=True)
        for tokens, (observed, predicted) in zip(self.prompts_of_run, parts, strict=False):
            if tokens is not None and len(observed):
                took.setdefault(tokens, []).append((observed.sum(), predicted.sum()))
        return {
            tokens: sum(o for o, _ in each) / sum(p for _, p in each)
            for tokens, each in took.items()
        }

    def residuals(self) -> "Residuals":
        ratio = self.predicted / self.observed - 1
        return Residuals(
            steps=len(ratio),
            median=float(np.median(np.abs(ratio))),
            p90=float(np.percentile(np.abs(ratio), 90)),
            prefill_time=self._total(self.prefilling),
            decode_time=self._total(~self.prefilling),
            worst_run=float(max(np.abs(self._of_runs()), default=0.0)),
        )

    def _total(self, of: npt.NDArray[np.bool_]) -> float | None:
        return float(self.predicted[of].sum() / self.observed[of].sum() - 1) if of.any() else None

    def _of_runs(self) -> Floats:
        """Of each run how far the time of all its steps is off."""
        ends = np.cumsum(self.steps_of_run)[:-1]
        took = [part.sum() for part in np.split(self.observed, ends)]
        said = [part.sum() for part in np.split(self.predicted, ends)]
        return np.array(said) / np.array(took) - 1


@dataclass(frozen=True)
class Residuals:
    """Relative errors. ``median``, ``p90``: of a step, absolute; ``*_time``: of all such steps together,
    signed; ``worst_run``: of a whole run's steps, absolute.
    """

    steps: int
    median: float
    p90: float
    prefill_time: float | None
    decode_time: float | None
    worst_run: float


@dataclass(frozen=True)
class Steps:
    """Steps of one run as a fit takes them. ``amounts``: steps × terms. ``decoding``: the numbers of requests
    of steps without a prompt. ``prompt_tokens``: mean, where known. ``chunk``: the most tokens of one prompt
    that a step computed.
    """

    run_id: str
    amounts: Floats
    seconds: Floats
    prefilling: npt.NDArray[np.bool_]
    decoding: frozenset[int]
    prompt_tokens: float | None
    chunk: int

    def __len__(self) -> int:
        return len(self.seconds)

    @property
    def sequences(self) -> int:
        """The most in one step."""
        return int(self.amounts[:, -1].max())


def steps_of(shape: Shape, run: Timed) -> Steps:
    return Steps(
        run_id=run.run_id,
        amounts=np.array([shape.amounts(batch) for batch in run.batches]),
        seconds=run.seconds,
        prefilling=np.array([bool(batch.chunks) for batch in run.batches]),
        decoding=frozenset(len(batch.contexts) for batch in run.batches if not batch.chunks),
        prompt_tokens=run.prompt_tokens,
        chunk=max((new for batch in run.batches for new, _ in batch.chunks), default=0),
    )


def fit(shape: Shape, runs: Sequence[Steps], exact: Steps | None = None) -> StepTime:
    """NotEnough where there are too few steps or they are all of one size. ``exact``: forwards of batches
    without what a step takes beyond them; they say how the terms stand to each other, and the steps how long
    a forward takes there and what every step and sequence add.
    """
    steps = sum(map(len, runs))
    if steps < LEAST_STEPS:
        raise NotEnough(f"{steps} engine steps in its log, at least {LEAST_STEPS} are wanted")
    if len(frozenset[int]().union(*(run.decoding for run in runs))) < 2:
        raise NotEnough("all its decode steps had one number of requests: one load only")
    took = np.concatenate([run.seconds for run in runs])
    amounts = np.concatenate([run.amounts for run in runs])
    if exact is None:
        solved = _solved(amounts, took)
    else:
        solved = _solved(exact.amounts, exact.seconds)
        own = np.stack([amounts[:, 0], amounts[:, -1], amounts @ solved], axis=1)
        launch, sequence, factor = _solved(own, took)
        solved = factor * solved + np.array([launch, 0, 0, 0, 0, sequence])
    terms = Terms(*solved.tolist())
    return StepTime(
        shape=shape,
        terms=terms,
        observed=took,
        predicted=amounts @ np.array(terms.each),
        prefilling=np.concatenate([run.prefilling for run in runs]),
        run_ids=tuple(run.run_id for run in runs),
        steps_of_run=tuple(map(len, runs)),
        prompts_of_run=tuple(run.prompt_tokens for run in runs),
    )


def _solved(amounts: Floats, took: Floats) -> Floats:
    """Coefficients ≥ 0 that make the squares of the relative errors least."""
    scale = amounts.max(axis=0)
    scale[scale == 0] = 1.0
    scaled = amounts / scale
    sides, expected = np.column_stack([scaled, took]), took
    n = scaled.shape[1]
    found = np.zeros(n)
    for _ in range(ROUNDS):
        # QR first: the squares of thousands of steps in as many rows as there are terms, and the times turned
        # likewise as the last column
        r = np.asarray(np.linalg.qr(sides / expected[:, None], mode="r"))
        found, _ = nnls(r[:n, :n], r[:n, n])
        expected = np.maximum(scaled @ found, took.min() / 2)
    return found / scale

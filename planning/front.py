"""What a request takes outside of the engine: HTTP and tokenizer before it, the way of a token back.

The wait for the step that runs when a request comes is the engine's, and simulated. A server's own times
count it on neither side, so what a client sees more than the server says is too much. The way in is taken
from the iteration log instead: a prompt that had room in a step and was not in it had not come when that step
was composed, and it had when its first step was. Where no other request was open nothing runs, and what the
client saw more is exact.

In a closed loop that says little: a user's next request comes while the next step runs, be the way in a
millisecond or most of that step. So the requests of all runs have one line together, which those that were
alone decide.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import minimize_scalar

from analysis.runs.run import Run
from planning.batches import Lengths, Line, Log, Sent, log_of
from planning.simulator import Settings

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
QUANTILES = tuple(range(5, 100, 5))
FEWEST_LINES = 3


@dataclass(frozen=True)
class Front:
    """Seconds: ``request_s`` and ``token_s`` a prompt token before the engine, ``reply_s`` of a token back.
    ``spread``: of single requests, quantiles over the mean, of the time to the response's headers.
    """

    request_s: float
    token_s: float
    reply_s: float = 0.0
    spread: tuple[float, ...] = (1.0,)

    def before_s(self, prompt_tokens: float) -> float:
        return self.request_s + self.token_s * prompt_tokens


@dataclass(frozen=True)
class Ways:
    """Of one run: uncached ``tokens`` of each prompt that tells, the least and the most that its way in took,
    and the median of a token's way back.
    """

    tokens: Floats
    low_s: Floats
    high_s: Floats
    reply_s: float


@dataclass(frozen=True)
class Places:
    """Numbers of the steps in which each served request begins and ends its prompt; when each line came."""

    first: Ints
    done: Ints
    lines_ns: Ints

    @property
    def known(self) -> npt.NDArray[np.bool_]:
        return self.done < len(self.lines_ns)

    def line(self, step: Ints) -> Ints:
        return self.lines_ns[np.clip(step, 0, len(self.lines_ns) - 1)]


def front(runs: Sequence[Run], logs: Sequence[Log], settings: Settings) -> Front:
    """One line over the prompts' lengths for all runs. ``logs``: of each."""
    found = [way for log in logs if (way := ways(log.lines, log.served, settings)) is not None]
    if not found:
        return Front(0.0, 0.0)
    tokens, low_s, high_s = (
        np.concatenate(each)
        for each in zip(*((way.tokens, way.low_s, way.high_s) for way in found), strict=True)
    )
    reply = float(np.median([way.reply_s for way in found]))
    return Front(*straight(tokens, low_s, high_s), reply, _spread(runs))


def straight(tokens: Floats, low_s: Floats, high_s: Floats) -> tuple[float, float]:
    """Base and slope, not negative, of the line whose distances to the intervals sum to the least.

    By slope the best base is the median of all ends less the slope's part, and the sum left is convex.
    """

    def base(slope: float) -> float:
        ends = np.concatenate([low_s - slope * tokens, high_s - slope * tokens])
        return max(0.0, float(np.median(ends)))

    def distances(slope: float) -> float:
        at = base(slope) + slope * tokens
        return float(np.maximum(low_s - at, 0).sum() + np.maximum(at - high_s, 0).sum())

    steepest = float(high_s.max()) / float(tokens.max())
    if np.ptp(tokens) == 0 or steepest <= 0:
        return base(0.0), 0.0
    near = {"xatol": 1e-6 * steepest}
    found: Any = minimize_scalar(distances, bounds=(0.0, steepest), method="bounded", options=near)
    return base(float(found.x)), float(found.x)


def ways(
    lines: Sequence[Line], rows: Sequence[tuple[Sent, Lengths]], settings: Settings
) -> Ways | None:
    """None without time stamps or without a request that tells."""
    at = places(lines, [lengths for _, lengths in rows])
    if at is None:
        return None
    sent = np.array([one.sent_ns for one, _ in rows])
    token = sent + np.array([one.first_token_ns for one, _ in rows])
    composed = at.first - 1 - settings.ahead
    known = at.known & (composed >= 1)
    if not known.any():
        return None
    reply = max(0.0, float(np.median((token - at.line(at.done))[known])) / 1e9)
    spare = settings.max_num_batched_tokens - np.array(
        [one.prefill_tokens + one.decode_requests for one in lines]
    )
    alone = np.array([one.alone for one, _ in rows])
    room = known & ~alone & (spare[np.clip(at.first - 1, 0, len(spare) - 1)] > 0)
    over_s = np.array([one.over_ns for one, _ in rows]) / 1e9 - reply
    exact = known & alone & np.isfinite(over_s)
    tells = room | exact
    if not tells.any():
        return None
    return Ways(
        np.array([lengths.prompt - lengths.cached for _, lengths in rows], dtype=float)[tells],
        np.where(exact, over_s, (at.line(composed - 1) - sent) / 1e9)[tells],
        np.where(exact, over_s, (at.line(composed) - sent) / 1e9)[tells],
        reply,
    )


def places(lines: Sequence[Line], lengths: Sequence[Lengths]) -> Places | None:
    """First come, first served: a prompt begins where those before it end. None without time stamps."""
    if len(lines) < FEWEST_LINES or not lengths:
        return None
    computed = np.cumsum([line.prefill_tokens for line in lines])
    new = np.array([one.prompt - one.cached for one in lengths], dtype=np.int64)
    through = np.cumsum(new)
    return Places(
        np.searchsorted(computed, through - new, side="right"),
        np.searchsorted(computed, through, side="left"),
        np.array([line.unix_ns for line in lines], dtype=np.int64),
    )


def waiting_s(run: Run, front: Front) -> Floats:
    """Of each served request from its coming to the engine to the start of the first step that computes it;
    NaN where the log does not tell.
    """
    log = log_of(run)
    at = places(log.lines, log.lengths)
    if at is None:
        return np.full(len(log.served), np.nan)
    came = np.array(
        [one.sent_ns + 1e9 * front.before_s(n.prompt - n.cached) for one, n in log.served]
    )
    waited = np.maximum(at.line(at.first - 1) - came, 0) / 1e9
    return np.where(at.known & (at.first > 0), waited, np.nan)


def _spread(runs: Sequence[Run]) -> tuple[float, ...]:
    each = [run.requests["headers_ns"].dropna().astype(float) for run in runs]
    known = [ns for ns in each if len(ns) and ns.median() > 0]
    ratios = np.concatenate([(ns / ns.median()).to_numpy() for ns in known] or [np.ones(1)])
    found = np.percentile(ratios, QUANTILES)
    return tuple(float(q) for q in found / found.mean())

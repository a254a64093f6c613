"""Energy of prefill and decode: measured where a point holds one phase only, else attributed by a model.

A continuously batched server mixes both in one step, so their energies cannot be measured apart. The model is
linear in what the engine's steps computed; a non-negative fit gives a price for each kind of work:

    E(window) = P_idle·T + a·prefill tokens + b·prefill pairs + c·decode tokens + d·context read by decode

Everything it gives is labelled ``attributed``. It must predict windows that it has not seen; that error is
part of the result, and a fit that the data does not determine is refused.

The counter tells of energy some time after it was used: half a sampling period on average, and what the
sensor itself takes. At a window's edge that gives the work of one window the energy of the next. So the lag
is fitted with the prices, and its error is part of theirs. docs/energy.md shows by simulation how often the
true price lies within two standard errors.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy.optimize import nnls

from analysis.energy.cards import cards_of
from analysis.energy.result import EnergyResult
from analysis.energy.series import clean
from analysis.runs.clocks import WallClock
from analysis.runs.gpus import used_gpus
from analysis.statistics import student_t as student
from greenbench.contract.forms import Sources

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
WORK = ("prefill_tokens", "prefill_pairs", "decode_tokens", "decode_context")
WINDOW_S = 2.0
FEWEST_WINDOWS_PER_PRICE = 8
LARGEST_CONDITION = 30.0  # Belsley's bound: beyond it columns do not tell themselves apart
HELD_OUT_EVERY = 3  # blocks of windows: two to learn from, one to be predicted
BLOCK_WINDOWS = 3
BLOCKS_LEAST, BLOCKS_MOST = 8, 12  # of neighbouring windows, which may err together
BLOCK_LEAST = 6  # windows of a block, where there are enough for more than BLOCKS_LEAST
LAG_SD_S = (
    0.1  # of a card's own lag, before anything is fitted: the counters we know change every 0.1 s
)
LAGS_S = np.arange(-0.1, 0.5, 0.01)  # that are tried; a log line may also be late
LAG_STEP_S = 0.05  # either side, to see what a lag does to the windows


@dataclass(frozen=True, slots=True)
class Price:
    """Joules of one unit of work, its standard error, and the joules attributed to all of that work."""

    work: str
    j_per_unit: float
    standard_error: float | None  # None for a price at its bound of 0
    attributed_j: float


@dataclass(frozen=True, slots=True)
class Attribution:
    """``status``: attributed | undetermined | unavailable. Figures stand only with ``attributed``."""

    status: str
    reasons: list[str] = field(default_factory=list[str])
    prices: list[Price] = field(default_factory=list[Price])  # idle first, as J a second
    measured_j: float | None = None  # equals the sum of what is attributed
    unexplained_share: float | None = (
        None  # what the fit missed of the whole, before it was shared out
    )
    held_out_median_error: float | None = (
        None  # |predicted / measured − 1| of windows not learnt from
    )
    held_out_p90_error: float | None = None
    windows: int = 0
    lag_s: float | None = (
        None  # of the counter behind the engine's log, fitted, and its standard error
    )
    lag_error_s: float | None = None


@dataclass(frozen=True, slots=True)
class PhaseEnergy:
    """J a token of a point that holds one phase: measured, no model in between."""

    phase: str  # prefill | decode
    j_per_token: float
    tokens: int


def phase_energy(energy: EnergyResult, steps: pd.DataFrame) -> PhaseEnergy | None:
    """Gross energy a token where the measured window's steps were all prefill or all decode; else None.

    ``steps`` are those between the result's own edges (``step_work`` gives them their times).
    """
    if energy.status != "measured" or energy.energy_j is None or steps.empty:
        return None
    prefill, decode = int(steps["prefill_tokens"].sum()), int(steps["decode_tokens"].sum())
    if prefill and not decode:
        return PhaseEnergy("prefill", energy.energy_j / prefill, prefill)
    if decode and not prefill:
        return PhaseEnergy("decode", energy.energy_j / decode, decode)
    return None


def step_work(steps: pd.DataFrame, requests: pd.DataFrame, clock: WallClock) -> pd.DataFrame:
    """Steps with ``start_ns``, ``end_ns`` (monotonic) and the four kinds of WORK.

    The log says how many tokens a step prefilled and decoded, the client's traces whose they were: prompts
    are prefilled in the order of their first tokens (vLLM serves first come first), and a decoding request's
    context grows evenly from its first token to its last.
    """
    table = steps[steps["unix_ns"].notna()].reset_index(drop=True)
    if clock.reason or table.empty:
        return pd.DataFrame(columns=[*table.columns, "start_ns", "end_ns", *WORK])
    end_ns = _ints(table["unix_ns"]) - clock.offset_ns
    start_ns = end_ns - (table["elapsed_s"].to_numpy() * 1e9).astype(np.int64)
    spans = _spans(requests)
    return table.assign(
        start_ns=start_ns,
        end_ns=end_ns,
        prefill_pairs=_prefill_pairs(_ints(table["prefill_tokens"]), start_ns, spans),
        decode_context=_decode_context(_ints(table["decode_tokens"]), end_ns, spans),
    )


@dataclass(frozen=True)
class _Spans:
    """Requests by first token: prompt and output length, first and last token (mono ns)."""

    prompt: Ints
    output: Ints
    first_ns: Ints
    last_ns: Ints


def _spans(requests: pd.DataFrame) -> _Spans:
    # a request that was not streamed has its one answer at its end
    first_token_ns = requests["first_token_ns"].fillna(requests["end_ns"])
    seen = requests.assign(first_token_ns=first_token_ns).dropna(
        subset=["first_token_ns", "prompt_tokens", "sent_mono_ns"]
    )
    sent = _ints(seen["sent_mono_ns"])
    first = sent + _ints(seen["first_token_ns"])
    last = sent + _ints(seen["last_token_ns"].fillna(seen["first_token_ns"]))
    order = np.argsort(first, kind="stable")
    prompt = _ints(seen["prompt_tokens"])
    output = _ints(seen["output_tokens"].fillna(1))
    return _Spans(prompt[order], output[order], first[order], last[order])


def _ints(column: pd.Series) -> Ints:
    return column.to_numpy(dtype=np.int64)


def _prefill_pairs(tokens: Ints, start_ns: Ints, spans: _Spans) -> Floats:
    """(query, key) pairs a step: a chunk of T tokens after p others has T·p + T(T+1)/2.

    A prompt whose first token came before a step began was done by then: the log may start amid a run, and
    a request without a trace must not shift all that follow.
    """
    pairs = np.zeros(len(tokens))
    prompts = iter(zip(spans.prompt.tolist(), spans.first_ns.tolist(), strict=True))
    current = next(prompts, None)
    done = 0
    for step, left in enumerate(tokens.tolist()):
        while current is not None and current[1] < start_ns[step]:
            current, done = next(prompts, None), 0
        while left and current is not None:
            prompt = current[0]
            chunk = min(left, prompt - done)
            pairs[step] += chunk * done + chunk * (chunk + 1) / 2
            done += chunk
            left -= chunk
            if done >= prompt:
                current, done = next(prompts, None), 0
    return pairs


def _decode_context(tokens: Ints, end_ns: Ints, spans: _Spans) -> Floats:
    """Tokens of context that the decoding requests read in each step.

    Each is a line in time from its first token to its last; the sum is that of all that have begun, less that
    of all that are over.
    """
    if not len(spans.first_ns):
        return np.zeros(len(tokens))
    begin = (
        spans.first_ns - spans.first_ns.min()
    )  # small, so that the differences keep their digits
    end = np.maximum(spans.last_ns - spans.first_ns.min(), begin)
    pace = spans.output / np.maximum(end - begin, 1)
    lines = np.stack([spans.prompt - pace * begin, pace], axis=1)
    at = end_ns - spans.first_ns.min()
    level, slope = (_before(begin, lines, at) - _before(end, lines, at)).T
    return np.where(tokens > 0, np.maximum(level + slope * at, 0.0), 0.0)


def _before(when: Ints, rows: Floats, at: Ints) -> Floats:
    """Sum of the rows whose time is before each moment."""
    order = np.argsort(when, kind="stable")
    sums = np.concatenate([np.zeros((1, rows.shape[1])), rows[order].cumsum(axis=0)])
    return sums[np.searchsorted(when[order], at, side="left")]


def attribute(
    gpu: pd.DataFrame,
    sources: Sources,
    work: pd.DataFrame,
    start_mono_ns: int,
    end_mono_ns: int,
    idle_w: float,
    window_s: float = WINDOW_S,
) -> Attribution:
    """Attribute the energy between two moments to the work of the engine's steps.

    ``work`` is the table of ``step_work``. ``idle_w`` is the measured power of the loaded, idle server: it
    is not fitted, since time and tokens cannot be told apart while the server is busy.
    """
    cards = {} if gpu.empty else cards_of(gpu)
    wanted = [] if gpu.empty else used_gpus(gpu, sources)
    known = [cards[uuid].curve for uuid in wanted if uuid in cards]
    if not known or len(known) != len(wanted):
        return Attribution("unavailable", ["the server's GPUs have no energy counter"])
    inside = work[(work["end_ns"] > start_mono_ns) & (work["start_ns"] < end_mono_ns)]
    if inside.empty:
        return Attribution("unavailable", ["no engine steps with a time in the window"])
    edges = np.arange(start_mono_ns, end_mono_ns + 1, round(window_s * 1e9), dtype=np.int64)
    parts = [[curve.energy_j(int(a), int(b)) for curve in known] for a, b in pairwise(edges)]
    if not parts or any(part is None for row in parts for part in row):
        return Attribution("unavailable", ["the energy counter does not reach over the window"])
    joules = np.array([[part or 0.0 for part in row] for row in parts]).sum(axis=1)
    work_until = WorkCurve.of(work)
    return fit_lag(
        joules,
        lambda lag_s: work_until.between(edges - round(lag_s * 1e9)),
        np.full(len(joules), window_s),
        idle_w,
        expected_lag_s(gpu),
    )


def expected_lag_s(gpu: pd.DataFrame) -> float:
    """Half a sampling period: a change of the counter is seen at the next reading."""
    periods = [
        clean(rows["mono_ns"], rows["energy_mj"]).period_ns for _, rows in gpu.groupby("gpu_uuid")
    ]
    return float(np.median(periods)) / 2e9


@dataclass(frozen=True)
class WorkCurve:
    """Work of each kind (columns) done until each moment; a step's work is spread evenly over it."""

    at_ns: Ints
    done: Floats

    @classmethod
    def of(cls, work: pd.DataFrame) -> "WorkCurve":
        """Of the table of ``step_work``; steps of several engines may overlap."""
        start = work["start_ns"].to_numpy(dtype=np.int64)
        end = np.maximum(work["end_ns"].to_numpy(dtype=np.int64), start + 1)
        rate = work[list(WORK)].to_numpy(dtype=float) / (end - start)[:, None]
        at = np.concatenate((start, end))
        order = np.argsort(at, kind="stable")
        rates = np.concatenate((rate, -rate))[order].cumsum(axis=0)
        gaps = np.diff(at[order])[:, None]
        done = np.concatenate((np.zeros((1, len(WORK))), (rates[:-1] * gaps).cumsum(axis=0)))
        return cls(at[order], done)

    def between(self, edges: Ints) -> Floats:
        """Work in each window (rows), from one edge to the next."""
        until = np.column_stack([np.interp(edges, self.at_ns, done) for done in self.done.T])
        return np.diff(until, axis=0)


def fit_lag(
    joules: Floats,
    amounts_at: Callable[[float], Floats],
    seconds: Floats,
    idle_w: float,
    expected_lag_s: float,
) -> Attribution:
    """``fit`` at the lag under which the work explains the windows best.

    ``amounts_at`` gives the work of each window if the counter lags by so many seconds. Where the windows
    say nothing of the lag (a steady load), it stays at what is expected, and its doubt goes into the errors.
    """
    above = joules - idle_w * seconds

    def misfit(lag_s: float) -> float:
        """−2 log likelihood, with the lag normal about what is expected."""
        amounts = amounts_at(lag_s)
        used = amounts.sum(axis=0) > 0
        prices = _solve(amounts[:, used], above)
        left = float(np.sum((above - amounts[:, used] @ prices) ** 2))
        prior = ((lag_s - expected_lag_s) / LAG_SD_S) ** 2
        return len(above) * np.log(max(left, 1e-12)) + prior

    if _refusals(amounts_at(expected_lag_s), len(above)):
        return fit(joules, amounts_at(expected_lag_s), seconds, idle_w)
    costs = np.array([misfit(lag) for lag in LAGS_S])
    best = int(costs.argmin())
    lag_s = float(LAGS_S[best])
    if 0 < best < len(LAGS_S) - 1:  # the vertex of the parabola through three
        before, here, after = costs[best - 1 : best + 2]
        bend = before - 2 * here + after
        lag_s += float(np.diff(LAGS_S[:2])[0] * (before - after) / (2 * bend)) if bend > 0 else 0.0
    slope = (amounts_at(lag_s + LAG_STEP_S) - amounts_at(lag_s - LAG_STEP_S)) / (2 * LAG_STEP_S)
    return fit(joules, amounts_at(lag_s), seconds, idle_w, Lag(lag_s, slope))


@dataclass(frozen=True)
class Lag:
    """Seconds by which the counter lags, and what the windows' work changes by with each (``slope``)."""

    seconds: float
    slope: Floats


def fit(
    joules: Floats, amounts: Floats, seconds: Floats, idle_w: float, lag: Lag | None = None
) -> Attribution:
    """Non-negative prices of the four kinds of WORK (columns of ``amounts``) from windows (rows).

    Kinds that never occur are left out. The residual of the whole is shared out in proportion, so that what
    is attributed adds up to what was measured; how large it was is said.
    """
    above = joules - idle_w * seconds
    used = np.flatnonzero(amounts.sum(axis=0) > 0)
    windows = len(joules)
    refusals = _refusals(amounts, windows)
    if refusals:
        return Attribution(
            "undetermined", refusals, windows=windows, measured_j=float(joules.sum())
        )
    learnt = np.arange(windows) // BLOCK_WINDOWS % HELD_OUT_EVERY != HELD_OUT_EVERY - 1
    prices = _solve(amounts[learnt][:, used], above[learnt])
    predicted = amounts[~learnt][:, used] @ prices + idle_w * seconds[~learnt]
    errors = np.abs(predicted / joules[~learnt] - 1)
    prices = _solve(amounts[:, used], above)
    slope = None if lag is None else lag.slope[:, used]
    standard_errors, lag_error_s = _standard_errors(amounts[:, used], above, prices, slope)
    raw = [idle_w * seconds.sum(), *(prices * amounts[:, used].sum(axis=0))]
    scale = joules.sum() / sum(raw)
    names = ["idle_s", *(WORK[column] for column in used)]
    per_unit = [idle_w, *prices]
    return Attribution(
        status="attributed",
        prices=[
            Price(name, float(price), error, float(part * scale))
            for name, price, error, part in zip(
                names, per_unit, [None, *standard_errors], raw, strict=True
            )
        ],
        measured_j=float(joules.sum()),
        unexplained_share=float(1 - sum(raw) / joules.sum()),
        held_out_median_error=float(np.median(errors)),
        held_out_p90_error=float(np.quantile(errors, 0.9)),
        windows=windows,
        lag_s=None if lag is None else lag.seconds,
        lag_error_s=lag_error_s,
    )


def _refusals(amounts: Floats, windows: int) -> list[str]:
    amounts = amounts[:, amounts.sum(axis=0) > 0]
    kinds = amounts.shape[1]
    if not kinds:
        return ["no work in any window"]
    wanted = FEWEST_WINDOWS_PER_PRICE * kinds
    if windows < wanted:
        return [f"{windows} windows for {kinds} prices; at least {wanted} are wanted"]
    scaled = amounts / np.linalg.norm(amounts, axis=0)
    condition = float(np.linalg.cond(scaled))
    if condition > LARGEST_CONDITION:
        return [f"the kinds of work rise and fall together (condition number {condition:.0f})"]
    return []


def _solve(amounts: Floats, above: Floats) -> Floats:
    """Prices ≥ 0."""
    norms = np.linalg.norm(amounts, axis=0)  # tokens and pairs differ by orders of magnitude
    scaled, _ = nnls(amounts / norms, above)
    return scaled / norms


def _standard_errors(
    amounts: Floats, above: Floats, prices: Floats, slope: Floats | None
) -> tuple[list[float | None], float | None]:
    """Of the prices (None for one held at 0), and of the lag.

    The larger of two for each: that of even, independent residuals, and that of blocks of windows. The lag is
    one more parameter, with what is known of it beforehand as one more observation.
    """
    free = np.flatnonzero(prices > 0)
    errors: list[float | None] = [None] * len(prices)
    residual = above - amounts @ prices
    columns = amounts[:, free]
    if slope is not None:
        columns = np.column_stack([columns, slope @ prices])
    norms = np.linalg.norm(columns, axis=0)
    norms[norms == 0] = 1.0
    columns = columns / norms
    degrees = len(above) - columns.shape[1]
    if degrees <= 0 or not len(free):
        return errors, None
    variance = float(residual @ residual) / degrees
    information = columns.T @ columns
    if slope is not None:
        information[-1, -1] += variance / (LAG_SD_S * norms[-1]) ** 2
    plain = np.diag(np.linalg.inv(information)) * variance
    spread = np.sqrt(np.maximum(plain, _jackknife(columns, residual, information))) / norms
    for column, error in zip(free, spread, strict=False):
        errors[column] = float(error)
    return errors, None if slope is None else float(spread[-1])


def _jackknife(columns: Floats, residual: Floats, information: Floats) -> Floats:
    """Variances by leaving out one block of neighbouring windows after the other (cluster jackknife).

    Windows of one block may err together and unevenly. With few blocks two standard errors hold less than
    95 %: the variance is widened by Student's t with one degree less than there are blocks.
    """
    count = int(np.clip(len(residual) // BLOCK_LEAST, BLOCKS_LEAST, BLOCKS_MOST))
    moved: list[Floats] = []
    for block in np.array_split(np.arange(len(residual)), count):
        part = columns[block]
        rest = information - part.T @ part
        moved.append(np.linalg.pinv(rest) @ (part.T @ residual[block]))
    spread = np.sum(np.square(moved), axis=0) * (count - 1) / count
    return spread * (float(student.ppf(0.975, count - 1)) / 2) ** 2

"""What limits a point, in a word and with the evidence for it.

Two questions with answers of their own. Of the point: did the offered load, the client, the scheduler's
limits or the KV pool limit it? Of each phase's steps: compute, bandwidth, the host between and around
kernels, or kernels that use neither well? Where figures are missing or two answers are close, it says so.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import pandas as pd

from analysis.bottleneck.roofline import PhaseUse
from analysis.point.point import Point
from analysis.point.resources import kernel_share
from analysis.point.steady_window import Window
from analysis.runs.activity import Series, activity, in_flight, share_above
from analysis.runs.engine_steps import overlapped
from analysis.runs.run import Run
from analysis.runs.scrapes import kv_usage_series, metric_series
from analysis.runs.validity import audit_over_budget
from greenbench.contract.counted import counted

PointBound = Literal[
    "client", "kv-capacity", "scheduler-limit", "load", "host", "engine", "undetermined"
]
PhaseBound = Literal["compute", "bandwidth", "host", "inefficient-kernel", "mixed", "undetermined"]

# What each limit was calibrated on stands in docs/method.md, section 6.
BUSY = 0.5  # u of a resource from which it may be the bound
IDLE = 0.4  # below it for both, neither compute nor bandwidth is
CLOSE = 0.10  # two shares nearer than this are not told apart
FIXED = (
    0.6  # share of the time per token that does not grow with context, from which the host is named
)
KV_FULL = 0.9
AT_LIMIT = 0.95
WAITING = 0.5  # mean waiting requests from which a queue stands
# share of the window with open requests, or of that time in steps, below which something is missing
IDLE_ENGINE = 0.6
ALL_THE_TIME = 0.995


@dataclass(frozen=True)
class Evidence:
    """Figures of one point over its window; None where nothing was recorded.

    ``running``, ``kv_*``, ``engine_share`` and ``step_tokens_p50`` come from the engine's step log, weighted
    by time, where there is one: the gauges of /metrics hold the state after the last step, so that a scrape
    during a long prefill step sees the engine as it was before it.
    """

    running: float | None = None  # mean requests a step computed
    waiting: float | None = None  # mean
    preemptions: float | None = None
    kv_p50: float | None = None
    kv_p90: float | None = None
    kv_share_per_sequence: float | None = None
    max_num_seqs: int = 0  # of all engines
    engines: int = 1
    max_num_batched_tokens: int = 0
    step_tokens_p50: float | None = None  # of steps that prefill
    engine_share: float | None = None  # of the window spent in steps
    kernels: bool = False  # a GPU plans ahead, so ``engine_share`` is that with a kernel running
    open_share: float | None = None  # of the window with a request open, by the client's times
    open_loop: bool = False
    users: int | None = None  # of a closed loop: more requests are never open
    served_per_s: float | None = None
    client_reasons: list[str] = field(default_factory=list)

    @property
    def kernel_share(self) -> float | None:
        """Of the window with a kernel running; None where that was not sampled."""
        return self.engine_share if self.kernels else None


@dataclass(frozen=True)
class PhaseVerdict:
    phase: str
    bound: PhaseBound
    sentence: str


@dataclass(frozen=True)
class Bottleneck:
    """``sentence`` is for people: the verdict with its evidence in words."""

    bound: PointBound
    sentence: str
    phases: list[PhaseVerdict]
    evidence: Evidence


def gather(run: Run, window: Window, point: Point) -> Evidence:
    """Engine steps and server metrics over the window, and the load generator's self-check."""

    def inside(found: Series | None) -> np.ndarray | None:
        if found is None:
            return None
        values = found.within(window.start_unix_ns, window.end_unix_ns).values
        return values if len(values) else None

    def series(metric: str) -> np.ndarray | None:
        return inside(metric_series(run, metric))

    usage = inside(kv_usage_series(run))
    waiting = series("vllm:num_requests_waiting")
    preempted = series("vllm:num_preemptions_total")
    scraped = {
        "running": _mean(series("vllm:num_requests_running")),
        "kv_p50": _quantile(usage, 0.5),
        "kv_p90": _quantile(usage, 0.9),
    }
    steps = run.steps
    stepped = step_figures(steps, window)
    kernels = overlapped(steps, run.manifest.server.async_scheduling)
    if kernels:
        # steps follow each other without a gap there, whatever the GPU does meanwhile
        stepped["engine_share"] = kernel_share(run, window)
    engines = run.manifest.server.data_parallel or 1
    return Evidence(
        **(scraped | stepped),
        kernels=kernels,
        engines=engines,
        waiting=_mean(waiting),
        preemptions=None if preempted is None else float(preempted[-1] - preempted[0]),
        kv_share_per_sequence=point.extra.kv_share_per_sequence if point.extra else None,
        # of one engine; what runs is that of all
        max_num_seqs=run.point.server.max_num_seqs * engines,
        max_num_batched_tokens=run.point.server.max_num_batched_tokens,
        open_share=share_above(
            *in_flight(activity(run.requests)), 1, (window.start_unix_ns, window.end_unix_ns)
        ),
        open_loop=run.point.load.kind == "open",
        users=run.point.load.users,
        served_per_s=point.throughput.requests.value if point.throughput else None,
        client_reasons=audit_over_budget(run),
    )


def step_figures(steps: pd.DataFrame, window: Window) -> dict[str, float | None]:
    """Of the steps that ended in the window; none without a step log or without its time stamps.

    Engines step beside each other: what runs in each is summed, the time in steps is a mean of theirs.
    """
    inside = steps[steps["unix_ns"].between(window.start_unix_ns, window.end_unix_ns)]
    if len(inside) == 0:
        return {}
    took = inside["elapsed_s"].to_numpy(dtype=float)
    requests = (inside["prefill_requests"] + inside["decode_requests"]).to_numpy(dtype=float)
    usage = inside["kv_usage"].to_numpy(dtype=float)
    engines = steps["engine"].nunique()
    found: dict[str, float | None] = {
        "running": _running(inside["engine"].to_numpy(), requests, took),
        "kv_p50": _weighted_quantile(usage, took, 0.5),
        "kv_p90": _weighted_quantile(usage, took, 0.9),
        "engine_share": min(1.0, float(took.sum()) / window.duration_s / engines),
    }
    prefill = inside["prefill_tokens"].to_numpy() > 0
    if prefill.any():
        tokens = (inside["prefill_tokens"] + inside["decode_tokens"]).to_numpy(dtype=float)
        found["step_tokens_p50"] = _weighted_quantile(tokens[prefill], took[prefill], 0.5)
    return found


def _running(engines: np.ndarray, requests: np.ndarray, took: np.ndarray) -> float:
    """Requests in a step, the mean over each engine's time, summed over the engines."""
    return sum(
        float(np.average(requests[engines == engine], weights=took[engines == engine]))
        for engine in np.unique(engines)
    )


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(np.mean(values))


def _quantile(values: np.ndarray | None, share: float) -> float | None:
    return None if values is None else float(np.quantile(values, share))


def _weighted_quantile(values: np.ndarray, weights: np.ndarray, share: float) -> float:
    """The smallest value at or below which ``share`` of the weight lies."""
    order = np.argsort(values)
    reached = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(reached, share * reached[-1])])


def classify(
    evidence: Evidence, uses: list[PhaseUse], fixed_share: float | None = None
) -> Bottleneck:
    """The point's bound and that of each phase. ``fixed_share``: of the time per token, by the fit over
    contexts, that does not grow with context."""
    phases = [classify_phase(use, fixed_share if use.phase == "decode" else None) for use in uses]
    compute = next((p for p in phases if (p.phase, p.bound) == ("prefill", "compute")), None)
    bound, sentence = classify_point(evidence, compute)
    return Bottleneck(bound, sentence, phases, evidence)


def classify_client(run: Run, point: Point) -> Bottleneck | None:
    """Of a point that is invalid because its load generator was late; None for any other."""
    if point.status != "invalid":
        return None
    reasons = audit_over_budget(run) or _users_missing(run, point)
    return classify(Evidence(client_reasons=reasons), []) if reasons else None


def _users_missing(run: Run, point: Point) -> list[str]:
    """A closed loop in which users had no request open while the client says that it was kept waiting.

    Its audit does not count that as an error: what was sent late was timed right.
    """
    users = run.point.load.users
    open_requests = point.window.evidence.mean_in_flight if point.window else None
    late = [why for audit in run.manifest.audits.values() for why in audit.event_loop_late]
    if users is None or open_requests is None or open_requests >= AT_LIMIT * users or not late:
        return []
    return [f"on average {_short(open_requests)} of {counted(users, 'request')} were open", *late]


def classify_point(
    e: Evidence, compute_bound_prefill: PhaseVerdict | None = None
) -> tuple[PointBound, str]:
    if e.client_reasons:
        return "client", f"limited by the load generator: {'; '.join(e.client_reasons)}"
    if e.running is None or e.waiting is None:
        return "undetermined", "the server's queue was not scraped"
    queue = f"running {_short(e.running)} of {e.max_num_seqs}, waiting {_short(e.waiting)}"
    kv = _kv_words(e)
    preempted = f", {e.preemptions:.0f} preemptions" if e.preemptions else ""
    # one of several engines may get more than its share of the users
    more_may_come = e.users is None or e.users * e.engines > e.max_num_seqs
    at_limit = more_may_come and e.running >= AT_LIMIT * e.max_num_seqs
    if _kv_full(e) and not at_limit:
        return "kv-capacity", f"limited by the KV pool: {kv}{preempted}, {queue}"
    if e.waiting >= WAITING and at_limit:
        return "scheduler-limit", f"limited by max_num_seqs: {queue}, {kv}"
    full_steps = (e.step_tokens_p50 or 0) >= AT_LIMIT * e.max_num_batched_tokens
    if e.waiting >= WAITING and full_steps and compute_bound_prefill is not None:
        return (
            "engine",
            f"limited by the engine's own speed: requests waited for prefill steps that are full "
            f"({e.step_tokens_p50:.0f} tokens) and compute-bound, so larger ones would hardly serve "
            f"more: {queue}, {kv}",
        )
    if e.waiting >= WAITING and _idles(e):
        full = f"prefill steps of {e.step_tokens_p50:.0f} tokens were full, " if full_steps else ""
        return "host", f"limited by the host: requests waited, yet {_busy(e)}{full}{queue}, {kv}"
    if e.waiting >= WAITING and full_steps:
        return (
            "scheduler-limit",
            f"limited by max_num_batched_tokens: prefill steps of {e.step_tokens_p50:.0f} tokens "
            f"of {e.max_num_batched_tokens}, {queue}, {kv}",
        )
    if e.waiting >= WAITING:
        return "undetermined", f"requests waited, and no figure shows why: {queue}, {kv}"
    return _without_queue(e, queue, kv)


def _without_queue(e: Evidence, queue: str, kv: str) -> tuple[PointBound, str]:
    """No request waited: more would have been served, or the engine had to be waited for."""
    busy = _busy(e)
    if e.open_loop:
        served = (
            "" if e.served_per_s is None else f"all of {e.served_per_s:.2g} requests/s served, "
        )
        return "load", f"limited by the offered load: {served}{busy}{queue}"
    if e.open_share is not None and e.open_share < IDLE_ENGINE:
        return (
            "load",
            f"limited by the offered load: a request was open {e.open_share:.0%} of the time, "
            f"{busy}{queue}",
        )
    if _idles(e):
        return "host", f"limited by the host: {_open(e)}, yet {busy}{queue}"
    return (
        "engine",
        f"limited by the engine's own speed: every request was being served ({queue}, {kv})",
    )


def _idles(e: Evidence) -> bool:
    """Whether the engine stood still while a request was open; else it had nothing to compute."""
    opened = 1.0 if e.open_share is None else e.open_share
    return e.engine_share is not None and e.engine_share < IDLE_ENGINE * opened


def _open(e: Evidence) -> str:
    if e.open_share is None:
        return "requests were open"
    if e.open_share >= ALL_THE_TIME:
        return "requests were open all the time"
    return f"a request was open {e.open_share:.0%} of the time"


def _busy(e: Evidence) -> str:
    if e.engine_share is None:
        return ""
    return f"{'a kernel ran' if e.kernels else 'the engine computed'} {e.engine_share:.0%} of the time, "


def _short(value: float) -> str:
    return f"{value:.1f}".removesuffix(".0")


def _kv_words(e: Evidence) -> str:
    if e.kv_p50 is None:
        return "KV usage unknown"
    more = f", a tenth of the time {e.kv_p90:.2f}" if (e.kv_p90 or 0) >= e.kv_p50 + 0.05 else ""
    return f"KV usage {e.kv_p50:.2f}{more}"


def _kv_full(e: Evidence) -> bool:
    """No room for one more sequence while requests wait or are thrown out.

    vLLM's own reason "capacity" does not tell: it counts those that wait for ``max_num_seqs`` too.
    """
    if e.kv_p50 is None:
        return False
    pressed = (e.waiting or 0) >= WAITING or (e.preemptions or 0) > 0
    most = e.kv_p50 if e.kv_p90 is None else e.kv_p90
    return pressed and (most > KV_FULL or e.kv_p50 + (e.kv_share_per_sequence or 0) > 1)


def classify_phase(use: PhaseUse, fixed_share: float | None = None) -> PhaseVerdict:
    """Of one phase by its MFU and MBU on the measured or specified ceiling."""

    def said(bound: PhaseBound, why: str) -> PhaseVerdict:
        return PhaseVerdict(use.phase, bound, f"{use.phase}: {why}")

    if use.mfu is None or use.mbu is None:
        return said("undetermined", "no ceiling is known for this device")
    figures = f"MFU {use.mfu:.2f}, MBU {use.mbu:.2f}, {use.intensity:.0f} FLOP/B"
    top, other = max(use.mfu, use.mbu), min(use.mfu, use.mbu)
    if top >= BUSY and top - other < CLOSE:
        return said("mixed", f"compute and bandwidth alike ({figures})")
    if top >= BUSY:
        kind: PhaseBound = "compute" if use.mfu > use.mbu else "bandwidth"
        return said(kind, f"{'compute' if kind == 'compute' else 'memory bandwidth'} ({figures})")
    if top < IDLE and fixed_share is not None and fixed_share >= FIXED:
        return said(
            "host",
            f"{fixed_share:.0%} of the time per token does not grow with context ({figures})",
        )
    if top < IDLE and fixed_share is not None and fixed_share < 1 - FIXED:
        return said(
            "inefficient-kernel",
            f"{1 - fixed_share:.0%} of the time per token grows with context, "
            f"yet neither resource is half used ({figures})",
        )
    return said(
        "undetermined", f"neither resource is half used, and no figure shows why ({figures})"
    )


def fixed_shares(coefficients: Sequence[float], context: float) -> float | None:
    """Of a linear fit of time per token: the intercept's share at one context; None of another fit."""
    if len(coefficients) != 2:
        return None
    total = coefficients[0] + coefficients[1] * context
    return float(coefficients[0] / total) if total > 0 else None

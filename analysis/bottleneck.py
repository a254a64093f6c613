"""What held a point back, in a word and with the evidence for it.

Two questions with answers of their own. Of the point: did the offered load, the client, the scheduler's
limits or the KV pool hold it back? Of each phase's steps: compute, bandwidth, the host between and around
kernels, or kernels that use neither well? Where figures are missing or two answers are close, it says so.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.checks import audit_over_budget
from analysis.load import Run
from analysis.points import Point
from analysis.resources import metric_series
from analysis.roofline import PhaseUse
from analysis.windows import Window

PointBound = Literal["client", "kv-capacity", "scheduler-limit", "load", "engine", "undetermined"]
PhaseBound = Literal["compute", "bandwidth", "host", "inefficient-kernel", "mixed", "undetermined"]

# From the design; not yet calibrated on points constructed on a real server (docs/method.md, section 6).
BUSY = 0.5  # u of a resource from which it may be the bound
IDLE = 0.4  # below it for both, neither compute nor bandwidth is
CLOSE = 0.10  # two shares nearer than this are not told apart
FIXED = (
    0.6  # share of the time per token that does not grow with context, from which the host is named
)
KV_FULL = 0.9
AT_LIMIT = 0.95
WAITING = 0.5  # mean waiting requests from which a queue stands
IDLE_ENGINE = 0.6  # share of the window in steps below which the load is what is missing


@dataclass(frozen=True)
class Evidence:
    """Figures of one point over its window; None where nothing was recorded."""

    running: float | None = None  # mean
    running_peak: float | None = None
    waiting: float | None = None  # mean
    waiting_capacity: float | None = None  # mean, for want of KV blocks
    preemptions: float | None = None
    kv_p50: float | None = None
    kv_share_per_sequence: float | None = None
    max_num_seqs: int = 0
    max_num_batched_tokens: int = 0
    step_tokens_p50: float | None = None  # of steps that prefill
    engine_share: float | None = None  # of the window spent in steps
    open_loop: bool = False
    client_reasons: list[str] = field(default_factory=list)


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


def gather(run: Run, window: Window, uses: list[PhaseUse], point: Point) -> Evidence:
    """Server metrics over the window, and what the client says of itself."""

    def series(metric: str) -> np.ndarray | None:
        found = metric_series(run, metric)
        if found is None:
            return None
        values = found.within(window.start_unix_ns, window.end_unix_ns).values
        return values if len(values) else None

    running = series("vllm:num_requests_running")
    waiting = series("vllm:num_requests_waiting")
    preempted = series("vllm:num_preemptions_total")
    kv = series("vllm:kv_cache_usage_perc")
    prefill = next((use for use in uses if use.phase == "prefill"), None)
    return Evidence(
        running=_mean(running),
        running_peak=None if running is None else float(running.max()),
        waiting=_mean(waiting),
        waiting_capacity=_waiting_for(run, window, "capacity"),
        preemptions=None if preempted is None else float(preempted[-1] - preempted[0]),
        kv_p50=None if kv is None else float(np.median(kv)),
        kv_share_per_sequence=point.extra.get("kv_share_per_sequence"),
        max_num_seqs=run.point.server.max_num_seqs,
        max_num_batched_tokens=run.point.server.max_num_batched_tokens,
        step_tokens_p50=prefill.step_tokens_p50 if prefill else None,
        engine_share=min(1.0, sum(use.time_share for use in uses)) if uses else None,
        open_loop=run.point.load.kind == "open",
        client_reasons=audit_over_budget(run),
    )


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(np.mean(values))


def _waiting_for(run: Run, window: Window, reason: str) -> float | None:
    """Mean of ``num_requests_waiting_by_reason`` for one reason."""
    samples = run.server[run.server["metric"] == "vllm:num_requests_waiting_by_reason"]
    if len(samples) == 0 or "labels.reason" not in samples:
        return None
    inside = samples["unix_ns"].between(window.start_unix_ns, window.end_unix_ns)
    chosen = samples[inside & (samples["labels.reason"] == reason)]
    return float(chosen["value"].mean()) if len(chosen) else None


def classify(
    evidence: Evidence, uses: list[PhaseUse], fixed_share: float | None = None
) -> Bottleneck:
    """The point's bound and that of each phase. ``fixed_share``: of the time per token, by the fit over
    contexts, that does not grow with context."""
    bound, sentence = classify_point(evidence)
    phases = [classify_phase(use, fixed_share if use.phase == "decode" else None) for use in uses]
    return Bottleneck(bound, sentence, phases, evidence)


def classify_point(e: Evidence) -> tuple[PointBound, str]:
    if e.client_reasons:
        return "client", f"the load generator held it back: {'; '.join(e.client_reasons)}"
    if e.running is None or e.waiting is None:
        return "undetermined", "the server's queue was not scraped"
    queue = f"running {e.running:.1f} of {e.max_num_seqs}, waiting {e.waiting:.1f}"
    kv = "KV usage unknown" if e.kv_p50 is None else f"KV usage {e.kv_p50:.2f}"
    preempted = f", {e.preemptions:.0f} preemptions" if e.preemptions else ""
    if _kv_full(e) and e.running < AT_LIMIT * e.max_num_seqs:
        return "kv-capacity", f"the KV pool held it back: {kv}{preempted}, {queue}"
    if e.waiting >= WAITING and e.running >= AT_LIMIT * e.max_num_seqs:
        return "scheduler-limit", f"max_num_seqs held it back: {queue}, {kv}"
    full_steps = (e.step_tokens_p50 or 0) >= AT_LIMIT * e.max_num_batched_tokens
    if e.waiting >= WAITING and full_steps:
        return (
            "scheduler-limit",
            f"max_num_batched_tokens held it back: steps of {e.step_tokens_p50:.0f} tokens, {queue}",
        )
    if e.waiting >= WAITING:
        return "undetermined", f"requests waited for a reason that no figure shows: {queue}, {kv}"
    if e.engine_share is not None and e.engine_share < IDLE_ENGINE:
        return (
            "load",
            f"the offered load held it back: the engine computed {e.engine_share:.0%} of the time, {queue}",
        )
    if e.engine_share is None and e.open_loop:
        return "undetermined", f"no step log tells how busy the engine was; {queue}"
    return (
        "engine",
        f"every request was being served ({queue}, {kv}): the engine's own pace held it back",
    )


def _kv_full(e: Evidence) -> bool:
    """No room for one more sequence while requests wait for room or are thrown out."""
    if e.kv_p50 is None:
        return False
    pressed = (e.waiting_capacity or 0) >= WAITING or (e.preemptions or 0) > 0
    no_room = e.kv_p50 > KV_FULL or e.kv_p50 + (e.kv_share_per_sequence or 0) > 1
    return pressed and no_room


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
    return said("undetermined", f"neither resource is half used, and nothing tells why ({figures})")


def fixed_shares(coefficients: Any, context: float) -> float | None:
    """Of a linear fit of time per token: the intercept's share at one context."""
    if coefficients is None or len(coefficients) != 2:
        return None
    total = coefficients[0] + coefficients[1] * context
    return float(coefficients[0] / total) if total > 0 else None

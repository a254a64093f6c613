"""Power of the server's cards with the server loaded and no request."""

from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from analysis.energy.cards import CardWindow
from analysis.energy.trust import Rules, sample_reasons, unavailable
from greenbench.contract.forms import Sources

SHORTEST = Rules(shortest_s=30.0)
# Of the shortest length: the first and the last refresh fall off a recording.
LENGTH_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class IdlePower:
    """Mean power of an idle recording; ``power_w`` None with a reason."""

    power_w: float | None
    window_s: float
    reasons: list[str] = field(default_factory=list[str])


def idle_power(
    gpu: pd.DataFrame,
    sources: Sources,
    rules: Rules = SHORTEST,
    server_gpus: int | None = None,
) -> IdlePower:
    """Mean power of the server's cards over a whole idle recording, from the counter.

    ``server_gpus``: how many cards it has, where that is known.
    """
    why_not = unavailable(gpu, sources)
    if why_not:
        return IdlePower(None, 0.0, [why_not])
    recorded_ns = int(gpu["mono_ns"].min()), int(gpu["mono_ns"].max())
    window = CardWindow.of(gpu, sources, recorded_ns, server_gpus)
    if not window.complete:
        return IdlePower(None, 0.0, ["gpu_count_mismatch"])
    if window.untold is not None:
        return IdlePower(None, 0.0, ["cards_not_told"])
    if not window.aligned:
        return IdlePower(None, 0.0, ["window_not_bracketed"])
    reasons = sample_reasons(window, (window.start_ns, window.end_ns), rules)
    if window.seconds < rules.shortest_s * LENGTH_SHARE:
        reasons.append("window_too_short")
    joules = window.counter_j
    if reasons or joules is None:
        return IdlePower(None, window.seconds, reasons)
    return IdlePower(joules / window.seconds, window.seconds)


@dataclass(frozen=True, slots=True)
class IdleBaseline:
    """Idle power of a run: the mean of before and after, and how far after is from before."""

    power_w: float | None
    drift: float | None  # after over before, −1; None unless both were measured
    flags: list[str]


def idle_baseline(before: IdlePower | None, after: IdlePower | None, rules: Rules) -> IdleBaseline:
    """Above-idle figures need at least one of the two."""
    known = [idle.power_w for idle in (before, after) if idle and idle.power_w is not None]
    if not known:
        return IdleBaseline(None, None, ["idle_not_measured"])
    if len(known) == 1:
        return IdleBaseline(known[0], None, ["idle_measured_once"])
    drift = known[1] / known[0] - 1
    flags = ["idle_drift"] if abs(drift) > rules.idle_drift else []
    return IdleBaseline(float(np.mean(known)), drift, flags)

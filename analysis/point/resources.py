"""What a point used: memory, joules and share of the KV pool, taken over its measured window."""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.energy.attribution import (
    Attribution,
    PhaseEnergy,
    attribute,
    phase_energy,
    step_work,
)
from analysis.energy.idle import IdlePower, idle_power
from analysis.energy.result import EnergyResult
from analysis.energy.window import EnergyInputs, point_energy
from analysis.point.joules import joules_per_work
from analysis.point.memory import MemoryResult, point_memory
from analysis.point.steady_window import Window
from analysis.point.tokens import Tokens, count_tokens
from analysis.runs.clocks import wall_clock
from analysis.runs.gpus import certain_gpus
from analysis.runs.run import Run
from analysis.runs.scrapes import kv_usage_series, metric_series
from analysis.statistics.rates import Cycles
from greenbench.contract.forms import Sources


@dataclass(frozen=True)
class PointEnergy:
    """Joules of the window. ``phase``: J a token of a point that holds one phase only, measured.
    ``attributed``: prices of prefill and decode by a model, elsewhere.
    """

    result: EnergyResult
    phase: PhaseEnergy | None
    attributed: Attribution


def to_mono_ns(run: Run, unix_ns: int) -> int:
    """By the run's clock anchor."""
    clock = run.manifest.clock
    return clock.mono_ns + (unix_ns - clock.unix_ns)


def memory(run: Run, window: Window) -> MemoryResult:
    return point_memory(
        run,
        to_mono_ns(run, window.start_unix_ns),
        to_mono_ns(run, window.end_unix_ns),
    )


def energy(run: Run, window: Window, requests: pd.DataFrame, cycles: Cycles | None) -> PointEnergy:
    """Joules of the window, and per token and request by the intervals of the rates.

    ``requests`` as ``point_requests`` gives them, ``cycles`` of a closed loop.
    """
    offset = run.manifest.clock.unix_ns - run.manifest.clock.mono_ns
    residence_s = window.residence_s

    def count(start_mono_ns: int, end_mono_ns: int) -> Tokens:
        return count_tokens(run, start_mono_ns + offset, end_mono_ns + offset)

    result = point_energy(
        EnergyInputs(
            gpu=run.gpu,
            host=run.host,
            sources=run.sources,
            start_mono_ns=window.start_unix_ns - offset,
            end_mono_ns=window.end_unix_ns - offset,
            count=count,
            per=joules_per_work(requests, cycles, offset, residence_s),
            idle_before=_idle(run, "idle_before"),
            idle_after=_idle(run, "idle_after"),
            mean_residence_s=residence_s,
            server_gpus=run.manifest.server.cards,
        )
    )
    phase, attributed = _by_phase(run, result)
    if run.sources == Sources() and result.status == "unavailable":
        result = replace(result, explain=["no telemetry was recorded"])
    return PointEnergy(result, phase, attributed)


def _by_phase(run: Run, result: EnergyResult) -> tuple[PhaseEnergy | None, Attribution]:
    """Measured where the window's steps were all of one phase, else attributed to the engine's work."""

    def without(reason: str) -> tuple[None, Attribution]:
        return None, Attribution("unavailable", [reason])

    if result.start_mono_ns is None or result.end_mono_ns is None or result.status != "measured":
        return without("the window has no measured energy to attribute")
    steps = run.steps
    if steps.empty or not run.events:
        return without("the server's log has no engine steps")
    clock = wall_clock((event.unix_ns, event.mono_ns) for event in run.events)
    work = step_work(steps, run.requests, clock)
    inside = work[work["end_ns"].between(result.start_mono_ns, result.end_mono_ns)]
    phase = phase_energy(result, inside)
    if phase is not None:
        reason = f"every step was {phase.phase}: its energy is measured and needs no model"
        return phase, Attribution("unavailable", [reason])
    if result.idle_w is None:
        return without("idle power was not measured, and the model needs it (telemetry.idle_s)")
    return None, attribute(
        run.gpu,
        run.sources,
        work,
        result.start_mono_ns,
        result.end_mono_ns,
        result.idle_w,
    )


def _idle(run: Run, name: str) -> IdlePower | None:
    """Power of this server loaded and without requests, where the sweep recorded it."""
    rows = run.idle(name)
    if rows.fault is not None:
        return IdlePower(None, 0.0, [rows.fault])
    if rows.value.empty:
        return None
    return idle_power(rows.value, run.sources, server_gpus=run.manifest.server.cards)


def kernel_share(run: Run, window: Window) -> float | None:
    """Share of the window in which a kernel ran on the server's cards, by NVML.

    None when not sampled, or where it is not known which cards are its own.
    """
    used = certain_gpus(run.gpu, run.sources, run.manifest.server.cards)
    rows = run.gpu[run.gpu["gpu_uuid"].isin(used or [])]
    inside = rows[rows["unix_ns"].between(window.start_unix_ns, window.end_unix_ns)]
    share = inside["util_pct"].dropna()
    return float(share.mean()) / 100 if len(share) else None


def kv_share_per_sequence(run: Run, window: Window) -> float | None:
    """Mean over the window's scrapes of KV usage / running requests, both of all engines.

    None when nothing ran or was seen.
    """
    usage = kv_usage_series(run)
    running = metric_series(run, "vllm:num_requests_running")
    if usage is None or running is None:
        return None
    usage, running = (s.within(window.start_unix_ns, window.end_unix_ns) for s in (usage, running))
    if not np.array_equal(usage.unix_ns, running.unix_ns):
        return None
    busy = (running.values > 0) & (usage.values > 0)
    return float(np.mean(usage.values[busy] / running.values[busy])) if busy.any() else None

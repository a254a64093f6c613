"""Reasons not to believe a window's joules: the rules of docs/energy.md, each with its sentence."""

from collections.abc import Iterable
from dataclasses import dataclass

import pandas as pd

from analysis.energy.cards import Card, CardWindow, event_bits
from analysis.energy.result import GpuEnergy
from analysis.runs.gpus import untold_gpus
from greenbench.contract.enough import JOULES_REQUESTS, JOULES_S
from greenbench.contract.forms import Sources

REASONS: dict[str, str] = {
    "window_not_bracketed": "samples do not reach from before the window to after it",
    "sampling_gap": "samples are missing for more than 1 s, or for more than 1 % of the window",
    "counter_reset": "the energy counter fell inside the window (driver or GPU reset)",
    "counter_vs_integral": "counter and integrated average power disagree beyond the bound",
    "gpu_count_mismatch": "the GPUs with a reading are not all the GPUs of the server",
    "cards_not_told": "which of the host's cards served is not known",
    "throttled": "a thermal or hardware slowdown bit was set in the window",
    "clock_changed": "clocks at the start and at the end of the window differ",
    "mig": "MIG is on: power and energy are those of the whole card",
    "vgpu": "a virtual GPU has no energy of its own",
    "foreign_process": "a process that is not the server's had a context on the GPU",
    "window_too_short": "the window is too short for the sensors, the requests or both",
}
THERMAL_OR_HW_SLOWDOWN = 0x08 | 0x20 | 0x40 | 0x80  # NVML clocks-event bits


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of a believable window (rules R9, R12, R19, R21 of docs/energy.md)."""

    shortest_s: float = JOULES_S
    refreshes: int = 30
    residences: float = 3.0
    completions: int = JOULES_REQUESTS
    agreement: float = 0.02  # |counter / integral − 1|, windows of agreement_from_s or more
    agreement_short: float = 0.05
    agreement_from_s: float = 60.0
    longest_gap_s: float = 1.0
    sm_clock_shift: float = 0.05  # median SM clock of the second half against the first
    idle_drift: float = 0.03
    warming_c_per_min: float = 0.5  # rule R8: beyond it the card had not settled


RULES = Rules()


def unavailable(gpu: pd.DataFrame, sources: Sources) -> str | None:
    """Why there is no GPU energy at all, in one sentence; None when there may be."""
    if sources.facts.possible_cards == [] and not sources.facts.own_cards:
        return f"the server used no card that was read: {untold_gpus(sources, None) or 'none is visible'}"
    if not gpu.empty and gpu["energy_mj"].notna().any():
        return None
    counter = sources.source("counter")
    if counter is not None and not counter.available:
        return f"no GPU energy counter: {counter.reason}"
    return "no GPU energy was recorded"


def reasons_against(
    window: CardWindow,
    sources: Sources,
    completions: int,
    mean_residence_s: float | None,
    rules: Rules,
) -> list[str]:
    """Words of REASONS, each once. ``completions``: requests that ended in the window."""
    ratio, asked_s = window.counter_over_integral, window.asked_s
    least_s = shortest_s(sources, mean_residence_s, rules)
    short = asked_s < least_s or completions < rules.completions
    told = [
        *device_reasons(sources, window.wanted),
        *([] if window.complete else ["gpu_count_mismatch"]),
        *([] if window.untold is None else ["cards_not_told"]),
        *sample_reasons(window, window.asked_ns, rules),
        *([] if agrees(ratio, asked_s, rules) else ["counter_vs_integral"]),
        *(reason for card in window.cards for reason in clock_reasons(card, window, rules)),
        *(["window_too_short"] if short else []),
    ]
    return list(dict.fromkeys(told))


def device_reasons(sources: Sources, wanted: list[str]) -> list[str]:
    facts = [card for card in sources.facts.gpus if card.uuid in wanted]
    holds = {
        "mig": any(card.mig for card in facts),
        "vgpu": any(card.virtual for card in facts),
        "foreign_process": any(card.foreign_pids for card in facts),
    }
    return [reason for reason in holds if holds[reason]]


def sample_reasons(window: CardWindow, span_ns: tuple[int, int], rules: Rules) -> list[str]:
    """What is wrong with the samples of ``span_ns``, the window that was asked for or the aligned one."""
    curves = [card.curve for card in window.cards]
    told: list[str] = []
    if not window.aligned or not all(curve.brackets(*span_ns) for curve in curves):
        told.append("window_not_bracketed")
    if any(curve.reset_inside(*span_ns) for curve in curves):
        told.append("counter_reset")
    holes = any(curve.longest_gap_s(*span_ns) > rules.longest_gap_s for curve in curves)
    if holes or any(gpu.integral_j is None for gpu in window.per_gpu):
        told.append("sampling_gap")
    return told


def agrees(ratio: float | None, window_s: float, rules: Rules) -> bool:
    """Whether counter and integral agree. No ratio is no disagreement: what took it away is the reason."""
    if ratio is None:
        return True
    bound = rules.agreement if window_s >= rules.agreement_from_s else rules.agreement_short
    return abs(ratio - 1) <= bound


def clock_reasons(card: Card, window: CardWindow, rules: Rules) -> list[str]:
    rows = card.inside(window.start_ns, window.end_ns)
    told: list[str] = []
    if ((event_bits(rows) & THERMAL_OR_HW_SLOWDOWN) > 0).any():
        told.append("throttled")
    first_half = rows["mono_ns"] < (window.start_ns + window.end_ns) // 2
    sm = pd.to_numeric(rows["sm_clock_mhz"])
    early, late = sm[first_half].median(), sm[~first_half].median()
    shifted = bool(early and late and abs(late / early - 1) > rules.sm_clock_shift)
    if shifted or pd.to_numeric(rows["mem_clock_mhz"]).dropna().nunique() > 1:
        told.append("clock_changed")
    return told


def shortest_s(sources: Sources, mean_residence_s: float | None, rules: Rules) -> float:
    """The least length of a window that the sensors and the requests allow."""
    counter = sources.source("counter")
    refreshes_s = counter.refreshes_s if counter else []
    return max(
        rules.shortest_s,
        rules.refreshes * max(refreshes_s, default=0.0),
        rules.residences * (mean_residence_s or 0.0),
    )


def card_flags(per_gpu: list[GpuEnergy], rules: Rules) -> list[str]:
    """What is allowed, but to be known, of the cards."""
    holds = {
        "sw_power_cap": any((gpu.sw_power_cap_share or 0) > 0 for gpu in per_gpu),
        "warming": any(
            abs(gpu.temperature_c_per_min or 0) > rules.warming_c_per_min for gpu in per_gpu
        ),
    }
    return [flag for flag in holds if holds[flag]]


def explain(reason: str, window: CardWindow) -> str:
    """The sentence of a reason, with the figure that made it."""
    ratio = window.counter_over_integral
    figures = {
        "counter_vs_integral": f"counter / integral = {ratio or float('nan'):.4f}",
        "gpu_count_mismatch": f"{len(window.cards)} of {len(window.wanted)}",
        "cards_not_told": window.untold or "",
        "window_too_short": f"{window.asked_s:.1f} s",
        "sampling_gap": "longest "
        + f"{_worst(gpu.longest_gap_s for gpu in window.per_gpu):.2f} s, share "
        + f"{_worst(gpu.gap_share for gpu in window.per_gpu):.3f}",
    }
    figure = figures.get(reason)
    return f"{REASONS[reason]} ({figure})" if figure else REASONS[reason]


def _worst(values: Iterable[float | None]) -> float:
    return max((value or 0.0 for value in values), default=float("nan"))

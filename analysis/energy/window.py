"""Energy of a window: the difference of NVML's counter, cross-checked by integrated average power.

A window that fails a rule has no energy; its reasons say why, and the figures that were found stay beside
them. Only GPU board energy is measured, never the node's. docs/energy.md gives the protocol.

Times are CLOCK_MONOTONIC nanoseconds: the sampler's stamps and the client's are differences on one clock.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, cast

import numpy as np
import pandas as pd

from analysis.energy.cpu import CpuEnergy, cpu_energy
from analysis.energy.quantities import Measured, Scope, total
from analysis.energy.series import EnergyCurve, Readings, clean, energy_curve, integrate_average
from analysis.runs.gpus import used_gpus
from analysis.statistics.rates import Floats, Ints, Ratio, Trend

REASONS: dict[str, str] = {
    "window_not_bracketed": "samples do not reach from before the window to after it",
    "sampling_gap": "samples are missing for more than 1 s, or for more than 1 % of the window",
    "counter_reset": "the energy counter fell inside the window (driver or GPU reset)",
    "counter_vs_integral": "counter and integrated average power disagree beyond the bound",
    "gpu_count_mismatch": "the GPUs with a reading are not all the GPUs of the server",
    "throttled": "a thermal or hardware slowdown bit was set in the window",
    "clock_changed": "clocks at the start and at the end of the window differ",
    "mig": "MIG is on: power and energy are those of the whole card",
    "vgpu": "a virtual GPU has no energy of its own",
    "foreign_process": "a process that is not the server's had a context on the GPU",
    "window_too_short": "the window is too short for the sensors, the requests or both",
}
THERMAL_OR_HW_SLOWDOWN = 0x08 | 0x20 | 0x40 | 0x80  # NVML clocks-event bits
SW_POWER_CAP = 0x04


@dataclass(frozen=True, slots=True)
class Rules:
    """Limits of a believable window (rules R9, R12, R19, R21 of docs/energy.md)."""

    shortest_s: float = 60.0
    refreshes: int = 30
    residences: float = 3.0
    completions: int = 30
    agreement: float = 0.02  # |counter / integral − 1|, windows of agreement_from_s or more
    agreement_short: float = 0.05
    agreement_from_s: float = 60.0
    longest_gap_s: float = 1.0
    sm_clock_shift: float = 0.05  # median SM clock of the second half against the first
    idle_drift: float = 0.03
    warming_c_per_min: float = 0.5  # rule R8: beyond it the card had not settled


class Counted(Protocol):
    """Work done in an interval. Input tokens count where their request's first token arrived."""

    @property
    def output(self) -> int: ...
    @property
    def input(self) -> int: ...
    @property
    def completions(self) -> int: ...


@dataclass(frozen=True, slots=True)
class PerWork:
    """One numerator over the three denominators; None where there was no such work.

    ``j`` is the window's. Errors are by the names of the three, as ``analysis.statistics.rates`` defines
    them (standard errors in J, edge errors relative); none where the work was given as a count.
    """

    j: float
    j_per_output_token: float | None
    j_per_total_token: float | None
    j_per_request: float | None
    standard_errors: dict[str, float] = field(default_factory=dict[str, float])
    edge_errors: dict[str, float] = field(default_factory=dict[str, float])
    trends: dict[str, Trend] = field(default_factory=dict[str, Trend])
    reason: str | None = None


class Joules:
    """Energy of a point's cards between any two moments (CLOCK_MONOTONIC ns), by their counters."""

    def __init__(self, cards: Sequence[EnergyCurve]) -> None:
        self._cards = cards

    def between(self, start_ns: Ints, end_ns: Ints) -> Floats:
        """Joules of each interval; NaN where the counters' changes do not enclose it."""
        total = np.zeros(len(start_ns))
        for curve in self._cards:
            if not len(curve.at_ns):
                return np.full(len(start_ns), np.nan)
            start_j, end_j = (
                np.interp(at, curve.at_ns, curve.joules, left=np.nan, right=np.nan)
                for at in (start_ns, end_ns)
            )
            total += end_j - start_j
        return total


# Gross and, with the idle power (W), above-idle joules per work; the last argument is the aligned window.
PerWorkOf = Callable[["Joules", float, tuple[int, int]], dict[str, Ratio]]


@dataclass(frozen=True, slots=True)
class GpuEnergy:
    """What was found for one card between the aligned edges."""

    uuid: str
    counter_j: float | None
    integral_j: float | None
    counter_over_integral: float | None
    edge_error_j: float | None
    sm_clock_mhz: float | None
    sw_power_cap_share: float | None
    longest_gap_s: float | None
    gap_share: float | None
    power_drift: float | None  # mean power of the second half over the first, −1, by the counter
    temperature_c_per_min: float | None


@dataclass(frozen=True, slots=True)
class IdlePower:
    """Power of the server's cards with the server loaded and no request; ``power_w`` None with a reason."""

    power_w: float | None
    window_s: float
    reasons: list[str] = field(default_factory=list[str])


@dataclass(frozen=True, slots=True)
class EnergyResult:
    """JSON-able by ``dataclasses.asdict``. Every figure is None unless ``status`` is measured, except the
    findings in ``per_gpu``, ``counter_j`` and ``integral_j``, which say why a window was refused."""

    status: str  # measured | invalid | unavailable
    reasons: list[str]  # words of REASONS
    explain: list[str]  # one sentence each
    flags: list[str]  # allowed, but to be known
    start_mono_ns: int | None = None  # the aligned window; work is counted over exactly this
    end_mono_ns: int | None = None
    window_s: float | None = None
    scope: Scope | None = None
    source: str | None = None
    energy_j: float | None = None
    edge_error_j: float | None = (
        None  # bound on the error from not knowing when the counter changed
    )
    power_w: float | None = None
    gross: PerWork | None = None
    above_idle: PerWork | None = None
    idle_w: float | None = None
    idle_drift: float | None = None
    output_tokens: int | None = None
    input_tokens: int | None = None
    requests: int | None = None
    counter_j: float | None = None
    integral_j: float | None = None
    counter_over_integral: float | None = None
    gpus_measured: int = 0
    gpus_wanted: int = 0
    idle_gpus_j: float | None = None  # cards of the host that the server does not use
    per_gpu: list[GpuEnergy] = field(default_factory=list[GpuEnergy])
    cpu: CpuEnergy | None = None

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class _Card:
    """One GPU's readings, by UUID: an index can mean another card after a reboot or under a mask."""

    uuid: str
    curve: EnergyCurve | None
    average: Readings
    rows: pd.DataFrame


def cards_of(gpu: pd.DataFrame) -> dict[str, _Card]:
    """UUID → readings. ``gpu`` has the columns of GpuSample, in any order of rows."""
    return {
        str(uuid): _Card(
            str(uuid),
            energy_curve(rows["mono_ns"], rows["energy_mj"]),
            clean(rows["mono_ns"], rows["power_avg_w"]),
            rows,
        )
        for uuid, rows in gpu.groupby("gpu_uuid", sort=True)
    }


def point_energy(
    gpu: pd.DataFrame,
    host: pd.DataFrame,
    sources: dict[str, Any],
    start_mono_ns: int,
    end_mono_ns: int,
    count: Callable[[int, int], Counted] | Counted,
    idle_before: IdlePower | None = None,
    idle_after: IdlePower | None = None,
    mean_residence_s: float | None = None,
    server_gpus: int | None = None,
    rules: Rules = Rules(),
    per: PerWorkOf | None = None,
) -> EnergyResult:
    """Energy of a measured window, and per output token, total token and request.

    ``count`` gives the work between two monotonic moments: energy is taken between counter changes, so
    work is counted over exactly that interval. ``gpu``, ``host`` and ``sources`` are as recorded.
    ``server_gpus`` is how many cards the server was given: where its processes could not be found on the
    cards, others may be visible too, and which are its own is not known. ``per`` relates the joules to the
    work (``analysis.point.joules``); without it the aligned window's are divided by its counts.
    """
    cpu = cpu_energy(host, sources, start_mono_ns, end_mono_ns) if not host.empty else None
    why_not = _unavailable(gpu, sources)
    if why_not:
        return EnergyResult("unavailable", [], [why_not], [], cpu=cpu)
    cards = cards_of(gpu)
    wanted = used_gpus(gpu, sources)
    measured = [cards[uuid] for uuid in wanted if uuid in cards and cards[uuid].curve]
    edges = _common_edges(measured, start_mono_ns, end_mono_ns)
    start_ns, end_ns = edges or (start_mono_ns, end_mono_ns)
    found = [_card_energy(card, start_ns, end_ns) for card in measured]
    work = count(start_ns, end_ns) if callable(count) else count
    # without every card there is no sum: 7 of 8 never pass for 8
    whole = len(measured) == len(wanted) and server_gpus in (None, len(wanted))
    counter_j = _sum(f.counter_j for f in found) if whole else None
    integral_j = _sum(f.integral_j for f in found) if whole else None
    ratio = counter_j / integral_j if counter_j and integral_j else None
    asked_s = (end_mono_ns - start_mono_ns) / 1e9
    reasons = [
        *_device_reasons(sources, wanted),
        *([] if whole else ["gpu_count_mismatch"]),
        *_sample_reasons(measured, start_mono_ns, end_mono_ns, edges is not None, rules, found),
        *_agreement_reason(ratio, asked_s, rules),
        *_clock_reasons(measured, start_ns, end_ns, rules),
        *_length_reason(asked_s, work, mean_residence_s, sources, rules),
    ]
    reasons = list(dict.fromkeys(reasons))
    flags, idle_w, drift = _idle(idle_before, idle_after, rules)
    if any((f.sw_power_cap_share or 0) > 0 for f in found):
        flags.append("sw_power_cap")
    if any(abs(f.temperature_c_per_min or 0) > rules.warming_c_per_min for f in found):
        flags.append("warming")
    result = EnergyResult(
        status="invalid" if reasons else "measured",
        reasons=reasons,
        explain=[_explain(reason, ratio, found, wanted, asked_s) for reason in reasons],
        flags=flags,
        start_mono_ns=start_ns,
        end_mono_ns=end_ns,
        window_s=(end_ns - start_ns) / 1e9,
        idle_w=idle_w,
        idle_drift=drift,
        counter_j=counter_j,
        integral_j=integral_j,
        counter_over_integral=ratio,
        gpus_measured=len(measured),
        gpus_wanted=len(wanted),
        per_gpu=found,
        cpu=cpu,
    )
    others = [card.curve for uuid, card in cards.items() if uuid not in wanted and card.curve]
    if reasons:
        return result
    own = Joules([card.curve for card in measured if card.curve])
    return _measured(result, _scope(sources, wanted), work, others, per, own)


def _measured(
    result: EnergyResult,
    scope: Scope,
    work: Counted,
    others: list[EnergyCurve],
    per: PerWorkOf | None,
    own: Joules,
) -> EnergyResult:
    """The result of a window that passed every rule, with its figures filled in."""
    start_ns, end_ns = cast(int, result.start_mono_ns), cast(int, result.end_mono_ns)
    length_s = (end_ns - start_ns) / 1e9
    parts = [Measured(cast(float, f.counter_j), scope, "nvml_counter") for f in result.per_gpu]
    energy = total(parts)
    idle_w = result.idle_w

    def related(idle_w: float) -> PerWork:
        joules = energy.joules - idle_w * length_s
        if per is None:
            return per_work(joules, work)
        return _related(joules, per(own, idle_w, (start_ns, end_ns)))

    gross = related(0.0)
    return replace(
        result,
        scope=scope,
        source=energy.provenance,
        energy_j=energy.joules,
        edge_error_j=_sum(f.edge_error_j for f in result.per_gpu),
        power_w=energy.joules / length_s,
        flags=[*result.flags, *(["no_joules_per_work"] if gross.reason else [])],
        gross=gross,
        above_idle=None if idle_w is None else related(idle_w),
        output_tokens=work.output,
        input_tokens=work.input,
        requests=work.completions,
        idle_gpus_j=_sum(curve.energy_j(start_ns, end_ns) for curve in others),
    )


def per_work(joules: float, work: Counted) -> PerWork:
    """J per output token, per input + output token, per completed request."""

    def over(n: int) -> float | None:
        return joules / n if n else None

    return PerWork(
        joules, over(work.output), over(work.output + work.input), over(work.completions)
    )


def _related(joules: float, found: dict[str, Ratio]) -> PerWork:
    reasons = [ratio.reason for ratio in found.values() if ratio.reason]
    return PerWork(
        joules,
        found["j_per_output_token"].value,
        found["j_per_total_token"].value,
        found["j_per_request"].value,
        {k: r.standard_error for k, r in found.items() if r.standard_error is not None},
        {k: r.edge_error for k, r in found.items() if r.edge_error is not None},
        {k: r.trend for k, r in found.items() if r.trend is not None},
        found["j_per_request"].reason and reasons[0],
    )


def idle_power(
    gpu: pd.DataFrame,
    sources: dict[str, Any],
    rules: Rules = Rules(shortest_s=30.0),
) -> IdlePower:
    """Mean power of the server's cards over a whole idle recording, from the counter."""
    why_not = _unavailable(gpu, sources)
    if why_not:
        return IdlePower(None, 0.0, [why_not])
    start_ns, end_ns = int(gpu["mono_ns"].min()), int(gpu["mono_ns"].max())
    cards = cards_of(gpu)
    wanted = used_gpus(gpu, sources)
    measured = [cards[uuid] for uuid in wanted if uuid in cards and cards[uuid].curve is not None]
    edges = _common_edges(measured, start_ns, end_ns)
    if edges is None or len(measured) != len(wanted):
        word = "window_not_bracketed" if len(measured) == len(wanted) else "gpu_count_mismatch"
        return IdlePower(None, 0.0, [word])
    found = [_card_energy(card, *edges) for card in measured]
    reasons = _sample_reasons(measured, *edges, True, rules, found)
    window_s = (edges[1] - edges[0]) / 1e9
    if window_s < rules.shortest_s * 0.95:  # the first and last refresh fall off a recording
        reasons.append("window_too_short")
    joules = _sum(f.counter_j for f in found)
    if reasons or joules is None:
        return IdlePower(None, window_s, reasons)
    return IdlePower(joules / window_s, window_s)


def _unavailable(gpu: pd.DataFrame, sources: dict[str, Any]) -> str | None:
    """Why there is no GPU energy at all, in one sentence; None when there may be."""
    if not gpu.empty and gpu["energy_mj"].notna().any():
        return None
    counter = sources.get("counter", {})
    if counter.get("status") == "unavailable":
        return f"no GPU energy counter: {counter.get('reason')}"
    return "no GPU energy was recorded"


def _common_edges(cards: list[_Card], start_ns: int, end_ns: int) -> tuple[int, int] | None:
    """The interval between counter changes that every card covers; None when there is none."""
    pairs = [card.curve.aligned(start_ns, end_ns) for card in cards if card.curve]
    if not pairs or any(pair is None for pair in pairs):
        return None
    known = [pair for pair in pairs if pair]
    first, last = max(a for a, _ in known), min(b for _, b in known)
    return (first, last) if first < last else None


def _card_energy(card: _Card, start_ns: int, end_ns: int) -> GpuEnergy:
    curve = cast(EnergyCurve, card.curve)
    counter_j = curve.energy_j(start_ns, end_ns)
    integral = integrate_average(card.average, start_ns, end_ns)
    inside = card.rows[card.rows["mono_ns"].between(start_ns, end_ns)]
    bits = pd.to_numeric(inside["throttle_reasons"]).dropna().astype("int64")
    clock = pd.to_numeric(inside["sm_clock_mhz"]).median()
    length_s = (end_ns - start_ns) / 1e9
    integral_j = integral.joules if integral and integral.whole else None
    return GpuEnergy(
        uuid=card.uuid,
        counter_j=counter_j,
        integral_j=integral_j,
        counter_over_integral=counter_j / integral_j if counter_j and integral_j else None,
        edge_error_j=None
        if counter_j is None
        else counter_j / length_s * curve.edge_error_s(start_ns, end_ns),
        sm_clock_mhz=None if pd.isna(clock) else float(clock),
        sw_power_cap_share=float(((bits & SW_POWER_CAP) > 0).mean()) if len(bits) else None,
        longest_gap_s=integral.longest_gap_s if integral else None,
        gap_share=integral.gap_share if integral else None,
        power_drift=_power_drift(curve, start_ns, end_ns),
        temperature_c_per_min=_warming(inside),
    )


def _power_drift(curve: EnergyCurve, start_ns: int, end_ns: int) -> float | None:
    middle_ns = (start_ns + end_ns) // 2
    first_j, second_j = curve.energy_j(start_ns, middle_ns), curve.energy_j(middle_ns, end_ns)
    return second_j / first_j - 1 if first_j and second_j is not None else None


def _warming(rows: pd.DataFrame) -> float | None:
    """Slope of the temperature, °C a minute, by least squares; None with fewer than ten readings."""
    if "temp_c" not in rows:
        return None
    known = rows[pd.to_numeric(rows["temp_c"]).notna()]
    if len(known) < 10 or known["mono_ns"].nunique() < 2:
        return None
    minutes = (known["mono_ns"] - known["mono_ns"].min()).to_numpy(dtype=float) / 60e9
    return float(np.polyfit(minutes, known["temp_c"].to_numpy(dtype=float), 1)[0])


def _device_reasons(sources: dict[str, Any], wanted: list[str]) -> list[str]:
    facts = [c for c in sources.get("facts", {}).get("gpus", []) if c["uuid"] in wanted]
    found = {
        "mig": any(card.get("mig") for card in facts),
        "vgpu": any(card.get("virtual") for card in facts),
        "foreign_process": any(card.get("foreign_pids") for card in facts),
    }
    return [reason for reason, holds in found.items() if holds]


def _sample_reasons(
    cards: list[_Card],
    start_ns: int,
    end_ns: int,
    aligned: bool,
    rules: Rules,
    found: list[GpuEnergy],
) -> list[str]:
    curves = [card.curve for card in cards if card.curve]
    out: list[str] = []
    if not aligned or not all(curve.brackets(start_ns, end_ns) for curve in curves):
        out.append("window_not_bracketed")
    if any(curve.reset_inside(start_ns, end_ns) for curve in curves):
        out.append("counter_reset")
    holes = any(c.longest_gap_s(start_ns, end_ns) > rules.longest_gap_s for c in curves)
    if holes or any(energy.integral_j is None for energy in found):
        out.append("sampling_gap")
    return out


def _agreement_reason(ratio: float | None, window_s: float, rules: Rules) -> list[str]:
    """No ratio is no agreement: without the cross-check the reason is the one that took it away."""
    if ratio is None:
        return []
    bound = rules.agreement if window_s >= rules.agreement_from_s else rules.agreement_short
    return ["counter_vs_integral"] if abs(ratio - 1) > bound else []


def _clock_reasons(cards: list[_Card], start_ns: int, end_ns: int, rules: Rules) -> list[str]:
    out: list[str] = []
    middle_ns = (start_ns + end_ns) // 2
    for card in cards:
        rows = card.rows[card.rows["mono_ns"].between(start_ns, end_ns)]
        bits = pd.to_numeric(rows["throttle_reasons"]).dropna().astype("int64")
        if ((bits & THERMAL_OR_HW_SLOWDOWN) > 0).any():
            out.append("throttled")
        memory = pd.to_numeric(rows["mem_clock_mhz"]).dropna()
        if memory.nunique() > 1:
            out.append("clock_changed")
        sm = pd.to_numeric(rows["sm_clock_mhz"])
        early, late = (
            sm[rows["mono_ns"] < middle_ns].median(),
            sm[rows["mono_ns"] >= middle_ns].median(),
        )
        if early and late and abs(late / early - 1) > rules.sm_clock_shift:
            out.append("clock_changed")
    return out


def _length_reason(
    window_s: float,
    work: Counted,
    mean_residence_s: float | None,
    sources: dict[str, Any],
    rules: Rules,
) -> list[str]:
    refreshes = [s for s in sources.get("counter", {}).get("refresh_s", {}).values() if s]
    wanted_s = [
        rules.shortest_s,
        rules.refreshes * max(refreshes, default=0.0),
        rules.residences * (mean_residence_s or 0.0),
    ]
    short = window_s < max(wanted_s) or work.completions < rules.completions
    return ["window_too_short"] if short else []


def _idle(
    before: IdlePower | None, after: IdlePower | None, rules: Rules
) -> tuple[list[str], float | None, float | None]:
    """(flags, mean idle power, after over before − 1). Above-idle figures need at least one of the two."""
    known = [idle.power_w for idle in (before, after) if idle and idle.power_w is not None]
    if not known:
        return ["idle_not_measured"], None, None
    if len(known) == 1:
        return ["idle_measured_once"], known[0], None
    drift = known[1] / known[0] - 1
    return (["idle_drift"] if abs(drift) > rules.idle_drift else []), float(np.mean(known)), drift


def _scope(sources: dict[str, Any], wanted: list[str]) -> Scope:
    """What the cards' sensors cover: the GPU board, or the module (CPU + GPU) on Grace-Hopper."""
    facts = sources.get("facts", {}).get("gpus", [])
    scopes = {card.get("scope", "gpu") for card in facts if card["uuid"] in wanted}
    return "module" if "module" in scopes else "gpu"


def _explain(
    reason: str, ratio: float | None, found: list[GpuEnergy], wanted: list[str], window_s: float
) -> str:
    """The sentence of a reason, with the figure that made it."""
    figures = {
        "counter_vs_integral": f"counter / integral = {ratio or float('nan'):.4f}",
        "gpu_count_mismatch": f"{len(found)} of {len(wanted)}",
        "window_too_short": f"{window_s:.1f} s",
        "sampling_gap": "longest "
        + f"{max((f.longest_gap_s or 0 for f in found), default=float('nan')):.2f} s, share "
        + f"{max((f.gap_share or 0 for f in found), default=float('nan')):.3f}",
    }
    figure = figures.get(reason)
    return f"{REASONS[reason]} ({figure})" if figure else REASONS[reason]


def _sum(parts: Any) -> float | None:
    """Sum of numbers; None when there is none or one is missing, so that 7 of 8 never pass for 8."""
    values = list(parts)
    if not values or any(value is None for value in values):
        return None
    return float(sum(values))

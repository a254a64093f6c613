"""The report's energy section: every figure of a cell, or the sentence that says why it has none.

GPU boards are measured, CPU packages are measured or estimated, and the two kinds stand in columns of
their own: nothing here adds one to the other.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from analysis.compare.cells import Cell
from analysis.energy.attribution import Attribution, Price
from analysis.energy.cpu import CpuEnergy
from analysis.energy.quantities import Estimated, Measured
from analysis.energy.result import EnergyResult, GpuEnergy, PerWork
from analysis.point.point import Point
from analysis.report import formats
from greenbench.contract.counted import counted

MEASURED_WORK = "idle_s"  # its price is no fit
WORK_WORDS = {
    MEASURED_WORK: "second of loaded idle",
    "prefill_tokens": "prefilled token",
    "prefill_pairs": "prefilled (query, key) pair",
    "decode_tokens": "decoded token",
    "decode_context": "token of context read by decode",
}
WARMING = "warming"
FLAG_WORDS = {
    "idle_not_measured": "loaded idle was not measured, so nothing is given above idle",
    "idle_measured_once": "loaded idle was measured on one side of the load only",
    "idle_drift": "loaded idle before and after the load differ by more than 3 %",
    "sw_power_cap": "the power cap was reached in the window",
    "no_joules_per_work": "too few whole cycles a user for joules a token or request",
    WARMING: "the card's temperature had not settled, and its power rises with it",
}


@dataclass(frozen=True)
class WorkJoules:
    """Joules over one kind of work: gross, and above the loaded, idle server's; means over starts."""

    gross: float | None
    above_idle: float | None


@dataclass(frozen=True)
class EnergyRow:
    """One cell. ``per_work``: by output token, total token and request, over its measured starts.

    ``warming``: the largest change of power between halves, of starts on warming cards. ``refused``: some
    window broke a rule; else its energy was never to be had.
    """

    cell: Cell
    per_work: tuple[WorkJoules, WorkJoules, WorkJoules]
    power_w: float | None
    starts: int  # with a measured window
    warming: float | None
    phase: str | None
    phase_j_per_token: float | None
    refused: bool
    refusals: list[str]
    cpu_package_w: float | None
    cpu_package_j: float | None
    cpu_dram_j: float | None
    estimate_w: tuple[float, float] | None
    estimate_j_per_output_token: tuple[float, float] | None


@dataclass(frozen=True)
class EnergySection:
    """``gpu`` and ``cpu``: None where some cell has a figure, else the one sentence that says why not."""

    rows: list[EnergyRow]
    gpu: str | None
    cpu: str | None
    phases: bool  # some cell measured one phase alone
    estimated: bool  # some cell has an estimate of the CPU
    above_idle: bool  # some cell has its energy less that of the idle server


NOT_RECORDED = "the host was not recorded"


def energy_section(cells: Sequence[Cell]) -> EnergySection:
    rows = [_row(cell) for cell in cells if cell.starts]
    results = [p.energy.result for row in rows for p in row.cell.starts if p.energy is not None]
    none_on_gpu = all(result.status == "unavailable" for result in results)
    reasons = dict.fromkeys(why for result in results for why in result.explain)
    measured_cpu = any(row.cpu_package_j is not None for row in rows)
    why = dict.fromkeys(_cpu(result).reason or NOT_RECORDED for result in results)
    return EnergySection(
        rows=rows,
        gpu="; ".join(reasons) or "no energy source was recorded" if none_on_gpu else None,
        cpu=None if measured_cpu else "; ".join(why),
        phases=any(row.phase for row in rows),
        estimated=any(row.estimate_w for row in rows),
        above_idle=any(work.above_idle is not None for row in rows for work in row.per_work),
    )


def _cpu(result: EnergyResult) -> CpuEnergy:
    return result.cpu or CpuEnergy()


def _row(cell: Cell) -> EnergyRow:
    held = [(point, point.energy) for point in cell.starts if point.energy is not None]
    good = [energy.result for _, energy in held if energy.result.status == "measured"]
    phases = [
        energy.phase
        for _, energy in held
        if energy.result.status == "measured" and energy.phase is not None
    ]
    refusals = dict.fromkeys(
        why for _, e in held if e.result.status != "measured" for why in e.result.explain
    )
    cpus = [_cpu(energy.result) for _, energy in held]
    return EnergyRow(
        cell=cell,
        per_work=(
            _work_joules(good, lambda work: work.j_per_output_token),
            _work_joules(good, lambda work: work.j_per_total_token),
            _work_joules(good, lambda work: work.j_per_request),
        ),
        power_w=_mean(result.power_w for result in good),
        starts=len(good),
        warming=_largest_drift(good),
        phase=phases[0].phase if phases else None,
        phase_j_per_token=_mean(phase.j_per_token for phase in phases),
        refused=any(energy.result.status == "invalid" for _, energy in held),
        refusals=list(refusals),
        cpu_package_w=_mean(_package_w(point, energy.result) for point, energy in held),
        cpu_package_j=_mean(_joules(cpu.package) for cpu in cpus),
        cpu_dram_j=_mean(_joules(cpu.dram) for cpu in cpus),
        estimate_w=_hull(estimate_w(point) for point, _ in held),
        estimate_j_per_output_token=_hull(_per_output_token(point) for point, _ in held),
    )


def _work_joules(
    results: Sequence[EnergyResult], pick: Callable[[PerWork], float | None]
) -> WorkJoules:
    return WorkJoules(
        _mean(pick(result.gross) for result in results if result.gross is not None),
        _mean(pick(result.above_idle) for result in results if result.above_idle is not None),
    )


def _largest_drift(results: Sequence[EnergyResult]) -> float | None:
    drifts = [
        card.power_drift
        for result in results
        if WARMING in result.flags
        for card in result.per_gpu
        if card.power_drift is not None
    ]
    return max(drifts, key=abs, default=None)


def _joules(measured: Measured | None) -> float | None:
    return None if measured is None else measured.joules


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _hull(spans: Iterable[tuple[float, float] | None]) -> tuple[float, float] | None:
    """The widest of several starts' intervals: an estimate gets no narrower by repeating it."""
    known = [span for span in spans if span is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else None


def _package_w(point: Point, result: EnergyResult) -> float | None:
    joules = _joules(_cpu(result).package)
    return None if joules is None or point.window is None else joules / point.window.duration_s


def _estimate(point: Point) -> Estimated | None:
    return None if point.energy is None else _cpu(point.energy.result).estimate


def estimate_w(point: Point) -> tuple[float, float] | None:
    """The estimate of the CPU's power, W; None where there is none."""
    estimate, window = _estimate(point), point.window
    if estimate is None or window is None:
        return None
    return estimate.low_j / window.duration_s, estimate.high_j / window.duration_s


def _per_output_token(point: Point) -> tuple[float, float] | None:
    """Over the tokens of the same window; None for a task that is not streamed."""
    estimate, rates = _estimate(point), point.throughput
    if estimate is None or rates is None or rates.output.value is None or not rates.output_tokens:
        return None
    return estimate.low_j / rates.output_tokens, estimate.high_j / rates.output_tokens


def span(interval: tuple[float, float] | None, unit: str) -> str:
    """``12.3–45.6 W``."""
    if interval is None:
        return formats.DASH
    low, high = interval
    if unit == "J" and high < 1:
        return f"{formats.significant(low * 1e3)}–{formats.significant(high * 1e3)} mJ"
    return f"{formats.significant(low)}–{formats.significant(high)} {unit}"


def point_facts(point: Point) -> list[tuple[str, str]]:
    """Everything known of one point's energy, in words."""
    if point.energy is None:
        return []
    result = point.energy.result
    if result.status == "measured":
        facts = _measured_facts(result)
        phase = point.energy.phase
        if phase is not None:
            facts.append(
                (
                    f"{phase.phase.capitalize()} alone",
                    f"{formats.joules(phase.j_per_token)} a token over {phase.tokens:,} tokens, "
                    "measured: the window holds no other phase",
                )
            )
    else:
        word = "refused" if result.status == "invalid" else result.status
        facts = [("GPU energy", f"{word}: {'; '.join(result.explain)}")]
        if result.counter_j is not None:
            facts.append(("", f"findings, not results: {_agreement(result)}"))
    facts += [("", FLAG_WORDS[flag]) for flag in result.flags]
    if WARMING in result.flags:
        facts.append(("", "; ".join(map(_settling, result.per_gpu))))
    if result.status == "measured":
        facts += attributed_facts(point.energy.attributed)
    return facts + _cpu_facts(point, _cpu(result))


def _settling(card: GpuEnergy) -> str:
    """``GPU-5e43…: +9.6 °C a minute, power of the second half +1.5 % on the first``."""
    slope = card.temperature_c_per_min
    words = ["temperature unknown" if slope is None else f"{slope:+.1f} °C a minute"]
    if card.power_drift is not None:
        words.append(f"power of the second half {card.power_drift * 100:+.1f} % on the first")
    return f"{card.uuid}: {', '.join(words)}"


def _agreement(result: EnergyResult) -> str:
    """Counter and integral of all cards together, as far as they go."""
    words = f"counter {formats.joules(result.counter_j)}"
    if result.integral_j is not None:
        words += f", integrated average power {formats.joules(result.integral_j)}"
    if result.counter_over_integral is not None:
        words += f", one over the other {result.counter_over_integral:.4f}"
    return words


def _measured_facts(result: EnergyResult) -> list[tuple[str, str]]:
    scope = "module (CPU and GPU)" if result.scope == "module" else "GPU board"
    facts: list[tuple[str, str]] = [
        (
            "GPU energy",
            f"{formats.joules(result.energy_j)} ± {formats.joules(result.edge_error_j)} at the "
            f"window's edges, over {result.window_s:.1f} s: {result.power_w:.1f} W mean; "
            f"{scope}, {result.gpus_measured} of {counted(result.gpus_wanted, 'card')}, {result.source}",
        ),
        ("", _agreement(result)),
    ]
    for title, work in (
        ("Energy gross", result.gross),
        ("Energy above loaded idle", result.above_idle),
    ):
        if work is not None:
            facts.append((title, _per_work_words(work)))
    if result.idle_w is not None:
        drift = result.idle_drift
        after = "" if drift is None else f", after the load {drift:+.1%} of before"
        facts.append(("Loaded idle", f"{result.idle_w:.1f} W{after}"))
    if result.idle_gpus_j:
        facts.append(("Other cards", f"{formats.joules(result.idle_gpus_j)}, not the server's"))
    return facts


def _per_work_words(work: PerWork) -> str:
    parts = (
        ("an output token", work.j_per_output_token),
        ("an input + output token", work.j_per_total_token),
        ("a request", work.j_per_request),
    )
    known = [f"{formats.joules(value)} {words}" for words, value in parts if value is not None]
    return ", ".join(known) or formats.DASH


def attributed_facts(found: Attribution) -> list[tuple[str, str]]:
    """Prices of prefill and decode by the model of docs/energy.md, or why there are none."""
    measured_j = found.measured_j
    if found.status != "attributed" or measured_j is None:
        return [("Prefill and decode", f"{found.status}: {'; '.join(found.reasons)}")]
    facts = [
        (
            "Attributed" if number == 0 else "",
            f"{exponent(price.j_per_unit)}{_error(price)} J a {WORK_WORDS[price.work]}: "
            f"{price.attributed_j / measured_j:.0%} of the energy",
        )
        for number, price in enumerate(found.prices)
    ]
    facts.append(
        (
            "",
            f"attributed by a model, not measured; on windows that it did not learn from it was off by "
            f"{found.held_out_median_error:.1%} in the median and {found.held_out_p90_error:.1%} at "
            f"p90 ({found.windows} windows); it left {found.unexplained_share:+.1%} unexplained",
        )
    )
    return facts


def _error(price: Price) -> str:
    if price.work == MEASURED_WORK:
        return " (measured)"
    if price.standard_error is None:
        return " (at its bound)"
    return f" ± {exponent(price.standard_error)}"


def exponent(value: float) -> str:
    """Three digits, with a power of ten where a plain decimal would be a row of zeros."""
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"


def _cpu_facts(point: Point, cpu: CpuEnergy) -> list[tuple[str, str]]:
    if cpu.package is not None:
        dram = "" if cpu.dram is None else f", memory {formats.joules(cpu.dram.joules)}"
        words = f"packages {formats.joules(cpu.package.joules)}{dram}, by RAPL"
        return [("CPU energy", words)]
    reason = cpu.reason or NOT_RECORDED
    watts, estimate = estimate_w(point), cpu.estimate
    if watts is None or estimate is None:
        return [("CPU energy", f"unavailable: {reason}")]
    return [
        (
            "CPU energy",
            f"estimate, {estimate.low_j:,.0f} to {estimate.high_j:,.0f} J ({span(watts, 'W')}) by "
            f"{estimate.model}; not measured: {reason}",
        )
    ]

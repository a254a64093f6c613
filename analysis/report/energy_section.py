"""The report's energy section: every figure of a cell, or the sentence that says why it has none.

GPU boards are measured, CPU packages are measured or estimated, and the two kinds stand in columns of
their own: nothing here adds one to the other.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from analysis.compare.cells import Cell
from analysis.point.point import Point
from analysis.report import formats

NUMERATORS = (("gross", "gross"), ("above_idle", "above loaded idle"))
DENOMINATORS = (
    ("j_per_output_token", "output token"),
    ("j_per_total_token", "input + output token"),
    ("j_per_request", "request"),
)
WORK_WORDS = {
    "idle_s": ("second of loaded idle", "J"),
    "prefill_tokens": ("prefilled token", "J"),
    "prefill_pairs": ("prefilled (query, key) pair", "J"),
    "decode_tokens": ("decoded token", "J"),
    "decode_context": ("token of context read by decode", "J"),
}
FLAG_WORDS = {
    "idle_not_measured": "loaded idle was not measured, so nothing is given above idle",
    "idle_measured_once": "loaded idle was measured on one side of the load only",
    "idle_drift": "loaded idle before and after the load differ by more than 3 %",
    "sw_power_cap": "the power cap was reached in the window",
    "no_joules_per_work": "too few whole cycles a user for joules a token or request",
    "warming": "the card's temperature had not settled, and its power rises with it",
}


@dataclass(frozen=True)
class EnergyRow:
    """One cell. ``measured``: mean over its measured starts, by numerator and denominator."""

    cell: Cell
    measured: dict[str, dict[str, float | None]] = field(default_factory=dict)
    power_w: float | None = None
    starts: int = 0  # with a measured window
    warming: float | None = (
        None  # largest change of power between halves, of starts on warming cards
    )
    phase: tuple[str, float] | None = None
    refused: bool = False  # some window broke a rule; else its energy was never to be had
    refusals: list[str] = field(default_factory=list)
    cpu_package_w: float | None = None
    cpu_package_j: float | None = None
    cpu_dram_j: float | None = None
    estimate_w: tuple[float, float] | None = None
    estimate_j_per_output_token: tuple[float, float] | None = None
    estimate_model: str | None = None
    no_estimate: str | None = None


@dataclass(frozen=True)
class EnergySection:
    """``gpu`` and ``cpu``: None where some cell has a figure, else the one sentence that says why not."""

    rows: list[EnergyRow]
    gpu: str | None
    cpu: str | None
    phases: bool  # some cell measured one phase alone
    estimated: bool  # some cell has an estimate of the CPU


def energy_section(cells: Sequence[Cell]) -> EnergySection:
    rows = [_row(cell) for cell in cells if cell.starts]
    energies = [p.energy or {} for row in rows for p in row.cell.starts]
    none_on_gpu = all(e.get("status") == "unavailable" for e in energies)
    reasons = dict.fromkeys(why for e in energies for why in e.get("explain", []))
    measured_cpu = any(row.cpu_package_j is not None for row in rows)
    why = dict.fromkeys(
        str((e.get("cpu") or {}).get("reason") or "the host was not recorded") for e in energies
    )
    return EnergySection(
        rows=rows,
        gpu="; ".join(reasons) or "no energy source was recorded" if none_on_gpu else None,
        cpu=None if measured_cpu else "; ".join(why),
        phases=any(row.phase for row in rows),
        estimated=any(row.estimate_w for row in rows),
    )


def _row(cell: Cell) -> EnergyRow:
    held = [(point, point.energy or {}) for point in cell.starts]
    good = [energy for _, energy in held if energy.get("status") == "measured"]
    phases = [energy["phase"] for energy in good if energy.get("phase")]
    reasons = dict.fromkeys(
        why for _, e in held if e.get("status") != "measured" for why in e.get("explain", [])
    )
    watts = [_estimate_w(point, energy) for point, energy in held]
    spans = [span for span in watts if span]
    tokens = [_per_output_token(point, energy) for point, energy in held]
    shares = [share for share in tokens if share]
    cpus = [energy.get("cpu") or {} for _, energy in held]
    estimates = [cpu["estimate"] for cpu in cpus if cpu.get("estimate")]
    return EnergyRow(
        cell=cell,
        measured={
            kind: {
                name: _mean((e.get(kind) or {}).get(name) for e in good) for name, _ in DENOMINATORS
            }
            for kind, _ in NUMERATORS
        },
        power_w=_mean(e.get("power_w") for e in good),
        starts=len(good),
        warming=_largest_drift(good),
        phase=(phases[0]["phase"], _mean(p["j_per_token"] for p in phases) or 0.0)
        if phases
        else None,
        refused=any(energy.get("status") == "invalid" for _, energy in held),
        refusals=list(reasons),
        cpu_package_w=_mean(_package_w(point, energy) for point, energy in held),
        cpu_package_j=_mean(_joules(cpu.get("package")) for cpu in cpus),
        cpu_dram_j=_mean(_joules(cpu.get("dram")) for cpu in cpus),
        estimate_w=_hull(spans),
        estimate_j_per_output_token=_hull(shares),
        estimate_model=estimates[0]["model"] if estimates else None,
        no_estimate=None if estimates else "no load samples of the host in the window",
    )


def _largest_drift(energies: list[dict[str, Any]]) -> float | None:
    drifts = [
        card["power_drift"]
        for energy in energies
        if "warming" in energy.get("flags", [])
        for card in energy["per_gpu"]
        if card["power_drift"] is not None
    ]
    return max(drifts, key=abs, default=None)


def _joules(measured: dict[str, Any] | None) -> float | None:
    return measured["joules"] if measured else None


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _hull(spans: Sequence[tuple[float, float]]) -> tuple[float, float] | None:
    """The widest of several starts' intervals: an estimate gets no narrower by repeating it."""
    return (min(low for low, _ in spans), max(high for _, high in spans)) if spans else None


def _package_w(point: Point, energy: dict[str, Any]) -> float | None:
    joules = _joules((energy.get("cpu") or {}).get("package"))
    return None if joules is None or not point.window else joules / point.window["duration_s"]


def _estimate_w(point: Point, energy: dict[str, Any]) -> tuple[float, float] | None:
    found, window = (energy.get("cpu") or {}).get("estimate"), point.window
    if not found or not window:
        return None
    return found["low_j"] / window["duration_s"], found["high_j"] / window["duration_s"]


def _per_output_token(point: Point, energy: dict[str, Any]) -> tuple[float, float] | None:
    """Over the tokens of the same window; None for a task that is not streamed."""
    found, rates = (energy.get("cpu") or {}).get("estimate"), point.throughput or {}
    tokens = rates.get("output_tokens")
    if not found or not tokens or rates.get("output_tokens_per_s") is None:
        return None
    return found["low_j"] / tokens, found["high_j"] / tokens


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
    energy = point.energy
    if not energy:
        return []
    facts: list[tuple[str, str]]
    status = str(energy["status"])
    if status != "measured":
        word = "refused" if status == "invalid" else status
        facts = [("GPU energy", f"{word}: {'; '.join(energy['explain'])}")]
        if energy.get("counter_j") is not None:
            facts.append(("", f"findings, not results: {_agreement(energy)}"))
    else:
        facts = _measured_facts(energy)
    facts += [("", FLAG_WORDS[flag]) for flag in energy.get("flags", [])]
    if "warming" in energy.get("flags", []):
        facts.append(("", "; ".join(_settling(card) for card in energy["per_gpu"])))
    if status == "measured":
        facts += attributed_facts(energy.get("attributed") or {})
    return facts + _cpu_facts(point, energy)


def _settling(card: dict[str, Any]) -> str:
    """``GPU-5e43…: +9.6 °C a minute, power of the second half +1.5 % on the first``."""
    slope = card["temperature_c_per_min"]
    words = ["temperature unknown" if slope is None else f"{slope:+.1f} °C a minute"]
    if card["power_drift"] is not None:
        words.append(f"power of the second half {card['power_drift'] * 100:+.1f} % on the first")
    return f"{card['uuid']}: {', '.join(words)}"


def _agreement(energy: dict[str, Any]) -> str:
    """Counter and integral of all cards together, as far as they go."""
    words = f"counter {formats.joules(energy['counter_j'])}"
    if energy.get("integral_j") is not None:
        words += f", integrated average power {formats.joules(energy['integral_j'])}"
    if energy.get("counter_over_integral") is not None:
        words += f", one over the other {energy['counter_over_integral']:.4f}"
    return words


def _measured_facts(energy: dict[str, Any]) -> list[tuple[str, str]]:
    scope = "module (CPU and GPU)" if energy["scope"] == "module" else "GPU board"
    facts: list[tuple[str, str]] = [
        (
            "GPU energy",
            f"{formats.joules(energy['energy_j'])} ± {formats.joules(energy['edge_error_j'])} at the "
            f"window's edges, over {energy['window_s']:.1f} s: {energy['power_w']:.1f} W mean; "
            f"{scope}, {energy['gpus_measured']} of {energy['gpus_wanted']} cards, {energy['source']}",
        ),
        ("", _agreement(energy)),
    ]
    for kind, words in NUMERATORS:
        held = energy.get(kind)
        if held:
            each = ", ".join(
                f"{formats.joules(held[name])} a{'n' if title[0] in 'io' else ''} {title}"
                for name, title in DENOMINATORS
                if held[name] is not None
            )
            facts.append((f"Energy {words}", each or formats.DASH))
    if energy.get("idle_w") is not None:
        drift = energy.get("idle_drift")
        after = "" if drift is None else f", after the load {drift:+.1%} of before"
        facts.append(("Loaded idle", f"{energy['idle_w']:.1f} W{after}"))
    if energy.get("idle_gpus_j"):
        facts.append(("Other cards", f"{formats.joules(energy['idle_gpus_j'])}, not the server's"))
    if energy.get("phase"):
        phase = energy["phase"]
        facts.append(
            (
                f"{phase['phase'].capitalize()} alone",
                f"{formats.joules(phase['j_per_token'])} a token over {phase['tokens']:,} tokens, "
                "measured: the window holds no other phase",
            )
        )
    return facts


def attributed_facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    """Prices of prefill and decode by the model of docs/energy.md, or why there are none."""
    if not found:
        return []
    if found["status"] != "attributed":
        return [("Prefill and decode", f"{found['status']}: {'; '.join(found['reasons'])}")]
    facts = [
        (
            "Attributed" if number == 0 else "",
            f"{exponent(price['j_per_unit'])}{_error(price)} J a {WORK_WORDS[price['work']][0]}: "
            f"{price['attributed_j'] / found['measured_j']:.0%} of the energy",
        )
        for number, price in enumerate(found["prices"])
    ]
    facts.append(
        (
            "",
            f"attributed by a model, not measured; on windows that it did not learn from it was off by "
            f"{found['held_out_median_error']:.1%} in the median and {found['held_out_p90_error']:.1%} at "
            f"p90 ({found['windows']} windows); it left {found['unexplained_share']:+.1%} unexplained",
        )
    )
    return facts


def _error(price: dict[str, Any]) -> str:
    if price["work"] == "idle_s":
        return " (measured)"
    if price["standard_error"] is None:
        return " (at its bound)"
    return f" ± {exponent(price['standard_error'])}"


def exponent(value: float) -> str:
    """Three digits, with a power of ten where a plain decimal would be a row of zeros."""
    return f"{value:.3g}" if value == 0 or abs(value) >= 1e-3 else f"{value:.2e}"


def _cpu_facts(point: Point, energy: dict[str, Any]) -> list[tuple[str, str]]:
    cpu = energy.get("cpu") or {}
    if cpu.get("package"):
        dram = f", memory {formats.joules(_joules(cpu['dram']))}" if cpu.get("dram") else ""
        return [
            ("CPU energy", f"packages {formats.joules(_joules(cpu['package']))}{dram}, by RAPL")
        ]
    reason = cpu.get("reason") or "the host was not recorded"
    watts = _estimate_w(point, energy)
    if watts is None:
        return [("CPU energy", f"unavailable: {reason}")]
    found = cpu["estimate"]
    return [
        (
            "CPU energy",
            f"estimate, {found['low_j']:,.0f} to {found['high_j']:,.0f} J ({span(watts, 'W')}) by "
            f"{found['model']}; not measured: {reason}",
        )
    ]

"""Energy of a window: the difference of NVML's counter, cross-checked by integrated average power.

A window that fails a rule has no energy; its reasons say why, and the figures that were found stay beside
them. Only GPU board energy is measured, never the node's. docs/energy.md gives the protocol.

Times are CLOCK_MONOTONIC nanoseconds: the sampler's stamps and the client's are differences on one clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Protocol

import pandas as pd

from analysis.energy.cards import CardWindow, Joules, sum_of_all
from analysis.energy.cpu import cpu_energy
from analysis.energy.idle import IdlePower, idle_baseline
from analysis.energy.quantities import Measured, Scope, total
from analysis.energy.result import EnergyResult, PerWork
from analysis.energy.trust import RULES, Rules, card_flags, explain, reasons_against, unavailable
from analysis.statistics.rates import Ratio
from greenbench.contract.forms import Sources


class Counted(Protocol):
    """Work done in an interval. Input tokens count where their request's first token arrived."""

    @property
    def output(self) -> int: ...
    @property
    def input(self) -> int: ...
    @property
    def completions(self) -> int: ...


# Gross and, with the idle power (W), above-idle joules per work; the last argument is the aligned window.
PerWorkOf = Callable[[Joules, float, tuple[int, int]], dict[str, Ratio]]


@dataclass(frozen=True)
class EnergyInputs:
    """What the energy of one measured window is worked out from.

    ``gpu`` and ``host`` have the columns of GpuSample and HostSample, ``sources`` is sources.json, all as
    recorded. ``count`` gives the work between two monotonic moments: energy is taken between changes of
    the counter, so work is counted over exactly that interval. ``per`` relates the joules to the work
    (``analysis.point.joules``). ``server_gpus`` is how many cards the server was given: where its processes
    could not be found on the cards, others may be visible too, and which are its own is not known.
    """

    gpu: pd.DataFrame
    host: pd.DataFrame
    sources: Sources
    start_mono_ns: int
    end_mono_ns: int
    count: Callable[[int, int], Counted]
    per: PerWorkOf
    idle_before: IdlePower | None = None
    idle_after: IdlePower | None = None
    mean_residence_s: float | None = None
    server_gpus: int | None = None


def point_energy(inputs: EnergyInputs, rules: Rules = RULES) -> EnergyResult:
    """Energy of a measured window, and per output token, total token and request."""
    gpu, sources = inputs.gpu, inputs.sources
    asked_ns = inputs.start_mono_ns, inputs.end_mono_ns
    cpu = None if inputs.host.empty else cpu_energy(inputs.host, sources, *asked_ns)
    why_not = unavailable(gpu, sources)
    if why_not:
        return EnergyResult("unavailable", [], [why_not], [], cpu=cpu)
    window = CardWindow.of(gpu, sources, asked_ns, inputs.server_gpus)
    work = inputs.count(window.start_ns, window.end_ns)
    idle = idle_baseline(inputs.idle_before, inputs.idle_after, rules)
    reasons = reasons_against(window, sources, work.completions, inputs.mean_residence_s, rules)
    result = EnergyResult(
        status="invalid" if reasons else "measured",
        reasons=reasons,
        explain=[explain(reason, window) for reason in reasons],
        flags=[*idle.flags, *card_flags(window.per_gpu, rules)],
        start_mono_ns=window.start_ns,
        end_mono_ns=window.end_ns,
        window_s=window.seconds,
        idle_w=idle.power_w,
        idle_drift=idle.drift,
        counter_j=window.counter_j,
        integral_j=window.integral_j,
        counter_over_integral=window.counter_over_integral,
        gpus_measured=len(window.cards),
        gpus_wanted=len(window.wanted),
        per_gpu=window.per_gpu,
        cpu=cpu,
    )
    return result if reasons else _measured(result, window, inputs, work)


def _measured(
    result: EnergyResult, window: CardWindow, inputs: EnergyInputs, work: Counted
) -> EnergyResult:
    """The result of a window that passed every rule, with its figures filled in."""
    scope = _scope(inputs.sources, window.wanted)
    counted = [gpu.counter_j for gpu in window.per_gpu if gpu.counter_j is not None]
    energy = total(Measured(joules, scope, "nvml_counter") for joules in counted)
    edges = window.start_ns, window.end_ns
    gross = per_work(energy.joules, inputs.per(window.joules, 0.0, edges))
    above_idle = None
    if result.idle_w is not None:
        above_idle = per_work(
            energy.joules - result.idle_w * window.seconds,
            inputs.per(window.joules, result.idle_w, edges),
        )
    return replace(
        result,
        scope=scope,
        source=energy.provenance,
        energy_j=energy.joules,
        edge_error_j=sum_of_all(gpu.edge_error_j for gpu in window.per_gpu),
        power_w=energy.joules / window.seconds,
        flags=[*result.flags, *(["no_joules_per_work"] if gross.reason else [])],
        gross=gross,
        above_idle=above_idle,
        output_tokens=work.output,
        input_tokens=work.input,
        requests=work.completions,
        idle_gpus_j=sum_of_all(card.curve.energy_j(*edges) for card in window.others),
    )


def per_work(joules: float, ratios: dict[str, Ratio]) -> PerWork:
    """The window's joules, and its ratios by the names of PerWork's fields."""
    reasons = [ratio.reason for ratio in ratios.values() if ratio.reason]
    return PerWork(
        joules,
        ratios["j_per_output_token"].value,
        ratios["j_per_total_token"].value,
        ratios["j_per_request"].value,
        {k: r.standard_error for k, r in ratios.items() if r.standard_error is not None},
        {k: r.edge_error for k, r in ratios.items() if r.edge_error is not None},
        {k: r.trend for k, r in ratios.items() if r.trend is not None},
        ratios["j_per_request"].reason and reasons[0],
    )


def _scope(sources: Sources, wanted: list[str]) -> Scope:
    """What the cards' sensors cover: the GPU board, or the module (CPU + GPU) on Grace-Hopper."""
    scopes = {card.scope for card in sources.facts.gpus if card.uuid in wanted}
    return "module" if "module" in scopes else "gpu"

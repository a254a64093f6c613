"""What is known of a window's energy: plain values, as a point's file and the report hold them."""

from dataclasses import dataclass, field

from analysis.energy.cpu import CpuEnergy
from analysis.energy.quantities import Scope
from analysis.statistics.rates import Trend


@dataclass(frozen=True, slots=True)
class PerWork:
    """One numerator over the three denominators; None where there was no such work.

    ``j`` is the window's. Errors are by the names of the three, as ``analysis.statistics.rates`` defines
    them (standard errors in J, edge errors relative).
    """

    j: float
    j_per_output_token: float | None
    j_per_total_token: float | None
    j_per_request: float | None
    standard_errors: dict[str, float] = field(default_factory=dict[str, float])
    edge_errors: dict[str, float] = field(default_factory=dict[str, float])
    trends: dict[str, Trend] = field(default_factory=dict[str, Trend])
    reason: str | None = None


@dataclass(frozen=True, slots=True)
class GpuEnergy:
    """Readings of one card between the aligned edges."""

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
class EnergyResult:
    """JSON-able by ``dataclasses.asdict``. Every figure is None unless ``status`` is measured, except the
    findings in ``per_gpu``, ``counter_j`` and ``integral_j``, which say why a window was refused."""

    status: str  # measured | invalid | unavailable
    reasons: list[str]  # words of analysis.energy.trust.REASONS
    explain: list[str]  # one sentence each
    flags: list[str]  # allowed, but to be known
    start_mono_ns: int | None = None  # the aligned window; work is counted over exactly this
    end_mono_ns: int | None = None
    window_s: float | None = None
    scope: Scope | None = None
    source: str | None = None
    energy_j: float | None = None
    edge_error_j: float | None = None  # bound on the error from when the counter really changed
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

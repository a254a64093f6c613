"""Energy of the CPU: counted by RAPL where it can be read, else an interval from a power model.

The interval is wide because the models that others use disagree by two to four times at the same load. It is
an ``Estimated``, which adds to nothing measured.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from analysis.energy.quantities import Estimated, Measured, Scope, total
from analysis.energy.series import clean, integrate_hold
from greenbench.contract.forms import Sources

# Watts of package power a hardware thread, from makers' data sheets: AMD EPYC 9654 has 360 W for 192
# threads, Intel Core i9-13900K 253 W for 32. What this host's CPU has lies in between.
WATTS_PER_THREAD = (1.9, 7.9)
IDLE_SHARE = 0.1  # of the package power, in the lowest of the models
MODEL = "package power by thread count and load"


@dataclass(frozen=True, slots=True)
class CpuEnergy:
    """``measured`` by RAPL zone kind, or ``estimate``; the other is None. ``reason``: why not measured."""

    package: Measured | None = None
    dram: Measured | None = None
    estimate: Estimated | None = None
    reason: str | None = None


def cpu_energy(host: pd.DataFrame, sources: Sources, start_ns: int, end_ns: int) -> CpuEnergy:
    """Energy of all CPU packages between two monotonic moments.

    ``host`` has the columns of HostSample; the RAPL counters stand either in the column ``cpu_energy_uj``
    (dicts) or in one column ``cpu_energy_uj.<zone>`` each.
    """
    rapl = sources.source("rapl")
    if rapl and rapl.available and rapl.zones:
        try:
            package = _zones(host, rapl.zones, "cpu_package", "package", start_ns, end_ns)
            dram = _zones(host, rapl.zones, "dram", "dram", start_ns, end_ns)
            if package:
                return CpuEnergy(total(package), total(dram) if dram else None)
            reason = "no package zone among the readable ones"
        except ValueError as error:
            reason = str(error)
    else:
        reason = (rapl and rapl.reason) or "no counter of it (RAPL) was recorded"
    return CpuEnergy(estimate=estimate(host, sources, start_ns, end_ns), reason=reason)


def _zones(
    host: pd.DataFrame,
    spans: dict[str, int | None],
    scope: Scope,
    word: str,
    start_ns: int,
    end_ns: int,
) -> list[Measured]:
    """Energy of the zones of one kind; ``core`` zones lie inside ``package`` and are never added to it."""
    return [
        Measured.from_microjoules(_zone_uj(host, zone, span, start_ns, end_ns), scope, "rapl")
        for zone, span in spans.items()
        if zone.split(" ", 1)[-1].startswith(word)
    ]


def _zone_uj(
    host: pd.DataFrame, zone: str, span_uj: int | None, start_ns: int, end_ns: int
) -> float:
    """µJ of one zone, straight lines between samples. Raises ValueError with the reason when it cannot."""
    column = f"cpu_energy_uj.{zone}"
    if column in host:
        raw = host[column].to_numpy(dtype=np.float64)
    else:
        raw = np.array([_of(cell, zone) for cell in host["cpu_energy_uj"]])
    readings = clean(host["mono_ns"], raw)
    stamps, values = readings.mono_ns[readings.good], readings.values[readings.good]
    if not len(stamps) or stamps[0] > start_ns or stamps[-1] < end_ns:
        raise ValueError(f"window_not_bracketed: {zone} was not read before and after the window")
    gained = unwrap_uj(values, span_uj)
    start_uj, end_uj = np.interp([start_ns, end_ns], stamps, gained)
    return float(end_uj - start_uj)


def _of(cell: object, zone: str) -> float:
    return float(cell[zone]) if isinstance(cell, dict) and cell.get(zone) is not None else np.nan


def unwrap_uj(raw_uj: np.ndarray, span_uj: int | None) -> np.ndarray:
    """Cumulative µJ of a counter that wraps at ``span_uj``. A step over half the range could hide a wrap."""
    steps = np.diff(raw_uj)
    if span_uj is None:
        if (steps < 0).any():
            raise ValueError("counter_reset: the counter fell and its range is not known")
    else:
        steps = np.where(steps < 0, steps + span_uj, steps)
        if (steps > span_uj / 2).any():
            raise ValueError(
                "counter_wrap: a gap between samples is longer than half the counter's range"
            )
    return np.concatenate(([0.0], np.cumsum(steps)))


def estimate(host: pd.DataFrame, sources: Sources, start_ns: int, end_ns: int) -> Estimated | None:
    """The interval of CPU energy from load, thread count and two bounds on watts a thread.

    Low: P = W_low · (0.1 + 0.9 · load³). High: P = W_high · (0.5 + 0.5 · load). None without load samples.
    """
    threads = sources.facts.cpu.threads
    if not threads or host.empty:
        return None
    load = pd.to_numeric(host["cpu_busy_share"]).to_numpy(dtype=np.float64)
    low_w = threads * WATTS_PER_THREAD[0] * (IDLE_SHARE + (1 - IDLE_SHARE) * load**3)
    high_w = threads * WATTS_PER_THREAD[1] * (0.5 + 0.5 * load)
    low = integrate_hold(clean(host["mono_ns"], low_w), start_ns, end_ns)
    high = integrate_hold(clean(host["mono_ns"], high_w), start_ns, end_ns)
    if low is None or high is None:
        return None
    return Estimated(low.joules, high.joules, MODEL)

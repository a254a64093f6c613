"""Sensor readings of one GPU as curves: cumulative energy from the counter, and integrals of power.

The counter is exact at the moments it changes and says nothing in between. So energy is a difference
between changes; for an interval that starts or ends elsewhere the curve is straight from change to change,
which makes energies additive: any window equals the sum of its parts.

Times are CLOCK_MONOTONIC nanoseconds throughout.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]

AVERAGE_BOXCAR_S = 1.0  # NVML's average power is a 1 s boxcar from Ampere on
HOLD_PERIODS = 3  # a reading stands for at most this many sampling periods; then there is a gap
LONGEST_GAP_S = 1.0
LARGEST_GAP_SHARE = 0.01


@dataclass(frozen=True)
class Readings:
    """Stamps in order without repeats, and the values there; NaN where the read failed."""

    mono_ns: Ints
    values: Floats

    @property
    def good(self) -> npt.NDArray[np.bool_]:
        return np.isfinite(self.values)

    @property
    def period_ns(self) -> float:
        """Nominal sampling period: the lower quartile of the gaps, which dropped samples do not reach."""
        return float(np.quantile(np.diff(self.mono_ns), 0.25)) if len(self.mono_ns) > 1 else np.nan


def clean(mono_ns: npt.ArrayLike, values: npt.ArrayLike) -> Readings:
    """Sort by time, keep the first of equal stamps, and make what no sensor can read (≤ 0, inf) NaN."""
    stamps = np.asarray(mono_ns, dtype=np.int64)
    read = np.asarray(values, dtype=np.float64)
    stamps, first = np.unique(stamps, return_index=True)
    read = read[first]
    return Readings(stamps, np.where(np.isfinite(read) & (read > 0), read, np.nan))


@dataclass(frozen=True)
class EnergyCurve:
    """Cumulative joules of one GPU. ``at_ns`` are the moments at which a change of the counter was seen.

    ``late_ns`` is how long before that the change can really have been: the gap to the sample before.
    """

    at_ns: Ints
    joules: Floats
    late_ns: Ints
    first_ns: int  # of all counter samples, changed or not
    last_ns: int
    sample_ns: Ints
    resets_ns: tuple[int, ...]

    def aligned(self, start_ns: int, end_ns: int) -> tuple[int, int] | None:
        """First change at or after the start, last change at or before the end."""
        inside = self.at_ns[(self.at_ns >= start_ns) & (self.at_ns <= end_ns)]
        return (int(inside[0]), int(inside[-1])) if len(inside) > 1 else None

    def energy_j(self, start_ns: int, end_ns: int) -> float | None:
        """Joules between two moments; None when the changes do not enclose them."""
        if not len(self.at_ns) or start_ns < self.at_ns[0] or end_ns > self.at_ns[-1]:
            return None
        start_j, end_j = np.interp([start_ns, end_ns], self.at_ns, self.joules)
        return float(end_j - start_j)

    def brackets(self, start_ns: int, end_ns: int) -> bool:
        return self.first_ns <= start_ns and end_ns <= self.last_ns

    def reset_inside(self, start_ns: int, end_ns: int) -> bool:
        return any(start_ns <= at <= end_ns for at in self.resets_ns)

    def longest_gap_s(self, start_ns: int, end_ns: int) -> float:
        """Longest time between two counter samples that touches the window."""
        before = max(int(np.searchsorted(self.sample_ns, start_ns, side="right")) - 1, 0)
        after = int(np.searchsorted(self.sample_ns, end_ns, side="left")) + 1
        gaps = np.diff(self.sample_ns[before:after])
        return float(gaps.max() / 1e9) if len(gaps) else np.inf

    def edge_error_s(self, start_ns: int, end_ns: int) -> float:
        """How far the length of an aligned window can be off: a change is seen up to one gap late."""
        edges = np.searchsorted(self.at_ns, [start_ns, end_ns])
        return float(self.late_ns[np.minimum(edges, len(self.late_ns) - 1)].max() / 1e9)


def energy_curve(mono_ns: npt.ArrayLike, counter_mj: npt.ArrayLike) -> EnergyCurve | None:
    """The curve of one GPU's counter (mJ); None when it was never read. A fall is a reset, and is kept."""
    readings = clean(mono_ns, counter_mj)
    stamps, values = readings.mono_ns[readings.good], readings.values[readings.good]
    if not len(stamps):
        return None
    steps = np.diff(values)
    changed = np.flatnonzero(steps != 0) + 1
    # a reset adds nothing: what was used around it is not known, and its windows are refused
    gained = np.concatenate(([0.0], np.cumsum(np.maximum(steps, 0.0)))) / 1e3
    return EnergyCurve(
        at_ns=stamps[changed],
        joules=gained[changed],
        late_ns=np.diff(stamps)[changed - 1],
        first_ns=int(stamps[0]),
        last_ns=int(stamps[-1]),
        sample_ns=stamps,
        resets_ns=tuple(int(at) for at in stamps[1:][steps < 0]),
    )


@dataclass(frozen=True)
class Integral:
    """Joules under a power curve, and how much of the window no reading stands for."""

    joules: float
    gap_share: float
    longest_gap_s: float

    @property
    def whole(self) -> bool:
        return self.gap_share <= LARGEST_GAP_SHARE and self.longest_gap_s <= LONGEST_GAP_S


def integrate_hold(readings: Readings, start_ns: int, end_ns: int) -> Integral | None:
    """∫ power (W) over the window: each reading holds until the next, clipped to the edges.

    None when no reading stands before the end.
    """
    good = readings.good
    stamps = readings.mono_ns[good]
    watts = readings.values[good]
    if not len(stamps) or stamps[0] > end_ns or end_ns <= start_ns:
        return None
    ends = np.append(stamps[1:], np.inf)
    held_ns = np.clip(np.minimum(ends, end_ns) - np.maximum(stamps, start_ns), 0, None)
    joules = float((watts * held_ns).sum() / 1e9)
    # the time before the first reading belongs to no reading, and neither does what one is held too long
    head_ns = max(0.0, float(stamps[0] - start_ns))
    limit_ns = HOLD_PERIODS * readings.period_ns
    stale_from = np.maximum(stamps + limit_ns, start_ns)
    stale_ns = np.clip(np.minimum(ends, end_ns) - stale_from, 0, None).sum() + head_ns
    touching = held_ns > 0
    spans = np.minimum(ends, end_ns)[touching] - stamps[touching]
    longest_ns = max(float(spans.max()) if len(spans) else np.inf, head_ns)
    return Integral(joules, float(stale_ns / (end_ns - start_ns)), longest_ns / 1e9)


def refresh_ns(readings: Readings) -> float:
    """How long the sensor shows one value: the median time between changes, at least one sampling period."""
    good = readings.good
    changes = readings.mono_ns[good][1:][np.diff(readings.values[good]) != 0]
    shown = float(np.median(np.diff(changes))) if len(changes) > 1 else 0.0
    return max(shown, readings.period_ns)


def integrate_average(readings: Readings, start_ns: int, end_ns: int) -> Integral | None:
    """∫ of NVML's average power, whose every reading is the mean of the second before it.

    So the energy of one second is the reading at its end, and a window is a row of such seconds from its
    start and from its end to the middle. What is left over there, under a second, is taken at the reading
    centred on it. Shifting the curve by half a second instead would smear the steps at the edges, where
    load starts and stops. A reading is on average half a refresh older than its stamp.
    """
    coverage = integrate_hold(readings, start_ns, end_ns)
    if coverage is None:
        return None
    boxcar_ns = round(AVERAGE_BOXCAR_S * 1e9)
    seconds, rest_ns = divmod(end_ns - start_ns, boxcar_ns)
    head = start_ns + boxcar_ns * np.arange(1, (seconds + 1) // 2 + 1)
    tail = end_ns - boxcar_ns * np.arange(seconds - len(head))
    rest_at = start_ns + boxcar_ns * len(head) + (rest_ns + boxcar_ns) / 2
    good = readings.good
    at = np.concatenate((head, tail, [rest_at])) + refresh_ns(readings) / 2
    watts = np.interp(at, readings.mono_ns[good], readings.values[good])
    lengths_s = np.append(np.full(seconds, AVERAGE_BOXCAR_S), rest_ns / 1e9)
    return Integral(float(watts @ lengths_s), coverage.gap_share, coverage.longest_gap_s)

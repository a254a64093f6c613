"""The measured window of a point: the one definition that every number of the report rests on.

``steady_window`` looks inside the measure phase for a stretch in which the load stood at its target and the
KV pool did not drift. Finding none makes the point invalid; the whole run is never taken instead. What it
leaves out is said, and it never looks for a stretch in which the server was fast: a server that slows down
is a finding (``pace``), and too much of it makes the point invalid. ``ml_energy_window`` is ML.ENERGY's
definition under its own name, for comparison with its published figures.
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from analysis.runs.activity import Activity, Series, in_flight, mean_level, steps_within
from greenbench.contract.clock import NS_PER_S as NS
from greenbench.contract.counted import counted
from greenbench.contract.enough import WINDOW_REQUESTS


@dataclass(frozen=True)
class WindowRule:
    """Limits of ``steady_window``. Shares are relative; every one of them is named in docs/method.md."""

    running_share: float = 0.95  # of the closed loop's users: in flight from here to there
    mean_running_share: float = 0.95  # of the users, time-weighted over the window
    hole_share: float = 0.03  # longest stretch below running_share, of the window (or 1 s)
    kv_drift_share: float = 0.10  # second half against first half, of the mean …
    kv_drift_pool: float = 0.05  # … or of the whole pool, whichever is larger
    rate_drift: float = 0.10  # open loop: completions of the second half to the first
    pace_drift: float = (
        0.10  # mean request time of the second half to the first: from here on said …
    )
    pace_limit: float = 1.5  # … and beyond this ratio either way a closed loop has no steady state
    min_residences: float = 3.0  # window length over the mean time in the server
    min_completions: int = WINDOW_REQUESTS  # the fewest for which a median has a 95 % interval
    steps: int = 10  # the search trims by tenths …
    kept_share: float = 0.5  # … and keeps at least so much, or it would find calm by chance


@dataclass(frozen=True)
class Pace:
    """Mean request time of the window's two halves, where they differ."""

    early_s: float
    late_s: float

    @property
    def log_change(self) -> float:
        return math.log(self.late_s / self.early_s)


@dataclass(frozen=True)
class WindowEvidence:
    """The figures that a window was judged by; None where it was refused before they were worked out.

    ``left_out``: what the search cut from the stretch, and why. ``pace`` is None for a steady one.
    """

    mean_in_flight: float | None = None
    mean_residence_s: float | None = None
    completions: int | None = None
    left_out: str | None = None
    pace: Pace | None = None


@dataclass(frozen=True)
class Window:
    """``reasons`` is empty for a window that may be used; ``evidence`` holds the figures behind it."""

    definition: str
    start_unix_ns: int
    end_unix_ns: int
    reasons: tuple[str, ...] = ()
    evidence: WindowEvidence = WindowEvidence()

    @property
    def residence_s(self) -> float:
        """Mean time of a request in the server; 0 where none was seen."""
        return self.evidence.mean_residence_s or 0.0

    @property
    def duration_s(self) -> float:
        return (self.end_unix_ns - self.start_unix_ns) / NS

    @property
    def valid(self) -> bool:
        return not self.reasons


def steady_window(
    load: Activity,
    phase_ns: tuple[int, int],
    users: int | None,
    kv_usage: Series | None = None,
    rule: WindowRule | None = None,
) -> Window:
    """The longest steady stretch of the measure phase (``phase_ns``, unix ns).

    Closed loop (``users`` given): it starts when the open requests first reach ``running_share`` of the
    users and ends when they last stood there, so ramps at both ends fall away. Open loop: the phase,
    minus one mean residence at its start for the server to fill. If the load or the KV pool drifts in that
    stretch, tenths are cut from either end, the shortest cut first, and ``left_out`` says so. None that
    holds: invalid, with what drifted. The pace is judged over the stretch before any cut.
    """
    rule = rule or WindowRule()
    if len(load.start_ns) == 0:
        return Window("steady", *phase_ns, ("no request reached the server",))
    times, levels = in_flight(load.held)
    bounds = _bounds(load, times, levels, phase_ns, users, rule)
    if isinstance(bounds, str):
        return Window("steady", *phase_ns, (bounds,))
    first, last = bounds
    pace, too_much = _pace(load, bounds, users, rule)
    if too_much is not None:
        _, evidence = _judge(load, times, levels, bounds, users, kv_usage, rule)
        evidence = replace(evidence, pace=pace)
        return Window("steady", round(first), round(last), (too_much,), evidence)
    full: tuple[str, ...] = ()
    step = (last - first) / rule.steps
    most = round(rule.steps * (1 - rule.kept_share))
    cuts = [(a, b) for a in range(most + 1) for b in range(most + 1 - a)]
    for head, tail in sorted(cuts, key=lambda cut: (sum(cut), cut[1])):
        start, end = first + head * step, last - tail * step
        reasons, evidence = _judge(load, times, levels, (start, end), users, kv_usage, rule)
        if not reasons:
            cut_s, whole_s = (head + tail) * step / NS, (last - first) / NS
            left_out = (
                f"{cut_s:.1f} of {whole_s:.1f} s: {'; '.join(full)}" if head or tail else None
            )
            evidence = replace(evidence, left_out=left_out, pace=pace)
            return Window("steady", round(start), round(end), (), evidence)
        full = full or reasons
    _, evidence = _judge(load, times, levels, (first, last), users, kv_usage, rule)
    return Window("steady", round(first), round(last), full, replace(evidence, pace=pace))


def _bounds(
    load: Activity,
    times: np.ndarray,
    levels: np.ndarray,
    phase_ns: tuple[int, int],
    users: int | None,
    rule: WindowRule,
) -> tuple[float, float] | str:
    start, end = float(phase_ns[0]), float(phase_ns[1])
    if users is None:
        ramp_end = float(load.start_ns[0]) + load.mean_residence_s * NS
        return (
            (max(start, ramp_end), end)
            if ramp_end < end
            else "the server was still filling when it ended"
        )
    edges, values = steps_within(times, levels, start, end)
    at_target = np.flatnonzero(values >= rule.running_share * users)
    if len(at_target) == 0:
        most = f"{values.max():.0f} of {counted(users, 'request')}"
        return f"the load never stood at its target: at most {most} were open"
    return float(edges[at_target[0]]), float(edges[at_target[-1] + 1])


def _judge(
    load: Activity,
    times: np.ndarray,
    levels: np.ndarray,
    span: tuple[float, float],
    users: int | None,
    kv_usage: Series | None,
    rule: WindowRule,
) -> tuple[tuple[str, ...], WindowEvidence]:
    """Why ``span`` is not steady (nothing: it is), and the figures it was judged by."""
    start, end = span
    middle = (start + end) / 2
    length_s = (end - start) / NS
    residence_s = load.mean_residence_s
    ended = (load.end_ns >= start) & (load.end_ns < end)
    done = load.end_ns[ended]
    halves = (int(np.sum(done < middle)), int(np.sum(done >= middle)))
    level = mean_level(times, levels, start, end) if end > start else 0.0
    open_level = (
        level if load.held_ns is None else mean_level(*in_flight(load), start, max(end, start + 1))
    )
    evidence = WindowEvidence(round(open_level, 3), round(residence_s, 4), len(done))
    reasons: list[str] = []
    if length_s < rule.min_residences * residence_s:
        reasons.append(
            f"{length_s:.1f} s is shorter than {rule.min_residences:g} times "
            f"the mean time of a request ({residence_s:.1f} s)"
        )
    if len(done) < rule.min_completions:
        reasons.append(
            f"only {counted(len(done), 'request')} ended in it, {rule.min_completions} are needed"
        )
    if users is not None:
        reasons += _closed_level(times, levels, span, level, users, rule)
    else:
        reasons += _rate_drift(halves, rule) + _open_level(times, levels, span, level, residence_s)
    if kv_usage is not None:
        reasons += _kv_drift(kv_usage, span, rule)
    return tuple(reasons), evidence


def _rate_drift(halves: tuple[int, int], rule: WindowRule) -> list[str]:
    """Counting noise of Poisson completions is allowed for: 1.96 standard errors of the difference."""
    total = sum(halves)
    if total == 0:
        return []
    difference = abs(halves[1] - halves[0]) / total
    allowed = max(rule.rate_drift / 2, 1.96 / math.sqrt(total))
    if difference <= allowed:
        return []
    return [
        f"the completion rate drifted: {counted(halves[0], 'request')} ended in its first half, "
        f"{halves[1]} after"
    ]


def _pace(
    load: Activity, span: tuple[float, float], users: int | None, rule: WindowRule
) -> tuple[Pace | None, str | None]:
    """Mean request time of each half, where they differ beyond the limit and two standard errors (Welch);
    and why that is no steady state. Of an open loop the open requests decide that.
    """
    ended = (load.end_ns >= span[0]) & (load.end_ns < span[1])
    done, took_s = load.end_ns[ended], (load.end_ns[ended] - load.start_ns[ended]) / NS
    before_s, after_s = (took_s[done < sum(span) / 2], took_s[done >= sum(span) / 2])
    if len(before_s) < 3 or len(after_s) < 3:
        return None, None
    first, second = float(np.mean(before_s)), float(np.mean(after_s))
    error = math.sqrt(
        np.var(before_s, ddof=1) / len(before_s) + np.var(after_s, ddof=1) / len(after_s)
    )
    if abs(second - first) <= max(rule.pace_drift * first, 2 * error):
        return None, None
    pace = Pace(first, second)
    if users is None or max(first, second) <= rule.pace_limit * min(first, second):
        return pace, None
    words = f"the mean request time drifted from {first:.3g} s in its first half to {second:.3g} s"
    return pace, words


def _closed_level(
    times: np.ndarray,
    levels: np.ndarray,
    span: tuple[float, float],
    level: float,
    users: int,
    rule: WindowRule,
) -> list[str]:
    reasons: list[str] = []
    if level < rule.mean_running_share * users:
        reasons.append(f"on average {level:.1f} of {counted(users, 'request')} were open")
    edges, values = steps_within(times, levels, *span)
    below = values < rule.running_share * users
    longest_s = _longest_run(edges, below) / NS
    if longest_s > max(1.0, rule.hole_share * (span[1] - span[0]) / NS):
        reasons.append(
            f"fewer than {counted(users, 'request', 'was', 'were')} open for {longest_s:.1f} s on end"
        )
    return reasons


def _longest_run(edges: np.ndarray, flags: np.ndarray) -> float:
    longest = current = 0.0
    for width, flag in zip(np.diff(edges), flags, strict=True):
        current = current + width if flag else 0.0
        longest = max(longest, current)
    return longest


def _open_level(
    times: np.ndarray,
    levels: np.ndarray,
    span: tuple[float, float],
    level: float,
    residence_s: float,
) -> list[str]:
    """Open requests must not trend. Noise allowed for, in standard deviations of a steady M/G/∞ server:
    2 of the difference of the halves' means, each about sqrt(2·level·residence/half), and 2 of the
    difference between end and start, sqrt(2·level).
    """
    start, end = span
    middle = (start + end) / 2
    before, after = (
        mean_level(times, levels, start, middle),
        mean_level(times, levels, middle, end),
    )
    half_s = (end - start) / 2 / NS
    noise = math.sqrt(2 * max(level, 0.1) * residence_s / half_s)
    grown = _level_at(times, levels, end) - _level_at(times, levels, start)
    calm = abs(after - before) <= max(0.1 * level, 2 * math.sqrt(2) * noise)
    if calm and abs(grown) <= max(2.0, 2 * math.sqrt(2 * level)):
        return []
    trend = "grew" if after > before else "fell"
    hint = ": more arrives than the server can serve" if after > before else ""
    return [f"open requests {trend} from {before:.1f} to {after:.1f}{hint}"]


def _level_at(times: np.ndarray, levels: np.ndarray, at_ns: float) -> int:
    index = int(np.searchsorted(times, at_ns, side="right")) - 1
    return int(levels[index]) if index >= 0 else 0


def _kv_drift(kv_usage: Series, span: tuple[float, float], rule: WindowRule) -> list[str]:
    middle = (span[0] + span[1]) / 2
    first, second = (
        kv_usage.within(span[0], middle).values,
        kv_usage.within(middle, span[1]).values,
    )
    if len(first) < 2 or len(second) < 2:
        return []
    before, after = float(np.mean(first)), float(np.mean(second))
    if abs(after - before) <= max(rule.kv_drift_share * (before + after) / 2, rule.kv_drift_pool):
        return []
    return [f"KV usage drifted from {before:.2f} to {after:.2f}"]


def ml_energy_window(requests: pd.DataFrame, max_num_seqs: int) -> Window:
    """ML.ENERGY Benchmark's window over all requests of the run.

    It opens when ``max_num_seqs`` requests have had a first token and closes when all but
    ``max_num_seqs + 1`` have ended. With fewer users than ``max_num_seqs`` the users stand in for it.
    """
    good = requests[requests["error_type"].isna() & requests["first_token_ns"].notna()]
    sent = good["sent_unix_ns"].to_numpy(dtype=float)
    firsts = np.sort(sent + good["first_token_ns"].to_numpy(dtype=float))
    ends = np.sort(sent + good["end_ns"].to_numpy(dtype=float))
    if len(firsts) < 2 * max_num_seqs + 2:
        at = int(sent.min()) if len(sent) else 0
        are = counted(len(firsts), "request", "is", "are")
        reason = f"{are} too few for {max_num_seqs} at a time"
        return Window("ml_energy", at, at, (reason,))
    start, end = firsts[max_num_seqs - 1], ends[len(ends) - max_num_seqs - 2]
    reasons = () if end > start else ("it closes before it opens",)
    return Window("ml_energy", round(start), round(max(start, end)), reasons)

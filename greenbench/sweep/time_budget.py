"""How long a sweep takes, and what of it fits into a time: repeats go first, then contexts, then loads.

Pure: what was measured before is handed in (``greenbench.sweep.stopwatch``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from greenbench.contract.config import PointConfig, SweepConfig
from greenbench.contract.errors import UserError
from greenbench.sweep.order import ServerStart

# Guesses for what was never measured; the first start replaces them.
BOOT_S = 45.0
STOP_S = 5.0
AROUND_S = 8.0  # of a point: its recorder and load generator start, open requests drain, answers are graded
PREFILL_PER_S = {False: 6_000.0, True: 40_000.0}  # prompt tokens a second, without and with a GPU
JOULES_S = 75.0  # an auto point on a GPU: 60 s for the joules and what is not steady
STEADY_S = 30.0  # an auto point on a CPU


@dataclass(frozen=True)
class Times:
    """Seconds that were measured: of a server's boot (``ServerStart.server``), of its points by workload."""

    boot_s: Mapping[str, float] = field(default_factory=dict[str, float])
    point_s: Mapping[tuple[str, str], float] = field(default_factory=dict[tuple[str, str], float])
    gpus: bool = False

    def boot(self, server: str) -> float:
        known = self.boot_s.get(server)
        return (max(self.boot_s.values(), default=BOOT_S) if known is None else known) + STOP_S

    def point(self, server: str, point: PointConfig) -> float:
        known = self.point_s.get((server, point.workload))
        if known is not None:
            return known
        others = [s for (_, workload), s in self.point_s.items() if workload == point.workload]
        return max(others) if others else guess_s(point, self.gpus)


def guess_s(point: PointConfig, gpus: bool) -> float:
    """Of a point like which none was measured. A number of requests is guessed by their prompt tokens."""
    phases = point.phases
    measure_s = _measure_s(point, gpus)
    if phases.requests is not None:
        by_tokens = phases.requests * point.context_tokens / PREFILL_PER_S[gpus]
        measure_s = min(measure_s, by_tokens)
    return phases.warmup_s + measure_s + AROUND_S


def _measure_s(point: PointConfig, gpus: bool) -> float:
    phases = point.phases
    return (
        min(phases.longest_s, JOULES_S if gpus else STEADY_S) if phases.auto else phases.longest_s
    )


def start_s(start: ServerStart, points: Sequence[PointConfig], times: Times) -> float:
    """Seconds of one server start with these points; 0 without any."""
    if not points:
        return 0.0
    idle_s = 2 * points[0].telemetry.idle_s
    own_s = sum(times.point(start.server, point) for point in points)
    boot_s = 0.0 if is_running(start) else times.boot(start.server)
    return boot_s + idle_s + own_s


def is_running(start: ServerStart) -> bool:
    """Whether the server runs already, at an address of its own; the sweep starts none."""
    return start.request.server.base_url is not None


Work = Sequence[tuple[ServerStart, Sequence[PointConfig]]]  # each start with its pending points


def total_s(work: Work, times: Times) -> float:
    return sum(start_s(start, points, times) for start, points in work)


@dataclass(frozen=True)
class Scope:
    """A part of a sweep that is the same for all candidates."""

    repeats: int
    contexts: tuple[int, ...]
    loads: tuple[str, ...]  # labels

    def holds(self, point: PointConfig) -> bool:
        return (
            point.repeat < self.repeats
            and point.context_tokens in self.contexts
            and point.load.label in self.loads
        )

    def of(self, work: Work) -> list[tuple[ServerStart, list[PointConfig]]]:
        return [(start, [p for p in points if self.holds(p)]) for start, points in work]


def whole(sweep: SweepConfig) -> Scope:
    loads = tuple(load.label for load in sweep.loads)
    return Scope(sweep.repeats, tuple(sorted(sweep.contexts)), loads)


def scopes(full: Scope) -> Iterator[Scope]:
    """From all of it to the least: fewer repeats, then fewer contexts, then fewer loads.

    Of the contexts the shortest and the longest stay longest, since crossovers lie between them; at last the
    longest. Of the loads the first stays.
    """
    for repeats in range(full.repeats, 0, -1):
        yield Scope(repeats, full.contexts, full.loads)
    contexts = full.contexts
    while len(contexts) > 1:
        middle = len(contexts) // 2 if len(contexts) > 2 else 0
        contexts = contexts[:middle] + contexts[middle + 1 :]
        yield Scope(1, contexts, full.loads)
    for count in range(len(full.loads) - 1, 0, -1):
        yield Scope(1, contexts, full.loads[:count])


def fitting(sweep: SweepConfig, work: Work, times: Times, within_s: float) -> Scope:
    """The largest part with pending work that fits. UserError where not even the least does."""
    pending = [scope for scope in scopes(whole(sweep)) if any(own for _, own in scope.of(work))]
    for scope in pending:
        if total_s(scope.of(work), times) <= within_s:
            return scope
    least = pending[-1]
    needed = total_s(least.of(work), times)
    raise UserError(
        f"sweep '{sweep.name}': about {minutes(needed)} are needed for one start of each candidate at one "
        f"context ({least.contexts[0]:,} tokens), and there are {minutes(max(within_s, 0))}; give more "
        "time with --within, or list fewer candidates"
    )


def trimmed(full: Scope, scope: Scope) -> str | None:
    """What is left out, one sentence; None where nothing is."""
    left: list[str] = []
    if scope.repeats < full.repeats:
        left.append(f"{scope.repeats} of {full.repeats} repeats")
    if gone := [f"{c:,}" for c in full.contexts if c not in scope.contexts]:
        left.append(f"no context of {', '.join(gone)} tokens")
    if gone := [load for load in full.loads if load not in scope.loads]:
        left.append(f"no load {', '.join(gone)}")
    if not left:
        return None
    return f"to fit the time, for all candidates alike: {'; '.join(left)}; run again to go on"


def minutes(seconds: float) -> str:
    """``45 s``, ``12 min``, ``3 h 10 min``."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    whole_min = round(seconds / 60)
    return f"{whole_min} min" if whole_min < 120 else f"{whole_min // 60} h {whole_min % 60} min"


def estimate(work: Work, times: Times) -> str:
    """e.g. ``about 14 min: 3 server starts, 18 points``."""
    pending = [(start, points) for start, points in work if points]
    starts = sum(not is_running(start) for start, _ in pending)
    points = sum(len(own) for _, own in pending)
    return f"about {minutes(total_s(work, times))}: {_many(starts, 'server start')}, {_many(points, 'point')}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"

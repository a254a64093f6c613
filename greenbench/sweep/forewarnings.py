"""What a sweep's report will lack, as far as the plan tells: said by ``--dry-run``, before hours are lost."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

from greenbench.contract.config import PhaseConfig, PointConfig, ServerRequest, SweepConfig
from greenbench.contract.counted import counted
from greenbench.contract.enough import (
    JOULES_REQUESTS,
    JOULES_S,
    PERCENTILES,
    WINDOW_REQUESTS,
    needed,
)
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.sweep.child_processes import ServerStage, StageError


def forewarnings(sweep: SweepConfig, points: list[PointConfig], gpus: bool) -> list[str]:
    """A sentence for each thing that the report will not be able to say. ``gpus``: this host has some."""
    said = [*_too_short(sweep.phases, gpus), *_too_few(points)]
    if sweep.repeats > 1 and any(who.server.base_url for who in sweep.contenders):
        said.append(
            f"repeats: {sweep.repeats} at a running server are {sweep.repeats} times the same start, and "
            "show none of what differs from start to start"
        )
    return said


def _too_short(phases: PhaseConfig, gpus: bool) -> Iterator[str]:
    key = "cap_s" if phases.auto else "measure_s"
    if gpus and phases.longest_s < JOULES_S:
        yield (
            f"'{key}' is {phases.longest_s:g}: no joules, which need a steady window of {JOULES_S:g} s "
            f"with {JOULES_REQUESTS} requests; a little more than that, {JOULES_S * 1.25:g}, is enough"
        )


def _too_few(points: list[PointConfig]) -> Iterator[str]:
    """By the most requests that a point can measure, where the plan bounds them."""
    seen: dict[str, tuple[int, int]] = {}
    for point in points:
        if (most := most_requests(point)) is not None:
            wanted = point.phases.percentile if point.phases.auto else max(PERCENTILES)
            seen.setdefault(point.workload, (most, wanted))
    for workload, (most, wanted) in seen.items():
        lacking = [
            f"p{p} ({needed(p):,})"
            for p in reversed(PERCENTILES[1:])
            if p <= wanted and most < needed(p)
        ]
        measured = f"{workload}: about {counted(most, 'request', 'is', 'are')} measured"
        if most < WINDOW_REQUESTS:
            yield (
                f"{measured}; below {WINDOW_REQUESTS} a point has no steady window and is invalid; measure "
                "longer or raise 'requests'"
            )
        elif lacking:
            yield f"{measured}, too few for {', '.join(lacking)}"


def most_requests(point: PointConfig) -> int | None:
    """How many requests the measured phase can hold; None where only the server's pace bounds them."""
    phases, load = point.phases, point.load
    rate = max(load.rate_per_s or 0, load.ramp_to_per_s or 0)
    by_rate = round(rate * phases.longest_s) if rate else None
    bounds = [bound for bound in (by_rate, phases.requests) if bound is not None]
    return min(bounds, default=None)


def of_running_server(request: ServerRequest) -> list[str]:
    """What a running server says of itself that speaks against the sweep, or why it does not answer."""
    if request.server.base_url is None:
        return []
    try:
        with tempfile.TemporaryDirectory() as folder:
            stage = ServerStage(request, Path(folder) / "probe")
            return against(stage.start(lambda: None), request)
    except (StageError, UserError) as error:
        return [str(error)]


def against(server: Server, request: ServerRequest) -> list[str]:
    """Of a server that was found running: settings that make the sweep's points invalid."""
    cached = server.shown.prefix_caching
    if request.server.base_url is None or not cached or request.server.prefix_caching:
        return []
    return [
        f"the server at {server.base_url} has prefix caching on: points whose prompts it has seen before are "
        "invalid (prefix_cache_hits); start it with --no-enable-prefix-caching, or say 'server: "
        "{prefix_caching: true}' in the sweep"
    ]

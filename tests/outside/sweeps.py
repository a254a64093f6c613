"""Sweeps of pretended servers: starts with noise, and the shapes that several tests share."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from tests.outside.generator import Point, Power, in_time
from tests.outside.playing import Load, Pace, Phases

ALL_RIGHT = frozenset(range(32))


def starts(
    candidates: Sequence[Point],
    n: int,
    sd: float = 0.0,
    seed: int = 1,
    shared: bool = True,
    blocks: Sequence[float] = (),
    sds: Mapping[str, float] | None = None,
) -> list[Point]:
    """Each of ``candidates`` (one a backend, context, task and load) started ``n`` times.

    ``sd``: of the log of a start's time factor; ``sds`` gives it by task. ``shared``: a server's start
    slows all of its points alike, else each point draws its own. ``blocks``: factors that all points of a
    repeat share, as a machine that warms up has them.
    """
    rng = np.random.default_rng(seed)
    found: list[Point] = []
    for repeat in range(n):
        server: dict[tuple[object, ...], float] = {}
        for point in candidates:
            key = (point.backend, str(point.options), str(point.server), point.arm)
            if not shared or key not in server:
                server[key] = float(rng.standard_normal())
            own = (sds or {}).get(point.task, sd)
            block = blocks[repeat % len(blocks)] if blocks else 1.0
            factor = point.factor * block * float(np.exp(own * server[key]))
            power = point.power_factor * float(np.exp(own / 2 * rng.standard_normal()))
            found.append(
                replace(
                    point,
                    repeat=repeat,
                    factor=factor,
                    power_factor=power if point.power else 1.0,
                    noise_seed=point.noise_seed + seed,
                )
            )
    return in_time(found)


def at_contexts(point: Point, contexts: Iterable[int], power: float = 1.0) -> list[Point]:
    """``point`` at each context: its prefill grows as context ** ``power``, its step stays."""
    return [
        replace(
            point,
            context=context,
            pace=replace(
                point.pace, prefill_s=point.pace.prefill_s * (context / point.context) ** power
            ),
        )
        for context in contexts
    ]


def other_split(pace: Pace, users: int, tokens: int, share: float) -> Pace:
    """A pace of the same cycle and so the same throughput, with ``share`` times the prefill."""
    prefill_s = pace.prefill_s * share
    weight = users if pace.schedule == "alternating" else 1
    step_s = pace.step_s + weight * (pace.prefill_s - prefill_s) / (tokens - 1)
    assert step_s > 0, "the other split leaves no time to decode"
    return replace(pace, prefill_s=prefill_s, step_s=step_s)


def equal_pair(users: int = 8, context: int = 8192, power: Power | None = None) -> list[Point]:
    """Two candidates that are the same in all but their name."""
    one = Point(
        backend="alpha",
        pace=Pace(0.45, 0.07),
        load=Load(users, "in step"),
        context=context,
        right=ALL_RIGHT,
        power=power,
    )
    return [one, replace(one, backend="beta")]


def split_pair(start: str = "in step", schedule: str = "alternating") -> list[Point]:
    """8 users, 8k tokens: equal throughput, request time and power; alpha prefills in half of beta's time.

    A cycle is 8 · 0.6 + 63 · 0.05 = 7.95 s, in 70 s 8.8 of them.
    """
    users, tokens = 8, 64
    one_step = 0.05 if schedule == "alternating" else 0.05 / users
    beta = Pace(0.6, one_step, schedule=schedule)  # type: ignore[arg-type]
    alpha = other_split(beta, users, tokens, 0.5)
    load = Load(users, start)  # type: ignore[arg-type]
    one = Point(pace=alpha, load=load, right=ALL_RIGHT, output_tokens=tokens, power=Power())
    return [replace(one, backend="alpha"), replace(one, backend="beta", pace=beta)]


def long_pair() -> list[Point]:
    """131k tokens, two users evenly staggered, 70 s; a cycle is 2 · 6 + 6 = 18 s, or 2 · 3 + 12."""
    tokens = 64
    one = Point(
        context=131_072,
        load=Load(2, "staggered"),
        phases=Phases(warmup_s=5.0, measure_s=70.0),
        output_tokens=tokens,
        right=ALL_RIGHT,
        slo={"ttft_s": 100.0},
        power=Power(),
    )
    return [
        replace(one, backend="alpha", pace=Pace(3.0, 12.0 / (tokens - 1))),
        replace(one, backend="beta", pace=Pace(6.0, 6.0 / (tokens - 1))),
    ]


def faster(point: Point, backend: str, factor: float) -> Point:
    """The same in all but the name and ``factor`` times the time for everything."""
    return replace(point, backend=backend, factor=point.factor * factor)

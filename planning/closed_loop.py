"""A closed loop played on one server: a user's next request goes out when the reply to the last is over.

Users of equal requests keep the order and the distances in which they were served, so who waits how long is
settled by small differences. Each request's way to the engine is therefore drawn.
"""

import heapq
from collections.abc import Callable, Iterable

import numpy as np

from planning.requests import Traffic
from planning.simulator import Engine, Job, Played, played


def play_users(
    users: int,
    requests: Iterable[tuple[int, int]],
    engine: Engine,
    coming_s: Callable[[float, int], float],
    until_s: float,
    cached: float = 0.0,
) -> tuple[Traffic, Played]:
    """Requests (prompt, output tokens) in order, sent until ``until_s`` and played to their end; the traffic
    has the times at which they come to the engine. ``coming_s``: when a request does, by the time of the last
    token of the reply before it and the tokens of its prompt.
    """
    lengths = iter(requests)
    coming: list[tuple[float, int, int]] = []  # heap: time, prompt, output
    for _ in range(users):
        _send(coming, 0.0, lengths, coming_s)
    jobs: list[Job] = []
    last = 0.0
    while coming or engine.steps_due:
        if coming and coming[0][0] < engine.end_s:
            at, prompt, output = heapq.heappop(coming)
            job = Job(len(jobs), at, prompt, engine.settings.found(prompt, cached), output)
            jobs.append(job)
            engine.arrive(job, at)
            continue
        last = engine.end_s
        for job in engine.finish():
            if job.end_s < until_s:
                _send(coming, job.end_s, lengths, coming_s)
    asked = Traffic(
        np.array([job.arrived_s for job in jobs]),
        np.array([job.prompt for job in jobs]),
        np.array([job.output for job in jobs]),
        f"{users} users",
    )
    return asked, played(jobs, asked, np.zeros(len(jobs), dtype=np.int64), (engine,), last)


def _send(
    coming: list[tuple[float, int, int]],
    at: float,
    lengths: Iterable[tuple[int, int]],
    coming_s: Callable[[float, int], float],
) -> None:
    following = next(iter(lengths), None)
    if following is not None:
        heapq.heappush(coming, (coming_s(at, following[0]), *following))

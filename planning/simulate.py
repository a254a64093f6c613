"""Pools of servers that share their time among the requests they hold: a small model of queueing.

A request at a server passes two stages, prefill and decode. While n requests are open there, each of its
stages goes on at one over the time that it takes at n open requests, as measured. So a full closed loop of
one length takes exactly the measured times; of a mix, each request is slowed by how many others there are,
not by how long they are. Requests that the KV cache does not hold wait in order of arrival.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from planning.curves import Floats, Paces
from planning.requests import Traffic

DONE = 1e-9  # of the time: what is nearer to its end than this is there


@dataclass(slots=True)
class Job:
    """A request at a server. ``left``: share of its stage that is still to do."""

    request: int
    kv_tokens: int
    tokens: int  # after the first
    left: float = 1.0
    decoding: bool = False
    joules: float = 0.0


@dataclass(slots=True)
class Server:
    """``ttft``, ``tpot``, ``watts``: by request and number of open requests less one."""

    pool: str
    ttft: list[list[float]]
    tpot: list[list[float]]
    watts: list[list[float]] | None
    total_kv_tokens: int | None
    most_open: int
    running: list[Job] = field(default_factory=list[Job])
    waiting: deque[Job] = field(default_factory=deque[Job])
    held_kv_tokens: int = 0
    now: float = 0.0

    @property
    def open(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def free_kv_tokens(self) -> int | None:
        return None if self.total_kv_tokens is None else self.total_kv_tokens - self.held_kv_tokens

    def stage_s(self, job: Job, opened: int) -> float:
        """Of the job's present stage, whole, with so many open requests."""
        row = self.tpot if job.decoding else self.ttft
        one = row[job.request][min(opened, self.most_open) - 1]
        return one * job.tokens if job.decoding else one

    def next_at(self) -> float:
        n = len(self.running)
        if not n:
            return math.inf
        return self.now + min(job.left * self.stage_s(job, n) for job in self.running)

    def advance(self, to: float) -> None:
        n, passed = len(self.running), to - self.now
        self.now = to
        for job in self.running:
            whole = self.stage_s(job, n)
            job.left = job.left - passed / whole if whole > 0 else 0.0
            if self.watts is not None:
                job.joules += self.watts[job.request][min(n, self.most_open) - 1] * passed

    def admit(self) -> None:
        """From the queue, in order, what fits."""
        while self.waiting and len(self.running) < self.most_open:
            free = self.free_kv_tokens
            if free is not None and self.running and self.waiting[0].kv_tokens > free:
                return
            job = self.waiting.popleft()
            self.held_kv_tokens += job.kv_tokens
            self.running.append(job)


Router = Callable[[int, Sequence[Server]], int | None]  # request → server, None: nobody may take it


@dataclass(frozen=True)
class Outcome:
    """By request; NaN where nobody took it. ``server``: its number, −1 where nobody."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    joules: Floats
    server: np.ndarray

    @property
    def unserved(self) -> int:
        return int((self.server < 0).sum())


def server(
    pool: str, of: Paces, total_kv_tokens: int | None, most_open: int | None = None
) -> Server:
    """``most_open``: requests that may run at once; at most those that ``of`` knows."""
    known = of.ttft_s.shape[1]
    return Server(
        pool,
        of.ttft_s.tolist(),
        of.tpot_s.tolist(),
        None if of.watts is None else of.watts.tolist(),
        total_kv_tokens,
        min(known, most_open or known),
    )


def simulate(traffic: Traffic, servers: Sequence[Server], route: Router) -> Outcome:
    """Play the traffic; ``servers`` must be new ones."""
    n = len(traffic)
    first, end = np.full(n, np.nan), np.full(n, np.nan)
    joules, taken = np.full(n, np.nan), np.full(n, -1)
    arrivals = traffic.at_s.tolist()
    prompts, outputs = traffic.prompt_tokens.tolist(), traffic.output_tokens.tolist()
    following = [math.inf] * len(servers)
    number = 0
    while True:
        arrives = arrivals[number] if number < n else math.inf
        who = min(range(len(servers)), key=following.__getitem__)
        if arrives == math.inf and following[who] == math.inf:
            break
        if following[who] <= arrives:
            one, now = servers[who], following[who]
            one.advance(now)
            _finish(one, now, first, end, joules)
        else:
            chosen = route(number, servers)
            request, number = number, number + 1
            if chosen is None:
                continue
            who, now, one = chosen, arrives, servers[chosen]
            one.advance(now)
            taken[request] = who
            tokens = outputs[request] - 1
            one.waiting.append(Job(request, prompts[request] + outputs[request], tokens))
            one.admit()
        following[who] = one.next_at()
    with np.errstate(divide="ignore", invalid="ignore"):
        tpot = np.where(
            traffic.output_tokens > 1, (end - first) / (traffic.output_tokens - 1), np.nan
        )
    return Outcome(first - traffic.at_s, tpot, end - traffic.at_s, joules, taken)


def _finish(one: Server, now: float, first: Floats, end: Floats, joules: Floats) -> None:
    """Jobs whose stage is done go on to the next, or leave."""
    stay: list[Job] = []
    n, near_s = len(one.running), DONE * max(1.0, now)
    for job in one.running:
        if job.left * one.stage_s(job, n) > near_s:
            stay.append(job)
            continue
        if not job.decoding:
            first[job.request] = now
            if job.tokens > 0:
                job.decoding, job.left = True, 1.0
                stay.append(job)
                continue
        end[job.request] = now
        joules[job.request] = job.joules
        one.held_kv_tokens -= job.kv_tokens
    one.running = stay
    one.admit()

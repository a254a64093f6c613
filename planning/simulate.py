"""Pools of servers that share their time among the requests they hold: a small model of queueing.

A request at a server passes two stages, prefill and decode. While n requests are open there, each of its
stages goes on at one over the time that it takes at n open requests, as measured. So a full closed loop of
one length takes exactly the measured times; of a mix, each request is slowed by how many others there are,
not by how long they are. Requests that the KV cache does not hold wait in order of arrival.
"""

import math
from collections import deque
from collections.abc import Callable, Sequence, Sized
from dataclasses import dataclass, field, replace
from typing import Protocol

import numpy as np

from planning.curves import Floats, Ints, Paces
from planning.requests import Traffic

DONE = 1e-9  # of the time: what is nearer to its end than this is there


@dataclass(slots=True, eq=False)
class Job:
    """A request at a server. ``left``: share of its stage that is still to do; ``first_s``: of its first
    token, NaN before. ``server``: its number.
    """

    request: int
    server: int
    prompt_tokens: int
    output_tokens: int
    left: float = 1.0
    first_s: float = math.nan
    end_s: float = math.nan
    joules: float = 0.0

    @property
    def kv_tokens(self) -> int:
        return self.prompt_tokens + self.output_tokens

    @property
    def decoding(self) -> bool:
        return self.first_s == self.first_s


class Holder(Protocol):
    """A server as a policy sees it."""

    @property
    def pool(self) -> str: ...
    @property
    def running(self) -> Sized: ...
    @property
    def waiting(self) -> Sized: ...
    @property
    def open(self) -> int: ...
    @property
    def free_kv_tokens(self) -> int | None: ...
    @property
    def total_kv_tokens(self) -> int | None: ...


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
        return one * (job.output_tokens - 1) if job.decoding else one

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

    def take(self, job: Job, at: float) -> None:
        self.advance(at)
        self.waiting.append(job)
        self.admit()

    def admit(self) -> None:
        """From the queue, in order, what fits."""
        while self.waiting and len(self.running) < self.most_open:
            free = self.free_kv_tokens
            if free is not None and self.running and self.waiting[0].kv_tokens > free:
                return
            job = self.waiting.popleft()
            self.held_kv_tokens += job.kv_tokens
            self.running.append(job)

    def copy(self) -> "Server":
        """Of its own state; a waiting job has none."""
        return replace(
            self, running=[replace(job) for job in self.running], waiting=self.waiting.copy()
        )

    def emptied(self) -> "Server":
        return replace(self, running=[], waiting=deque(), held_kv_tokens=0, now=0.0)


Router = Callable[[int, Sequence[Server]], int | None]  # request → server, None: nobody may take it


@dataclass(frozen=True)
class Arrivals:
    """A traffic as plain lists: when, prompt tokens, output tokens."""

    at_s: list[float]
    prompt_tokens: list[int]
    output_tokens: list[int]

    def job(self, request: int, server: int) -> Job:
        return Job(request, server, self.prompt_tokens[request], self.output_tokens[request])


def arrivals_of(traffic: Traffic) -> Arrivals:
    return Arrivals(
        traffic.at_s.tolist(), traffic.prompt_tokens.tolist(), traffic.output_tokens.tolist()
    )


@dataclass(frozen=True)
class Outcome:
    """By request; NaN where nobody took it. ``server``: its number, −1 where nobody."""

    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    joules: Floats
    server: Ints

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
    """Play the traffic; ``servers`` are empty."""
    n = len(traffic)
    first, end, joules = (np.full(n, np.nan) for _ in range(3))
    taken = np.full(n, -1)
    for job in run(arrivals_of(traffic), servers, route, 0, n):
        first[job.request], end[job.request] = job.first_s, job.end_s
        joules[job.request], taken[job.request] = job.joules, job.server
    after = np.where(traffic.output_tokens > 1, traffic.output_tokens - 1, np.nan)
    at = traffic.at_s
    return Outcome(first - at, (end - first) / after, end - at, joules, taken)


def run(
    arrivals: Arrivals, servers: Sequence[Server], route: Router, number: int, upto: int
) -> list[Job]:
    """Requests ``number`` to ``upto`` arrive at servers as they stand, until all that is open is done."""
    done: list[Job] = []
    following = [one.next_at() for one in servers]
    while True:
        arrives = arrivals.at_s[number] if number < upto else math.inf
        who = min(range(len(servers)), key=following.__getitem__)
        if arrives == math.inf and following[who] == math.inf:
            return done
        if following[who] <= arrives:
            one = servers[who]
            one.advance(following[who])
            done += _finished(one)
        else:
            request, number = number, number + 1
            chosen = route(request, servers)
            if chosen is None:
                continue
            who, one = chosen, servers[chosen]
            one.take(arrivals.job(request, who), arrives)
        following[who] = one.next_at()


def _finished(one: Server) -> list[Job]:
    """Jobs whose stage is done go on to the next, or leave; those that left."""
    n, near_s = len(one.running), DONE * max(1.0, one.now)
    ready = [job for job in one.running if job.left * one.stage_s(job, n) <= near_s]
    left: list[Job] = []
    for job in ready:
        if not job.decoding:
            job.first_s = one.now
            if job.output_tokens > 1:
                job.left = 1.0
                continue
        job.end_s = one.now
        one.held_kv_tokens -= job.kv_tokens
        left.append(job)
    one.running = [job for job in one.running if job not in left] if left else one.running
    one.admit()
    return left

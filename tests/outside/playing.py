"""A pretended server played event by event: when each request was sent and each of its tokens came.

The truth is chosen, so expected figures are arithmetic. Written from docs/contract.md by an outside
author: nothing of the project is imported. Times are seconds after the start of the warm-up.
"""

import heapq
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

Schedule = Literal["alternating", "shared", "alone"]
Start = Literal["in step", "staggered", "random"]
Arrivals = Literal["poisson", "constant", "gamma"]
TURNAROUND_S = 0.0005  # scale of a client's time from the end of an answer to the next sending


@dataclass(frozen=True)
class Pace:
    """How one candidate serves one context.

    ``alternating``: a waiting prompt is prefilled alone, in ``prefill_s``, while the running requests stand
    still; else ``step_s`` gives each of them a token. With U users and K tokens each user's cycle is
    U·prefill_s + (K − 1)·step_s, however the users are staggered.
    ``shared``: the open requests share the server equally (processor sharing); a request alone takes
    ``prefill_s`` to its first token and ``step_s`` a token from there.
    ``alone``: requests do not disturb each other.

    ``request_sd``: relative sd of a request's prefill, and of each stretch of decoding.
    ``tpot_modes``: factors on ``step_s`` that requests take in turn (``alone`` only).
    ``slower_from``: (share of the measured phase, factor): from that moment on all takes so much longer.
    ``failed``: share of the requests that the server refuses, spread evenly.
    """

    prefill_s: float = 0.5
    step_s: float = 0.02
    schedule: Schedule = "alternating"
    request_sd: float = 0.002
    tpot_modes: tuple[float, ...] = (1.0,)
    slower_from: tuple[float, float] | None = None
    failed: float = 0.0

    def cycle_s(self, users: int, tokens: int) -> float:
        """Of one user in a full closed loop, without noise and turnaround."""
        if self.schedule == "alternating":
            return users * self.prefill_s + (tokens - 1) * self.step_s
        one = self.prefill_s + (tokens - 1) * self.step_s
        return users * one if self.schedule == "shared" else one


@dataclass(frozen=True)
class Load:
    """``users`` in a closed loop that begin as ``start`` says, or arrivals at ``rate_per_s``."""

    users: int | None = 4
    start: Start = "random"
    rate_per_s: float | None = None
    arrivals: Arrivals = "poisson"
    burstiness: float = 1.0  # shape of the gamma distribution of the gaps
    told: tuple[
        tuple[str, object], ...
    ] = ()  # further fields of the configuration, told and not played


@dataclass(frozen=True)
class Phases:
    warmup_s: float = 10.0
    measure_s: float = 70.0


@dataclass(frozen=True)
class Played:
    """Requests in order of sending, one row each; ``tokens_s`` has a column a token (NaN where it failed).

    ``busy``: (until when, prefill | decode | idle) stretch by stretch.
    """

    sent_s: np.ndarray
    scheduled_s: np.ndarray | None
    end_s: np.ndarray
    tokens_s: np.ndarray
    failed: np.ndarray
    busy: list[tuple[float, str]]


def arrival_times(load: Load, until_s: float, rng: np.random.Generator) -> np.ndarray:
    """Moments of an open loop before ``until_s``."""
    assert load.rate_per_s is not None
    n = int(until_s * load.rate_per_s * 2) + 50
    if load.arrivals == "constant":
        gaps = np.ones(n)
    else:
        shape = load.burstiness if load.arrivals == "gamma" else 1.0
        gaps = rng.gamma(shape, 1 / shape, n)
    at = np.cumsum(gaps) / load.rate_per_s
    return at[at < until_s]


def play(
    pace: Pace,
    load: Load,
    phases: Phases,
    tokens: int,
    seed: int,
    factor: float,
    arrivals_seed: int = 0,
) -> Played:
    """``factor`` multiplies every time of this start of the server. Arrivals of an open loop go by their own
    seed: they are the same for every candidate and start.
    """
    rng = np.random.default_rng(seed)
    until_s = phases.warmup_s + phases.measure_s
    if load.users is None:
        first = arrival_times(load, until_s, np.random.default_rng(arrivals_seed))
    else:
        first = np.sort(_beginnings(pace, load, tokens, factor, rng))
    run = _Run(pace, tokens, until_s, phases, factor, rng, closed=load.users is not None)
    for at in first:
        run.arrive(float(at))
    {"alternating": _alternating, "shared": _shared, "alone": _alone}[pace.schedule](run)
    return run.played(scheduled=load.users is None)


def _beginnings(
    pace: Pace, load: Load, tokens: int, factor: float, rng: np.random.Generator
) -> np.ndarray:
    assert load.users is not None
    cycle_s = pace.cycle_s(load.users, tokens) * factor
    if load.start == "in step":
        return rng.exponential(TURNAROUND_S, load.users)
    if load.start == "staggered":
        return np.arange(load.users) / load.users * cycle_s
    return rng.uniform(0, cycle_s, load.users)


class _Run:
    """What the schedules share: who is due, who fails, what became of each."""

    def __init__(
        self,
        pace: Pace,
        tokens: int,
        until_s: float,
        phases: Phases,
        factor: float,
        rng: np.random.Generator,
        closed: bool,
    ) -> None:
        self.pace, self.tokens, self.until_s, self.closed = pace, tokens, until_s, closed
        self._factor, self._phases = factor, phases
        self._noise: Iterator[float] = iter(())
        self._rng = rng
        self.due: list[tuple[float, int]] = []  # (sending, number)
        self.sent: list[float] = []
        self.end: list[float] = []
        self.failed: list[bool] = []
        self.token_rows: dict[int, np.ndarray] = {}
        self.busy: list[tuple[float, str]] = []

    def arrive(self, at: float) -> None:
        if at >= self.until_s:
            return
        number = len(self.sent)
        self.sent.append(at)
        self.end.append(math.nan)
        share = self.pace.failed
        self.failed.append(math.floor((number + 1) * share) > math.floor(number * share))
        heapq.heappush(self.due, (at, number))

    def finish(self, number: int, at: float) -> None:
        self.end[number] = at
        if self.closed:
            pause = 0.1 if self.failed[number] else TURNAROUND_S * (0.5 + abs(self.draw()))
            self.arrive(at + pause)

    def noise(self) -> float:
        """Relative, mean one."""
        return 1 + self.pace.request_sd * self.draw()

    def draw(self) -> float:
        for value in self._noise:
            return value
        self._noise = iter(np.clip(self._rng.standard_normal(4096), -4, 4).tolist())
        return next(self._noise)

    def slowness(self, at: float) -> float:
        if self.pace.slower_from is None:
            return self._factor
        share, factor = self.pace.slower_from
        moment = self._phases.warmup_s + share * self._phases.measure_s
        return self._factor * (factor if at >= moment else 1.0)

    def played(self, scheduled: bool) -> Played:
        order = np.argsort(np.array(self.sent), kind="stable")
        rows = np.full((len(order), self.tokens), np.nan)
        for place, number in enumerate(order):
            row = self.token_rows.get(int(number))
            if row is not None:
                rows[place] = row
        sent = np.array(self.sent)[order]
        return Played(
            sent_s=sent + 0.0003 if scheduled else sent,
            scheduled_s=sent if scheduled else None,
            end_s=np.array(self.end)[order] + 0.0001,
            tokens_s=rows,
            failed=np.array(self.failed)[order],
            busy=self.busy,
        )


def _alternating(run: _Run) -> None:
    """Prefill first, at once: it interrupts a step of the running requests, which goes on after it."""
    tokens = run.tokens
    waiting: list[int] = []
    running: list[
        tuple[float, int]
    ] = []  # (moment on the clock of steps at which it is done, number)
    seg_step, seg_at, seg_each = [0.0], [0.0], [0.0]
    first_step: dict[int, float] = {}
    first_at: dict[int, float] = {}
    step, t = 0.0, 0.0
    while run.due or waiting or running:
        while run.due and run.due[0][0] <= t:
            _, number = heapq.heappop(run.due)
            if run.failed[number]:
                run.finish(number, t + 0.002)
            else:
                waiting.append(number)
        if waiting:
            number = waiting.pop(0)
            t += run.pace.prefill_s * run.slowness(t) * run.noise()
            run.busy.append((t, "prefill"))
            first_step[number], first_at[number] = step, t
            if tokens == 1:
                run.finish(number, t)
            else:
                heapq.heappush(running, (step + tokens - 1, number))
        elif running:
            each = run.pace.step_s * run.slowness(t) * run.noise()
            steps = running[0][0] - step
            if run.due:
                steps = min(steps, (run.due[0][0] - t) / each)
            seg_step.append(step)
            seg_at.append(t)
            seg_each.append(each)
            step += steps
            t = t + steps * each if steps == running[0][0] - seg_step[-1] else run.due[0][0]
            run.busy.append((t, "decode"))
            while running and running[0][0] <= step + 1e-9:
                run.finish(heapq.heappop(running)[1], t)
        elif run.due:
            t = max(t, run.due[0][0])
            run.busy.append((t, "idle"))
    steps_, ats, eachs = np.array(seg_step), np.array(seg_at), np.array(seg_each)
    for number, start in first_step.items():
        wanted = start + np.arange(1, tokens) - 1e-9
        place = np.searchsorted(steps_, wanted, side="left") - 1
        later = ats[place] + (wanted - steps_[place]) * eachs[place]
        run.token_rows[number] = np.concatenate(([first_at[number]], later))


def _shared(run: _Run) -> None:
    """Processor sharing by a virtual clock that runs at 1 / (open requests)."""
    virtual, t = 0.0, 0.0
    clock_v, clock_t = [0.0], [0.0]
    open_: list[tuple[float, int]] = []
    spans: dict[int, tuple[float, float]] = {}  # number -> virtual moments of first and last token
    while run.due or open_:
        rate = run.slowness(t) * max(1, len(open_))
        finish_t = t + (open_[0][0] - virtual) * rate if open_ else math.inf
        if run.due and run.due[0][0] <= finish_t:
            at, number = heapq.heappop(run.due)
            at = max(at, t)
            if open_:
                virtual += (at - t) / rate
            run.busy.append((at, "decode" if open_ else "idle"))
            t = at
            if run.failed[number]:
                run.finish(number, t + 0.002)
            else:
                noise = run.noise()
                first = virtual + run.pace.prefill_s * noise
                last = first + (run.tokens - 1) * run.pace.step_s * run.noise()
                spans[number] = (first, last)
                heapq.heappush(open_, (last, number))
        else:
            virtual, number = heapq.heappop(open_)
            t = finish_t
            run.busy.append((t, "decode"))
            run.finish(number, t)
        clock_v.append(virtual)
        clock_t.append(t)
    v, at_t = np.array(clock_v), np.array(clock_t)
    for number, (first, last) in spans.items():
        wanted = np.linspace(first, last, run.tokens)
        # the first stretch that reaches the moment: idle time, in which the clock stands, comes after it
        place = np.clip(np.searchsorted(v, wanted, side="left"), 1, len(v) - 1)
        share = (wanted - v[place - 1]) / np.maximum(v[place] - v[place - 1], 1e-15)
        run.token_rows[number] = at_t[place - 1] + np.minimum(share, 1) * (
            at_t[place] - at_t[place - 1]
        )


def _alone(run: _Run) -> None:
    modes = run.pace.tpot_modes
    good = 0
    while run.due:
        at, number = heapq.heappop(run.due)
        if run.failed[number]:
            run.finish(number, at + 0.002)
            continue
        slow = run.slowness(at)
        step_s = run.pace.step_s * modes[good % len(modes)] * slow * run.noise()
        good += 1
        first = at + run.pace.prefill_s * slow * run.noise()
        row = first + step_s * np.arange(run.tokens)
        run.token_rows[number] = row
        run.busy.append((float(row[-1]), "decode"))
        run.finish(number, float(row[-1]))
    run.busy.sort()

"""Closed loops whose truth is known: users on a server that prefills one prompt at a time and decodes the
others together, or shares its pace among them.

The server is event driven. A request is prefilled alone, first come first served, and decoding waits
meanwhile (as a step with a long prompt makes it wait); then it decodes with all that are in decode. Power is
one figure while a prompt is prefilled, another while only decoding. The *truth* is the rate of the same
loop over many more cycles.
"""

import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

NS = 1_000_000_000
T0_NS = 1_795_000_000 * NS


@dataclass(frozen=True)
class Loop:
    """Seconds and tokens; ``noise`` is the relative sd of each request's prefill and decode work."""

    users: int
    prefill_s: float  # a prompt, alone on the server
    decode_s: float  # all output tokens of a request, whoever else decodes
    prompt_tokens: int = 8192
    output_tokens: int = 128
    stagger_s: float = 0.0  # the users' first requests are spread over so long
    noise: float = 0.0
    prefill_w: float = 690.0
    decode_w: float = 520.0
    slower_from_s: float | None = None  # from here on all takes ``slower`` times as long
    slower: float = 1.0
    think_s: float = 0.0
    fails_every: int | None = None  # each n-th request fails at once
    quantum_s: float | None = None  # prompts take turns in pieces of so long (chunked prefill)


@dataclass
class _Request:
    user: int
    sent_s: float
    prefill_left_s: float
    decode_left_s: float
    first_s: float | None = None
    end_s: float = 0.0
    failed: bool = False


@dataclass
class Played:
    """Requests in order of sending, and the card's power as steps: ``watts[i]`` from ``at_s[i]`` on."""

    requests: pd.DataFrame
    at_s: list[float] = field(default_factory=list)
    watts: list[float] = field(default_factory=list)

    def energy_j(self, start_s: np.ndarray, end_s: np.ndarray) -> np.ndarray:
        at = np.array(self.at_s)
        joules = np.concatenate(([0.0], np.cumsum(np.diff(at) * np.array(self.watts[:-1]))))
        return np.interp(end_s, at, joules) - np.interp(start_s, at, joules)


def play(loop: Loop, until_s: float, seed: int = 0) -> Played:
    """Users send until ``until_s``; what is open then is served to its end, as in a drain."""
    rng = random.Random(seed)
    done: list[_Request] = []
    coming = deque(
        sorted((k * loop.stagger_s / loop.users, k) for k in range(loop.users))
    )  # (moment, user)
    waiting: deque[_Request] = deque()
    decoding: list[_Request] = []
    at_s: list[float] = []
    watts: list[float] = []
    now = 0.0

    def draw(work_s: float) -> float:
        return work_s * max(0.05, rng.gauss(1.0, loop.noise)) if loop.noise else work_s

    def finish(request: _Request) -> None:
        request.end_s = now
        done.append(request)
        coming.append((now + loop.think_s, request.user))

    while True:
        coming = deque(sorted(coming))
        while coming and coming[0][0] <= now + 1e-12:
            moment, user = coming.popleft()
            if moment >= until_s:
                continue
            request = _Request(user, moment, draw(loop.prefill_s), draw(loop.decode_s))
            if loop.fails_every and (len(done) + 1) % loop.fails_every == 0:
                request.failed, request.end_s = True, moment + 0.1
                done.append(request)
                coming.append((moment + 0.2, user))
                coming = deque(sorted(coming))
                continue
            waiting.append(request)
        if not waiting and not decoding and not coming:
            break
        slow = loop.slower if loop.slower_from_s is not None and now >= loop.slower_from_s else 1.0
        next_arrival = coming[0][0] - now if coming else float("inf")
        change = (
            loop.slower_from_s - now
            if loop.slower_from_s is not None and now < loop.slower_from_s
            else float("inf")
        )
        at_s.append(now)
        if waiting:
            watts.append(loop.prefill_w)
            head = waiting[0]
            # a piece ends before the next arrival only when prompts take turns; else the prompt runs through
            piece = min(head.prefill_left_s, loop.quantum_s or float("inf"))
            step = min(piece * slow, change)
            now += step
            head.prefill_left_s -= step / slow
            if head.prefill_left_s <= 1e-12:
                waiting.popleft()
                head.first_s = now
                decoding.append(head)
            elif loop.quantum_s is not None:
                waiting.rotate(-1)
            continue
        if decoding:
            watts.append(loop.decode_w)
            step = min(min(r.decode_left_s for r in decoding) * slow, next_arrival, change)
            now += step
            for request in decoding:
                request.decode_left_s -= step / slow
            over = [r for r in decoding if r.decode_left_s <= 1e-12]
            decoding = [r for r in decoding if r.decode_left_s > 1e-12]
            for request in over:
                finish(request)
            continue
        watts.append(0.0)
        now += min(next_arrival, change)
    at_s.append(now)
    watts.append(0.0)
    return Played(_frame(loop, done), at_s, watts)


def _frame(loop: Loop, done: list[_Request]) -> pd.DataFrame:
    done = sorted(done, key=lambda r: r.sent_s)
    sent = [T0_NS + round(r.sent_s * NS) for r in done]
    return pd.DataFrame(
        {
            "user": [r.user for r in done],
            "sent_unix_ns": sent,
            "first_token_ns": [
                None if r.first_s is None else float(round((r.first_s - r.sent_s) * NS))
                for r in done
            ],
            "end_ns": [
                float(T0_NS + round(r.end_s * NS) - s) for r, s in zip(done, sent, strict=True)
            ],
            "output_tokens": float(loop.output_tokens),
            "prompt_tokens": float(loop.prompt_tokens),
            "error_type": ["http_5xx" if r.failed else None for r in done],
            "conversation": None,
            "turn": None,
        }
    )


@dataclass(frozen=True)
class Case:
    """Two candidates of one throughput and power that split prefill and decode differently.

    A user's cycle is its own decode and all users' prefills, e.g. 8·0.4 + 4.0 = 8·0.6 + 2.4 = 7.2 s whatever
    the split, and the power of decode is chosen so that a cycle takes equal joules.
    """

    users: int
    prompt_tokens: int
    one: tuple[float, float]  # prefill and decode of a request, seconds
    other: tuple[float, float]
    staggered: bool  # the users' first requests, evenly over a cycle
    measure_s: float = 70

    @property
    def cycle_s(self) -> float:
        return self.users * self.one[0] + self.one[1]


CASES = {
    "8k, 8 users in step": Case(8, 8192, (0.4, 4.0), (0.6, 2.4), False),
    "8k, 8 users staggered": Case(8, 8192, (0.4, 4.0), (0.6, 2.4), True),
    "131k, 2 users staggered": Case(2, 131_072, (5.0, 8.0), (7.0, 4.0), True),
    "131k, 2 users in step": Case(2, 131_072, (5.0, 8.0), (7.0, 4.0), False, 75),
}
POWER_W = 600.0


def pair(case: Case, noise: float) -> list[Loop]:
    loops: list[Loop] = []
    for prefill_s, decode_s in (case.one, case.other):
        busy_s = case.users * prefill_s
        assert abs(busy_s + decode_s - case.cycle_s) < 1e-9
        decode_w = (POWER_W * case.cycle_s - busy_s * 690.0) / decode_s
        loops.append(
            Loop(
                case.users,
                prefill_s,
                decode_s,
                prompt_tokens=case.prompt_tokens,
                stagger_s=case.cycle_s if case.staggered else 0.0,
                noise=noise,
                prefill_w=690.0,
                decode_w=decode_w,
            )
        )
    return loops

"""vLLM's scheduler played with a step-time model: discrete events, no clock of its own.

A step: every request past its prompt decodes one token; what is left of ``max_num_batched_tokens`` goes to
the earliest prompts, in chunks; a waiting request starts while fewer than ``max_num_seqs`` run and the cache
has blocks for its chunk. Where the decodes lack a block the request that started last is preempted: it loses
its blocks and computes all of its tokens anew. Steps between which nothing comes, starts or ends take a sum
that is known in closed form, so they are one event.

A share of each prompt may be found in the prefix cache; its blocks are counted once for every request, as if
none were shared.
"""

import heapq
import math
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import numpy.typing as npt

from planning.requests import Traffic
from planning.step_time import Shape, Terms

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Waits = Literal["max_num_seqs", "kv", "tokens"]  # for which limit the queue's first request waits
Router = Callable[[int, Sequence["Engine"]], int | None]
ASKED = 20  # times in a play whether it is to go on


@dataclass(frozen=True, slots=True)
class Settings:
    """Of one server. ``total_kv_tokens`` None: its cache is never full; ``max_model_len`` None: no limit.
    ``ahead``: asynchronous scheduling, a step is composed when the one before it begins.
    """

    max_num_seqs: int
    max_num_batched_tokens: int
    block_size: int = 16
    total_kv_tokens: int | None = None
    max_model_len: int | None = None
    ahead: bool = False

    def takes(self, tokens: int) -> bool:
        """Whether a request of so many tokens, output included, can be served at all."""
        longest = self.max_model_len is None or tokens <= self.max_model_len
        return longest and (self.total_kv_tokens is None or tokens <= self.total_kv_tokens)

    def found(self, prompt: int, cached: float) -> int:
        """Tokens of a prompt in the prefix cache, which holds the share ``cached``: whole blocks, not all."""
        return min(int(cached * prompt), prompt - 1) // self.block_size * self.block_size


@dataclass(frozen=True, slots=True)
class Costs:
    """A step-time model ready to be asked. ``of_tokens``: seconds by a step's tokens; ``pair_s``, ``read_s``:
    (window or None, seconds a query–key pair) and (…, seconds a token of context that a decode reads).
    """

    of_tokens: tuple[float, ...]
    launch_s: float  # of those seconds, what every step takes
    sequence_s: float
    token_s: float  # of those seconds, what a token computes
    pair_s: tuple[tuple[int | None, float], ...]
    read_s: tuple[tuple[int, float], ...]  # with a window
    full_read_s: float
    widest: int = 0  # window

    def chunk_s(self, new: int, past: int) -> float:
        total = 0.0
        for window, seconds in self.pair_s:
            if window is None:
                total += seconds * (new * past + new * (new + 1) / 2)
            else:
                growing = min(max(window - past, 0), new)
                pairs = growing * past + growing * (growing + 1) / 2 + (new - growing) * window
                total += seconds * pairs
        return total


def costs(shape: Shape, terms: Terms, most_tokens: int) -> Costs:
    """``most_tokens``: of a step."""
    return Costs(
        of_tokens=tuple(
            terms.launch
            + terms.weights * shape.weight_bytes(tokens)
            + terms.linear * shape.linear_flops * tokens
            for tokens in range(most_tokens + 1)
        ),
        launch_s=terms.launch,
        sequence_s=terms.sequence,
        token_s=terms.linear * shape.linear_flops,
        pair_s=tuple((m.window, terms.attention * m.flops_per_pair) for m in shape.mixes),
        read_s=tuple(
            (m.window, terms.kv * m.bytes_per_token) for m in shape.mixes if m.window is not None
        ),
        full_read_s=sum(terms.kv * m.bytes_per_token for m in shape.mixes if m.window is None),
        widest=max((m.window for m in shape.mixes if m.window is not None), default=0),
    )


@dataclass(slots=True, eq=False)
class Job:
    """A request at a server. ``computed``: tokens in the KV cache before its prompt is through;
    ``ends_at``: the number of the step after which it leaves, once it decodes.
    """

    number: int
    arrived_s: float
    prompt: int
    cached: int
    output: int
    generated: int = 0
    computed: int = 0
    ends_at: int = -1
    started_s: float = math.nan
    first_s: float = math.nan
    end_s: float = math.nan
    preempted: int = 0

    def context(self, step: int) -> int:
        """Of its next decode."""
        return self.prompt + self.output - (self.ends_at - step)


@dataclass(slots=True, eq=False)
class Engine:
    """One server. ``seconds_running``: by number of running requests the time with so many."""

    pool: str
    settings: Settings
    costs: Costs
    now: float = 0.0
    began_s: float = 0.0  # the last step that ended
    step: int = 0
    waiting: deque[Job] = field(default_factory=deque[Job])
    running: dict[int, Job] = field(default_factory=dict[int, Job])  # in the order of their start
    filling: list[Job] = field(default_factory=list[Job])
    leaving: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # heap: step, job
    growing: list[tuple[int, Job]] = field(
        default_factory=list[tuple[int, Job]]
    )  # decoding, with a context within a window: that of its next decode less the step's number
    grown_at: int = -1  # the step at which these were looked through
    contexts: int = 0  # sum over the decoding of the context of their next decode
    filled: int = 0  # tokens that the filling have computed
    due: list[tuple[Job, int]] = field(default_factory=list[tuple[Job, int]])  # chunks under way
    due_s: float = 0.0  # what their attention takes
    steps_due: int = 0
    end_s: float = math.inf  # of the steps under way
    waits: Waits | None = None
    busy_s: float = 0.0
    computing_s: float = 0.0  # of that: linear layers and the prompts' attention
    sequences_s: float = 0.0  # of that: what each sequence of a step takes
    filling_s: float = 0.0  # of busy_s: steps with a prompt in them
    steps: int = 0
    preemptions: int = 0
    seconds_running: list[float] = field(default_factory=list[float])
    seconds_waiting: dict[Waits, float] = field(default_factory=dict[Waits, float])
    most_kv_tokens: int = 0

    def __post_init__(self) -> None:
        self.seconds_running = [0.0] * (self.settings.max_num_seqs + 1)

    @property
    def open(self) -> int:
        return len(self.running) + len(self.waiting)

    @property
    def decoding(self) -> int:
        return len(self.running) - len(self.filling)

    @property
    def held_tokens(self) -> int:
        """In the KV cache, before the steps under way."""
        return self.contexts - self.decoding + self.filled

    @property
    def total_kv_tokens(self) -> int | None:
        return self.settings.total_kv_tokens

    @property
    def free_kv_tokens(self) -> int | None:
        total = self.settings.total_kv_tokens
        return None if total is None else total - self.held_tokens

    # Events

    def arrive(self, job: Job, at: float) -> None:
        self.waiting.append(job)
        if self.end_s == math.inf:
            self.now = at
            self._schedule()
        elif self.steps_due > 1 and len(self.running) < self.settings.max_num_seqs:
            self._shorten(at)

    def finish(self) -> list[Job]:
        """What is under way ends; returns those that leave, and schedules on."""
        left = self._commit()
        self._schedule()
        return left

    def _shorten(self, at: float) -> None:
        """Of the steps under way those that begin before ``at`` are done as they stand."""
        passed, last, n = at - self.now, self.steps_due - 1, self.decoding
        begun = min(last, int(passed / (self.end_s - self.now) * self.steps_due))  # nearly
        while begun < last and self._decode_s(begun + 1, n) < passed:
            begun += 1
        while begun and self._decode_s(begun, n) >= passed:
            begun -= 1
        self.steps_due = min(begun + 1 + self.settings.ahead, self.steps_due)
        self.end_s = self.now + self._decode_s(self.steps_due, n)

    def _commit(self) -> list[Job]:
        m, took, costs = self.steps_due, self.end_s - self.now, self.costs
        n = len(self.running) - len(self.filling)
        if self.waiting:  # else nobody asks
            self.began_s = self.now + (self._decode_s(m - 1, n) if m > 1 else 0.0)
        self.now = self.end_s
        self.step += m
        self.steps += m
        self.busy_s += took
        self.computing_s += costs.token_s * m * n
        self.sequences_s += costs.sequence_s * (m * n + len(self.due))
        self.seconds_running[len(self.running)] += took
        if self.waits is not None:
            self.seconds_waiting[self.waits] = self.seconds_waiting.get(self.waits, 0.0) + took
        self.contexts += m * n
        left = self._leave() if self.leaving and self.leaving[0][0] <= self.step else []
        if self.due:
            self._fill(took, left)
        return left

    def _fill(self, took: float, left: list[Job]) -> None:
        """The chunks under way are computed."""
        token_s = self.costs.token_s
        self.filling_s += took
        self.computing_s += self.due_s
        for job, new in self.due:
            self.computing_s += token_s * new
            job.computed += new
            self.filled += new
            if job.computed == job.prompt + job.generated:
                self.filling.remove(job)
                self.filled -= job.computed
                self._sample(job, left)
        self.due = []

    def _leave(self) -> list[Job]:
        left: list[Job] = []
        while self.leaving and self.leaving[0][0] <= self.step:
            job = self.running.pop(heapq.heappop(self.leaving)[1])
            self.contexts -= job.prompt + job.output
            job.generated, job.end_s = job.output, self.now
            left.append(job)
        return left

    def _sample(self, job: Job, left: list[Job]) -> None:
        """The first token after a prompt, or after all that a preempted request had."""
        if job.first_s != job.first_s:
            job.first_s = self.now
        job.generated += 1
        if job.generated == job.output:
            job.end_s = self.now
            del self.running[job.number]
            left.append(job)
            return
        job.ends_at = self.step + job.output - job.generated
        heapq.heappush(self.leaving, (job.ends_at, job.number))
        context = job.context(self.step)
        self.contexts += context
        if self.costs.read_s and context < self.costs.widest:
            self.growing.append((context - self.step, job))

    # Scheduling

    def _schedule(self) -> None:
        total, at_most = self.settings.total_kv_tokens, self._at_most()
        preempted = total is not None and at_most > total and self._make_room(total)
        n = len(self.running) - len(self.filling)
        self.due = []
        self.waits = None
        if self.filling or self.waiting:
            self._compose(n, preempted, math.inf if total is None else total - at_most)
            n = len(self.running) - len(self.filling)
        if not n and not self.due:
            self.end_s, self.steps_due = math.inf, 0
            return
        if self.due:
            self.steps_due, took = 1, self._mixed_s(n)
        else:
            late = self.waiting and self.waits is None
            self.steps_due = 1 if late else self._steps_alike()
            took = self._decode_s(self.steps_due, n)
        self.end_s = self.now + took
        held = self.contexts - n + self.filled
        if held > self.most_kv_tokens:
            self.most_kv_tokens = held

    def _compose(self, n: int, preempted: bool, free: float) -> None:
        """Chunks of the prompts beside n decodes, where so many tokens are free at least."""
        settings = self.settings
        left = settings.max_num_batched_tokens - n
        # tokens that a chunk may hold with those before it, whatever the others compute
        spare = free - settings.max_num_batched_tokens - settings.block_size
        for job in [*self.filling]:
            new = min(left, job.prompt + job.generated - job.computed)
            while (
                new > 0
                and job.computed + new > spare
                and not self._has_blocks(job.computed + new, job)
            ):
                preempted = True
                last = self.running[next(reversed(self.running))]
                self._preempt(last)
                if last is job:
                    new = 0
            if new > 0:
                self.due.append((job, new))
                left -= new
        while self.waiting and not preempted and self._in_time(self.waiting[0], n):
            self.waits = self._start(self.waiting[0], left, spare)
            if self.waits is not None:
                break
            job, new = self.due[-1]
            left -= new
            spare -= job.computed + settings.block_size
        if self.waiting and preempted:
            self.waits = "kv"

    def _in_time(self, job: Job, decoding: int) -> bool:
        """Whether it had come when the step was composed: without other work, that is now."""
        early = self.settings.ahead and (decoding > 0 or len(self.due) > 0)
        return not early or job.arrived_s <= self.began_s

    def _start(self, job: Job, left: int, spare: float) -> Waits | None:
        """Start a waiting request with its first chunk; else the limit that it waits for. ``spare``: tokens
        for which there are blocks in any case.
        """
        if len(self.running) >= self.settings.max_num_seqs:
            return "max_num_seqs"
        new = min(left, job.prompt + job.generated - job.cached)
        if new <= 0:
            return "tokens"
        if job.cached + new > spare and not self._has_blocks(job.cached + new, None):
            return "kv"
        self.waiting.popleft()
        job.computed = job.cached
        if job.started_s != job.started_s:
            job.started_s = self.now
        self.running[job.number] = job
        self.filling.append(job)
        self.filled += job.computed
        self.due.append((job, new))
        return None

    def _steps_alike(self) -> int:
        """Decode steps until somebody leaves, or the cache might be full."""
        until = self.leaving[0][0] - self.step
        total = self.settings.total_kv_tokens
        if total is None:
            return until
        n = self.decoding
        sure = (total - self._at_most()) // n
        return max(1, min(until, sure))

    def _at_most(self) -> int:
        """Tokens that the held blocks span at most, next decodes included."""
        held = self.contexts + self.filled + len(self.filling)
        return held + len(self.running) * (self.settings.block_size - 1)

    def _mixed_s(self, n: int) -> float:
        """Of a step with n decodes and the chunks that are due."""
        costs, tokens, sequences = self.costs, n, n + len(self.due)
        self.due_s = 0.0
        for job, new in self.due:
            tokens += new
            self.due_s += costs.chunk_s(new, job.computed)
        own = costs.of_tokens[tokens] + costs.sequence_s * sequences
        return own + self._read_s(1, n) + self.due_s

    def _decode_s(self, m: int, n: int) -> float:
        """Of m steps with the n requests that decode now."""
        costs = self.costs
        return m * (costs.of_tokens[n] + costs.sequence_s * n) + self._read_s(m, n)

    def _read_s(self, m: int, n: int) -> float:
        """Σ over m steps and the n decoding of the context that each reads, within each window."""
        costs = self.costs
        total = costs.full_read_s * (m * self.contexts + n * m * (m - 1) / 2)
        if not costs.read_s:
            return total
        step = self.step
        if self.grown_at != step:
            widest = costs.widest - step
            self.growing = [
                each for each in self.growing if each[1].ends_at > step and each[0] < widest
            ]
            self.grown_at = step
        for window, seconds in costs.read_s:
            read = (n - len(self.growing)) * m * window
            if m == 1:  # as nearly always
                read += sum([min(context + step, window) for context, _ in self.growing])
            else:
                read += sum([_reads(context + step, m, window) for context, _ in self.growing])
            total += seconds * read
        return total

    # KV cache

    def _blocks(self, tokens: int) -> int:
        return -(-tokens // self.settings.block_size)

    def _used_blocks(self, but: Job | None) -> int:
        """Held now and by the decodes and chunks of the step, without those of ``but``."""
        due = {job.number: new for job, new in self.due}
        return sum(
            self._blocks(
                job.context(self.step)
                if job.ends_at >= 0
                else job.computed + due.get(job.number, 0)
            )
            for job in self.running.values()
            if job is not but
        )

    def _has_blocks(self, tokens: int, of: Job | None) -> bool:
        """Whether a request may hold so many tokens beside the others."""
        total = self.settings.total_kv_tokens
        if total is None:
            return True
        free = total // self.settings.block_size - self._used_blocks(of)
        return self._blocks(tokens) <= free

    def _make_room(self, total: int) -> bool:
        """Preempt until every decode has a block; whether any was."""
        self.due = []
        found = False
        while len(self.running) > 1 and self._used_blocks(None) > total // self.settings.block_size:
            self._preempt(self.running[next(reversed(self.running))])
            found = True
        return found

    def _preempt(self, job: Job) -> None:
        del self.running[job.number]
        self.growing = [each for each in self.growing if each[1] is not job]
        if job.ends_at >= 0:
            self.contexts -= job.context(self.step)
            job.generated = job.output - (job.ends_at - self.step)
            job.ends_at = -1
            self.leaving = [each for each in self.leaving if each[1] != job.number]
            heapq.heapify(self.leaving)
        else:
            self.filling.remove(job)
            self.filled -= job.computed
        job.preempted += 1
        self.preemptions += 1
        self.waiting.appendleft(job)


def _reads(context: int, steps: int, window: int) -> int:
    """Tokens within the window that so many decodes read, the first of which has this context."""
    room = window - context
    if room >= steps:
        return steps * context + steps * (steps - 1) // 2
    if room <= 0:
        return steps * window
    return room * context + room * (room - 1) // 2 + (steps - room) * window


@dataclass(frozen=True)
class Played:
    """By request, seconds; NaN where nobody served it. ``waited_s``: from its arrival to its first chunk."""

    waited_s: Floats
    ttft_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    server: Ints  # −1 where nobody
    engines: tuple[Engine, ...]
    span_s: float  # from 0 to the last event

    @property
    def served(self) -> npt.NDArray[np.bool_]:
        return self.server >= 0

    @property
    def utilisation(self) -> float:
        """Of the servers' time, the share in steps."""
        whole = self.span_s * len(self.engines)
        return sum(one.busy_s for one in self.engines) / whole if whole else 0.0


def least_open(_: int, engines: Sequence[Engine]) -> int:
    chosen, fewest = 0, math.inf
    for i, one in enumerate(engines):
        if (held := len(one.running) + len(one.waiting)) < fewest:
            chosen, fewest = i, held
            if not held:
                break
    return chosen


def in_turn(number: int, engines: Sequence[Engine]) -> int:
    return number % len(engines)


class Stopped(Exception):
    """A play was not gone on with."""


def play(
    traffic: Traffic,
    engines: Sequence[Engine],
    route: Router = least_open,
    cached: float = 0.0,
    *,
    stops: Callable[[Sequence[Job | None], float], bool] = lambda jobs, now: False,
) -> Played:
    """The traffic to its end; ``engines`` are empty. ``cached``: share of each prompt in the prefix cache,
    in whole blocks, never all of it. ``stops``: asked a few times with what has come and when, Stopped where
    it says so.
    """
    every = max(1, len(traffic) // ASKED)
    jobs: list[Job | None] = []
    server = np.full(len(traffic), -1)
    events: list[
        tuple[float, int]
    ] = []  # heap; an entry whose time the engine no longer has is void
    at_s, prompts = traffic.at_s.tolist(), traffic.prompt_tokens.tolist()
    outputs, last = traffic.output_tokens.tolist(), 0.0
    for number, at in enumerate(at_s):
        last = max(last, _until(events, engines, at), at)
        if number % every == 0 and stops(jobs, at):
            raise Stopped
        chosen = route(number, engines)
        prompt, output = prompts[number], outputs[number]
        if chosen is None or not engines[chosen].settings.takes(prompt + output):
            jobs.append(None)
            continue
        one = engines[chosen]
        job = Job(number, at, prompt, one.settings.found(prompt, cached), output)
        jobs.append(job)
        server[number] = chosen
        before = one.end_s
        one.arrive(job, at)
        if one.end_s != before:
            heapq.heappush(events, (one.end_s, chosen))
    last = max(last, _until(events, engines, math.inf))
    return played(jobs, traffic, server, tuple(engines), last)


def _until(events: list[tuple[float, int]], engines: Sequence[Engine], at: float) -> float:
    """All that ends by ``at``; when the last of it did."""
    last = 0.0
    while events and events[0][0] <= at:
        end_s, index = events[0]
        one = engines[index]
        if end_s != one.end_s:
            heapq.heappop(events)
            continue
        last = end_s
        one.finish()
        if one.end_s < math.inf:
            heapq.heapreplace(events, (one.end_s, index))
        else:
            heapq.heappop(events)
    return last


def played(
    jobs: Sequence[Job | None],
    traffic: Traffic,
    server: Ints,
    engines: tuple[Engine, ...],
    last: float,
) -> Played:
    rows = [
        (math.nan,) * 3 if job is None else (job.started_s, job.first_s, job.end_s) for job in jobs
    ]
    started, first, end = np.array(rows, dtype=float).reshape(-1, 3).T
    after = np.where(traffic.output_tokens > 1, traffic.output_tokens - 1, np.nan)
    at = traffic.at_s
    return Played(started - at, first - at, (end - first) / after, end - at, server, engines, last)

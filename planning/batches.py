"""What each engine step computed, request by request: the iteration log has only the sums.

vLLM serves prompts in order of arrival, decodes first: so the prompt tokens of a step belong to the earliest
prompts that are not done, and every request past its prompt decodes one token. Played over the log with the
lengths of the requests, this gives each chunk's past and each decode's context. A step whose numbers the
play does not meet is left out, and counted.
"""

import math
from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from analysis.runs.engine_steps import between_lines, in_engine
from analysis.runs.run import Run

Chunk = tuple[int, int]  # (new tokens, tokens of the same prompt before them)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step. ``contexts``: of each decode the tokens that it attends to, itself included."""

    chunks: tuple[Chunk, ...]
    contexts: tuple[int, ...]

    @property
    def tokens(self) -> int:
        return sum([new for new, _ in self.chunks]) + len(self.contexts)

    @property
    def sequences(self) -> int:
        return len(self.chunks) + len(self.contexts)

    @property
    def held_tokens(self) -> int:
        """In the KV cache when the step is done."""
        return sum(new + past for new, past in self.chunks) + sum(self.contexts)


@dataclass(frozen=True, slots=True)
class Lengths:
    """Of one request, tokens; ``cached``: of its prompt, found in the prefix cache."""

    prompt: int
    cached: int
    output: int


class Line(NamedTuple):
    """Of the iteration log. ``unix_ns``: when it was written, at the step's end; 0: not known."""

    prefill_tokens: int
    decode_requests: int
    unix_ns: int = 0


@dataclass(frozen=True)
class Timed:
    """Steps of one run within its window: what they computed and how long they took, seconds.

    ``unmet``: steps of the window whose numbers the play did not meet. ``prompt_tokens``: mean, where known.
    """

    run_id: str
    batches: tuple[Batch, ...]
    seconds: np.ndarray
    unmet: int
    prompt_tokens: float | None = None


def batches(log: Iterable[Line], requests: Iterable[Lengths]) -> list[Batch | None]:
    """The batch of each step; None where the log has other numbers. ``requests``: in order of service,
    the first of them with the first step.
    """
    coming = deque(requests)
    at = coming[0].cached if coming else 0
    decoded = 0  # steps
    decoding: list[tuple[int, int]] = []  # (context less ``decoded``, what that is at its end)
    first_end = math.inf
    found: list[Batch | None] = []
    for line in log:
        chunks: list[Chunk] = []
        through: list[Lengths] = []
        left = line.prefill_tokens
        while left and coming:
            one = coming[0]
            new = min(left, one.prompt - at)
            chunks.append((new, at))
            left, at = left - new, at + new
            if at == one.prompt:
                through.append(coming.popleft())
                at = coming[0].cached if coming else 0
        contexts = tuple([context + decoded for context, _ in decoding])
        met = not left and len(contexts) == line.decode_requests
        found.append(Batch(tuple(chunks), contexts) if met else None)
        if line.decode_requests:
            decoded += 1
        if through or decoded == first_end:
            decoding = [one for one in decoding if one[1] > decoded]
            decoding += [
                (one.prompt + 1 - decoded, decoded + one.output - 1)
                for one in through
                if one.output > 1
            ]
            first_end = min((end for _, end in decoding), default=math.inf)
    return found


@dataclass(frozen=True)
class Log:
    """Of one run, read once: ``lines`` of its steps and the requests that it ``served``."""

    lines: Sequence[Line]
    served: Sequence[tuple["Sent", Lengths]]

    @property
    def lengths(self) -> list[Lengths]:
        return [lengths for _, lengths in self.served]

    @property
    def cached_share(self) -> float:
        """Of the prompts' tokens, what was found in the prefix cache."""
        asked = sum(one.prompt for one in self.lengths)
        return sum(one.cached for one in self.lengths) / asked if asked else 0.0


def log_of(run: Run) -> Log:
    return Log(lines_of(run), served(run))


def timed(run: Run, log: Log, window_ns: tuple[int, int]) -> Timed | None:
    """The steps of a run that ended in the window; None without a log with time stamps, or with several
    engines, whose steps the requests do not tell apart.
    """
    lines, requests = log.lines, log.lengths
    if not lines:
        return None
    steps = run.steps
    played = batches(lines, requests)
    took = between_lines(steps, in_engine(run.requests)).to_numpy(dtype=float)
    inside = steps["unix_ns"].between(*window_ns).to_numpy(dtype=bool)
    inside &= np.isfinite(took) & (took > 0)
    known = np.array([batch is not None and batch.sequences > 0 for batch in played])
    kept = np.flatnonzero(inside & known)
    whole = tuple(batch for i in kept if (batch := played[i]) is not None)
    mean = float(np.mean([one.prompt for one in requests]))
    return Timed(run.manifest.run_id, whole, took[kept], int((inside & ~known).sum()), mean)


@dataclass(frozen=True, slots=True)
class Sent:
    """When a request was sent, unix ns, and its first token came, ns later. ``alone``: no other was open;
    ``over_ns``: of the time to the first token what the server does not count as its own, NaN unknown.
    """

    sent_ns: int
    first_token_ns: int
    alone: bool
    over_ns: float


def lines_of(run: Run) -> list[Line]:
    """Empty without time stamps, or with several engines."""
    steps = run.steps
    if len(steps) == 0 or steps["unix_ns"].isna().any() or steps["engine"].nunique() > 1:
        return []
    return list(map(Line._make, _columns(steps, *Line._fields)))


def served(run: Run) -> list[tuple[Sent, Lengths]]:
    """The requests that got a first token, in its order: vLLM serves prompts first come, first served."""
    rows = run.requests
    rows = rows[rows["first_token_ns"].notna() & rows["prompt_tokens"].notna()]
    own = [f"server_metrics.{name}_ms" for name in ("queue_time", "time_to_first_token")]
    inside_ns = rows[own].sum(axis=1, skipna=False) * 1e6 if {*own} <= {*rows.columns} else np.nan
    rows = rows.assign(over=rows["first_token_ns"].astype(float) - inside_ns)
    first = rows["sent_unix_ns"].to_numpy(dtype=np.int64) + rows["first_token_ns"].to_numpy(
        dtype=np.int64
    )
    columns = rows.iloc[np.argsort(first, kind="stable")]
    return [
        (
            Sent(int(sent), int(token), others == 0, float(over)),
            Lengths(int(prompt), int(_number(cached)), int(_number(output))),
        )
        for sent, token, others, over, prompt, cached, output in _columns(
            columns,
            "sent_unix_ns",
            "first_token_ns",
            "in_flight_at_send",
            "over",
            "prompt_tokens",
            "cached_tokens",
            "output_tokens",
        )
    ]


def _columns(frame: Any, *names: str) -> Sequence[tuple[Any, ...]]:
    return list(zip(*(frame[name].tolist() for name in names), strict=True))


def _number(value: Any) -> float:
    return 0.0 if value is None or value != value else float(value)

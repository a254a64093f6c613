"""Does a backend compute what an exact reference computes? Pure: answers of two servers in, verdict out.

Both servers get the same requests and decode greedily. In float32 the tokens must be equal. In a shorter
dtype two correct kernels round differently, so the rule is: log-probabilities within a tolerance up to the
first other token, and there the reference itself must have been undecided.

How much rounding alone does hangs on the model (a deep one with random weights amplifies it). So against a
float32 reference the tolerance is measured: the reference's own kernel in the short dtype is compared
first, and FLOOR_FACTOR times its difference is allowed. A kernel that reads a wrong page is off by nats.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not_comparable"]
OUTPUT_TOKENS = 48
TOP_LOGPROBS = 5  # so that the reference's log-probability of another's token is mostly known
SHARED_PREFIX_TOKENS = 640
STAGGER_S = 0.03
MOST_REASONS = 5
FLOOR_FACTOR = 2.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Those of a ``group`` overlap; ``delay_s`` counts from the group's start."""

    name: str
    group: str
    prompt: tuple[int, ...]
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Answer:
    """One server's greedy continuation, with the log-probabilities of the likeliest tokens at each step."""

    tokens: tuple[int, ...]
    top: tuple[Mapping[int, float], ...]  # nats
    cached_tokens: int | None = None

    def logprob(self, step: int) -> float:
        return self.top[step][self.tokens[step]]


@dataclass(frozen=True, slots=True)
class Tolerance:
    same_tokens: bool
    logprob_nats: float

    @classmethod
    def of(cls, dtype: str, reference_dtype: str) -> "Tolerance":
        if dtype == reference_dtype == "float32":
            return cls(same_tokens=True, logprob_nats=1e-3)
        return cls(same_tokens=False, logprob_nats=0.1)

    def above(self, floor_nats: float) -> "Tolerance":
        """Widened to FLOOR_FACTOR times the rounding that was measured; never narrowed."""
        return Tolerance(self.same_tokens, max(self.logprob_nats, FLOOR_FACTOR * floor_nats))


@dataclass(frozen=True, slots=True)
class Compared:
    """One request. ``first_divergence`` is the step of the first other token, None without one."""

    name: str
    prompt_tokens: int
    agreeing_tokens: int
    worst_gap_nats: float
    worst_gap_step: int | None
    first_divergence: int | None
    margin_nats: float | None  # there: by how much the reference preferred its token; None: unknown


def requests(vocab_size: int, seed: int = 1) -> list[Ask]:
    """28 prompts of random tokens: alone, together, staggered, and with shared prefixes, some twice.

    Lengths stand around block edges (16, 128) and beyond a scheduler step, so that chunked prefill,
    decode and both mixed in one step occur.
    """
    rng = random.Random(f"{seed}/verify")

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, vocab_size) for _ in range(length))

    asks = [
        Ask(f"alone-{length}", f"alone-{length}", prompt(length))
        for length in (1, 7, 16, 33, 127, 128, 129, 500, 1000, 2000)
    ]
    asks += [
        Ask(f"together-{length}", "together", prompt(length))
        for length in (5, 64, 200, 513, 900, 1500)
    ]
    asks += [
        Ask(f"staggered-{length}", "staggered", prompt(length), index * STAGGER_S)
        for index, length in enumerate((1200, 17, 640, 100, 2000, 31))
    ]
    shared = prompt(SHARED_PREFIX_TOKENS)
    tails = [prompt(length) for length in (10, 150, 300)]
    for turn in ("first", "again"):
        asks += [
            Ask(f"prefix-{turn}-{len(tail)}", f"prefix-{turn}", shared + tail, index * STAGGER_S)
            for index, tail in enumerate(tails)
        ]
    return asks


def compare(ask: Ask, answer: Answer, reference: Answer) -> Compared:
    """Both answers up to the first other token; beyond it the contexts differ and say nothing."""
    pairs = zip(answer.tokens, reference.tokens, strict=False)
    divergence = next((step for step, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
    shortest = min(len(answer.tokens), len(reference.tokens))
    agreeing = shortest if divergence is None else divergence
    gaps = [abs(answer.logprob(step) - reference.logprob(step)) for step in range(agreeing)]
    margin = None
    if divergence is not None:
        other = reference.top[divergence].get(answer.tokens[divergence])
        margin = None if other is None else reference.logprob(divergence) - other
    elif len(answer.tokens) != len(reference.tokens):
        divergence = shortest
    return Compared(
        name=ask.name,
        prompt_tokens=len(ask.prompt),
        agreeing_tokens=agreeing,
        worst_gap_nats=max(gaps, default=0.0),
        worst_gap_step=gaps.index(max(gaps)) if gaps else None,
        first_divergence=divergence,
        margin_nats=margin,
    )


def faults(compared: Compared, tolerance: Tolerance) -> list[str]:
    """Sentences; empty when the request agrees under the tolerance."""
    found: list[str] = []
    if compared.worst_gap_nats > tolerance.logprob_nats:
        position = compared.prompt_tokens + (compared.worst_gap_step or 0)
        found.append(
            f"{compared.name}: log-probabilities differ by {compared.worst_gap_nats:.3g} nats at position "
            f"{position}, allowed are {tolerance.logprob_nats:g}"
        )
    if compared.first_divergence is None:
        return found
    position = compared.prompt_tokens + compared.first_divergence
    where = f"{compared.name}: another token at position {position}"
    if compared.margin_nats is None:
        found.append(f"{where}, one that is not among the reference's {TOP_LOGPROBS} likeliest")
    elif tolerance.same_tokens:
        found.append(f"{where}, the reference preferred its own by {compared.margin_nats:.3g} nats")
    elif compared.margin_nats > tolerance.logprob_nats:
        found.append(
            f"{where}, where the reference preferred its own by {compared.margin_nats:.3g} nats; "
            f"a near-tie of {tolerance.logprob_nats:g} is allowed"
        )
    return found


def rounding_floor(
    asks: Sequence[Ask], answers: Mapping[str, Answer], reference: Mapping[str, Answer]
) -> float:
    """Largest log-probability gap or flipped preference, in nats, of one kernel in two dtypes."""
    rows = [compare(ask, answers[ask.name], reference[ask.name]) for ask in asks]
    return max(max(row.worst_gap_nats, row.margin_nats or 0.0) for row in rows)


def judge(
    asks: Sequence[Ask],
    answers: Mapping[str, Answer],
    reference: Mapping[str, Answer],
    tolerance: Tolerance,
    window: int | None = None,
) -> dict[str, Any]:
    """The body of verify.json, without the names. ``window``: tokens an approximate backend sees.

    Requests that reach beyond the window are left out: there it is meant to differ.
    """
    within = [ask for ask in asks if window is None or len(ask.prompt) + OUTPUT_TOKENS <= window]
    rows = [compare(ask, answers[ask.name], reference[ask.name]) for ask in within]
    reasons = [reason for row in rows for reason in faults(row, tolerance)]
    verdict: Verdict = "fail" if reasons else "pass"
    if not rows:
        verdict = "not_comparable"
        reasons = [f"no request fits into the window of {window} tokens that this backend sees"]
    worst = max(rows, key=lambda row: row.worst_gap_nats, default=None)
    diverged = [row for row in rows if row.first_divergence is not None]
    return {
        "verdict": verdict,
        "reasons": reasons[:MOST_REASONS],
        "reasons_total": len(reasons),
        "tolerance": asdict(tolerance),
        "requests": len(asks),
        "compared": len(rows),
        "not_comparable": len(asks) - len(rows),
        "identical": len(rows) - len(diverged),
        "tokens": OUTPUT_TOKENS * len(rows),
        "tokens_agreeing": sum(row.agreeing_tokens for row in rows),
        "worst_gap_nats": worst.worst_gap_nats if worst else None,
        "worst_gap_position": _position(worst.prompt_tokens, worst.worst_gap_step)
        if worst
        else None,
        "first_divergence_position": min(
            (row.prompt_tokens + (row.first_divergence or 0) for row in diverged), default=None
        ),
        "worst_margin_nats": max(
            (row.margin_nats for row in diverged if row.margin_nats is not None), default=None
        ),
        "cached_tokens": sum(answers[ask.name].cached_tokens or 0 for ask in asks),
        "per_request": [asdict(row) for row in rows],
    }


def _position(prompt_tokens: int, step: int | None) -> int | None:
    return None if step is None else prompt_tokens + step

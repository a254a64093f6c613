"""Does a backend compute what an exact reference computes? Pure: answers of two servers in, verdict out.

Both servers get the same requests and decode greedily among CANDIDATES tokens drawn once, whose
log-probabilities both tell in full. A step is compared while all tokens before it were the same. Two
gaps must stay within a tolerance: the worst of any candidate at any step, and the typical of a request, the
median over its steps of the candidates' root mean square. In float32 the tokens must be equal too; in a
shorter dtype two correct kernels round differently and a near-tie may fall either way.

How much rounding alone does hangs on the model (a deep one with random weights amplifies it). So against a
float32 reference the tolerance is measured: the reference's own kernel in the short dtype is compared
first, and FLOOR_FACTOR times its gaps are allowed. Why two: rounding now and then flips what a sharp layer
attends to, so its worst gap can be nats in a request whose typical gap is 0.05. A kernel that does not read
a page is off at every step.

Why so few tokens: of a whole vocabulary a server tells the likeliest few only. Where rounding makes another
token win it may be none of them, and a flat distribution flips at once, so that little is compared.
"""

import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Verdict = Literal["pass", "fail", "not_comparable"]
OUTPUT_TOKENS = 48
CANDIDATES = 20  # the most whose log-probabilities vLLM tells unless it is started to tell more
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
    candidates: tuple[int, ...] = ()  # the only tokens of the answer


@dataclass(frozen=True, slots=True)
class Answer:
    """One server's greedy continuation, with the log-probability of every candidate at each step."""

    tokens: tuple[int, ...]
    logprobs: tuple[Mapping[int, float], ...]  # nats
    cached_tokens: int | None = None

    def gaps(self, other: "Answer", step: int) -> list[float]:
        """Of each candidate, in nats; infinite where the two servers do not tell the same ones."""
        mine, theirs = self.logprobs[step], other.logprobs[step]
        if mine.keys() != theirs.keys():
            return [math.inf]
        return [abs(mine[token] - theirs[token]) for token in mine]

    def preferred(self, other: "Answer", step: int) -> float:
        """By how many nats this one preferred its own token over ``other``'s there."""
        told = self.logprobs[step]
        return told[self.tokens[step]] - told.get(other.tokens[step], -math.inf)


@dataclass(frozen=True, slots=True)
class Gaps:
    """How far two servers' log-probabilities are apart, in a request or at most in any of several."""

    worst_nats: float
    typical_nats: float

    @classmethod
    def most(cls, found: Iterable["Gaps"]) -> "Gaps":
        every = list(found)
        return cls(max(gap.worst_nats for gap in every), max(gap.typical_nats for gap in every))


@dataclass(frozen=True, slots=True)
class Tolerance:
    same_tokens: bool
    worst_nats: float
    typical_nats: float

    @classmethod
    def flat(cls, same_tokens: bool, nats: float) -> "Tolerance":
        return cls(same_tokens, nats, nats)

    @classmethod
    def of(cls, dtype: str, reference_dtype: str) -> "Tolerance":
        if dtype == reference_dtype == "float32":
            return cls.flat(True, 1e-3)
        return cls.flat(False, 0.1)

    def above(self, floor: Gaps) -> "Tolerance":
        """Widened to FLOOR_FACTOR times the rounding that was measured; never narrowed."""
        return Tolerance(
            self.same_tokens,
            max(self.worst_nats, FLOOR_FACTOR * floor.worst_nats),
            max(self.typical_nats, FLOOR_FACTOR * floor.typical_nats),
        )


@dataclass(frozen=True, slots=True)
class Compared:
    """One request. ``first_divergence`` is the step of the first other token, None without one."""

    name: str
    prompt_tokens: int
    agreeing_tokens: int
    gaps: Gaps  # over all steps with one context, the first other token's included
    worst_gap_step: int | None
    first_divergence: int | None
    margin_nats: float | None  # there: by how much the reference preferred its own token


def requests(vocab_size: int, seed: int = 1) -> list[Ask]:
    """28 prompts of random tokens: alone, together, staggered, and with shared prefixes, some twice.

    Lengths stand around block edges (16, 128) and beyond a scheduler step, so that chunked prefill,
    decode and both mixed in one step occur.
    """
    rng = random.Random(f"{seed}/verify")
    ids = range(3, vocab_size)
    candidates = tuple(sorted(rng.sample(ids, min(CANDIDATES, len(ids)))))

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(rng.choices(ids, k=length))

    def ask(name: str, group: str, prompt: tuple[int, ...], index: int = 0) -> Ask:
        return Ask(name, group, prompt, index * STAGGER_S, candidates)

    asks = [
        ask(f"alone-{length}", f"alone-{length}", prompt(length))
        for length in (1, 7, 16, 33, 127, 128, 129, 500, 1000, 2000)
    ]
    asks += [
        ask(f"together-{length}", "together", prompt(length))
        for length in (5, 64, 200, 513, 900, 1500)
    ]
    asks += [
        ask(f"staggered-{length}", "staggered", prompt(length), index)
        for index, length in enumerate((1200, 17, 640, 100, 2000, 31))
    ]
    shared = prompt(SHARED_PREFIX_TOKENS)
    tails = [prompt(length) for length in (10, 150, 300)]
    for turn in ("first", "again"):
        asks += [
            ask(f"prefix-{turn}-{len(tail)}", f"prefix-{turn}", shared + tail, index)
            for index, tail in enumerate(tails)
        ]
    return asks


def compare(ask: Ask, answer: Answer, reference: Answer) -> Compared:
    """Both answers up to and at the first other token; beyond it the contexts differ and say nothing."""
    shortest = min(len(answer.tokens), len(reference.tokens))
    pairs = zip(answer.tokens, reference.tokens, strict=False)
    flip = next((step for step, (mine, theirs) in enumerate(pairs) if mine != theirs), None)
    agreeing = shortest if flip is None else flip
    compared = agreeing if flip is None else flip + 1
    gaps = [answer.gaps(reference, step) for step in range(compared)]
    worst = [max(step) for step in gaps] or [0.0]
    typical = [math.sqrt(statistics.fmean(gap**2 for gap in step)) for step in gaps] or [0.0]
    differs = flip is not None or len(answer.tokens) != len(reference.tokens)
    return Compared(
        name=ask.name,
        prompt_tokens=len(ask.prompt),
        agreeing_tokens=agreeing,
        gaps=Gaps(max(worst), statistics.median(typical)),
        worst_gap_step=worst.index(max(worst)) if gaps else None,
        first_divergence=agreeing if differs else None,
        margin_nats=None if flip is None else reference.preferred(answer, flip),
    )


def faults(compared: Compared, tolerance: Tolerance) -> list[str]:
    """Sentences; empty when the request agrees under the tolerance."""
    found: list[str] = []
    gaps = compared.gaps
    if gaps.worst_nats > tolerance.worst_nats:
        position = compared.prompt_tokens + (compared.worst_gap_step or 0)
        found.append(
            f"{compared.name}: log-probabilities differ by {gaps.worst_nats:.3g} nats at position "
            f"{position}, allowed are {tolerance.worst_nats:.3g}"
        )
    if gaps.typical_nats > tolerance.typical_nats:
        found.append(
            f"{compared.name}: log-probabilities typically differ by {gaps.typical_nats:.3g} nats, "
            f"allowed are {tolerance.typical_nats:.3g}"
        )
    if compared.first_divergence is None:
        return found
    position = compared.prompt_tokens + compared.first_divergence
    if compared.margin_nats is None:
        found.append(f"{compared.name}: one answer ends at position {position}, the other goes on")
    elif tolerance.same_tokens:
        found.append(
            f"{compared.name}: another token at position {position}, "
            f"the reference preferred its own by {compared.margin_nats:.3g} nats"
        )
    return found


def rounding_floor(
    asks: Sequence[Ask], answers: Mapping[str, Answer], reference: Mapping[str, Answer]
) -> Gaps:
    """The largest gaps of one kernel in two dtypes."""
    return Gaps.most(compare(ask, answers[ask.name], reference[ask.name]).gaps for ask in asks)


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
    worst = max(rows, key=lambda row: row.gaps.worst_nats, default=None)
    most = Gaps.most(row.gaps for row in rows) if rows else None
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
        "worst_gap_nats": most.worst_nats if most else None,
        "typical_gap_nats": most.typical_nats if most else None,
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

"""Does a backend compute what an exact reference computes? Pure: answers of two servers in, verdict out.

Both servers get the same requests, and a bias makes both answer with one token again and again, so that
each step of either has the same tokens before it. Compared are the log-probabilities, as the model has
them, of CANDIDATES tokens drawn once. A step's gap is the root mean square of their differences; a request's
typical gap is the median over its steps.

In float32 every candidate of every step must agree. In a shorter dtype two correct kernels round
differently, and what that does hangs on the model. So against a float32 reference it is measured: the
reference's own kernel in the short dtype is compared first, and FLOOR_FACTOR times its gaps are allowed, of
the worst candidate and of a request's typical step. Steps that are off, further than a typical one may be,
are counted besides, first tokens (which a prompt's last chunk computes) apart from those of decode: a kernel
that does not read a page is off at every step of a request, one that is wrong at a block's edge in every
16th, and one that is wrong at one length of a prompt perhaps once.

Why not what each server would answer by itself: rounding soon makes another token win, and beyond it
nothing can be compared, so that one step may be all there is of a request.
"""

import itertools
import math
import random
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from greenbench.contract.forms import (
    ComparedRequest,
    Judgement,
    RoundingFloor,
    StepsOff,
    Tolerance,
    VerifyVerdict,
)

OUTPUT_TOKENS = 48
CANDIDATES = 20
SHARED_PREFIX_TOKENS = 640
STAGGER_S = 0.03
MOST_REASONS = 5
FLOOR_FACTOR = 2.0
SLACK_SHARE, SLACK_STEPS = 0.01, 2  # steps that may be off beside those of rounding; the larger


@dataclass(frozen=True, slots=True)
class Ask:
    """One request. Those of a ``group`` overlap; ``delay_s`` counts from the group's start."""

    name: str
    group: str
    prompt: tuple[int, ...]
    delay_s: float = 0.0
    candidates: tuple[int, ...] = ()  # whose log-probabilities are told
    forced: int = 0  # the only token of the answer


@dataclass(frozen=True, slots=True)
class Answer:
    """Of one server: the log-probability of every candidate at each step of its answer."""

    logprobs: tuple[Mapping[int, float], ...]  # nats
    cached_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Compared:
    """One request: how far apart each step's log-probabilities are, in nats."""

    name: str
    prompt_tokens: int
    gaps_nats: tuple[float, ...]  # of each step, the root mean square over the candidates
    worst_nats: float  # of any candidate
    worst_step: int
    same_choice: int  # steps at which both have the same candidate as the likeliest

    @property
    def typical_nats(self) -> float:
        return statistics.median(self.gaps_nats)

    @property
    def worst_position(self) -> int:
        return self.prompt_tokens + self.worst_step


def steps_off(rows: Sequence[Compared], beyond_nats: float) -> StepsOff:
    """First tokens, and those of decode, that are further off."""
    return StepsOff(
        sum(row.gaps_nats[0] > beyond_nats for row in rows),
        sum(gap > beyond_nats for row in rows for gap in row.gaps_nats[1:]),
    )


def widened(usual_nats: float, rounding_nats: float) -> float:
    """What is allowed where rounding alone does so much."""
    return max(usual_nats, FLOOR_FACTOR * rounding_nats)


def rounding_floor(rows: Sequence[Compared], least_nats: float) -> RoundingFloor:
    """``least_nats``: what a typical gap may be anyway, however little rounding does."""
    typical = max(row.typical_nats for row in rows)
    off = steps_off(rows, widened(least_nats, typical))
    return RoundingFloor(typical, max(row.worst_nats for row in rows), off)


def flat_tolerance(nats: float) -> Tolerance:
    return Tolerance(nats, nats)


def usual_tolerance(dtype: str, reference_dtype: str) -> Tolerance:
    return flat_tolerance(1e-3 if dtype == reference_dtype == "float32" else 0.1)


def above_rounding(
    usual: Tolerance, floor: RoundingFloor, first_steps: int, decode_steps: int
) -> Tolerance:
    """Widened to FLOOR_FACTOR times the rounding that was measured; never narrowed."""

    def allowed(off: int, steps: int) -> int:
        return int(FLOOR_FACTOR * off + max(SLACK_STEPS, SLACK_SHARE * steps))

    return Tolerance(
        widened(usual.typical_nats, floor.typical_nats),
        widened(usual.worst_nats, floor.worst_nats),
        StepsOff(allowed(floor.off.first, first_steps), allowed(floor.off.decode, decode_steps)),
    )


def requests(vocab_size: int, seed: int = 1) -> list[Ask]:
    """28 prompts of random tokens: alone, together, staggered, and with shared prefixes, some twice.

    Lengths stand around block edges (16, 128) and beyond a scheduler step, so that chunked prefill,
    decode and both mixed in one step occur.
    """
    rng = random.Random(f"{seed}/verify")
    ids = range(3, vocab_size)
    candidates = tuple(sorted(rng.sample(ids, min(CANDIDATES, len(ids)))))
    forced = itertools.cycle(candidates)

    def prompt(length: int) -> tuple[int, ...]:
        return tuple(rng.choices(ids, k=length))

    def ask(name: str, group: str, prompt: tuple[int, ...], index: int = 0) -> Ask:
        return Ask(name, group, prompt, index * STAGGER_S, candidates, next(forced))

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
    """Step by step. Both tell all candidates at as many steps."""
    pairs = list(zip(answer.logprobs, reference.logprobs, strict=True))
    steps = [
        [abs(mine[token] - theirs[token]) for token in ask.candidates] for mine, theirs in pairs
    ]
    worst = [max(step) for step in steps]
    return Compared(
        name=ask.name,
        prompt_tokens=len(ask.prompt),
        gaps_nats=tuple(math.sqrt(statistics.fmean(gap**2 for gap in step)) for step in steps),
        worst_nats=max(worst),
        worst_step=worst.index(max(worst)),
        same_choice=sum(_likeliest(mine) == _likeliest(theirs) for mine, theirs in pairs),
    )


def _likeliest(told: Mapping[int, float]) -> int:
    return max(told, key=lambda token: told[token])


def faults(rows: Sequence[Compared], tolerance: Tolerance) -> list[str]:
    """Sentences; empty when all requests agree under the tolerance."""
    sentences = [fault for row in rows for fault in _faults_of(row, tolerance)]
    if tolerance.off is None:
        return sentences
    off = steps_off(rows, tolerance.typical_nats)
    for what, here, allowed, steps in (
        ("first tokens", off.first, tolerance.off.first, len(rows)),
        ("decoded tokens", off.decode, tolerance.off.decode, _steps(rows) - len(rows)),
    ):
        if here > allowed:
            sentences.append(
                f"{here} of {steps} {what} differ by more than {tolerance.typical_nats:.3g} nats, "
                f"allowed are {allowed}"
            )
    return sentences


def _faults_of(row: Compared, tolerance: Tolerance) -> list[str]:
    sentences: list[str] = []
    if row.worst_nats > tolerance.worst_nats:
        sentences.append(
            f"{row.name}: log-probabilities differ by {row.worst_nats:.3g} nats at position "
            f"{row.worst_position}, allowed are {tolerance.worst_nats:.3g}"
        )
    if row.typical_nats > tolerance.typical_nats:
        sentences.append(
            f"{row.name}: log-probabilities typically differ by {row.typical_nats:.3g} nats, "
            f"allowed are {tolerance.typical_nats:.3g}"
        )
    return sentences


def _steps(rows: Iterable[Compared]) -> int:
    return sum(len(row.gaps_nats) for row in rows)


def compare_all(
    asks: Iterable[Ask], answers: Mapping[str, Answer], reference: Mapping[str, Answer]
) -> list[Compared]:
    return [compare(ask, answers[ask.name], reference[ask.name]) for ask in asks]


def rounding(
    asks: Sequence[Ask],
    answers: Mapping[str, Answer],
    reference: Mapping[str, Answer],
    usual: Tolerance,
) -> tuple[RoundingFloor, Tolerance]:
    """What one kernel's two dtypes differ by, and what that allows another kernel."""
    rows = compare_all(asks, answers, reference)
    floor = rounding_floor(rows, usual.typical_nats)
    return floor, above_rounding(usual, floor, len(rows), _steps(rows) - len(rows))


def judge(
    asks: Sequence[Ask],
    answers: Mapping[str, Answer],
    reference: Mapping[str, Answer],
    tolerance: Tolerance,
    rounded: Mapping[str, Answer] | None = None,
    window: int | None = None,
) -> Judgement:
    """What the answers say of the backend.

    ``rounded``: the reference's kernel in the short dtype, whose gaps widen the tolerance.
    ``window``: tokens an approximate backend sees. Requests that reach beyond it are left out: there it is
    meant to differ.
    """
    within = [ask for ask in asks if window is None or len(ask.prompt) + OUTPUT_TOKENS <= window]
    rows = compare_all(within, answers, reference)
    floor = None
    if rounded is not None and rows:
        floor, tolerance = rounding(within, rounded, reference, tolerance)
    reasons = faults(rows, tolerance)
    verdict: VerifyVerdict = "fail" if reasons else "pass"
    if not rows:
        verdict = "not_comparable"
        reasons = [f"no request fits into the window of {window} tokens that this backend sees"]
    worst = max(rows, key=lambda row: row.worst_nats, default=None)
    return Judgement(
        verdict=verdict,
        reasons=reasons[:MOST_REASONS],
        reasons_total=len(reasons),
        rounding_floor=floor,
        tolerance=tolerance,
        requests=len(asks),
        compared=len(rows),
        not_comparable=len(asks) - len(rows),
        steps=_steps(rows),
        same_choice=sum(row.same_choice for row in rows),
        off=steps_off(rows, tolerance.typical_nats),
        typical_gap_nats=max((row.typical_nats for row in rows), default=None),
        worst_gap_nats=worst.worst_nats if worst else None,
        worst_gap_position=worst.worst_position if worst else None,
        cached_tokens=sum(answers[ask.name].cached_tokens or 0 for ask in asks),
        per_request=[_told(row) for row in rows],
    )


def doubts(
    asks: Iterable[Ask],
    answers: Mapping[str, Mapping[str, Answer]],
    reference: Mapping[str, Answer],
    tolerance: Tolerance,
) -> list[tuple[list[str], str]]:
    """Requests at which the reference may be wrong: backends differ from it and not from each other.

    ``answers``: of each exact backend, by its label, to every request. Returns those backends' labels and a
    sentence a request.
    """
    doubtful: list[tuple[list[str], str]] = []
    for ask in asks:

        def differs(mine: Answer, other: Answer, ask: Ask = ask) -> bool:
            return bool(_faults_of(compare(ask, mine, other), tolerance))

        told = {label: each[ask.name] for label, each in answers.items()}
        against = [label for label, mine in told.items() if differs(mine, reference[ask.name])]
        first = told[against[0]] if against else None
        alike = [label for label in against if first and not differs(told[label], first)]
        if 2 * len(alike) > len(told) and len(alike) > 1:
            sentence = (
                f"{ask.name}: {', '.join(alike)} differ from the reference and agree with each other; "
                "the reference may be what is wrong there"
            )
            doubtful.append((alike, sentence))
    return doubtful


def _told(row: Compared) -> ComparedRequest:
    return ComparedRequest(
        name=row.name,
        prompt_tokens=row.prompt_tokens,
        worst_nats=row.worst_nats,
        worst_step=row.worst_step,
        same_choice=row.same_choice,
        typical_nats=row.typical_nats,
        gaps_nats=tuple(round(gap, 6) for gap in row.gaps_nats),
    )

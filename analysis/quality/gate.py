"""Is a candidate as good as the reference? Its answers and log-probabilities, paired over the same prompts.

One gate a question and candidate. What the gates of a context length say together is a ``Standing``
(``analysis.standings``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.quality.answers import (
    Answered,
    PromptAnswer,
    Question,
    answered,
    expected,
    task_words,
)
from analysis.quality.excerpt import prompt_words
from analysis.quality.reference import Basis, discordant, held_to, reference_order
from analysis.runs.identity import Candidate
from analysis.runs.labels import labels
from analysis.runs.run import Run
from analysis.statistics.noninferiority import (
    FEWEST_PAIRS,
    MARGIN,
    Verdict,
    judge,
    loss_p,
    mean_limits,
    most_lost,
)
from greenbench.contract.counted import counted

# Two correct bf16 kernels differ by up to 0.1 nats at a token (docs/method.md), on average by far less.
DRIFT_MARGIN_NATS = 0.1  # mean |Δ log p| a token
NLL_MARGIN_NATS = 0.02  # mean Δ of −log p a token: 2 % of perplexity
MIN_DRIFT_PROMPTS = 8
LEAST_RIGHT = 2 * MARGIN  # share that the reference must answer right, or a loss could hardly show
EXAMPLES = 3
BUCKETS = 8

Kind = Literal["answers", "log-probabilities"]
Names = Mapping[Candidate, str]


@dataclass(frozen=True)
class Example:
    """One prompt that the reference answers and the candidate does not.

    A text that is not kept is None. ``excerpt`` and ``question`` are cut from the prompt; ``no_words`` says
    why they are None.
    """

    prompt_index: int
    expected: str
    reference_text: str | None
    backend_text: str | None
    depth: float | None = (
        None  # 0 = first, 1 = last of the report; None where the task has no one place
    )
    excerpt: str | None = None
    question: str | None = None
    no_words: str | None = None


@dataclass(frozen=True)
class DriftBucket:
    """Positions [start, end): mean |Δ log p| and mean Δ of −log p, nats a token."""

    start: int
    end: int
    absolute: float
    signed: float


@dataclass(frozen=True)
class Gate:
    """``worse_by``: share of prompts lost less those gained (answers), or mean |Δ log p| in nats.

    ``high`` is its 95 % upper limit (answers: one-sided). ``could_lose``: whether the reference answers
    enough right for a loss to show. ``tells``: that, and enough prompts for equal answers to pass; a gate
    that does not tell can accuse and not acquit. ``backend`` and ``reference`` are names for people;
    ``sentence`` says what was found of the candidate, which it does not name.
    """

    model: str
    task: str
    context_tokens: int
    candidate: Candidate
    reference_candidate: Candidate
    backend: str
    reference: str
    basis: Basis
    kind: Kind
    verdict: Verdict
    could_lose: bool
    tells: bool
    sentence: str
    prompts: int
    worse_by: float
    high: float | None = None
    p: float | None = None  # of "no prompt lost on balance"
    p_gained: float | None = None  # of "none gained"
    reference_right: int | None = None
    backend_right: int | None = None
    examples: list[Example] = field(default_factory=list)
    drift: list[DriftBucket] = field(default_factory=list)


def default_names(groups: Mapping[Question, Mapping[Candidate, Answered]]) -> dict[Candidate, str]:
    """The backend of each candidate, and the settings in which candidates of one model differ."""
    everyone = {who for by_candidate in groups.values() for who in by_candidate}
    by_model: dict[str, list[Candidate]] = {}
    for who in sorted(everyone, key=repr):
        by_model.setdefault(who.model, []).append(who)
    names: dict[Candidate, str] = {}
    for own in by_model.values():
        names |= labels(own, [], across=True).candidates
    return names


def gates(runs: Sequence[Run], names: Names | None = None) -> list[Gate]:
    """Every candidate against the first reference at each question that answered the same prompts.

    ``names``: of the candidates, for the sentences.
    """
    groups = answered(runs)
    called = default_names(groups) if names is None else names
    tasks = task_words(groups)
    found: list[Gate] = []
    for question, told in groups.items():
        order, basis = reference_order(told, called)
        for who in sorted(told, key=lambda who: called[who]):
            reference = held_to(told[who], order)
            if reference is not None:
                about: dict[str, Any] = {
                    "model": question.model,
                    "task": tasks[question],
                    "context_tokens": question.context_tokens,
                    "candidate": who,
                    "reference_candidate": reference.candidate,
                    "backend": called[who],
                    "reference": called[reference.candidate],
                    "basis": basis,
                }
                found.append(_gate(about, reference, told[who]))
    return found


def _gate(about: dict[str, Any], reference: Answered, told: Answered) -> Gate:
    """Of two that answered prompts in common."""
    if told.by_prompt.keys() & reference.by_prompt.keys():
        return _answer_gate(about, reference, told)
    exact, own = reference.logprobs, told.logprobs
    return _drift_gate(
        about, [(exact[key][0], own[key]) for key in sorted(exact.keys() & own.keys())]
    )


def _answer_gate(about: dict[str, Any], reference: Answered, told: Answered) -> Gate:
    lost, gained, shared = discordant(told, reference)
    exact, own = reference.by_prompt, told.by_prompt
    n = len(shared)
    exact_right, own_right = sum(exact[k].right for k in shared), sum(own[k].right for k in shared)
    could_lose = exact_right >= LEAST_RIGHT * n
    verdict = judge(lost, gained, n)
    if verdict == "no worse" and not could_lose:
        verdict = "undecided"
    high = most_lost(lost, gained, n)
    counts = (
        f"{own_right} of {n} prompts right against {exact_right} of {n} with `{about['reference']}`"
    )
    doubt = _answer_doubt(could_lose, n, high) if verdict == "undecided" else ""
    lost_first = sorted(
        (k for k in shared if exact[k].right and not own[k].right),
        key=lambda k: own[k].prompt_index,
    )
    return Gate(
        **about,
        kind="answers",
        verdict=verdict,
        could_lose=could_lose,
        tells=could_lose and n >= FEWEST_PAIRS,
        sentence=f"{counts}{doubt}{_stand_in(about['basis'])}",
        prompts=n,
        worse_by=(lost - gained) / n,
        high=high,
        p=loss_p(lost, gained),
        p_gained=loss_p(gained, lost),
        reference_right=exact_right,
        backend_right=own_right,
        examples=[_example(exact[k], own[k]) for k in lost_first[:EXAMPLES]],
    )


def _answer_doubt(could_lose: bool, n: int, high: float) -> str:
    """Why neither a loss nor its absence is shown."""
    if not could_lose:
        loss = f"{MARGIN * 100:.0f} %"
        return f"; the model answers too few prompts correctly for a loss of {loss} to show"
    if n < FEWEST_PAIRS:
        return f"; {counted(n, 'prompt', 'is', 'are')} too few ({FEWEST_PAIRS} are needed at least)"
    return f"; up to {high * 100:.0f} % of prompts may be lost"


def _stand_in(basis: Basis) -> str:
    if basis == "most exact":
        return ""
    return "; no candidate is known to be exact, so the one with the most correct answers is the reference"


def _example(theirs: PromptAnswer, ours: PromptAnswer) -> Example:
    wanted = expected(ours)
    lost = [item for item in wanted if item not in (ours.text or "")] or wanted
    words = prompt_words(ours.run, ours.prompt_index, lost[0] if lost else "")
    return Example(
        prompt_index=theirs.prompt_index,
        expected=", ".join(wanted),
        reference_text=theirs.text,
        backend_text=ours.text,
        depth=ours.depth,
        excerpt=words.excerpt,
        question=words.question,
        no_words=words.reason,
    )


def _drift_gate(
    about: dict[str, Any], pairs: Sequence[tuple[np.ndarray, list[np.ndarray]]]
) -> Gate:
    """Mean |Δ log p| and mean Δ of −log p a token; a prompt counts once, by the mean over its runs."""
    length = min(min(len(exact), *map(len, own)) for exact, own in pairs)
    # candidate − reference, log p; [prompt][run, token]
    deltas = [np.stack([each[:length] - exact[:length] for each in own]) for exact, own in pairs]
    size = np.stack([np.abs(delta).mean(axis=0) for delta in deltas])
    change = np.stack([-delta.mean(axis=0) for delta in deltas])
    absolute, signed = size.mean(axis=1), change.mean(axis=1)
    n, middle = len(pairs), float(absolute.mean())
    verdict, high = judge_drift(absolute, signed)
    doubt = "; whether that is a loss is not shown" if verdict == "undecided" else ""
    if n < MIN_DRIFT_PROMPTS:
        doubt = f"; {counted(n, 'prompt', 'is', 'are')} too few ({MIN_DRIFT_PROMPTS} are needed at least)"
    return Gate(
        **about,
        kind="log-probabilities",
        verdict=verdict,
        could_lose=True,
        tells=n >= MIN_DRIFT_PROMPTS,
        sentence=(
            f"{middle:.3g} nats a token from `{about['reference']}` ({float(signed.mean()):+.3g} in "
            f"−log p) over {counted(n, 'prompt')}{doubt}{_stand_in(about['basis'])}"
        ),
        prompts=n,
        worse_by=middle,
        high=high,
        drift=[
            DriftBucket(
                int(part[0]) + 1,
                int(part[-1]) + 2,
                float(size[:, part].mean()),
                float(change[:, part].mean()),
            )
            for part in np.array_split(np.arange(length), min(BUCKETS, length))
        ],
    )


def judge_drift(absolute: np.ndarray, signed: np.ndarray) -> tuple[Verdict, float | None]:
    """Verdict on each prompt's mean |Δ log p| and mean Δ of −log p, nats; the 95 % upper limit of the first.

    "no worse": both intervals lie within their margins; "worse": one lies beyond.
    """
    if len(absolute) < MIN_DRIFT_PROMPTS:
        return "undecided", None
    low, high = mean_limits(absolute)
    loss_low, loss_high = mean_limits(signed)
    if low > DRIFT_MARGIN_NATS or loss_low > NLL_MARGIN_NATS:
        return "worse", high
    within = high <= DRIFT_MARGIN_NATS and loss_high <= NLL_MARGIN_NATS
    return ("no worse" if within else "undecided"), high

"""May a backend be recommended? Its answers against an exact reference, paired over the same prompts.

Per model, task and context length: right and wrong answers by McNemar's exact test, log-probabilities by
a bootstrap over prompts. A backend whose answers are worse beyond the margin is barred from the decision
table at that length (``barring``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Literal

import numpy as np
from scipy.stats import binomtest

from analysis.load import Run
from analysis.prompt_words import prompt_words
from analysis.stats import holm_adjusted
from greenbench.rundir import read_jsonl

# Exact by construction; the first that a sweep has is its reference.
REFERENCES = ("flash_attn", "cpu_attn", "flashinfer", "triton", "flex", "sdpa")
MARGIN = 0.10  # share of prompts; a backend worse by more is barred
# Two correct bf16 kernels differ by up to 0.1 nats at a token (docs/method.md), on average by far less.
DRIFT_MARGIN_NATS = 0.1  # mean |Δ log p| a token
NLL_MARGIN_NATS = 0.02  # mean Δ of −log p a token: 2 % of perplexity
MIN_DRIFT_PROMPTS = 5
RESAMPLES = 9_999
EXAMPLES = 3
BUCKETS = 8

Verdict = Literal["equal", "worse", "not enough prompts"]
Kind = Literal["answers", "log-probabilities"]


@dataclass(frozen=True)
class Example:
    """One prompt that the reference answers and the backend does not.

    ``excerpt`` and ``question`` are cut from the prompt; where they are None, ``no_words`` says why.
    """

    prompt_index: int
    expected: str
    reference_text: str
    backend_text: str
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
    """``worse_by``: share of prompts lost (answers) or nats (log-probabilities), with its interval."""

    model: str
    task: str
    context_tokens: int
    backend: str
    reference: str
    kind: Kind
    verdict: Verdict
    barred: bool
    sentence: str
    prompts: int
    worse_by: float | None = None
    low: float | None = None
    high: float | None = None
    p: float | None = None
    reference_right: int | None = None
    backend_right: int | None = None
    examples: list[Example] = field(default_factory=list)
    drift: list[DriftBucket] = field(default_factory=list)


def mcnemar(lost: int, gained: int) -> float:
    """Exact two-sided p of ``lost`` prompts only the reference has right against ``gained`` ones."""
    return float(binomtest(lost, lost + gained, 0.5).pvalue) if lost + gained else 1.0


def loss_interval(lost: int, gained: int, n: int, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of the share of prompts lost, (lost − gained) / n.

    Adjusted Wald interval for a difference of paired shares (Bonett and Price 2012): one is added to both
    kinds of disagreement, so that no disagreement at all still has a width.
    """
    one, other = (lost + 1) / (n + 2), (gained + 1) / (n + 2)
    half = z * sqrt((one + other - (one - other) ** 2) / (n + 2))
    return max(-1.0, one - other - half), min(1.0, one - other + half)


def judge_answers(
    reference: Mapping[int, bool], backend: Mapping[int, bool], margin: float = MARGIN
) -> tuple[Verdict, float, float, float, float]:
    """Verdict, share lost, its interval and p over the prompts that both answered.

    "equal": the interval's worst case is within the margin. "worse": McNemar's p is at most 0.05 and more
    was lost than won. Else there are not enough prompts to tell.
    """
    shared = reference.keys() & backend.keys()
    lost = sum(reference[i] and not backend[i] for i in shared)
    gained = sum(backend[i] and not reference[i] for i in shared)
    low, high = loss_interval(lost, gained, len(shared))
    p = mcnemar(lost, gained)
    share = (lost - gained) / len(shared)
    if high <= margin:
        return "equal", share, low, high, p
    if p <= 0.05 and share > 0:
        return "worse", share, low, high, p
    return "not enough prompts", share, low, high, p


AnswerPlace = tuple[str, str, int]  # model, task with its parameters, context


def answered(runs: Sequence[Run]) -> dict[AnswerPlace, dict[str, list[Run]]]:
    """Runs with stored answers, by place and backend label."""
    groups: dict[AnswerPlace, dict[str, list[Run]]] = {}
    for run in runs:
        if len(run.outputs):
            point = run.point
            params = ",".join(f"{k}={v}" for k, v in sorted(point.task.params.items()))
            task = f"{point.task.name}({params})" if params else point.task.name
            key = (point.model.name, task, point.context_tokens)
            groups.setdefault(key, {}).setdefault(run.label, []).append(run)
    return groups


def gates(runs: Sequence[Run]) -> list[Gate]:
    """Every backend against the reference at every model, task and context that both answered."""
    found: list[Gate] = []
    for place, by_backend in answered(runs).items():
        reference = next((name for name in REFERENCES if name in by_backend), None)
        for backend in sorted(by_backend):
            if reference is not None and backend != reference:
                found += _gate(place, reference, backend, by_backend)
    return _corrected(found)


def _gate(
    place: tuple[str, str, int], reference: str, backend: str, runs: dict[str, list[Run]]
) -> list[Gate]:
    model, task, context = place
    about: dict[str, Any] = {
        "model": model,
        "task": task,
        "context_tokens": context,
        "backend": backend,
        "reference": reference,
    }
    ours, theirs = answers_by_prompt(runs[backend]), answers_by_prompt(runs[reference])
    shared = sorted(ours.keys() & theirs.keys())
    if shared:
        return [_answer_gate(about, shared, theirs, ours)]
    ours_p, theirs_p = logprobs_by_prompt(runs[backend]), logprobs_by_prompt(runs[reference])
    shared_p = sorted(ours_p.keys() & theirs_p.keys())
    return [_drift_gate(about, [(theirs_p[k], ours_p[k]) for k in shared_p])] if shared_p else []


@dataclass(frozen=True)
class PromptAnswer:
    """How one prompt was answered: right when at least half of its repeated answers are."""

    prompt_index: int
    right: bool
    text: str
    depth: float | None  # where the one needle stood, 0..1
    run: Run
    request_id: str


def answers_by_prompt(runs: Sequence[Run]) -> dict[str, PromptAnswer]:
    """prompt sha256 → answer, over all successful requests of the runs.

    Warm-up and drain count: what a model says does not depend on when it was asked.
    """
    gathered: dict[str, list[tuple[Run, Any]]] = {}
    for run in runs:
        good = run.requests[run.requests["error_type"].isna()]
        sha = dict(zip(good["request_id"], good["prompt_sha256"], strict=True))
        outputs = run.outputs[run.outputs["correct"].notna()]
        for row in outputs.rename(columns={"grade.depth": "depth"}).itertuples():
            if row.request_id in sha:
                gathered.setdefault(sha[row.request_id], []).append((run, row))
    return {key: _prompt_answer(rows) for key, rows in gathered.items()}


def _prompt_answer(rows: list[tuple[Run, Any]]) -> PromptAnswer:
    run, first = rows[0]
    depth = getattr(first, "depth", None)
    return PromptAnswer(
        prompt_index=int(first.prompt_index),
        right=sum(bool(row.correct) for _, row in rows) * 2 >= len(rows),
        text=str(first.text or ""),
        depth=None if depth is None or np.isnan(depth) else float(depth),
        run=run,
        request_id=str(first.request_id),
    )


def logprobs_by_prompt(runs: Sequence[Run]) -> dict[str, np.ndarray]:
    """prompt sha256 → log-probability of each prompt token from the second on, of its first answer."""
    found: dict[str, np.ndarray] = {}
    for run in runs:
        if not run.outputs["nll_tokens"].notna().any():
            continue
        good = run.requests[run.requests["error_type"].isna()]
        sha = dict(zip(good["request_id"], good["prompt_sha256"], strict=True))
        for path in sorted(run.dir.outputs_dir.glob("*.jsonl")):
            for row in read_jsonl(path):
                key = sha.get(row["request_id"])
                values = (row.get("grade") or {}).get("logprobs")
                if key is not None and values and key not in found:
                    found[key] = np.array(values, dtype=float)
    return found


def _answer_gate(
    about: dict[str, Any],
    shared: list[str],
    theirs: dict[str, PromptAnswer],
    ours: dict[str, PromptAnswer],
) -> Gate:
    n = len(shared)
    right = {k: theirs[k].right for k in shared}
    mine = {k: ours[k].right for k in shared}
    verdict, share, low, high, p = judge_answers(
        dict(enumerate(right.values())), dict(enumerate(mine.values()))
    )
    lost = [k for k in shared if right[k] and not mine[k]]
    return Gate(
        **about,
        kind="answers",
        verdict=verdict,
        barred=verdict == "worse" and share > MARGIN,
        sentence=_answer_sentence(about, verdict, sum(mine.values()), sum(right.values()), n),
        prompts=n,
        worse_by=share,
        low=low,
        high=high,
        p=p,
        reference_right=sum(right.values()),
        backend_right=sum(mine.values()),
        examples=[_example(theirs[k], ours[k]) for k in lost[:EXAMPLES]],
    )


def _example(theirs: PromptAnswer, ours: PromptAnswer) -> Example:
    wanted = expected(ours)
    lost = [item for item in wanted if item not in ours.text] or wanted
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


def expected(answer: PromptAnswer) -> list[str]:
    """What the grader wanted to see, item by item, from the stored grade."""
    for path in sorted(answer.run.dir.outputs_dir.glob("*.jsonl")):
        for row in read_jsonl(path):
            if row["request_id"] == answer.request_id:
                wanted = (row.get("grade") or {}).get("expected", "")
                return [str(item) for item in wanted] if isinstance(wanted, list) else [str(wanted)]
    return []


def _answer_sentence(about: dict[str, Any], verdict: str, mine: int, theirs: int, n: int) -> str:
    counts = f"{about['backend']} {mine} of {n} right, {about['reference']} {theirs} of {n}"
    if theirs == 0 and mine == 0:
        return f"{counts}: the model answers nothing right, so this tells little"
    return f"{counts}: {verdict}"


def _drift_gate(about: dict[str, Any], pairs: list[tuple[np.ndarray, np.ndarray]]) -> Gate:
    """Mean |Δ log p| and mean Δ of −log p a token; the unit that is redrawn is the prompt."""
    length = min(min(len(a), len(b)) for a, b in pairs)
    delta = np.stack([b[:length] - a[:length] for a, b in pairs])  # backend − reference, log p
    absolute, signed = np.abs(delta).mean(axis=1), -delta.mean(axis=1)
    n = len(pairs)
    middle = float(absolute.mean())
    buckets = [
        DriftBucket(
            int(part[0]) + 1,
            int(part[-1]) + 2,
            float(np.abs(delta[:, part]).mean()),
            float(-delta[:, part].mean()),
        )
        for part in np.array_split(np.arange(length), min(BUCKETS, length))
    ]
    if n < MIN_DRIFT_PROMPTS:
        verdict, low, high, worse = "not enough prompts", None, None, False
    else:
        low, high = bootstrap_mean(absolute)
        loss_low, loss_high = bootstrap_mean(signed)
        worse = low > DRIFT_MARGIN_NATS or loss_low > NLL_MARGIN_NATS
        fine = high <= DRIFT_MARGIN_NATS and loss_high <= NLL_MARGIN_NATS
        verdict = "worse" if worse else "equal" if fine else "not enough prompts"
    return Gate(
        **about,
        kind="log-probabilities",
        verdict=verdict,  # type: ignore[arg-type]
        barred=worse,
        sentence=(
            f"{about['backend']} differs from {about['reference']} by {middle:.3g} nats a token "
            f"({float(signed.mean()):+.3g} in −log p) over {n} prompts: {verdict}"
        ),
        prompts=n,
        worse_by=middle,
        low=low,
        high=high,
        drift=buckets,
    )


def bootstrap_mean(values: np.ndarray, seed: int = 7) -> tuple[float, float]:
    """95 % percentile interval of the mean, by redrawing with replacement."""
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def _corrected(found: list[Gate]) -> list[Gate]:
    """Holm over the answer gates of a model and task: a "worse" that it does not keep is withdrawn."""
    families: dict[tuple[str, str], list[Gate]] = {}
    for gate in found:
        if gate.p is not None:
            families.setdefault((gate.model, gate.task), []).append(gate)
    changed: dict[int, Gate] = {}
    for family in families.values():
        for gate, kept in zip(
            family,
            [p <= 0.05 for p in holm_adjusted([g.p for g in family if g.p is not None])],
            strict=True,
        ):
            if gate.verdict == "worse" and not kept:
                sentence = gate.sentence.removesuffix(gate.verdict) + "not enough prompts"
                changed[id(gate)] = replace(
                    gate, verdict="not enough prompts", barred=False, sentence=sentence
                )
    return [changed.get(id(gate), gate) for gate in found]

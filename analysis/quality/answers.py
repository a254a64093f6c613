"""What candidates answered, laid side by side: the same question, the same prompts, told apart by hash."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from analysis.runs.archived import grades
from analysis.runs.identity import Candidate, Fields
from analysis.runs.labels import task_facts, told_apart
from analysis.runs.parquet import table_sources
from analysis.runs.run import Run


@dataclass(frozen=True)
class Question:
    """What must agree for answers to be paired. ``output_tokens`` is None for the task's own length."""

    model: str
    task: str
    params: Fields
    output_tokens: int | None
    context_tokens: int


@dataclass(frozen=True)
class PromptAnswer:
    """How one prompt was answered: right when more than half of its repeated answers are."""

    prompt_index: int
    right: bool
    text: str | None  # None: not kept
    depth: float | None  # where the one needle stood, 0..1
    run: Run
    request_id: str


@dataclass(frozen=True)
class Answered:
    """What one candidate answered to one question, over its runs. Nothing is read before it is asked for."""

    question: Question
    candidate: Candidate
    runs: tuple[Run, ...]

    @cached_property
    def by_prompt(self) -> dict[str, PromptAnswer]:
        """prompt sha256 → answer."""
        return answers_by_prompt(self.runs)

    @cached_property
    def logprobs(self) -> dict[str, list[np.ndarray]]:
        """prompt sha256 → log-probabilities of its tokens, nats, once a run."""
        return logprobs_by_prompt(self.runs)

    @property
    def right_share(self) -> float | None:
        found = self.by_prompt
        return sum(each.right for each in found.values()) / len(found) if found else None


def answered(runs: Sequence[Run]) -> dict[Question, dict[Candidate, Answered]]:
    """The runs with stored answers, by question and candidate."""
    groups: dict[Question, dict[Candidate, list[Run]]] = {}
    for run in runs:
        if len(run.outputs):
            known = run.identity
            question = Question(
                known.candidate.model,
                known.workload.task,
                known.workload.params,
                known.workload.output_tokens,
                known.workload.context_tokens,
            )
            groups.setdefault(question, {}).setdefault(known.candidate, []).append(run)
    return {
        question: {who: Answered(question, who, tuple(own)) for who, own in by_candidate.items()}
        for question, by_candidate in groups.items()
    }


def task_words(questions: Iterable[Question]) -> dict[Question, str]:
    """``retrieve``, or ``retrieve · depth 0`` where it is asked in several ways, as the tables have it."""
    return told_apart(
        list(questions),
        lambda each: (each.task,),
        lambda each: task_facts(each.params, each.output_tokens),
    )


def answers_by_prompt(runs: Sequence[Run]) -> dict[str, PromptAnswer]:
    """prompt sha256 → answer, over all successful requests of the runs.

    Warm-up and drain count: what a model says does not depend on when it was asked.
    """
    gathered: dict[str, list[tuple[Run, Any]]] = {}
    for run in runs:
        sha = _successful(run)
        outputs = run.outputs[run.outputs["correct"].notna()]
        for row in outputs.rename(columns={"grade.depth": "depth"}).itertuples():
            key = sha.get(str(row.request_id))
            if key is not None:
                gathered.setdefault(key, []).append((run, row))
    return {key: _prompt_answer(rows) for key, rows in gathered.items()}


def _successful(run: Run) -> dict[str, str]:
    """request id → prompt sha256, of requests without an error."""
    good = run.requests[run.requests["error_type"].isna()]
    return dict(zip(good["request_id"], good["prompt_sha256"], strict=True))


def _prompt_answer(rows: list[tuple[Run, Any]]) -> PromptAnswer:
    run, first = rows[0]
    depth = getattr(first, "depth", None)
    return PromptAnswer(
        prompt_index=int(first.prompt_index),
        right=sum(bool(row.correct) for _, row in rows) * 2 > len(rows),
        text=first.text if isinstance(first.text, str) else None,
        depth=None if depth is None or np.isnan(depth) else float(depth),
        run=run,
        request_id=str(first.request_id),
    )


def logprobs_by_prompt(runs: Sequence[Run]) -> dict[str, list[np.ndarray]]:
    """prompt sha256 → log-probability of each prompt token from the second on, of each run's first answer."""
    found: dict[str, list[np.ndarray]] = {}
    for run in runs:
        if not run.outputs["nll_tokens"].notna().any():
            continue
        sha, told = _successful(run), set[str]()
        for request_id, grade in grades(table_sources(run.path, "outputs")):
            key, values = sha.get(request_id), grade.get("logprobs")
            if key is not None and values and key not in told:
                told.add(key)
                found.setdefault(key, []).append(np.array(values, dtype=np.float32))
    return found


def expected(answer: PromptAnswer) -> list[str]:
    """What the grader wanted to see, item by item, from the stored grade."""
    for request_id, grade in grades(table_sources(answer.run.path, "outputs")):
        if request_id == answer.request_id:
            wanted = grade.get("expected", "")
            return [str(item) for item in wanted] if isinstance(wanted, list) else [str(wanted)]
    return []

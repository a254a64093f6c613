"""Replies in, graded rows out. Used by both load generators after their last request."""

from typing import Any

from greenbench.contract.schema import OutputRecord
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks import TASKS


def grade_reply(
    prompt: Prompt, request_id: str, text: str | None, body: dict[str, Any] | None
) -> OutputRecord:
    """Grade one reply: ``text`` of a streamed task, ``body`` (the whole JSON) of a scoring one.

    Neither (the request failed) gives a row without a verdict, never a wrong answer.
    """
    row = OutputRecord(
        request_id=request_id, task=prompt.task, prompt_index=prompt.prompt_index, text=text
    )
    if text is None and body is None:
        return row
    grade = TASKS[prompt.task].grade(prompt, text, body)
    return OutputRecord(
        request_id=request_id,
        task=prompt.task,
        prompt_index=prompt.prompt_index,
        text=text,
        correct=grade.correct,
        score=grade.score,
        grade=grade.detail,
        nll_sum=grade.nll_sum,
        nll_tokens=grade.nll_tokens,
        nll_buckets=grade.nll_buckets,
    )

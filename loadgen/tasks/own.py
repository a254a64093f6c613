"""A person's own questions: a JSONL file with a ``prompt`` and its ``answers`` a line.

A prompt is sent as it is, with its own length; the point's context is the most it may have.
"""

import json
from functools import lru_cache
from pathlib import Path
from typing import Any

from greenbench.contract.counted import counted
from greenbench.contract.errors import UserError
from loadgen.prompts.haystack import Question
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.task import Draft, Grade, Recipe, Task


@lru_cache(maxsize=4)
def read_questions(path: str) -> list[tuple[str, list[str]]]:
    """(prompt, answers) of each line; a fault names the file and the line."""
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"'{path}' cannot be read ({error}); set the parameter path to a UTF-8 JSONL file"
        ) from error
    numbered = [(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return [_question(path, number, line) for number, line in numbered]


def _question(path: str, number: int, line: str) -> tuple[str, list[str]]:
    wanted = '{"prompt": "…", "answers": ["…"]} was wanted'
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}:{number}: {wanted}, found no JSON ({error})") from error
    prompt = row.get("prompt") if isinstance(row, dict) else None
    answers = row.get("answers") if isinstance(row, dict) else None
    texts = [a for a in answers if isinstance(a, str) and a] if isinstance(answers, list) else []
    if not isinstance(prompt, str) or not prompt or not texts or texts != answers:
        raise UserError(f"{path}:{number}: {wanted}, found {line[:80]}")
    return prompt, texts


def make(recipe: Recipe) -> Draft:
    path = str(recipe.params["path"])
    questions = read_questions(path)
    if recipe.index >= len(questions):
        raise UserError(
            f"{path} holds {counted(len(questions), 'prompt')}, more were asked for; "
            "lower prompts_per_point or add lines"
        )
    prompt, answers = questions[recipe.index]
    ids = [*recipe.encoder.opening, *recipe.encoder.ending(Question(prompt, "", ""))]
    if len(ids) > recipe.context_tokens:
        raise UserError(
            f"{path}: prompt {recipe.index + 1} takes {len(ids)} tokens, "
            f"more than the context of {recipe.context_tokens}"
        )
    return Draft(ids, {"expected": answers})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Score: share of the answers that stand in the reply, case and white space aside. Right: all."""
    reply = _plain(text or "")
    expected: list[str] = prompt.answer["expected"]
    named = [answer for answer in expected if _plain(answer) in reply]
    detail = {"expected": expected, "found": named}
    return Grade(len(named) == len(expected), len(named) / len(expected), detail)


def _plain(text: str) -> str:
    return " ".join(text.casefold().split())


TASK = Task(
    name="own",
    describe="a person's own JSONL of prompts and answers (parameter path), at their own lengths",
    output_tokens=64,
    params={"path": "", "chat": False},
    make=make,
    grade=grade,
)

"""Needle QA: one record is asked for among distractor records; or it is absent, and 'none' is right."""

import re
from typing import Any

from loadgen.prompts.build import Insert, lay_out, spread_depth
from loadgen.prompts.haystack import NONE, ask_one, draw_records, record
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.params import share, whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

STOP = "\n"
ANSWER = re.compile(rf"\d+|\b{NONE}\b", re.IGNORECASE)
MOST_DISTRACTORS = 400


def make(recipe: Recipe) -> Draft:
    rng = recipe.rng
    distractors = whole(recipe.params, "distractors", 0, MOST_DISTRACTORS)
    absent = rng.random() < share(recipe.params, "absent_share")
    (subject, code), *others = draw_records(rng, distractors + 1)
    depth = spread_depth(recipe.index)
    if recipe.params["depth"] != "spread":
        depth = share(recipe.params, "depth")
    inserts = [Insert(rng.random(), " " + record(*other)) for other in others]
    if not absent:
        inserts.append(Insert(depth, " " + record(subject, code)))
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        ask_one(subject),
    )
    expected = NONE if absent else code
    return Draft(
        token_ids, {"expected": expected, "subject": subject, "depth": None if absent else depth}
    )


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Right when the first number (or 'none') of the reply's first line is exactly the expected one."""
    first_line = (text or "").split(STOP, 1)[0]
    match = ANSWER.search(first_line)
    stated_answer = match.group().lower() if match else None
    expected = prompt.answer["expected"]
    correct = stated_answer == expected
    detail = {"expected": expected, "found": stated_answer, "depth": prompt.answer["depth"]}
    return Grade(correct=correct, score=float(correct), detail=detail)


TASK = Task(
    name="retrieve",
    describe="find the code of one subject among distractor records in a long report",
    output_tokens=16,
    params={"depth": "spread", "distractors": 8, "absent_share": 0.0, "chat": False},
    make=make,
    grade=grade,
)

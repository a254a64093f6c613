"""One subject has several codes, told far apart; all are asked for."""

from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.haystack import ANSWER, CODE, Question, draw_records, record
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.listed import grade_listed
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

STOP = "\n"


def question(subject: str, count: int) -> Question:
    text = (
        f"\n\nQuestion: The report gives {count} different codes of {subject}. What are they? "
        "State the codes and nothing else."
    )
    return Question(text, ANSWER, f" The codes of {subject} are")


def make(recipe: Recipe) -> Draft:
    rng = recipe.rng
    values = whole(recipe.params, "values", 1, 20)
    distractors = whole(recipe.params, "distractors", 0, 380)
    known = draw_records(rng, values + distractors)
    subject = known[0][0]
    expected = [code for _, code in known[:values]]
    # one in each equal part of the report
    inserts = [
        Insert((i + rng.random()) / values, " " + record(subject, code))
        for i, code in enumerate(expected)
    ]
    inserts += [Insert(rng.random(), " " + record(*pair)) for pair in known[values:]]
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        question(subject, values),
    )
    return Draft(token_ids, {"expected": expected, "subject": subject})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Score: share of the codes stated. Right: all of them and no other, in any order."""
    return grade_listed(text or "", prompt.answer["expected"], STOP, CODE.findall, ordered=False)


TASK = Task(
    name="multi_value",
    describe="state all codes of one subject that a long report gives in several places",
    output_tokens=64,
    params={"values": 4, "distractors": 16, "chat": False},
    make=make,
    grade=grade,
)

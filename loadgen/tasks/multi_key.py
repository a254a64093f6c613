"""Several needles: the codes of some subjects are asked for at once, among many distractor records."""

from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.haystack import CODE, ask_many, draw_records, record
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.listed import grade_listed
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

STOP = "\n"


def make(recipe: Recipe) -> Draft:
    rng = recipe.rng
    keys = whole(recipe.params, "keys", 1, 20)
    known = draw_records(rng, keys + whole(recipe.params, "distractors", 0, 380))
    inserts = [Insert(rng.random(), " " + record(*pair)) for pair in known]
    subjects = [subject for subject, _ in known[:keys]]
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        ask_many(subjects),
    )
    expected = [code for _, code in known[:keys]]
    depths = [insert.depth for insert in inserts[:keys]]
    return Draft(token_ids, {"expected": expected, "subjects": subjects, "depths": depths})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Score: share of the codes stated. Right: all codes, in the order asked, on the first line."""
    return grade_listed(text or "", prompt.answer["expected"], STOP, CODE.findall, ordered=True)


TASK = Task(
    name="multi_key",
    describe="state the codes of several subjects among many distractor records",
    output_tokens=64,
    params={"keys": 4, "distractors": 64, "chat": False},
    make=make,
    grade=grade,
)

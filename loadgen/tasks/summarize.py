"""Key-fact summary: a long report holds numbered findings; the reply must state them all, in order."""

from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.haystack import CODE, CODES, ask_findings, finding
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks.listed import grade_listed
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

STOP = "\n\n"
MOST_FACTS = 40


def make(recipe: Recipe) -> Draft:
    rng = recipe.rng
    count = whole(recipe.params, "facts", 1, MOST_FACTS)
    figures = rng.sample(CODES, count)
    facts = [finding(rng, number, figure) for number, figure in enumerate(figures, start=1)]
    # one in each equal part of the report, so that every depth is asked for
    inserts = [Insert((i + rng.random()) / count, " " + fact) for i, fact in enumerate(facts)]
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        ask_findings(count),
    )
    return Draft(token_ids, {"expected": [str(figure) for figure in figures], "facts": facts})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Score: share of the findings' figures stated. Right: all, in order, none invented."""
    return grade_listed(text or "", prompt.answer["expected"], STOP, CODE.findall, ordered=True)


TASK = Task(
    name="summarize",
    describe="state the numbered findings of a long report in order, inventing none",
    output_tokens=96,
    params={"facts": 4, "chat": False},
    make=make,
    grade=grade,
)

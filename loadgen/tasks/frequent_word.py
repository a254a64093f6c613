"""Most frequent word: things are counted all over the report; one oftener than any other."""

from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.haystack import ANSWER, Question
from loadgen.prompts.prompt_file import Prompt
from loadgen.prompts.random_words import SUBJECTS
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task
from loadgen.tasks.variables import named_subjects

STOP = "\n"
QUESTION = Question(
    "\n\nQuestion: Sentences of the form 'One … was counted.' stand all over the report. "
    "Which thing was counted most often?",
    ANSWER,
    " The thing counted most often is the",
)


def one_more(thing: str) -> str:
    return f"One {thing} was counted."


def make(recipe: Recipe) -> Draft:
    """``kinds`` things, each counted ``others`` times, but one ``others`` + ``lead`` times."""
    rng = recipe.rng
    kinds = whole(recipe.params, "kinds", 2, 40)
    others = whole(recipe.params, "others", 1, 40)
    lead = whole(recipe.params, "lead", 1, 40)
    most, *rest = rng.sample(SUBJECTS, kinds)
    counted = [most] * (others + lead) + rest * others
    inserts = [Insert(rng.random(), " " + one_more(thing)) for thing in counted]
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        QUESTION,
    )
    return Draft(token_ids, {"expected": most, "others": rest})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Right when the first thing named on the first line is the one counted most often."""
    named = named_subjects((text or "").split(STOP, 1)[0])
    stated_answer = named[0] if named else None
    expected = prompt.answer["expected"]
    correct = stated_answer == expected
    return Grade(correct, float(correct), {"expected": expected, "found": stated_answer})


TASK = Task(
    name="frequent_word",
    describe="name the thing that a long report counts most often",
    output_tokens=8,
    params={"kinds": 8, "others": 4, "lead": 4, "chat": False},
    make=make,
    grade=grade,
)

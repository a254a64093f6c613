"""Variable tracking: a code is handed on from subject to subject; who has it in the end?"""

import re
from itertools import pairwise
from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.haystack import ANSWER, CODES, Question, record
from loadgen.prompts.prompt_file import Prompt
from loadgen.prompts.random_words import SUBJECTS
from loadgen.tasks.listed import grade_listed
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

STOP = "\n"
KNOWN = frozenset(SUBJECTS)


def handed_on(new: str, old: str) -> str:
    return f"The code of {new} is the same as the code of {old}."


def question(code: str, count: int) -> Question:
    text = (
        f"\n\nQuestion: Which {count} subjects have the code {code}, directly or because their code "
        "is that of another? Name the subjects and nothing else."
    )
    return Question(text, ANSWER, f" The code {code} is that of")


def make(recipe: Recipe) -> Draft:
    """``chains`` chains of ``hops`` + 1 subjects each; one chain is asked for."""
    rng = recipe.rng
    chains = whole(recipe.params, "chains", 1, 40)
    hops = whole(recipe.params, "hops", 1, 9)
    names = iter(rng.sample(SUBJECTS, chains * (hops + 1)))
    codes = [str(code) for code in rng.sample(CODES, chains)]
    subjects = [[next(names) for _ in range(hops + 1)] for _ in range(chains)]
    inserts: list[Insert] = []
    for code, chain in zip(codes, subjects, strict=True):
        told = [record(chain[0], code)]
        told += [handed_on(new, old) for old, new in pairwise(chain)]
        depths = sorted(rng.random() for _ in told)  # a hop is told after the one it builds on
        inserts += [Insert(depth, " " + text) for depth, text in zip(depths, told, strict=True)]
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        question(codes[0], hops + 1),
    )
    return Draft(token_ids, {"expected": subjects[0], "code": codes[0]})


def named_subjects(text: str) -> list[str]:
    return [word for word in re.findall(r"[a-z]+", text.lower()) if word in KNOWN]


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Score: share of the chain's subjects named. Right: all of them and no other, in any order."""
    return grade_listed(text or "", prompt.answer["expected"], STOP, named_subjects, ordered=False)


TASK = Task(
    name="variables",
    describe="follow a code that is handed on from subject to subject through a long report",
    output_tokens=48,
    params={"chains": 3, "hops": 3, "chat": False},
    make=make,
    grade=grade,
)

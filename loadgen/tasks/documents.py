"""Several documents give different codes of the same subjects; one document's word is asked for."""

from typing import Any

from loadgen.prompts.build import Insert, lay_out
from loadgen.prompts.haystack import ANSWER, CODE, CODES, Question, record
from loadgen.prompts.prompt_file import Prompt
from loadgen.prompts.random_words import SUBJECTS
from loadgen.tasks.params import whole
from loadgen.tasks.task import Draft, Grade, Recipe, Task

STOP = "\n"


def heading(document: int) -> str:
    return f"\n\nDocument {document}."


def question(document: int, subject: str) -> Question:
    said = f"According to document {document}, "
    text = (
        f"\n\nQuestion: {said}what is the code of {subject}? The other documents give other codes."
    )
    return Question(text, ANSWER, f" {said}the code of {subject} is")


def make(recipe: Recipe) -> Draft:
    rng = recipe.rng
    documents = whole(recipe.params, "documents", 2, 40)
    subjects = rng.sample(SUBJECTS, whole(recipe.params, "subjects", 1, 20))
    codes = [str(code) for code in rng.sample(CODES, documents * len(subjects))]
    inserts: list[Insert] = []
    for document in range(documents):
        inserts.append(Insert(document / documents, heading(document + 1)))
        for place, subject in enumerate(subjects):
            depth = (document + rng.uniform(0.01, 0.99)) / documents
            code = codes[document * len(subjects) + place]
            inserts.append(Insert(depth, " " + record(subject, code)))
    # each document in turn over the prompts, so that every depth is asked for
    asked, place = recipe.index % documents, rng.randrange(len(subjects))
    token_ids = lay_out(
        recipe.encoder,
        recipe.context_tokens,
        rng,
        recipe.source.sentences(rng),
        inserts,
        question(asked + 1, subjects[place]),
    )
    given = codes[place :: len(subjects)]
    return Draft(token_ids, {"expected": given[asked], "given": given, "document": asked + 1})


def grade(prompt: Prompt, text: str | None, body: dict[str, Any] | None) -> Grade:
    """Right when the first code of the first line is the asked document's.

    ``from_document`` tells a mixed-up document (its number) from an invented code (None).
    """
    stated = CODE.findall((text or "").split(STOP, 1)[0])
    stated_answer = stated[0] if stated else None
    given: list[str] = prompt.answer["given"]
    correct = stated_answer == prompt.answer["expected"]
    detail = {
        "expected": prompt.answer["expected"],
        "found": stated_answer,
        "document": prompt.answer["document"],
        "from_document": given.index(stated_answer) + 1 if stated_answer in given else None,
    }
    return Grade(correct, float(correct), detail)


TASK = Task(
    name="documents",
    describe="say what one of several documents gives as a code on which they differ",
    output_tokens=16,
    params={"documents": 4, "subjects": 4, "chat": False},
    make=make,
    grade=grade,
)

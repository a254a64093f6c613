"""The sentences that tasks hide in documents and ask for: records, findings, and their questions.

The training data of ``models/retriever`` is made from these very functions.
"""

import random
import re
from dataclasses import dataclass

from loadgen.prompts import random_words

CODES = range(100_000, 1_000_000)
CODE = re.compile(r"(?<!\d)\d{6}(?!\d)")
NONE = "none"


def record(subject: str, code: str) -> str:
    return f"The code of {subject} is {code}."


def draw_records(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """(subject, six-digit code) pairs; subjects all different, codes all different."""
    codes = rng.sample(CODES, count)
    return [
        (subject, str(code))
        for subject, code in zip(rng.sample(random_words.SUBJECTS, count), codes, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class Question:
    """What stands after the report: the question, and the first words of the answer.

    With a chat template the answer's words open the assistant's turn and the label falls away.
    """

    text: str
    label: str
    answer_start: str

    @property
    def plain(self) -> str:
        return self.text + self.label + self.answer_start


ANSWER = "\nAnswer:"


def ask_one(subject: str) -> Question:
    return Question(
        f"\n\nQuestion: What is the code of {subject}? "
        f"If the report gives no code of {subject}, the answer is {NONE}.",
        ANSWER,
        f" The code of {subject} is",
    )


def ask_many(subjects: list[str]) -> Question:
    """Several codes at once; the reply goes on with a sentence for each."""
    return Question(
        f"\n\nQuestion: What are the codes of {', '.join(subjects)}? "
        "State each in a sentence of its own, in this order.",
        ANSWER,
        f" The code of {subjects[0]} is",
    )


def finding(rng: random.Random, number: int, figure: int) -> str:
    place, verb, thing = map(
        rng.choice, (random_words.PLACES, random_words.VERBS, random_words.THINGS)
    )
    return f"Finding {number}: the {place} {verb} {figure} {thing}s."


def ask_findings(count: int) -> Question:
    return Question(
        f"\n\nTask: The report holds {count} numbered findings, each with a six-digit figure. "
        "Summarize the report: state every finding in order, one a line, and nothing else.",
        "\nSummary:\n",
        "Finding 1:",
    )

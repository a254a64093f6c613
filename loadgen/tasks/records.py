"""The records that tasks hide in documents: a subject and its six-digit code.

The training data of ``models/retriever`` uses the same sentences.
"""

import random
import re

from loadgen.words import SUBJECTS

CODES = range(100_000, 1_000_000)
CODE = re.compile(r"(?<!\d)\d{6}(?!\d)")
NONE = "none"


def record(subject: str, code: str) -> str:
    return f"The code of {subject} is {code}."


def draw_records(rng: random.Random, count: int) -> list[tuple[str, str]]:
    """Subjects all different, codes all different."""
    codes = rng.sample(CODES, count)
    return [
        (subject, str(code))
        for subject, code in zip(rng.sample(SUBJECTS, count), codes, strict=True)
    ]

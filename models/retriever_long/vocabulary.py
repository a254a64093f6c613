"""The long retrievers' tokenizer: the retriever's, with the words of four more tasks.

Build: ``python -m models.retriever_long.vocabulary``.
"""

import random
from collections.abc import Iterator
from pathlib import Path

from loadgen.prompts import haystack, random_words
from loadgen.tasks import documents, frequent_word, multi_value, variables
from models.retriever import vocabulary

HERE = Path(__file__).parent
TOKENIZER = HERE / "head64"  # the other models hold copies
WINDOW = 131_072  # tokens
MOST_DOCUMENTS = 40


def sample_texts() -> Iterator[str]:
    yield from vocabulary.sample_texts()
    rng = random.Random("vocabulary of the long retrievers")
    for subject in random_words.SUBJECTS:
        other = rng.choice(random_words.SUBJECTS)
        yield " " + haystack.record(subject, "123456")
        yield " " + variables.handed_on(subject, other)
        yield f" {subject}, {other}."
        yield " " + frequent_word.one_more(subject)
        yield multi_value.question(subject, 4).plain
    for number in range(1, MOST_DOCUMENTS + 1):
        yield documents.heading(number)
        yield documents.question(number, "falcon").plain
    yield variables.question("123456", 4).plain
    yield frequent_word.QUESTION.plain


def main() -> None:
    vocabulary.write(vocabulary.build(sample_texts()), TOKENIZER, WINDOW)


if __name__ == "__main__":
    main()

"""Where filler sentences come from: a seeded generator, or a person's own text file."""

import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

from greenbench.contract.errors import UserError
from loadgen.prompts import random_words

LONGEST_PIECE_CHARS = 600  # a longer sentence of a person's file is cut at a space
SHORTEST_FILE_CHARS = 200

# Slots of a sentence pattern. Numbers stay under five digits: six-digit numbers are answers.
SLOTS: dict[str, Callable[[random.Random], str]] = {
    "adj": lambda rng: rng.choice(random_words.ADJECTIVES),
    "group": lambda rng: rng.choice(random_words.GROUPS),
    "manner": lambda rng: rng.choice(random_words.MANNERS),
    "number": lambda rng: str(rng.randrange(2, 1000)),
    "person": lambda rng: (
        f"{rng.choice(random_words.FIRST_NAMES)} {rng.choice(random_words.LAST_NAMES)}"
    ),
    "place": lambda rng: rng.choice(random_words.PLACES),
    "thing": lambda rng: rng.choice(random_words.THINGS),
    "time": lambda rng: rng.choice(random_words.TIMES),
    "verb": lambda rng: rng.choice(random_words.VERBS),
    "year": lambda rng: str(rng.randrange(1700, 2000)),
}

PATTERNS = """
{person} {manner} {verb} the {adj} {thing} near the {place}.
The {group} of the {place} {verb} {number} {adj} {thing}s in {year}.
In {year} the {adj} {place} was {verb} by {person}.
After a {adj} {time}, the {group} {verb} every {thing} in the {place}.
The {thing} from the {adj} {place} was {manner} {verb} by the {group}.
{person} and {person} {verb} a {adj} {thing} together.
No one at the {place} {verb} the {thing} before the {time} ended.
Between the {place} and the {place}, {group} {verb} a {adj} {thing}.
It was {person} who {manner} {verb} the {thing} in {year}.
Page {number} says that the {group} {verb} the {adj} {thing}.
When the {adj} {time} came, {person} {verb} the {thing} of the {place}.
The {adj} {place} had {number} {thing}s, and the {group} {verb} them all.
For {number} years the {group} {manner} {verb} this {adj} {thing}.
A {adj} {thing} and a {adj} {thing} were {verb} at the {place}.
Every {time} {person} {verb} the {thing} that the {group} {manner} {verb}.
Some {group} {verb} the {place}, while others {manner} {verb} the {adj} {thing}.
{person} of the {place} {manner} {verb} {number} {group}.
Behind the {adj} {place} stood a {thing} that {person} {verb} in {year}.
Neither the {group} nor {person} {manner} {verb} the {adj} {thing}.
The {thing} was {adj}, the {place} was {adj}, and the {group} {verb} both.
""".strip().splitlines()

SLOT = re.compile(r"\{(\w+)\}")
# a pattern as literal, slot, literal, slot, …, literal
PARSED = [SLOT.split(pattern) for pattern in PATTERNS]


class Source(Protocol):
    def sentences(self, rng: random.Random) -> Iterator[str]:
        """Endless sentences, each ending in its own punctuation, without surrounding spaces."""
        ...


class GeneratedText:
    """Plain invented sentences: more than 10^12 different ones, so prompts share no long stretch."""

    def sentences(self, rng: random.Random) -> Iterator[str]:
        while True:
            parts = rng.choice(PARSED)
            yield "".join(SLOTS[part](rng) if odd % 2 else part for odd, part in enumerate(parts))


class FileText:
    """The user's own text, read from a random sentence on; a short text starts over at its end."""

    def __init__(self, pieces: list[str]) -> None:
        self._pieces = pieces

    def sentences(self, rng: random.Random) -> Iterator[str]:
        start = rng.randrange(len(self._pieces))
        while True:
            yield from self._pieces[start:]
            yield from self._pieces[:start]


def split_sentences(text: str) -> list[str]:
    """Sentences of a text, white space joined, over-long ones cut at a space."""
    pieces: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+|\n\s*\n", text):
        rest = " ".join(sentence.split())
        while len(rest) > LONGEST_PIECE_CHARS:
            cut = rest.rfind(" ", 1, LONGEST_PIECE_CHARS)
            cut = cut if cut > 0 else LONGEST_PIECE_CHARS
            pieces.append(rest[:cut])
            rest = rest[cut:].lstrip()
        if rest:
            pieces.append(rest)
    return pieces


def open_source(text_file: str | None) -> Source:
    """The generator, or the person's file (UTF-8). An unreadable or tiny file raises UserError."""
    if text_file is None:
        return GeneratedText()
    path = Path(text_file)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: the text file cannot be read ({error.strerror}); give the path of a plain text file"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not UTF-8 text (byte {error.start}); save the text file as UTF-8"
        ) from error
    if len(text.strip()) < SHORTEST_FILE_CHARS:
        raise UserError(
            f"{path}: the text file holds {len(text.strip())} characters, at least "
            f"{SHORTEST_FILE_CHARS} are needed; give a longer text"
        )
    return FileText(split_sentences(text))

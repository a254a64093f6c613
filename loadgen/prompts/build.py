"""Lay out a prompt of exactly N tokens: an opening, filler with inserted sentences, an intact ending."""

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, islice

from greenbench.contract.errors import UserError
from loadgen.prompts.encoder import Encoder
from loadgen.prompts.haystack import Question

BATCH = 512  # sentences tokenised at a time
GOLDEN = 0.6180339887498949  # its multiples modulo 1 spread evenly for any count


@dataclass(frozen=True, slots=True)
class Insert:
    """Text that must stand whole at ``depth`` (0 = first, 1 = last) of the filler."""

    depth: float
    text: str  # with the space or line break before it


def spread_depth(index: int) -> float:
    """Depths in [0, 1) that fill every tenth evenly as ``index`` grows."""
    return index * GOLDEN % 1.0


def lay_out(
    encoder: Encoder,
    context_tokens: int,
    rng: random.Random,
    filler: Iterator[str],
    inserts: list[Insert],
    question: Question | None,
) -> list[int]:
    """Exactly ``context_tokens`` token ids; only filler is trimmed. Too short a context: UserError.

    The opening is a numbered title, so that two prompts differ from their first words on.
    """
    title = f"Report {rng.randrange(1, 1000)} {rng.randrange(1, 1000)} {rng.randrange(1, 1000)}."
    opening = [*encoder.opening, *encoder.encode([title])[0]]
    ending = encoder.ending(question) if question else []
    inserts = sorted(inserts, key=lambda insert: insert.depth)
    inserted = encoder.encode([insert.text for insert in inserts])
    fixed = len(opening) + len(ending) + sum(map(len, inserted))
    room = context_tokens - fixed
    if room < 0:
        raise UserError(
            f"a context of {context_tokens} tokens is too short for this task with this tokenizer: "
            f"its question and facts alone take {fixed}; take a longer context or fewer facts"
        )
    sentences = _fill(encoder, filler, room)
    starts = [0, *accumulate(map(len, sentences))]
    body: list[int] = []
    done = 0
    for insert, ids in zip(inserts, inserted, strict=True):
        until = _sentence_at(starts, insert.depth * room)
        for sentence in sentences[done:until]:
            body += sentence
        done = max(done, until)
        body += ids
    for sentence in sentences[done:]:
        body += sentence
    return [*opening, *body, *ending]


def _fill(encoder: Encoder, filler: Iterator[str], room: int) -> list[list[int]]:
    """Sentences of ``room`` tokens together; the last one is cut."""
    sentences: list[list[int]] = []
    while room > 0:
        batch = [" " + sentence for sentence in islice(filler, min(BATCH, room // 8 + 1))]
        for ids in encoder.encode(batch):
            if room <= 0:
                break
            sentences.append(ids[:room])
            room -= len(sentences[-1])
    return sentences


def _sentence_at(starts: list[int], token: float) -> int:
    """Index of the first sentence that starts at or after a token position.

    At the end it is the last sentence: that one is cut, and nothing may follow a cut sentence.
    """
    return min(bisect_left(starts, token), max(0, len(starts) - 2))

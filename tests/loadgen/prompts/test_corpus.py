"""Filler text: varied, endless, and free of the words and figures that answers are made of."""

import random
import re
from itertools import islice, pairwise

import pytest

from greenbench.contract.errors import UserError
from loadgen.prompts import random_words
from loadgen.prompts.corpus import LONGEST_PIECE_CHARS, GeneratedText, open_source, split_sentences


def generated(seed: int, count: int) -> list[str]:
    return list(islice(GeneratedText().sentences(random.Random(seed)), count))


def test_sentences_hardly_ever_repeat():
    sentences = generated(1, 20_000)
    assert len(set(sentences)) > 19_950


def test_filler_never_holds_a_subject_or_a_code():
    # else a needle could stand twice, or a figure of the filler pass for an answer
    text = " ".join(generated(2, 5000))
    assert not set(random_words.SUBJECTS) & set(re.findall(r"\w+", text.lower()))
    assert max(map(len, re.findall(r"\d+", text))) < 6


def test_subjects_are_different_words():
    assert len(random_words.SUBJECTS) == len(set(random_words.SUBJECTS)) > 400


def test_split_keeps_every_word_and_bounds_pieces():
    text = "One two.  Three\nfour! " + "word " * 500 + "\n\nlast line"
    pieces = split_sentences(text)
    assert " ".join(pieces).split() == text.split()
    assert pieces[:2] == ["One two.", "Three four!"]
    assert pieces[-1] == "last line"
    assert max(map(len, pieces)) <= LONGEST_PIECE_CHARS


def test_a_text_without_spaces_is_still_cut():
    assert [len(p) for p in split_sentences("x" * 1300)] == [600, 600, 100]


def test_own_file_goes_round_from_a_seeded_start(tmp_path):
    path = tmp_path / "own.txt"
    path.write_text(" ".join(f"This is sentence number {i}." for i in range(10)))
    taken = list(islice(open_source(str(path)).sentences(random.Random(4)), 25))
    numbers = [int(sentence.split()[-1][:-1]) for sentence in taken]
    assert all((b - a) % 10 == 1 for a, b in pairwise(numbers))


@pytest.mark.parametrize(
    ("content", "said"), [(b"short", "at least 200"), (b"\xff\xfe" * 300, "not UTF-8")]
)
def test_unusable_text_files_are_refused(tmp_path, content, said):
    path = tmp_path / "own.txt"
    path.write_bytes(content)
    with pytest.raises(UserError, match=said):
        open_source(str(path))

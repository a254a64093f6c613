"""A byte-level BPE tokenizer, trained on text made here. No text of others is used or needed.

Every byte string can be encoded; digits are single tokens, so numbers in a needle keep one length per digit.
"""

import json
import random
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|bos|>", "<|eos|>", "<|pad|>")
BOS_ID, EOS_ID, PAD_ID = range(3)
LEARNED_VOCAB = 4096  # a larger vocabulary is filled with reserved pieces that no text encodes to
TRAINING_SENTENCES = 20_000
WORDS = Path(__file__).with_name("words.txt")
ENDINGS = ("", "", "", "s", "ed", "ing", "er", "ly", "ness", "ment", "able")
PUNCTUATION = (".", ".", ".", ",", ";", ":", "?", "!")


def train_tokenizer(seed: int, vocab_size: int) -> Tokenizer:
    """A tokenizer of exactly ``vocab_size`` entries; the same seed gives the same tokenizer."""
    learned = _learn(seed, min(vocab_size, LEARNED_VOCAB))
    state = learned.to_str()
    return Tokenizer.from_str(_fill(state, vocab_size))


def _learn(seed: int, vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(training_text(seed), trainer)
    return tokenizer


def _fill(state: str, vocab_size: int) -> str:
    """Add reserved pieces (in the vocabulary, reachable by no merge) up to ``vocab_size``."""
    data = json.loads(state)
    vocab: dict[str, int] = data["model"]["vocab"]
    vocab.update({f"Ġ<{index}>": index for index in range(len(vocab), vocab_size)})
    return json.dumps(data, ensure_ascii=False)


def training_text(seed: int) -> Iterator[str]:
    """Sentences of common words with endings, names and numbers; the earlier words come oftener."""
    rng = random.Random(f"{seed}/tokenizer")
    words = WORDS.read_text().split()
    weights = [1 / (rank + 10) for rank in range(len(words))]
    for _ in range(TRAINING_SENTENCES):
        picked = rng.choices(words, weights, k=rng.randint(5, 16))
        inflected = [word + rng.choice(ENDINGS) if len(word) > 3 else word for word in picked]
        inflected.insert(rng.randrange(len(inflected)), rng.choice(words).capitalize())
        if rng.random() < 0.3:
            inflected.append(str(rng.randrange(100_000)))
        sentence = " ".join(inflected)
        yield sentence[0].upper() + sentence[1:] + rng.choice(PUNCTUATION) + rng.choice((" ", "\n"))

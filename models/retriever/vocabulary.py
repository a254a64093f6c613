"""The retriever's tokenizer: each word of the generated documents is one token, a code is two.

Other text still encodes, byte by byte. Build: ``python -m models.retriever.vocabulary``.
"""

import json
import random
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

from loadgen.prompts import haystack, random_words
from loadgen.prompts.corpus import GeneratedText

FOLDER = Path(__file__).with_name("model")
BOS, EOS = "<|bos|>", "<|eos|>"
WINDOW = 8192
SAMPLE_SENTENCES = 60_000  # enough to meet every word of the lists many times
# a word or up to three digits with the space before it, white space, or a single mark
PIECE = r" ?[A-Za-z]+| ?[0-9]{1,3}|\s+|[^\sA-Za-z0-9]"


def sample_texts() -> Iterator[str]:
    """Text that holds every word and mark of the generated documents and questions."""
    rng = random.Random("vocabulary")
    yield from (" " + s for s in islice(GeneratedText().sentences(rng), SAMPLE_SENTENCES))
    for subject in random_words.SUBJECTS:
        yield haystack.ask_one(subject).plain
        yield haystack.ask_many([subject, subject]).plain
    for place in random_words.PLACES:
        for thing in random_words.THINGS:
            yield f" the {place} {rng.choice(random_words.VERBS)} 123456 {thing}s."
    yield from (" " + haystack.finding(rng, 1, 123456), haystack.ask_findings(3).plain)
    yield f"Report 1. {haystack.NONE}"


def build(texts: Iterable[str]) -> Tokenizer:
    """A tokenizer with a token for each piece of these texts, and for every number of three digits."""
    pieces = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PIECE), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    found = {piece for text in texts for piece, _ in pieces.pre_tokenize_str(text)}
    numbers = {
        space + str(n).zfill(digits)
        for space in ("", "Ġ")
        for digits in (1, 2, 3)
        for n in range(10**digits)
    }
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    ordered = [BOS, EOS, *alphabet, *sorted((found | numbers) - set(alphabet))]
    # no merges: a piece is in the vocabulary as a whole, or falls to bytes
    model = models.BPE(
        vocab={token: index for index, token in enumerate(ordered)}, merges=[], ignore_merges=True
    )
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens([BOS, EOS])
    tokenizer.pre_tokenizer = pieces
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, tokenizer.token_to_id(BOS))]
    )
    return tokenizer


def write(tokenizer: Tokenizer, folder: Path, window: int) -> None:
    folder.mkdir(exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "model_max_length": window,
        "clean_up_tokenization_spaces": False,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=1) + "\n")
    print(f"{tokenizer.get_vocab_size()} tokens in {folder}")


def main() -> None:
    write(build(sample_texts()), FOLDER, WINDOW)


if __name__ == "__main__":
    main()

"""Text to token ids with the served model's own tokenizer (never used to count what a server did)."""

from pathlib import Path

from tokenizers import Tokenizer

from greenbench.contract.errors import UserError
from loadgen.prompts.haystack import Question

ANCHOR = "."  # text is encoded as if it followed this, so that its leading space is an inner one


class Encoder:
    """``opening``: the special ids (e.g. BOS) with which the tokenizer opens a sequence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        around = tokenizer.encode("x").ids
        bare = tokenizer.encode("x", add_special_tokens=False).ids
        self.opening: list[int] = around[: around.index(bare[0])] if bare else []

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, in bulk, without special tokens."""
        encoded = self._tokenizer.encode_batch(
            [ANCHOR + t for t in texts], add_special_tokens=False
        )
        return [
            [id_ for id_, (_, end) in zip(e.ids, e.offsets, strict=True) if end > len(ANCHOR)]
            for e in encoded
        ]

    def ending(self, question: Question) -> list[int]:
        """What stands after the report."""
        return self.encode([question.plain])[0]

    def token_id(self, token: str) -> int:
        token_id = self._tokenizer.token_to_id(token)
        if token_id is None:
            raise ValueError(f"no token {token!r}")
        return token_id

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids)


class ChatEncoder(Encoder):
    """The same, with report and question in a user's turn and the answer's start in the assistant's.

    ``before`` and ``after``: what the chat template puts around the user's words.
    """

    def __init__(self, tokenizer: Tokenizer, before: str, after: str) -> None:
        super().__init__(tokenizer)
        # encoded whole, not after an anchor: these hold special tokens and the sequence's start
        self.opening = tokenizer.encode(before, add_special_tokens=False).ids
        self._closing = tokenizer.encode(after, add_special_tokens=False).ids

    def ending(self, question: Question) -> list[int]:
        asked, started = self.encode([question.text, question.answer_start.lstrip()])
        return [*asked, *self._closing, *started]


def load_tokenizer(model_path: str) -> Tokenizer:
    """From ``<folder>/tokenizer.json``, or by hub id. A missing tokenizer raises UserError."""
    folder = Path(model_path)
    if folder.is_dir() and not (folder / "tokenizer.json").is_file():
        raise UserError(
            f"{model_path}: no tokenizer.json in this folder; put the model's tokenizer there"
        )
    try:
        if folder.is_dir():
            return Tokenizer.from_file(str(folder / "tokenizer.json"))
        return Tokenizer.from_pretrained(model_path)
    except Exception as error:  # tokenizers raises bare Exception for every fault
        raise UserError(
            f"{model_path}: no tokenizer could be read ({str(error)[:200]}); "
            "give a folder with tokenizer.json, or a hub id that this machine can reach"
        ) from error


def load_encoder(model_path: str) -> Encoder:
    return Encoder(load_tokenizer(model_path))

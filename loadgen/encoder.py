"""Text to token ids with the served model's own tokenizer (never used to count what a server did)."""

from pathlib import Path

from tokenizers import Tokenizer

from greenbench.errors import UserError

ANCHOR = "."  # text is encoded as if it followed this, so that its leading space is an inner one


class Encoder:
    """``prefix``: the special ids (e.g. BOS) with which the tokenizer opens a sequence."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        tokenizer.no_truncation()
        tokenizer.no_padding()
        self._tokenizer = tokenizer
        around = tokenizer.encode("x").ids
        bare = tokenizer.encode("x", add_special_tokens=False).ids
        self.prefix: list[int] = around[: around.index(bare[0])] if bare else []

    def encode(self, texts: list[str]) -> list[list[int]]:
        """Token ids of each text, in bulk, without special tokens."""
        encoded = self._tokenizer.encode_batch(
            [ANCHOR + t for t in texts], add_special_tokens=False
        )
        return [
            [id_ for id_, (_, end) in zip(e.ids, e.offsets, strict=True) if end > len(ANCHOR)]
            for e in encoded
        ]

    def token_id(self, token: str) -> int:
        found = self._tokenizer.token_to_id(token)
        if found is None:
            raise ValueError(f"no token {token!r}")
        return found

    def decode(self, token_ids: list[int]) -> str:
        return self._tokenizer.decode(token_ids)


def load_encoder(model_path: str) -> Encoder:
    """From ``<folder>/tokenizer.json``, or by hub id. A missing tokenizer raises UserError."""
    file = Path(model_path) / "tokenizer.json"
    try:
        if file.is_file():
            return Encoder(Tokenizer.from_file(str(file)))
        if Path(model_path).is_dir():
            raise UserError(
                f"{model_path}: no tokenizer.json in this folder; put the model's tokenizer there"
            )
        return Encoder(Tokenizer.from_pretrained(model_path))
    except UserError:
        raise
    except Exception as error:  # tokenizers raises bare Exception for every fault
        raise UserError(
            f"{model_path}: no tokenizer could be read ({str(error)[:200]}); "
            "give a folder with tokenizer.json, or a hub id that this machine can reach"
        ) from error

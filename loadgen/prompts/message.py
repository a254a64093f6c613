"""A prompt as the message of a chat, whose length the server counts through the model's own chat template.

Token ids cannot be sent there, and text that is encoded anew may have another length than the ids it was
decoded from. So the draft is made a little short, and words in front make up the difference.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from tokenizers import Tokenizer

from greenbench.contract.errors import UserError
from loadgen.prompts.chat_template import PLACE
from loadgen.prompts.encoder import ChatEncoder
from loadgen.prompts.haystack import Question

SLACKS: Final = (16, 64, 256)  # tokens that a draft may be short of its length
WORDS: Final = ("the ", "a ", "of ", "1 ", "x", ".")  # one that adds one token is taken
ATTEMPTS: Final = 6


@dataclass(frozen=True, slots=True)
class Message:
    """``content`` goes into the request; ``token_ids`` are what the server makes of it."""

    content: str
    token_ids: list[int]


class MessageEncoder(ChatEncoder):
    """Lays out prompts for a user's turn alone: the answer is not begun, for the server opens its turn.

    ``rendered``: the template with a text as the user's message, as the server renders it.
    """

    def __init__(self, tokenizer: Tokenizer, rendered: Callable[[str], str]) -> None:
        before, _, after = rendered(PLACE).partition(PLACE)
        super().__init__(tokenizer, before, after)
        self._rendered = rendered

    def ending(self, question: Question) -> list[int]:
        return [*self.encode([question.plain])[0], *self._closing]

    def message(self, draft: list[int], context_tokens: int) -> Message | None:
        """A draft's words as a message of exactly ``context_tokens``; None where the draft is too long."""
        end = len(draft)
        if self._closing and draft[-len(self._closing) :] == self._closing:
            end -= len(self._closing)
        content = self.decode(draft[len(self.opening) : end]).strip()
        bare = self._count(content)
        if len(bare) == context_tokens:
            return Message(content, bare)
        for word in WORDS:
            times = context_tokens - len(bare)
            for _ in range(ATTEMPTS):
                if times < 0:
                    break
                padded = word * times + content
                ids = self._count(padded)
                if len(ids) == context_tokens:
                    return Message(padded, ids)
                times += context_tokens - len(ids)
        return None

    def _count(self, content: str) -> list[int]:
        return self._tokenizer.encode(self._rendered(content), add_special_tokens=False).ids


def no_exact_length(context_tokens: int) -> UserError:
    return UserError(
        f"no message of exactly {context_tokens} tokens can be made with this tokenizer and chat template; "
        "use 'endpoint: completions', or another context"
    )

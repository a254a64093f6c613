"""Which beginnings of prompts each pool has seen: an estimate of what its prefix cache still holds.

Prompts are compared block by block as they stand in the request. Keys are hashes in memory, never text.
"""

from dataclasses import dataclass, field
from typing import Final

BLOCK_BYTES: Final = 2048  # some 500 tokens of English text
BLOCK_TOKENS: Final = 512  # by which the room of a pool's KV cache becomes a number of blocks
UNKNOWN_ROOM: Final = 4096  # blocks, where a pool does not tell its KV cache


@dataclass(frozen=True, slots=True)
class Digest:
    """``blocks[i]``: hash of the first i + 1 blocks. ``whole``: of the prompt to its end."""

    blocks: tuple[int, ...]
    whole: int
    size: int  # bytes


def digest(name: str, raw: bytes) -> Digest:
    """``name``: the endpoint and model, so that equal text of another one is another prompt."""
    chain, blocks = hash(name), list[int]()
    end = len(raw) - len(raw) % BLOCK_BYTES
    for at in range(0, end, BLOCK_BYTES):
        chain = hash((chain, raw[at : at + BLOCK_BYTES]))
        blocks.append(chain)
    return Digest(tuple(blocks), hash((chain, raw[end:])), len(raw))


@dataclass(slots=True)
class Prefixes:
    """Of one pool. The least recently used block goes first, as in vLLM's cache."""

    room: int = UNKNOWN_ROOM  # blocks
    _seen: dict[int, None] = field(default_factory=dict[int, None])

    def matched(self, prompt: Digest) -> float:
        """The share of the prompt, from its beginning, that was sent here before."""
        count = 0
        for block in prompt.blocks:
            if block not in self._seen:
                break
            count += 1
        return count * BLOCK_BYTES / prompt.size if count else 0.0

    def add(self, prompt: Digest) -> None:
        for block in prompt.blocks:
            self._seen.pop(block, None)
            self._seen[block] = None
        while len(self._seen) > self.room:
            del self._seen[next(iter(self._seen))]

    def clear(self) -> None:
        """A server that was started anew remembers nothing."""
        self._seen.clear()

    def fit(self, total_kv_tokens: int | None) -> None:
        self.room = UNKNOWN_ROOM if total_kv_tokens is None else total_kv_tokens // BLOCK_TOKENS

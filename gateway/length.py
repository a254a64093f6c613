"""How many tokens a prompt has, and where that number comes from.

Token ids are counted. Text is counted exactly (by the model's tokenizer, or by a pool's /tokenize) only
where that can change the choice: counting 8,000 tokens takes a pool tens of ms. Else its bytes are divided
by the bytes a token of what was counted so far.
"""

from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

from gateway.prefixes import Digest
from gateway.request import Asked, Prompt

UNKNOWN: Final = (1.0, 4.0, 8.0)  # bytes a token before anything was counted: least, likely, most
SAMPLES: Final = 64  # counted prompts by which the bytes a token are told
MARGIN: Final = 1.25  # beyond the extremes among them
REMEMBERED: Final = 4096  # counted prompts


@dataclass(frozen=True, slots=True)
class Length:
    """``low`` ≤ true length ≤ ``high``, as far as anybody knows. ``source``: said in the reason."""

    tokens: int
    low: int
    high: int
    source: str

    @classmethod
    def exact(cls, tokens: int, source: str) -> "Length":
        return cls(tokens, tokens, tokens, source)

    def __str__(self) -> str:
        return f"{self.tokens} prompt tokens ({self.source})"


Headers = list[
    tuple[bytes, bytes]
]  # of the client's request: its key is asked for at /tokenize too
Counter = Callable[[Asked, Headers], Awaitable[int | None]]  # None: it cannot count this one now


@dataclass(slots=True)
class Lengths:
    """``counters``: by name, the first that counts is believed."""

    counters: dict[str, Counter]
    _ratios: deque[float] = field(default_factory=lambda: deque[float](maxlen=SAMPLES))
    _counted: dict[int, Length] = field(default_factory=dict[int, Length])

    def guess(self, prompt: Prompt, digest: Digest) -> Length:
        """Without asking anybody."""
        if prompt.tokens is not None:
            return Length.exact(prompt.tokens, "token ids")
        if (known := self._counted.get(digest.whole)) is not None:
            return known
        least, likely, most = self.bytes_a_token()
        size = prompt.text_bytes
        source = f"estimate, {likely:.2f} bytes a token"
        if not prompt.whole:
            return Length(round(size / likely), int(size / most), 1 << 40, f"{source}, text alone")
        return Length(round(size / likely), int(size / most), int(size / least) + 1, source)

    async def count(self, asked: Asked, digest: Digest, headers: Headers) -> Length:
        """Exactly where a counter can; the guess where none can."""
        for source, counter in self.counters.items():
            tokens = await counter(asked, headers)
            if tokens:
                return self._remember(asked.prompt, digest, Length.exact(tokens, source))
        return self.guess(asked.prompt, digest)

    def bytes_a_token(self) -> tuple[float, float, float]:
        """Least, likely, most."""
        if not self._ratios:
            return UNKNOWN
        likely = sum(self._ratios) / len(self._ratios)
        return min(self._ratios) / MARGIN, likely, max(self._ratios) * MARGIN

    def _remember(self, prompt: Prompt, digest: Digest, length: Length) -> Length:
        if prompt.whole:
            self._ratios.append(prompt.text_bytes / length.tokens)
        self._counted[digest.whole] = length
        if len(self._counted) > REMEMBERED:
            del self._counted[next(iter(self._counted))]
        return length

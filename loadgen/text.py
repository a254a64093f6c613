"""Where filler sentences come from: a seeded generator, or a person's own text file."""

import random
from collections.abc import Iterator
from typing import Protocol


class Source(Protocol):
    def sentences(self, rng: random.Random) -> Iterator[str]:
        """Endless sentences, each ending in its own punctuation, without surrounding spaces."""
        ...

"""Which key positions a query sees: all, a sliding window, or the first tokens and a window."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Visibility:
    """A query at position p sees key k when k <= p and (k > p - window or k < sink).

    Positions are absolute: nothing is re-numbered when tokens fall out of the window.
    """

    window: int | None = None  # newest tokens, the query's own included; None: all of them
    sink: int = 0  # oldest tokens, always seen

    def is_causal(self, length: int) -> bool:
        """Whether no query of a sequence of ``length`` tokens misses an earlier key."""
        return self.window is None or length <= self.window + self.sink

    def spans(self, query_start: int, query_stop: int) -> list[tuple[int, int]]:
        """Half-open spans of key positions, disjoint and in order, that queries in a range see."""
        start = 0 if self.window is None else max(0, query_start - self.window + 1)
        if start <= self.sink:
            return [(0, query_stop)]
        oldest = [(0, self.sink)] if self.sink else []
        return [*oldest, (start, query_stop)]

    def mask(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Bool [..., queries, keys] from positions [..., queries] and [..., keys]; True is seen."""
        query, key = queries.unsqueeze(-1), keys.unsqueeze(-2)
        seen = key <= query
        if self.window is not None:
            seen &= (key > query - self.window) | (key < self.sink)
        return seen

"""A step's plan: the kernel calls that every layer of the same visibility makes in it.

A planner works out once a step what does not depend on a layer's tensors: which pages are read, by which
kernel, under which mask. Each call is a frozen dataclass of that; a layer gives it its tensors.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch


class Heads(Protocol):
    """What a call asks of the layer it runs in."""

    @property
    def num_kv_heads(self) -> int: ...

    @property
    def group(self) -> int: ...  # query heads that share one KV head

    @property
    def scale(self) -> float: ...


class Tensors(NamedTuple):
    """One layer's tensors of the step's tokens; the step's keys and values are in the cache already."""

    query: torch.Tensor  # [tokens, heads, D]
    key: torch.Tensor  # [tokens, kv_heads, D]
    value: torch.Tensor  # [tokens, kv_heads, D]
    cache: torch.Tensor  # as the plan's ``view`` shows it
    output: torch.Tensor  # [tokens, heads, D], written by the calls


class Call(Protocol):
    """Attention of some of the step's requests; writes their rows of ``at.output``."""

    def __call__(self, heads: Heads, at: Tensors) -> None: ...


def stored(cache: torch.Tensor) -> torch.Tensor:
    """The cache as vLLM gives it: [blocks, kv_heads, block, 2 D], keys first."""
    return cache


@dataclass(frozen=True, slots=True)
class Plan:
    calls: Sequence[Call]  # each row of the output is written by one of them
    view: Callable[[torch.Tensor], torch.Tensor] = stored  # the cache as the calls want it

    def attend(
        self,
        heads: Heads,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        """Attention of one layer; shapes as in ``Tensors``, ``cache`` as vLLM gives it."""
        at = Tensors(query, key, value, self.view(cache), output)
        for call in self.calls:
            call(heads, at)

"""A backend that is wrong on purpose: one KV block of each request is never read once it is full.

It stands for a block table that is off by an entry: fast, fluent and wrong, and only for longer requests.
"""

from dataclasses import dataclass

import torch
from vllm.platforms import current_platform

from servers.plugins import backend_options, page_views
from servers.plugins.plan import Plan
from servers.plugins.step import Batch, StepBackend, StepBuilder, StepImpl
from servers.plugins.tiles import plan_gather
from servers.plugins.visibility import Visibility

PLANNER = plan_gather if current_platform.is_cuda() else page_views.plan_page_views


@dataclass(frozen=True, slots=True)
class AllButOneBlock(Visibility):
    """Positions [start, stop) are seen by the queries among them and by none after."""

    start: int = 0
    stop: int = 0

    def is_causal(self, length: int) -> bool:
        return length <= self.stop

    def spans(self, query_start: int, query_stop: int) -> list[tuple[int, int]]:
        if query_start < self.stop:
            return [(0, query_stop)]
        before = [(0, self.start)] if self.start else []
        return [*before, (self.stop, query_stop)]

    def mask(self, queries: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        query, key = queries.unsqueeze(-1), keys.unsqueeze(-2)
        lost = (key >= self.start) & (key < self.stop) & (query >= self.stop)
        return (key <= query) & ~lost


def plan_without_one_block(batch: Batch, _: Visibility, device: torch.device) -> Plan:
    start = int(backend_options("drops_a_block", {"block": 1})["block"]) * batch.block_size
    seen = AllButOneBlock(start=start, stop=start + batch.block_size)
    return PLANNER(batch, seen, device)


class DropsABlockBuilder(StepBuilder):
    planner = staticmethod(plan_without_one_block)


class DropsABlockImpl(StepImpl):
    operator = f"sdpa by {PLANNER.__name__}, without one block"


class DropsABlockBackend(StepBackend):
    @staticmethod
    def get_impl_cls() -> type[DropsABlockImpl]:
        return DropsABlockImpl

    @staticmethod
    def get_builder_cls() -> type[DropsABlockBuilder]:
        return DropsABlockBuilder

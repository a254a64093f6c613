"""A backend that is wrong on purpose: from a position on, all tokens stand at that position.

It stands for a table of rotations that ends too early and is read at its last row: right up to there,
fluent and wrong after.
"""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import CommonAttentionMetadata

from servers.plugins import backend_options, page_views
from servers.plugins.step import Batch, StepBackend, StepBuilder, StepImpl, StepMetadata
from servers.plugins.tiles import plan_gather

PLANNER = plan_gather if current_platform.is_cuda() else page_views.plan_page_views


@dataclass(frozen=True, slots=True)
class Turned(StepMetadata):
    """``cos`` and ``sin`` [tokens, 1, head_dim / 2] turn each token from its position to the wrong one."""

    cos: torch.Tensor
    sin: torch.Tensor


def wrong_turns(
    batch: Batch, last: int, head_dim: int, rope_theta: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """As Llama rotates: pair i turns by position × theta^(-i / half); here by what is too much."""
    positions = torch.cat(
        [
            torch.arange(length - count, length, dtype=torch.float64)
            for length, count in zip(batch.lengths, batch.query_lens, strict=True)
        ]
    )
    half = head_dim // 2
    frequency = rope_theta ** -(torch.arange(half, dtype=torch.float64) / half)
    angles = torch.outer(positions.clamp(max=last) - positions, frequency).unsqueeze(1)
    return angles.cos().float(), angles.sin().float()


def turned(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = x.float().chunk(2, dim=-1)
    both = (first * cos - second * sin, second * cos + first * sin)
    return torch.cat(both, dim=-1).to(x.dtype)


class StuckPositionsBuilder(StepBuilder):
    planner = staticmethod(PLANNER)

    def __init__(self, kv_cache_spec: Any, layer_names: list[str], vllm_config: Any, device: Any):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        config = vllm_config.model_config.hf_config
        self.rope_theta = float(config.rope_parameters["rope_theta"])
        self.head_dim = kv_cache_spec.head_size
        self.last = int(backend_options("stuck_positions", {"last": 4096})["last"])

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> Turned:
        right = super().build(common_prefix_len, common_attn_metadata, fast_build)
        batch = Batch.of(common_attn_metadata, self.block_size)
        cos, sin = wrong_turns(batch, self.last, self.head_dim, self.rope_theta)
        return Turned(right.num_tokens, right.write, right.plans, cos, sin)


class StuckPositionsImpl(StepImpl):
    operator = f"sdpa by {PLANNER.__name__}, positions that end too early"

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: Turned | None,
        output: torch.Tensor,
        **scales: Any,
    ) -> torch.Tensor:
        if attn_metadata is not None:
            tokens, cos, sin = attn_metadata.num_tokens, attn_metadata.cos, attn_metadata.sin
            query, key = (turned(x[:tokens], cos, sin) for x in (query, key))
        return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, **scales)


class StuckPositionsBackend(StepBackend):
    @staticmethod
    def get_impl_cls() -> type[StuckPositionsImpl]:
        return StuckPositionsImpl

    @staticmethod
    def get_builder_cls() -> type[StuckPositionsBuilder]:
        return StuckPositionsBuilder

"""What a step looks like on the host, and the base of our metadata builders and implementations.

vLLM builds metadata once a step for all layers of a KV group; whatever does not depend on a layer's
tensors is done there. Nothing here waits for the device.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from vllm.config import VllmConfig, get_layers_from_vllm_config
from vllm.logger import init_logger
from vllm.model_executor.layers.attention import Attention
from vllm.v1.attention.backend import (
    AttentionBackend,
    AttentionCGSupport,
    AttentionImpl,
    AttentionMetadata,
    AttentionMetadataBuilder,
    AttentionType,
    CommonAttentionMetadata,
    MultipleOf,
)
from vllm.v1.kv_cache_interface import AttentionSpec

from greenbench.contract.errors import UserError
from servers.plugins import registered_name
from servers.plugins.cache import KernelWrite, ScatterWrite, cache_write
from servers.plugins.limits import refuse
from servers.plugins.plan import Plan
from servers.plugins.visibility import Visibility

# below vLLM's own logger, whose handlers write the server's log; any other name is dropped there
logger = init_logger("vllm.plugins.greenbench")


@dataclass(frozen=True, slots=True)
class Batch:
    """One step's requests. ``lengths`` counts this step's tokens in."""

    query_starts: list[int]  # requests + 1 rows of the query tensor
    lengths: list[int]  # tokens of each request once this step is written
    table: (
        torch.Tensor
    )  # int32 [requests, blocks], on the device; entries past a length are garbage
    block_size: int
    starts_on_device: torch.Tensor  # query_starts as int32
    lengths_on_device: torch.Tensor  # lengths as int32

    @classmethod
    def of(cls, common: CommonAttentionMetadata, block_size: int) -> "Batch":
        """From vLLM's metadata, host copies only (the length bound is exact without speculation)."""
        lengths = common.seq_lens_cpu_upper_bound
        if lengths is None:
            lengths = common.seq_lens
            assert lengths.device.type == "cpu", "vLLM gave no host copy of the sequence lengths"
        return cls(
            query_starts=common.query_start_loc_cpu[: common.num_reqs + 1].tolist(),
            lengths=lengths[: common.num_reqs].tolist(),
            table=common.block_table_tensor[: common.num_reqs],
            block_size=block_size,
            starts_on_device=common.query_start_loc[: common.num_reqs + 1],
            lengths_on_device=common.seq_lens[: common.num_reqs],
        )

    @property
    def query_lens(self) -> list[int]:
        return [b - a for a, b in zip(self.query_starts, self.query_starts[1:], strict=False)]

    def by_length(self) -> tuple[list[int], list[int]]:
        """Requests with one query, and those with more."""
        counts = list(enumerate(self.query_lens))
        return [at for at, count in counts if count == 1], [at for at, count in counts if count > 1]

    def rows(self, requests: list[int]) -> slice | torch.Tensor:
        """Where the queries of ``requests`` (rising) stand; a slice where they are neighbours.

        A view costs nothing, and an index tensor two kernels a layer, at some 40 µs of the host's time each.
        """
        starts, first, last = self.query_starts, requests[0], requests[-1]
        if requests == list(range(first, last + 1)):
            return slice(starts[first], starts[last + 1])
        rows = torch.cat([torch.arange(starts[r], starts[r + 1]) for r in requests])
        return rows.to(self.table.device, non_blocking=True)


Planner = Callable[[Batch, Visibility, torch.device], Plan]


@dataclass(frozen=True, slots=True)
class StepMetadata(AttentionMetadata):
    num_tokens: int
    write: ScatterWrite | KernelWrite
    plans: dict[Visibility, Plan]  # by what a layer's queries see


class StepBuilder(AttentionMetadataBuilder[StepMetadata]):
    """Builds a step's plan once for each distinct visibility among the group's layers."""

    # plans hold Python lists of views and lengths of this very step: nothing a graph could replay
    _cudagraph_support: ClassVar[AttentionCGSupport] = AttentionCGSupport.NEVER
    planner: Planner  # of the class, or of an instance whose options choose

    def __init__(
        self,
        kv_cache_spec: AttentionSpec,
        layer_names: list[str],
        vllm_config: VllmConfig,
        device: torch.device,
    ) -> None:
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        if vllm_config.speculative_config is not None:
            raise UserError(
                "attention backends of this project do not support speculative decoding; "
                "serve without a speculative config"
            )
        layers = get_layers_from_vllm_config(vllm_config, Attention, layer_names)
        self.visibilities = {visibility_of(layer) for layer in layers.values()}
        self.block_size = kv_cache_spec.block_size

    def build(
        self,
        common_prefix_len: int,
        common_attn_metadata: CommonAttentionMetadata,
        fast_build: bool = False,
    ) -> StepMetadata:
        common = common_attn_metadata
        if common.causal is not True:
            raise UserError("attention backends of this project are causal; this model is not")
        batch = Batch.of(common, self.block_size)
        return StepMetadata(
            num_tokens=common.num_actual_tokens,
            write=cache_write(common.slot_mapping[: common.num_actual_tokens], self.block_size),
            plans={seen: self.planner(batch, seen, self.device) for seen in self.visibilities},
        )


class StepImpl(AttentionImpl[StepMetadata]):
    """One layer: writes the step's keys and values, then runs the step's plan on them."""

    operator: ClassVar[str]  # what computes attention, for the log

    def __init__(
        self,
        num_heads: int,
        head_size: int,
        scale: float,
        num_kv_heads: int | None = None,
        alibi_slopes: list[float] | None = None,
        sliding_window: int | None = None,
        kv_cache_dtype: str = "auto",
        logits_soft_cap: float | None = None,
        attn_type: str = AttentionType.DECODER,
        kv_sharing_target_layer_name: str | None = None,
        **extra: Any,
    ) -> None:
        refuse(
            type(self).__name__,
            alibi_slopes=alibi_slopes,
            logits_soft_cap=logits_soft_cap,
            attn_type=attn_type,
            kv_sharing_target_layer_name=kv_sharing_target_layer_name,
            kv_cache_dtype=kv_cache_dtype,
            extra=extra,
        )
        self.num_heads = num_heads
        self.head_size = head_size
        self.scale = float(scale)
        self.num_kv_heads = num_kv_heads or num_heads
        self.group = self.num_heads // self.num_kv_heads  # query heads that share one KV head
        self.kv_cache_dtype = kv_cache_dtype
        self.sliding_window = sliding_window
        self.visibility = self.layer_visibility(sliding_window)
        # part of the proof of what ran: the class alone does not say which kernel computes
        logger.info_once("greenbench: %s computes with %s", type(self).__name__, self.operator)

    def layer_visibility(self, sliding_window: int | None) -> Visibility:
        return Visibility(window=sliding_window)

    def forward(
        self,
        layer: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        kv_cache: torch.Tensor,
        attn_metadata: StepMetadata | None,
        output: torch.Tensor,
        output_scale: torch.Tensor | None = None,
        output_block_scale: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Attention of one layer.

        query, output [tokens, heads, D]; key, value [tokens, kv_heads, D];
        kv_cache [blocks, kv_heads, block, 2 D] of any strides, keys first. Rows past the step's
        tokens are padding and stay untouched.
        """
        if output_scale is not None or output_block_scale is not None:
            raise UserError(f"{type(self).__name__} does not support a quantised attention output")
        if attn_metadata is None:  # vLLM's memory-profiling run has no cache yet
            return output
        tokens = attn_metadata.num_tokens
        plan, result = attn_metadata.plans[self.visibility], output
        if len(query) > tokens:  # a view is 1 µs of the host's time, and mostly nothing is padded
            query, key, value = query[:tokens], key[:tokens], value[:tokens]
            result = output[:tokens]
        attn_metadata.write(key, value, kv_cache)
        plan.attend(self, query, key, value, kv_cache, result)
        return output


def visibility_of(layer: Attention) -> Visibility:
    """What the queries of a layer see; raises UserError where another backend computes it."""
    if not isinstance(layer.impl, StepImpl):
        raise UserError(
            f"layer {layer.layer_name} is computed by {type(layer.impl).__name__}, not by a backend "
            "of this project; serve a model whose attention layers can all take the same one"
        )
    return layer.impl.visibility


class StepBackend(AttentionBackend):
    """What vLLM asks of a backend class, in common to ours."""

    forward_includes_kv_cache_update = True
    supported_dtypes: ClassVar[list[torch.dtype]] = [torch.float16, torch.bfloat16, torch.float32]
    supported_kv_cache_dtypes = ["auto", "float16", "bfloat16"]  # noqa: RUF012  (vLLM's own form)

    @staticmethod
    def get_name() -> str:
        return registered_name()

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(16)]

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return True

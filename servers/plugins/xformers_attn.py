"""``xformers``: memory_efficient_attention for prompts, Triton split-K over the paged cache for decode.

xFormers 0.0.35 brings no attention kernels of its own: its operators run PyTorch's (CUTLASS or
FlashAttention), the ``flash-attn`` package's where that is installed, and a Triton one. It has none for
the CPU, so a CPU is refused; the tests there replace ``operators`` by arithmetic on the materialised
mask, which no server can do.
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.kv_cache_layout import KVCacheLayout

from greenbench.contract.errors import UserError, nearest
from servers.backends.registry import BACKENDS
from servers.plugins import backend_options
from servers.plugins.cache import split_kv
from servers.plugins.step import Attend, Batch, StepBackend, StepBuilder, StepImpl
from servers.plugins.visibility import Visibility

if TYPE_CHECKING:
    from xformers.ops.fmha.attn_bias import (
        BlockDiagonalCausalFromBottomRightMask,
        PagedBlockDiagonalCausalWithOffsetPaddedKeysMask,
    )

ROW = BACKENDS["xformers"]
FLASH_PAGE = 256  # the flash-attn package's paged kernel reads pages of a multiple of this
SPLIT_K_PAGE = 64


def operators() -> dict[str, dict[str, Any]]:
    """xFormers' forward operators by phase and option value."""
    from xformers.ops.fmha import cutlass, flash, triton_splitk

    return {
        "prefill": {"flash": flash.FwOp, "cutlass": cutlass.FwOp},
        "decode": {"split_k": triton_splitk.FwOp, "flash": flash.FwOp},
    }


def chosen(phase: str) -> str:
    """The option's value for ``phase``, checked against the table."""
    value = str(backend_options(ROW.name, ROW.defaults)[phase])
    known = ROW.options[phase].values
    if value not in known:
        raise UserError(f"xformers: {phase}={value!r} is unknown; {nearest(value, known)}")
    if phase == "decode" and value == "flash" and not flash_attn_package():
        raise UserError(
            "xformers: decode=flash needs the flash-attn package, which is not installed; "
            "install it or take decode=split_k"
        )
    return value


def flash_attn_package() -> bool:
    try:
        importlib.metadata.version("flash-attn")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def why_not_here() -> str | None:
    """The reason why this host cannot run xFormers' operators, or None."""
    if not current_platform.is_cuda():
        return "xFormers has no attention operator for the CPU; it needs an NVIDIA GPU"
    try:
        importlib.metadata.version("xformers")
    except importlib.metadata.PackageNotFoundError:
        return "the package xformers is not installed; pip install --no-deps xformers==0.0.35"
    return None


def forward(
    query: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    bias: Any,
    impl: StepImpl,
    op: Any,
) -> torch.Tensor:
    """One call of an xFormers operator: [1, tokens, kv_heads, group, D] to the same."""
    from xformers.ops.fmha.common import Inputs

    inputs = Inputs(query, keys, values, attn_bias=bias, scale=impl.scale)
    if op not in impl.checked:
        if reasons := why_not(op, inputs):
            raise UserError(f"xFormers' {op.NAME} cannot run this: {'; '.join(reasons)}")
        impl.checked.add(op)
    result, _ = op.apply(inputs, needs_gradient=False)
    return result.reshape(query.shape)


def why_not(op: Any, inputs: Any) -> list[str]:
    """The operator's own reasons against ``inputs``, but for one that does not hold for attention.

    xFormers asks whether its C++ file loaded, which it does only under the PyTorch it was built with. In
    0.0.35 that file holds sparse matrices alone; the attention operators are Python over Triton's and
    PyTorch's kernels. For the same reason its public ``memory_efficient_attention_forward``, which is
    this check and ``op.apply``, is not called.
    """
    return [
        reason for reason in op.not_supported_reasons(inputs) if "build with CUDA" not in reason
    ]


def grouped(tokens: torch.Tensor, impl: StepImpl) -> torch.Tensor:
    """[tokens, heads, D] as [1, tokens, kv_heads, group, D]."""
    return tokens.unflatten(1, (impl.num_kv_heads, impl.group)).unsqueeze(0)


def shared(keys: torch.Tensor, impl: StepImpl) -> torch.Tensor:
    """[tokens, kv_heads, D] as [1, tokens, kv_heads, group, D]; the group shares memory."""
    return keys[None, :, :, None].expand(-1, -1, -1, impl.group, -1)


@dataclass(frozen=True, slots=True)
class Prompts:
    """All requests with more than one query: block-diagonal, causal from the bottom right."""

    rows: slice | torch.Tensor  # of the query tensor
    slots: (
        torch.Tensor | None
    )  # of every key, request after request; None: the step's own keys suffice
    bias: "BlockDiagonalCausalFromBottomRightMask"

    def __call__(
        self,
        impl: "XformersImpl",
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        if self.slots is None:
            keys, values = key[self.rows], value[self.rows]
        else:
            keys, values = split_kv(cache.transpose(1, 2).flatten(0, 1).index_select(0, self.slots))
        result = impl.call(
            grouped(query[self.rows], impl),
            shared(keys, impl),
            shared(values, impl),
            self.bias,
            impl,
            impl.prefill_op,
        )
        output[self.rows] = result[0].flatten(1, 2)


@dataclass(frozen=True, slots=True)
class Decodes:
    """All requests with one query, keys read in place through the block table."""

    rows: slice | torch.Tensor
    bias: "PagedBlockDiagonalCausalWithOffsetPaddedKeysMask"

    def __call__(
        self,
        impl: "XformersImpl",
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        keys, values = split_kv(cache.transpose(1, 2).flatten(0, 1))
        result = impl.call(
            grouped(query[self.rows], impl),
            shared(keys, impl),
            shared(values, impl),
            self.bias,
            impl,
            impl.decode_op,
        )
        output[self.rows] = result[0].flatten(1, 2)


def plan_prompts(batch: Batch, requests: list[int], device: torch.device) -> Prompts:
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

    lens = batch.query_lens
    slots = None
    if any(batch.lengths[r] > lens[r] for r in requests):
        owner = torch.tensor(requests).repeat_interleave(torch.tensor(batch.lengths)[requests])
        position = torch.cat([torch.arange(batch.lengths[r]) for r in requests])
        owner, position = (side.to(device, non_blocking=True) for side in (owner, position))
        blocks = batch.table[owner, position // batch.block_size].long()
        slots = blocks * batch.block_size + position % batch.block_size
    return Prompts(
        rows=batch.rows(requests),
        slots=slots,
        bias=BlockDiagonalCausalFromBottomRightMask.from_seqlens(
            [lens[r] for r in requests], [batch.lengths[r] for r in requests], device=device
        ),
    )


def plan_decodes(batch: Batch, requests: list[int], device: torch.device) -> Decodes:
    from xformers.ops.fmha.attn_bias import PagedBlockDiagonalCausalWithOffsetPaddedKeysMask

    return Decodes(
        rows=batch.rows(requests),
        bias=PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
            [1] * len(requests),
            [batch.lengths[r] for r in requests],
            batch.table[torch.tensor(requests, device=device)].clamp(min=0),
            batch.block_size,
            device=device,
        ),
    )


def plan_xformers(batch: Batch, visibility: Visibility, device: torch.device) -> Attend:
    """The whole step: at most one call for prompts and one for decodes."""
    single = [request for request, count in enumerate(batch.query_lens) if count == 1]
    longer = [request for request, count in enumerate(batch.query_lens) if count > 1]
    calls: list[Prompts | Decodes] = []
    if longer:
        calls.append(plan_prompts(batch, longer, device))
    if single:
        calls.append(plan_decodes(batch, single, device))

    def attend(
        impl: "XformersImpl",
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: torch.Tensor,
        output: torch.Tensor,
    ) -> None:
        for call in calls:
            call(impl, query, key, value, cache, output)

    return attend


class XformersBuilder(StepBuilder):
    planner = staticmethod(plan_xformers)


class XformersImpl(StepImpl):
    call: Callable[..., torch.Tensor] = staticmethod(forward)

    @property
    def operator(self) -> str:
        return f"xFormers {self.prefill_op.NAME} (prompts) and {self.decode_op.NAME} (decode)"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if reason := why_not_here():
            raise UserError(f"xformers cannot run here: {reason}")
        table = operators()
        self.checked: set[Any] = set()  # operators whose own checks passed; once a layer is enough
        self.prefill_op = table["prefill"][chosen("prefill")]
        self.decode_op = table["decode"][chosen("decode")]
        super().__init__(*args, **kwargs)


class XformersBackend(StepBackend):
    supported_dtypes = [torch.float16, torch.bfloat16]  # noqa: RUF012  (vLLM's own form)

    @staticmethod
    def get_impl_cls() -> type[XformersImpl]:
        return XformersImpl

    @staticmethod
    def get_builder_cls() -> type[XformersBuilder]:
        return XformersBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(FLASH_PAGE if chosen("decode") == "flash" else SPLIT_K_PAGE)]

    @classmethod
    def supported_kv_cache_layouts(cls) -> tuple[KVCacheLayout, ...]:
        return (KVCacheLayout.LBNHC,)  # tokens of all pages in one dimension, as a view

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        chosen_here = {phase: chosen(phase) for phase in ROW.options}
        return head_size in ROW.with_options(chosen_here).head_sizes

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    def supports_combination(cls, *args: Any, **kwargs: Any) -> str | None:
        return why_not_here()

"""``xformers``: memory_efficient_attention for prompts, Triton split-K over the paged cache for decode.

xFormers 0.0.35 brings no attention kernels of its own: its operators run PyTorch's (CUTLASS or
FlashAttention), the ``flash-attn`` package's where that is installed, and a Triton one. It has none for
the CPU, so a CPU is refused; the tests there replace ``operators`` by arithmetic on the materialised
mask, which no server can do.
"""

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import MultipleOf
from vllm.v1.kv_cache_layout import KVCacheLayout

from greenbench.contract.errors import UserError, nearest
from servers.backends.registry import BACKENDS
from servers.plugins import backend_options
from servers.plugins.cache import split_kv
from servers.plugins.plan import Call, Heads, Plan, Tensors
from servers.plugins.step import Batch, StepBackend, StepBuilder, StepImpl
from servers.plugins.tiles import grouped
from servers.plugins.visibility import Visibility

if TYPE_CHECKING:
    from xformers.ops.fmha.attn_bias import BlockDiagonalMask, PagedBlockDiagonalPaddedKeysMask

ROW = BACKENDS["xformers"]
FLASH_PAGE = 256  # the flash-attn package's paged kernel reads pages of a multiple of this
SPLIT_K_PAGE = 64
Phase = Literal["prefill", "decode"]
PHASES: tuple[Phase, ...] = ("prefill", "decode")  # each an option of the row


def operators() -> dict[Phase, dict[str, Any]]:
    """xFormers' forward operators by phase and option value."""
    from xformers.ops.fmha import cutlass, flash, triton_splitk

    return {
        "prefill": {"flash": flash.FwOp, "cutlass": cutlass.FwOp},
        "decode": {"split_k": triton_splitk.FwOp, "flash": flash.FwOp},
    }


def chosen(phase: Phase) -> str:
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
    bias: "BlockDiagonalMask | PagedBlockDiagonalPaddedKeysMask",
    impl: "XformersImpl",
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


def shared(keys: torch.Tensor, heads: Heads) -> torch.Tensor:
    """[tokens, kv_heads, D] as [1, tokens, kv_heads, group, D]; the group shares memory."""
    return keys[None, :, :, None].expand(-1, -1, -1, heads.group, -1)


def token_rows(cache: torch.Tensor) -> torch.Tensor:
    """The cache [blocks, kv_heads, block, 2 D] in layout LBNHC viewed as [tokens, kv_heads, 2 D]."""
    return cache.transpose(1, 2).flatten(0, 1)


@dataclass(frozen=True, slots=True)
class PhaseCall:
    """All requests of a phase: prompts block-diagonal, decodes through the block table in ``bias``."""

    phase: Phase
    rows: slice | torch.Tensor  # of the query tensor
    bias: "BlockDiagonalMask | PagedBlockDiagonalPaddedKeysMask"
    # where prompts find every key, request after request; None: the step's own keys suffice
    slots: torch.Tensor | None = None

    def __call__(self, heads: Heads, at: Tensors) -> None:
        assert isinstance(heads, XformersImpl), "its builder makes plans for its own layers only"
        keys, values = self.keys_values(at)
        result = heads.call(
            grouped(at.query[self.rows], heads).unsqueeze(0),
            shared(keys, heads),
            shared(values, heads),
            self.bias,
            heads,
            heads.operators[self.phase],
        )
        at.output[self.rows] = result[0].flatten(1, 2)

    def keys_values(self, at: Tensors) -> tuple[torch.Tensor, torch.Tensor]:
        if self.phase == "decode":
            return split_kv(at.cache)
        if self.slots is None:
            return at.key[self.rows], at.value[self.rows]
        return split_kv(at.cache.index_select(0, self.slots))


def plan_prompts(batch: Batch, requests: list[int], device: torch.device) -> PhaseCall:
    from xformers.ops.fmha.attn_bias import BlockDiagonalCausalFromBottomRightMask

    query_lens = [batch.query_lens[r] for r in requests]
    lengths = [batch.lengths[r] for r in requests]
    slots = None
    if lengths != query_lens:  # some have cached tokens
        owner = torch.tensor(requests).repeat_interleave(torch.tensor(lengths))
        position = torch.cat([torch.arange(length) for length in lengths])
        owner, position = (side.to(device, non_blocking=True) for side in (owner, position))
        blocks = batch.table[owner, position // batch.block_size].long()
        slots = blocks * batch.block_size + position % batch.block_size
    bias = BlockDiagonalCausalFromBottomRightMask.from_seqlens(query_lens, lengths, device=device)
    return PhaseCall("prefill", batch.rows(requests), bias, slots)


def plan_decodes(batch: Batch, requests: list[int], device: torch.device) -> PhaseCall:
    from xformers.ops.fmha.attn_bias import PagedBlockDiagonalCausalWithOffsetPaddedKeysMask

    bias = PagedBlockDiagonalCausalWithOffsetPaddedKeysMask.from_seqlens(
        [1] * len(requests),
        [batch.lengths[r] for r in requests],
        batch.table[torch.tensor(requests, device=device)].clamp(min=0),
        batch.block_size,
        device=device,
    )
    return PhaseCall("decode", batch.rows(requests), bias)


def plan_xformers(batch: Batch, visibility: Visibility, device: torch.device) -> Plan:
    """The whole step: at most one call for prompts and one for decodes."""
    single, longer = batch.by_length()
    calls: list[Call] = [plan_prompts(batch, longer, device)] if longer else []
    if single:
        calls.append(plan_decodes(batch, single, device))
    return Plan(calls, view=token_rows)


class XformersBuilder(StepBuilder):
    planner = staticmethod(plan_xformers)


class XformersImpl(StepImpl):
    call: Callable[..., torch.Tensor] = staticmethod(forward)

    @property
    def operator(self) -> str:
        names = self.operators["prefill"].NAME, self.operators["decode"].NAME
        return "xFormers {} (prompts) and {} (decode)".format(*names)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        if reason := why_not_here():
            raise UserError(f"xformers cannot run here: {reason}")
        self.checked: set[Any] = set()  # operators whose own checks passed; once a layer is enough
        table = operators()
        self.operators = {phase: table[phase][chosen(phase)] for phase in PHASES}
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
        chosen_here = {phase: chosen(phase) for phase in PHASES}
        return head_size in ROW.with_options(chosen_here).head_sizes

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

    @classmethod
    def supports_combination(cls, *args: Any, **kwargs: Any) -> str | None:
        return why_not_here()

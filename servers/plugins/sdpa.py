"""``sdpa``: PyTorch's scaled_dot_product_attention over the paged cache, without copying it.

CPU: the flash kernel behind SDPA, on views of runs of pages (page_views.py). CUDA: PyTorch's
variable-length form of the same operation, which takes the block table (varlen.py).
"""

import torch
from vllm.platforms import current_platform
from vllm.v1.attention.backend import MultipleOf

from servers.plugins import page_views, varlen, varlen_call
from servers.plugins.step import StepBackend, StepBuilder, StepImpl

ON_CUDA = current_platform.is_cuda()


class SdpaBuilder(StepBuilder):
    planner = staticmethod(varlen.plan_varlen if ON_CUDA else page_views.plan_page_views)
    reorder_batch_threshold = 1 if ON_CUDA else None  # decodes first: they go in one call


class SdpaImpl(StepImpl):
    operator = varlen_call.OPERATOR if ON_CUDA else page_views.OPERATOR


class SdpaBackend(StepBackend):
    supported_dtypes = [torch.float16, torch.bfloat16] if ON_CUDA else StepBackend.supported_dtypes

    @staticmethod
    def get_impl_cls() -> type[SdpaImpl]:
        return SdpaImpl

    @staticmethod
    def get_builder_cls() -> type[SdpaBuilder]:
        return SdpaBuilder

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(varlen_call.PAGE_MULTIPLE if ON_CUDA else 16)]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return not ON_CUDA or (head_size % 8 == 0 and head_size <= varlen_call.MAX_HEAD_SIZE)

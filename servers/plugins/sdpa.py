"""``sdpa``: PyTorch's scaled_dot_product_attention over the paged cache, without copying it.

CPU: the flash kernel behind SDPA on views of runs of pages (page_views.py).
"""

from servers.plugins import page_views
from servers.plugins.step import StepBackend, StepBuilder, StepImpl


class SdpaBuilder(StepBuilder):
    planner = staticmethod(page_views.plan_page_views)


class SdpaImpl(StepImpl):
    operator = page_views.OPERATOR


class SdpaBackend(StepBackend):
    @staticmethod
    def get_impl_cls() -> type[SdpaImpl]:
        return SdpaImpl

    @staticmethod
    def get_builder_cls() -> type[SdpaBuilder]:
        return SdpaBuilder

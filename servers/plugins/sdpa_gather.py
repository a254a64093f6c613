"""``sdpa_gather``: PyTorch's scaled_dot_product_attention over pages copied together, on any device.

The portable reference: public PyTorch calls alone, slower than ``sdpa`` by the copy.
"""

from servers.plugins.step import StepBackend, StepBuilder, StepImpl
from servers.plugins.tiles import plan_gather


class SdpaGatherBuilder(StepBuilder):
    planner = staticmethod(plan_gather)


class SdpaGatherImpl(StepImpl):
    operator = "torch.nn.functional.scaled_dot_product_attention over gathered pages"


class SdpaGatherBackend(StepBackend):
    @staticmethod
    def get_impl_cls() -> type[SdpaGatherImpl]:
        return SdpaGatherImpl

    @staticmethod
    def get_builder_cls() -> type[SdpaGatherBuilder]:
        return SdpaGatherBuilder

"""``sink_window``: exact attention to the first ``sink`` and the last ``window`` tokens, nothing between.

An approximation of full attention whose cost does not grow with the context: only the pages that hold
those tokens are read. Positions stay absolute (tokens are masked, not moved), unlike StreamingLLM's
rolling cache. CPU: page views; CUDA: the seen pages are copied together, ``sink + window`` tokens a
request and layer.
"""

from vllm.platforms import current_platform

from greenbench.contract.errors import UserError
from servers.backends.registry import BACKENDS
from servers.plugins import backend_options, page_views
from servers.plugins.step import StepBackend, StepBuilder, StepImpl
from servers.plugins.tiles import plan_gather
from servers.plugins.visibility import Visibility


def sink_window_options() -> tuple[Visibility, bool]:
    """What is seen, and whether blocks that never will be again are freed, from the options given."""
    options = backend_options("sink_window", BACKENDS["sink_window"].defaults)
    window, sink = int(options["window"]), int(options["sink"])
    if window < 1 or sink < 0:
        raise UserError(
            f"sink_window wants window >= 1 and sink >= 0, found window={window}, sink={sink}"
        )
    return Visibility(window=window, sink=sink), bool(options["free_blocks"])


class SinkWindowBuilder(StepBuilder):
    planner = staticmethod(
        plan_gather if current_platform.is_cuda() else page_views.plan_page_views
    )


class SinkWindowImpl(StepImpl):
    operator = (
        "torch.nn.functional.scaled_dot_product_attention over gathered pages"
        if current_platform.is_cuda()
        else page_views.OPERATOR
    )

    def layer_visibility(self, sliding_window: int | None) -> Visibility:
        if sliding_window is not None:
            raise UserError(
                "sink_window replaces full attention; this model's layer has a sliding window of "
                f"{sliding_window} of its own"
            )
        seen, free_blocks = sink_window_options()
        if free_blocks:
            # heavy, and deep in vLLM's scheduler: imported only when asked for
            from servers.plugins.sink_window_blocks import free_unseen_blocks

            free_unseen_blocks(seen)
        return seen


class SinkWindowBackend(StepBackend):
    @staticmethod
    def get_impl_cls() -> type[SinkWindowImpl]:
        return SinkWindowImpl

    @staticmethod
    def get_builder_cls() -> type[SinkWindowBuilder]:
        return SinkWindowBuilder

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

"""``sink_window``: exact attention to the first ``sink`` and the last ``window`` tokens, nothing between.

An approximation of full attention whose cost does not grow with the context: only the pages that hold
those tokens are read. Positions stay absolute (tokens are masked, not moved), unlike StreamingLLM's
rolling cache. CPU: page views; CUDA: the seen pages are copied together, ``sink + window`` tokens a
request and layer, or with ``reads=varlen`` read in place.
"""

from typing import Any, Literal, cast

from vllm.platforms import current_platform
from vllm.v1.attention.backend import MultipleOf

from greenbench.contract.errors import UserError, nearest
from servers.backends.registry import BACKENDS
from servers.plugins import backend_options, page_views, varlen_call
from servers.plugins.step import Planner, StepBackend, StepBuilder, StepImpl
from servers.plugins.tiles import plan_gather
from servers.plugins.visibility import Visibility
from servers.plugins.window_varlen import plan_window

ROW = BACKENDS["sink_window"]
Reads = Literal["views", "gather", "varlen"]
PLANNERS: dict[Reads, Planner] = {
    "views": page_views.plan_page_views,
    "gather": plan_gather,
    "varlen": plan_window,
}
OPERATORS: dict[Reads, str] = {
    "views": page_views.OPERATOR,
    "gather": "torch.nn.functional.scaled_dot_product_attention over gathered pages",
    "varlen": varlen_call.OPERATOR,
}


def sink_window_options() -> tuple[Visibility, bool]:
    """What is seen, and whether blocks that never will be again are freed, from the options given."""
    options = backend_options(ROW.name, ROW.defaults)
    window, sink = int(options["window"]), int(options["sink"])
    if window < 1 or sink < 0:
        raise UserError(
            f"sink_window wants window >= 1 and sink >= 0, found window={window}, sink={sink}"
        )
    return Visibility(window=window, sink=sink), bool(options["free_blocks"])


def reads() -> Reads:
    """How the seen pages are read here: as the option says on CUDA, by views elsewhere."""
    value, known = backend_options(ROW.name, ROW.defaults)["reads"], ROW.options["reads"].values
    if value not in known:
        raise UserError(f"sink_window: reads={value!r} is unknown; {nearest(str(value), known)}")
    return cast(Reads, value) if current_platform.is_cuda() else "views"


class SinkWindowBuilder(StepBuilder):
    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.planner = PLANNERS[reads()]  # at each step it would read the environment's JSON anew


class SinkWindowImpl(StepImpl):
    @property
    def operator(self) -> str:
        return OPERATORS[reads()]

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

    @staticmethod
    def get_supported_kernel_block_sizes(kv_cache_spec: object = None) -> list[int | MultipleOf]:
        return [MultipleOf(varlen_call.PAGE_MULTIPLE if reads() == "varlen" else 16)]

    @classmethod
    def supports_head_size(cls, head_size: int) -> bool:
        return head_size in ROW.with_options({"reads": reads()}).head_sizes

    @classmethod
    def supports_sliding_window(cls) -> bool:
        return False

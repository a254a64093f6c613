"""KV blocks between the first tokens and the window, given back while a request still runs.

vLLM asks an attention layer for a KV-cache spec and takes the manager registered for the spec's
class. A layer of ours gets a spec whose manager frees what no later query can see; the block table then
holds vLLM's null block there, which sink_window never reads. Importing this module registers the
manager: the scheduler's process learns of the class only by unpickling the spec.
"""

import inspect
from dataclasses import dataclass
from functools import cache, wraps
from typing import Any, Self

import vllm
from vllm.config import VllmConfig
from vllm.model_executor.layers.attention import Attention
from vllm.utils.math_utils import cdiv
from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager
from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheSpec, replace_as
from vllm.v1.kv_cache_spec_registry import KVCacheSpecRegistry

from greenbench.contract.errors import UserError
from servers.plugins.step import visibility_of
from servers.plugins.visibility import Visibility


@dataclass(frozen=True, kw_only=True)
class SinkWindowSpec(FullAttentionSpec):
    window: int
    sink: int
    in_flight_tokens: int  # scheduled and not yet settled: their blocks cannot be freed yet
    max_model_len: int

    @property
    def most_blocks(self) -> int:
        """The most blocks one request ever holds."""
        recent = cdiv(self.window - 1 + self.in_flight_tokens, self.block_size) + 1
        return min(
            cdiv(self.max_model_len, self.block_size), cdiv(self.sink, self.block_size) + recent
        )

    def max_memory_usage_bytes(self, vllm_config: VllmConfig) -> int:
        return self.most_blocks * self.page_size_bytes

    @classmethod
    def merge(cls, specs: list[Self]) -> Self:
        """One spec for a group of layers, all of which are alike (FullAttentionSpec's drops our fields)."""
        assert all(spec == specs[0] for spec in specs), "sink_window layers of a group differ"
        return specs[0]


class SinkWindowManager(FullAttentionManager):
    def __init__(self, kv_cache_spec: SinkWindowSpec, **kwargs: Any) -> None:
        kwargs["max_admission_blocks_per_request"] = kv_cache_spec.most_blocks
        super().__init__(kv_cache_spec, **kwargs)
        self.window, self.sink = kv_cache_spec.window, kv_cache_spec.sink

    def remove_skipped_blocks(
        self,
        request_id: str,
        processed_computed_tokens: int,
        num_prompt_tokens: int | None = None,
    ) -> None:
        """Free the blocks that hold neither a sink token nor one that the next query's window reaches."""
        oldest_seen = max(0, processed_computed_tokens - self.window + 1)
        self._remove_blocks_in_range(
            request_id, cdiv(self.sink, self.block_size), oldest_seen // self.block_size
        )


SEAMS: tuple[tuple[Any, str], ...] = (
    (FullAttentionManager, "remove_skipped_blocks"),
    (FullAttentionManager, "_remove_blocks_in_range"),
    (Attention, "get_kv_cache_spec"),
    (VllmConfig, "max_in_flight_tokens"),
)


def refuse_without_seams() -> None:
    """Raise a UserError where vLLM has no place any more into which the freeing is hooked.

    Its scheduler calls remove_skipped_blocks; a manager of another name for it would free nothing.
    """
    gone = [f"{owner.__name__}.{name}" for owner, name in SEAMS if not hasattr(owner, name)]
    taken = inspect.signature(FullAttentionManager.__init__).parameters
    if "max_admission_blocks_per_request" not in taken:
        gone.append("FullAttentionManager's max_admission_blocks_per_request")
    if gone:
        raise UserError(
            f"sink_window: free_blocks needs {', '.join(gone)} of vLLM, which {vllm.__version__} has not; "
            "serve with free_blocks=false"
        )


@cache  # once a process, whatever the number of its layers
def free_unseen_blocks(seen: Visibility) -> None:
    """From now on this process's sink_window layers ask vLLM for the freeing manager."""
    refuse_without_seams()
    stock = Attention.get_kv_cache_spec

    @wraps(stock)
    def get_kv_cache_spec(self: Attention, vllm_config: VllmConfig) -> KVCacheSpec | None:
        spec = stock(self, vllm_config)
        if visibility_of(self) != seen or not isinstance(spec, FullAttentionSpec):
            raise UserError(
                "sink_window: free_blocks wants every attention layer to be sink_window's"
            )
        return replace_as(
            spec,
            SinkWindowSpec,
            window=seen.window,
            sink=seen.sink,
            in_flight_tokens=vllm_config.max_in_flight_tokens,
            max_model_len=vllm_config.model_config.max_model_len,
        )

    Attention.get_kv_cache_spec = get_kv_cache_spec


KVCacheSpecRegistry._ensure_registered()  # the first registration of any class skips vLLM's own
KVCacheSpecRegistry.register(
    SinkWindowSpec, SinkWindowManager, uniform_type_base_spec=FullAttentionSpec
)

"""vLLM's CPU platform, except that our backend is honoured instead of being replaced by CPU_ATTN."""

from typing import TYPE_CHECKING

from vllm.platforms import cpu_platform_plugin
from vllm.platforms.interface import DeviceCapability
from vllm.utils.import_utils import resolve_obj_by_qualname
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from greenbench.contract.errors import UserError
from servers.plugins import registered_name

if TYPE_CHECKING:
    from vllm.v1.attention.selector import AttentionSelectorConfig

# the class vLLM would have taken by itself (the Zen one where zentorch is installed), so that a custom
# backend's server differs from CPU_ATTN's in the attention class alone
_STOCK = cpu_platform_plugin()
assert _STOCK is not None, "imported only where vLLM is a CPU build"
NO_CAPABILITY = DeviceCapability(0, 0)  # a CPU's: less than any that a backend asks for
StockCpuPlatform = resolve_obj_by_qualname(_STOCK)


class CustomCpuPlatform(StockCpuPlatform):
    @classmethod
    def get_attn_backend_cls(
        cls,
        selected_backend: "AttentionBackendEnum | None",
        attn_selector_config: "AttentionSelectorConfig",
        num_heads: int | None = None,
    ) -> str:
        """The custom class's path after vLLM's own validation, which CUDA does and the CPU platform skips."""
        wanted: AttentionBackendEnum = getattr(AttentionBackendEnum, registered_name())
        if selected_backend is not wanted:
            found = selected_backend.name if selected_backend else "none"
            raise UserError(
                f"a custom attention class is named but the backend asked for is {found}; "
                f"pass --attention-backend {wanted.name}"
            )
        backend = wanted.get_class()
        reasons = backend.validate_configuration(
            **attn_selector_config._asdict(), device_capability=NO_CAPABILITY
        )
        if reasons:
            raise UserError(f"{backend.__name__} cannot serve this model: {', '.join(reasons)}")
        return wanted.get_path()

"""What none of our backends does, said before a server starts instead of computed wrongly."""

from vllm.v1.attention.backend import AttentionType
from vllm.v1.kv_cache_interface import is_quantized_kv_cache

from greenbench.contract.errors import UserError


def refuse(
    backend: str,
    *,
    alibi_slopes: list[float] | None,
    logits_soft_cap: float | None,
    attn_type: str,
    kv_sharing_target_layer_name: str | None,
    kv_cache_dtype: str,
    extra: dict[str, object],
) -> None:
    """Raise a UserError that names the first thing asked of a layer that our kernels do not compute."""
    asked = {
        "ALiBi position biases": alibi_slopes is not None,
        "a soft cap on attention logits": bool(logits_soft_cap),
        f"attention of type '{AttentionType(attn_type).value}' (only decoder layers)": attn_type
        != AttentionType.DECODER,
        "KV sharing between layers (not tested)": kv_sharing_target_layer_name is not None,
        f"a quantised KV cache ('{kv_cache_dtype}')": is_quantized_kv_cache(kv_cache_dtype),
        "learned attention sinks": extra.get("sinks") is not None,
    }
    asked |= {
        f"the layer argument '{name}'": value is not None
        for name, value in extra.items()
        if name != "sinks"
    }
    for what, wanted in asked.items():
        if wanted:
            raise UserError(
                f"{backend} does not support {what}, which this model asks for; "
                "choose another attention backend"
            )

"""Bytes that a KV cache of each ``--kv-cache-dtype`` keeps of a head, as vLLM lays it out.

Source: vLLM 0.32, ``v1/kv_cache_interface.py``, ``utils/torch_utils.py`` (sizes of elements, nvfp4) and
``model_executor/layers/attention/mla_attention.py`` (layouts of their own for latent attention).
"""

from dataclasses import dataclass

from analysis.model.layers import NotKnown

PLAIN = {
    "float32": 4.0, "float": 4.0, "bfloat16": 2.0, "float16": 2.0, "half": 2.0,
    "fp8": 1.0, "fp8_e4m3": 1.0, "fp8_e5m2": 1.0, "fp8_inc": 1.0,
    "int8_per_token_head": 1.0, "fp8_per_token_head": 1.0, "int4_per_token_head": 0.5,
    "nvfp4": 0.5 + 1 / 16, "nvfp4_4over6": 0.5 + 1 / 16,  # a scale of one byte for 16 values
}  # fmt: skip
SCALE_BYTES = 4  # of K and of V each, a token and head, beside formats whose name ends so:
SCALED = "_per_token_head"
# a token and layer of latent attention with 512 values and 64 rotary ones
PACKED_LATENT = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
PACKED_SIZES = (512, 64)


@dataclass(frozen=True, slots=True)
class Kept:
    """Bytes of one token in one layer; ``scales`` come on top where the pool holds them."""

    values: float
    scales: int = 0


def kept_by_heads(kv_dtype: str, kv_heads: int, size: int) -> Kept:
    """K and V of ``kv_heads`` heads of ``size`` elements. Raises NotKnown."""
    scales = 2 * kv_heads * SCALE_BYTES if kv_dtype.endswith(SCALED) else 0
    return Kept(2 * kv_heads * size * element_bytes(kv_dtype), scales)


def kept_latent(kv_dtype: str, latent: int, rope: int) -> Kept:
    """One compressed vector and its rotary part, of all heads. Raises NotKnown."""
    if kv_dtype in PACKED_LATENT:
        if (latent, rope) != PACKED_SIZES:
            raise NotKnown(
                f"{kv_dtype} is laid out for 512 + 64 values, and it has {latent} + {rope}"
            )
        return Kept(PACKED_LATENT[kv_dtype])
    scales = 2 * SCALE_BYTES if kv_dtype.endswith(SCALED) else 0
    return Kept((latent + rope) * element_bytes(kv_dtype), scales)


def element_bytes(kv_dtype: str) -> float:
    """Bytes of one value, block scales included. Raises NotKnown."""
    if kv_dtype not in PLAIN:
        raise NotKnown(f"the layout of a KV cache in '{kv_dtype}' is not in the table")
    return PLAIN[kv_dtype]

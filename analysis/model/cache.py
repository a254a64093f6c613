"""How many bytes of cache a model keeps: a token in its attention layers, a sequence in its state layers.

From config.json alone, as vLLM lays the caches out: full attention keeps K and V of every token, a sliding
window those of the last tokens, a state-space or linear-attention layer a fixed state.
"""

from dataclasses import dataclass, field
from typing import Any

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "auto": 2}
FP8_BYTES = 1


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Bytes; ``window_bytes`` maps a sliding window (tokens) to the bytes a token inside it."""

    kv_bytes_per_token: int  # all attention layers, sliding or not
    full_bytes_per_token: int  # layers that keep every token
    state_bytes_per_sequence: int | None  # None: layers with a state that this table does not know
    window_bytes: dict[int, int] = field(default_factory=dict[int, int])
    notes: tuple[str, ...] = ()

    def sequence_bytes(self, context_tokens: int) -> int | None:
        """Cache of one sequence of this length."""
        if self.state_bytes_per_sequence is None:
            return None
        windows = sum(min(context_tokens, w) * b for w, b in self.window_bytes.items())
        return self.full_bytes_per_token * context_tokens + windows + self.state_bytes_per_sequence


def cache_shape(config: dict[str, Any], kv_dtype: str, dtype: str) -> CacheShape:
    """Shape of the caches of one model; ``kv_dtype`` 'auto' means the model's ``dtype``."""
    dtype = _dtype(config, dtype)
    kv_item = (
        FP8_BYTES if kv_dtype.startswith("fp8") else ELEMENT_BYTES[_dtype(config, kv_dtype, dtype)]
    )
    item = ELEMENT_BYTES[dtype]
    kinds = layer_kinds(config)
    attention = _attention_bytes(config) * kv_item
    windowed = [kind for kind in kinds if kind == "sliding"]
    full = [kind for kind in kinds if kind in ("attention", "hybrid")]
    states = [kind for kind in kinds if kind in ("mamba", "hybrid", "linear", "conv")]
    known = [_state_bytes(config, kind, item) for kind in states]
    state = None if any(size is None for size in known) else sum(size or 0 for size in known)
    window = int(config.get("sliding_window") or 0)
    return CacheShape(
        kv_bytes_per_token=attention * (len(full) + len(windowed)),
        full_bytes_per_token=attention * len(full),
        state_bytes_per_sequence=state,
        window_bytes={window: attention * len(windowed)} if windowed else {},
        notes=() if state is not None else ("state layers of a kind that is not in the table",),
    )


def layer_kinds(config: dict[str, Any]) -> list[str]:
    """attention | sliding | mamba | linear | conv | hybrid (attention and state in one layer), a layer."""
    count = int(config.get("num_hidden_layers", 0))
    listed = config.get("layer_types") or config.get("layers_block_type")
    if listed:
        names: dict[str, str] = {
            "full_attention": "attention",
            "sliding_attention": "sliding",
            "linear_attention": "linear",
            "conv": "conv",
        }
        return [names.get(kind, str(kind)) for kind in listed]
    if "full_attn_idxs" in config:
        full = set(config["full_attn_idxs"])
        return ["attention" if layer in full else "conv" for layer in range(count)]
    if "full_attention_interval" in config:
        every = int(config["full_attention_interval"])
        return ["linear" if (layer + 1) % every else "attention" for layer in range(count)]
    if config.get("model_type") in ("mamba", "mamba2"):
        return ["mamba"] * count
    if config.get("model_type") == "falcon_h1":
        return ["hybrid"] * count  # attention and Mamba2 side by side in every layer
    sliding = bool(config.get("sliding_window")) and config.get("use_sliding_window", True)
    return ["sliding" if sliding else "attention"] * count


def _attention_bytes(config: dict[str, Any]) -> int:
    """Elements of K and V of one token in one layer."""
    heads = config.get("num_attention_heads")
    if not heads:
        return 0
    if "kv_lora_rank" in config:  # MLA keeps one compressed vector and the rotary part
        return int(config["kv_lora_rank"]) + int(config["qk_rope_head_dim"])
    kv_heads = config.get("num_key_value_heads") or heads
    head = (
        config.get("attention_head_dim") or config.get("head_dim") or config["hidden_size"] // heads
    )
    return 2 * int(kv_heads) * int(head)


def _state_bytes(config: dict[str, Any], kind: str, item: int) -> int | None:
    """Bytes that one state layer keeps a sequence: convolution window and recurrent state."""
    if kind == "conv":
        return (
            int(config["conv_L_cache"] - 1)
            * int(config.get("conv_dim", config["hidden_size"]))
            * item
        )
    if kind == "linear" and "linear_num_value_heads" in config:  # gated DeltaNet
        keys = int(config["linear_num_key_heads"]) * int(config["linear_key_head_dim"])
        values = int(config["linear_num_value_heads"]) * int(config["linear_value_head_dim"])
        window = (2 * keys + values) * (int(config["linear_conv_kernel_dim"]) - 1)
        return (window + values * int(config["linear_key_head_dim"])) * item
    heads = _first(config, "mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    size = _first(config, "mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
    state = _first(config, "mamba_d_state", "ssm_state_size", "state_size")
    groups = _first(config, "mamba_n_groups", "mamba_ngroups", "n_groups")
    kernel = _first(config, "mamba_d_conv", "conv_kernel")
    if kind == "conv" or None in (heads, size, state, groups, kernel):
        return None
    inner = int(heads) * int(size)  # type: ignore[arg-type]
    window = (inner + 2 * int(groups) * int(state)) * (int(kernel) - 1)  # type: ignore[arg-type]
    return (window + inner * int(state)) * item  # type: ignore[arg-type]


def _first(config: dict[str, Any], *names: str) -> int | None:
    return next((config[name] for name in names if name in config), None)


def _dtype(config: dict[str, Any], asked: str, default: str | None = None) -> str:
    if asked in ELEMENT_BYTES and asked != "auto":
        return asked
    named = default or config.get("dtype") or config.get("torch_dtype") or "bfloat16"
    return str(named) if named in ELEMENT_BYTES else "bfloat16"

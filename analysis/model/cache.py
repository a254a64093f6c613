"""How many bytes of cache a model keeps: a token in its attention layers, a sequence in its state layers.

As vLLM lays the caches out: full attention keeps K and V of every token, a sliding window those of the
last tokens, a state-space or linear-attention layer a fixed state. Layers and heads are those of
``analysis.model.layers``, bytes a value those of ``analysis.model.formats``.
"""

from collections import Counter
from dataclasses import dataclass, field

from analysis.model.formats import Kept, kept_by_heads, kept_latent
from analysis.model.layers import (
    Config,
    NotKnown,
    heads_of,
    is_mla,
    language_config,
    layer_kinds,
    whole,
)
from greenbench.contract.model_shape import ModelShape

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
STATES = ("mamba", "hybrid", "linear", "conv")
WITH_CACHE = ("attention", "hybrid", "sliding")


@dataclass(frozen=True, slots=True)
class CacheShape:
    """Bytes; ``window_bytes`` maps a sliding window (tokens) to the bytes a token inside it.

    None is not known, and ``notes`` say why.
    """

    kv_bytes_per_token: int | None  # all attention layers, sliding or not
    full_bytes_per_token: int | None  # layers that keep every token
    state_bytes_per_sequence: int | None
    window_bytes: dict[int, int] = field(default_factory=dict[int, int])
    notes: tuple[str, ...] = ()
    scale_bytes_per_token: int = 0  # of the format's scales, on top where the pool holds them
    full_layers: int = 0  # that keep every token
    state_layers: int = 0

    def sequence_bytes(self, context_tokens: int) -> int | None:
        """Cache of one sequence of this length; None where a part of it is not known."""
        if self.state_bytes_per_sequence is None or self.full_bytes_per_token is None:
            return None
        windows = sum(min(context_tokens, w) * b for w, b in self.window_bytes.items())
        return self.full_bytes_per_token * context_tokens + windows + self.state_bytes_per_sequence

    def paged_bytes(self, context_tokens: int, page_tokens: int) -> int | None:
        """The same where vLLM made a page of attention as large as a state's, and pads the state to it: whole
        pages of the tokens, and of each state layer one. None where the layers are not of these two kinds.
        """
        full = self.full_bytes_per_token
        if not (full and self.full_layers and self.state_layers) or self.window_bytes:
            return None
        pages = self.full_layers * -(-context_tokens // page_tokens) + self.state_layers
        return pages * page_tokens * full // self.full_layers


def cache_shape(
    config: Config,
    kv_dtype: str,
    dtype: str,
    shape: ModelShape | None = None,
    tensor_parallel: int = 1,
) -> CacheShape:
    """Caches of one model; ``kv_dtype`` 'auto' means the model's ``dtype``, that the config's.

    ``shape``: what vLLM said of it, and then ``config`` is its resolved one; None: a bare config.json.
    Bytes are those of all cards together: where ``tensor_parallel`` is more than the KV heads, cards keep
    copies of them, and of latent attention every card keeps all.
    """
    config = language_config(config)
    try:
        return _cache_shape(config, kv_dtype, _dtype(config, dtype), shape, tensor_parallel)
    except NotKnown as reason:
        why = str(reason)
    except (
        KeyError,
        TypeError,
        ValueError,
        AttributeError,
        IndexError,
        ArithmeticError,
    ) as error:
        why = f"the config has another form than is known here ({type(error).__name__}: {error})"
    return CacheShape(None, None, None, notes=(f"bytes a token are not known, because {why}",))


def _cache_shape(
    config: Config, kv_dtype: str, dtype: str, shape: ModelShape | None, cards: int
) -> CacheShape:
    kinds = layer_kinds(config, resolved=shape is not None)
    kv_dtype = dtype if kv_dtype == "auto" else kv_dtype
    kept = [
        (kind, _kept(config, index, kind, kv_dtype, shape, cards))
        for index, kind in enumerate(kinds)
        if kind in WITH_CACHE
    ]
    windows: Counter[int] = Counter()
    for kind, layer in kept:
        if kind == "sliding":
            windows[_window(config)] += _whole(layer.values)
    full = sum(_whole(layer.values) for kind, layer in kept if kind != "sliding")
    states = [_state_bytes(config, kind, ELEMENT_BYTES[dtype]) for kind in kinds if kind in STATES]
    state = None if None in states else sum(size or 0 for size in states)
    return CacheShape(
        kv_bytes_per_token=full + windows.total(),
        full_bytes_per_token=full,
        state_bytes_per_sequence=state,
        window_bytes=dict(windows),
        notes=() if state is not None else ("state layers of a kind that is not in the table",),
        scale_bytes_per_token=sum(layer.scales for _, layer in kept),
        full_layers=sum(kind != "sliding" for kind, _ in kept),
        state_layers=len(states),
    )


def _kept(
    config: Config, index: int, kind: str, kv_dtype: str, shape: ModelShape | None, cards: int
) -> Kept:
    if not is_mla(config, shape):
        heads = heads_of(config, index, kind, shape)
        return kept_by_heads(kv_dtype, max(1, heads.kv // cards) * cards, heads.size)
    if config.get("index_topk"):
        raise NotKnown("the index of its sparse attention is a second cache")
    latent, rope = (whole(config[name], name) for name in ("kv_lora_rank", "qk_rope_head_dim"))
    kept = kept_latent(kv_dtype, latent, rope)
    return Kept(kept.values * cards, kept.scales * cards)


def _window(config: Config) -> int:
    window = config.get("sliding_window")
    if isinstance(window, bool) or not isinstance(window, int) or window < 1:
        raise NotKnown(f"layers slide, and 'sliding_window' is {str(window)[:40]}")
    return window


def _whole(size: float) -> int:
    if size != int(size):
        raise NotKnown(f"a layer would keep {size} bytes a token")
    return int(size)


def _state_bytes(config: Config, kind: str, item: int) -> int | None:
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
    if None in (heads, size, state, groups, kernel):
        return None
    inner = int(heads) * int(size)  # type: ignore[arg-type]
    window = (inner + 2 * int(groups) * int(state)) * (int(kernel) - 1)  # type: ignore[arg-type]
    return (window + inner * int(state)) * item  # type: ignore[arg-type]


def _first(config: Config, *names: str) -> int | None:
    return next((config[name] for name in names if name in config), None)


def _dtype(config: Config, asked: str) -> str:
    """What the model computes in; 'auto' is what the config says, bfloat16 where vLLM would take that.

    Of weights in 32 bits vLLM takes 16. Raises NotKnown.
    """
    named = config.get("dtype") or config.get("torch_dtype") if asked == "auto" else asked
    if asked == "auto" and named in (None, "float32"):
        return "bfloat16"
    if str(named) not in ELEMENT_BYTES:
        raise NotKnown(f"its values are of '{named}'")
    return str(named)

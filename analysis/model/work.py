"""FLOPs and least bytes of a model's phases, from its config.json alone.

Counted: matrix multiplications (2 FLOPs a weight and token), attention over the query–key pairs that a
causal mask leaves, and the recurrences of state layers. Bytes are the least that must cross the memory
bus: every weight once a step, the KV cache of every sequence once a step, states read and written.
Norms, activations and rotary embeddings are left out. docs/method.md gives the derivations.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from analysis.model.layers import NotKnown, heads_of, is_mla, language_config, layer_kinds
from greenbench.contract.model_shape import ModelShape

ATTENTION_TYPES = (
    "llama", "mistral", "qwen2", "qwen3", "qwen3_moe", "mixtral", "phi3", "gemma2", "gemma3_text", "gpt_oss",
)  # fmt: skip
KNOWN_TYPES = (
    *ATTENTION_TYPES, "mamba2", "falcon_h1", "granitemoehybrid", "lfm2", "qwen3_next", "qwen3_5_text",
    "deepseek_v2", "deepseek_v3",
)  # fmt: skip
DELTA_RULE_FLOPS = 7  # per element of the state and token: decay, read, correct, write, query
MAMBA2_FLOPS = 6  # per element of the state and token: decay, add, project out


@dataclass(frozen=True)
class Work:
    """FLOPs and bytes; ``a + b`` and ``a * n`` as one expects."""

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, factor: float) -> "Work":
        return Work(self.flops * factor, self.bytes * factor)

    @property
    def intensity(self) -> float:
        """FLOPs a byte."""
        return self.flops / self.bytes


@dataclass(frozen=True)
class Attention:
    """Softmax attention. ``window``: tokens a query sees, itself included; None sees all before it."""

    q_heads: int
    kv_heads: int
    head_dim: int
    window: int | None = None

    def flops_per_pair(self) -> float:
        return 4 * self.q_heads * self.head_dim  # scores and weighted sum, 2 FLOPs a multiply-add

    def kv_elements(self) -> float:
        return 2 * self.kv_heads * self.head_dim

    def decode(self, context: float, kv_item: int) -> Work:
        seen = context if self.window is None else min(context, self.window)
        return Work(self.flops_per_pair() * seen, self.kv_elements() * seen * kv_item)

    def prefill(self, new: int, past: int, kv_item: int) -> Work:
        pairs = causal_pairs(new, past, self.window)
        kept = past if self.window is None else min(past, self.window)
        moved = (2 * self.q_heads * self.head_dim + self.kv_elements()) * new
        return Work(self.flops_per_pair() * pairs, (moved + self.kv_elements() * kept) * kv_item)


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention: absorbed in decode, expanded in prefill."""

    heads: int
    latent: int
    rope: int
    nope: int
    value: int

    def decode(self, context: float, kv_item: int) -> Work:
        flops = 2 * self.heads * (2 * self.latent + self.rope) * context
        return Work(flops, (self.latent + self.rope) * context * kv_item)

    def prefill(self, new: int, past: int, kv_item: int) -> Work:
        pairs = causal_pairs(new, past, None)
        flops = 2 * self.heads * (self.nope + self.rope + self.value) * pairs
        return Work(flops, (self.latent + self.rope) * (new + past) * kv_item)


@dataclass(frozen=True)
class State:
    """A recurrent state of ``elements`` a sequence; ``flops`` an element and token."""

    elements: int
    flops: float
    prefill_flops_per_token: float

    def decode(self, context: float, item: int) -> Work:
        return Work(self.flops * self.elements, 2 * self.elements * item)  # read and written

    def prefill(self, new: int, past: int, item: int) -> Work:
        return Work(self.prefill_flops_per_token * new, 2 * self.elements * item)


Mixer = Attention | Mla | State


@dataclass(frozen=True)
class Experts:
    """Routed feed-forward weights: ``count`` experts of ``params`` each, ``chosen`` a token."""

    count: int
    chosen: int
    params: float

    def touched(self, tokens: float) -> float:
        """Expected number of experts that a step of so many tokens reads, routed evenly."""
        return self.count * (1 - (1 - self.chosen / self.count) ** tokens)


@dataclass(frozen=True)
class Layer:
    """``params``: dense weights, active for every token."""

    params: float
    mixers: tuple[Mixer, ...]
    experts: Experts | None = None


@dataclass(frozen=True)
class ModelWork:
    """One model. ``weight_item`` and ``kv_item``: bytes an element."""

    layers: tuple[Layer, ...]
    hidden: int
    vocab: int
    weight_item: int = 2
    kv_item: int = 2

    @property
    def active_params(self) -> float:
        """Non-embedding weights that a token passes through."""
        dense = sum(layer.params for layer in self.layers)
        return dense + sum(x.experts.chosen * x.experts.params for x in self.layers if x.experts)

    def linear(self, tokens: float) -> Work:
        """FLOPs of the dense layers for ``tokens`` tokens; no bytes, which are counted a step."""
        return Work(flops=2 * self.active_params * tokens)

    def logits(self, tokens: float) -> Work:
        return Work(flops=2 * self.hidden * self.vocab * tokens)

    def step_weights(self, tokens: float) -> Work:
        """Weights that one engine step of ``tokens`` tokens reads, the output head included."""
        dense = sum(layer.params for layer in self.layers) + self.hidden * self.vocab
        routed = sum(x.experts.touched(tokens) * x.experts.params for x in self.layers if x.experts)
        return Work(bytes=(dense + routed) * self.weight_item)

    def decode_token(self, context: float) -> Work:
        """One generated token at ``context`` tokens (itself included), without the step's weights."""
        mixing = self._mix(lambda mixer: mixer.decode(context, self.kv_item))
        return self.linear(1) + self.logits(1) + mixing

    def prefill(self, new: int, past: int = 0) -> Work:
        """``new`` prompt tokens after ``past`` cached ones, in one step, without the step's weights."""
        return (
            self.linear(new)
            + self.logits(1)
            + self._mix(lambda mixer: mixer.prefill(new, past, self.kv_item))
        )

    def chunked_prefill(self, prompt: int, chunk: int) -> Work:
        """A prompt in steps of at most ``chunk`` tokens; the last alone yields logits."""
        total = self.logits(1)
        for start in range(0, prompt, chunk):
            new = min(chunk, prompt - start)
            total += self.linear(new)
            total += self._mix(lambda m, n=new, p=start: m.prefill(n, p, self.kv_item))
        return total

    def _mix(self, each: Callable[[Mixer], Work]) -> Work:
        work = Work()
        for layer in self.layers:
            for mixer in layer.mixers:
                work += each(mixer)
        return work


def causal_pairs(new: int, past: int, window: int | None = None) -> float:
    """Query–key pairs of ``new`` tokens after ``past``: Σ min(past + i, window) for i = 1..new.

    Without a window new·past + new·(new+1)/2: half of a square, which is what a causal mask leaves.
    """
    if window is None:
        return new * past + new * (new + 1) / 2
    growing = min(max(window - past, 0), new)  # queries that still see everything before them
    return growing * past + growing * (growing + 1) / 2 + (new - growing) * window


def model_work(
    config: dict[str, Any],
    weight_item: int = 2,
    kv_item: int = 2,
    seen: int | None = None,
    shape: ModelShape | None = None,
) -> ModelWork | None:
    """The model of a config, or None for an architecture that is not in KNOWN_TYPES or
    a config that leaves a size out.

    ``seen``: tokens that an approximate backend lets a query see (sink + window), for every layer.
    ``shape``: what vLLM said of it, with its resolved config; None: the config is a bare config.json.
    """
    config = language_config(config)
    if config.get("model_type") not in KNOWN_TYPES:
        return None
    try:
        kinds = layer_kinds(config, resolved=shape is not None)
        layers = tuple(_layer(config, kind, index, seen, shape) for index, kind in enumerate(kinds))
        hidden, vocab = int(config["hidden_size"]), int(config["vocab_size"])
    except (NotKnown, LookupError, TypeError, ValueError, ArithmeticError, StopIteration):
        return None  # a config that leaves a size to its class's defaults, or has another form
    return ModelWork(
        layers=layers,
        hidden=hidden,
        vocab=vocab,
        weight_item=weight_item,
        kv_item=kv_item,
    )


def _layer(
    config: dict[str, Any], kind: str, index: int, seen: int | None, shape: ModelShape | None
) -> Layer:
    params, mixers = 0.0, []
    if kind in ("attention", "sliding", "hybrid"):
        weights, mixer = _attention(config, kind, index, seen, shape)
        params, mixers = params + weights, [*mixers, mixer]
    if kind in ("mamba", "hybrid"):
        weights, mixer = _mamba2(config)
        params, mixers = params + weights, [*mixers, mixer]
    if kind == "linear":
        weights, mixer = _delta(config)
        params, mixers = params + weights, [*mixers, mixer]
    if kind == "conv":
        hidden = int(config["hidden_size"])
        params += 4 * hidden * hidden + hidden * int(config["conv_L_cache"])
    dense, experts = _feed_forward(config, index)
    return Layer(params + dense, tuple(mixers), experts)


def _attention(
    config: dict[str, Any], kind: str, index: int, seen: int | None, shape: ModelShape | None
) -> tuple[float, Mixer]:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    if is_mla(config, shape):
        return _mla(config)
    kept = heads_of(config, index, kind, shape)
    kv_heads, size = kept.kv, kept.size
    gated = config.get("attn_output_gate", config["model_type"] == "qwen3_next")
    queries = heads * size * (2 if gated else 1)
    params = hidden * (queries + 2 * kv_heads * size) + heads * size * hidden
    window = int(config["sliding_window"]) if kind == "sliding" else None
    if seen is not None:
        window = seen if window is None else min(window, seen)
    return params, Attention(heads, kv_heads, size, window)


def _mla(config: dict[str, Any]) -> tuple[float, Mixer]:
    hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    latent, rope = int(config["kv_lora_rank"]), int(config["qk_rope_head_dim"])
    nope, value = int(config["qk_nope_head_dim"]), int(config["v_head_dim"])
    rank = config.get("q_lora_rank")
    queries = (
        hidden * rank + rank * heads * (nope + rope) if rank else hidden * heads * (nope + rope)
    )
    params = (
        queries
        + hidden * (latent + rope)
        + latent * heads * (nope + value)
        + heads * value * hidden
    )
    return params, Mla(heads, latent, rope, nope, value)


def _mamba2(config: dict[str, Any]) -> tuple[float, Mixer]:
    """Chunked scan of Q tokens a chunk: 2·Q·N·G + 2·Q·inner + 4·inner·N FLOPs a token at most."""

    def first(*names: str) -> int:
        return next(int(config[name]) for name in names if name in config)

    hidden = int(config["hidden_size"])
    heads, size = first("mamba_n_heads", "num_heads"), first("mamba_d_head", "head_dim")
    if config["model_type"] == "falcon_h1":
        size = int(config["mamba_d_head"])
    state, groups = first("mamba_d_state", "state_size"), first("mamba_n_groups", "n_groups")
    kernel, chunk = first("mamba_d_conv", "conv_kernel"), first("mamba_chunk_size", "chunk_size")
    inner = heads * size
    channels = inner + 2 * groups * state
    params = (
        hidden * (inner + channels + heads) + inner * hidden + channels * (kernel + 1) + 3 * heads
    )
    scan = 2 * chunk * state * groups + 2 * chunk * inner + 4 * inner * state
    return params, State(inner * state, MAMBA2_FLOPS, scan)


def _delta(config: dict[str, Any]) -> tuple[float, Mixer]:
    """Gated delta rule; its chunked form does at least the work of the recurrence, which is counted."""
    hidden = int(config["hidden_size"])
    key_heads, value_heads = (int(config[f"linear_num_{n}_heads"]) for n in ("key", "value"))
    key, value = (int(config[f"linear_{n}_head_dim"]) for n in ("key", "value"))
    keys, values = key_heads * key, value_heads * value
    kernel = int(config["linear_conv_kernel_dim"])
    params = (
        hidden * (2 * keys + 2 * values + 2 * value_heads)
        + values * hidden
        + (2 * keys + values) * kernel
    )
    elements = value_heads * key * value
    return params, State(elements, DELTA_RULE_FLOPS, DELTA_RULE_FLOPS * elements)


def _feed_forward(config: dict[str, Any], index: int) -> tuple[float, Experts | None]:
    """(dense weights, routed experts) of one layer; gated feed-forwards have three matrices."""
    hidden, kind = int(config["hidden_size"]), config["model_type"]
    if kind == "mamba2":
        return 0.0, None
    if kind == "lfm2":
        return 3.0 * hidden * _lfm2_width(config), None
    if kind == "granitemoehybrid":
        shared = 3.0 * hidden * int(config["shared_intermediate_size"])
        count = int(config.get("num_local_experts") or 0)
        if not count:
            return shared, None
        experts = Experts(
            count,
            int(config["num_experts_per_tok"]),
            3.0 * hidden * int(config["intermediate_size"]),
        )
        return shared + hidden * count, experts
    count = int(
        config.get("num_experts")
        or config.get("n_routed_experts")
        or config.get("num_local_experts")
        or 0
    )
    if not count or index < int(config.get("first_k_dense_replace") or 0):
        return 3.0 * hidden * int(config["intermediate_size"]), None
    width = int(config.get("moe_intermediate_size") or config["intermediate_size"])
    shared = int(config.get("shared_expert_intermediate_size") or 0)
    shared += int(config.get("n_shared_experts") or 0) * width
    gate = hidden if config.get("shared_expert_intermediate_size") else 0
    dense = 3.0 * hidden * shared + hidden * count + gate
    return dense, Experts(count, int(config["num_experts_per_tok"]), 3.0 * hidden * width)


def _lfm2_width(config: dict[str, Any]) -> int:
    width = int(config.get("block_ff_dim") or config["intermediate_size"])
    if config.get("block_auto_adjust_ff_dim"):
        width = int(2 * width / 3)
        width = int(config.get("block_ffn_dim_multiplier") or 1) * width
        multiple = int(config["block_multiple_of"])
        width = multiple * -(-width // multiple)
    return width

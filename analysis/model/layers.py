"""What each layer of a model keeps, from its config: attention of all tokens, of a window, a state, nothing.

A config that vLLM resolved (``ModelShape.config``) says everything. A bare config.json leaves out what
equals its class's defaults: it is read only where the arithmetic is certain, and NotKnown says why it is
not.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from greenbench.contract.model_shape import ModelShape

Config = Mapping[str, Any]


class NotKnown(Exception):
    """The config does not say it. One clause, to stand after "because"."""


@dataclass(frozen=True, slots=True)
class Heads:
    """KV heads of one attention layer, and elements of each."""

    kv: int
    size: int


LARGEST = 100_000  # more layers, heads or elements of a head than any model has
# How layers are called by lists in configs.
KINDS = {
    "full_attention": "attention",
    "attention": "attention",
    "sliding_attention": "sliding",
    "linear_attention": "linear",
    "mamba": "mamba",
    "mamba2": "mamba",
    "conv": "conv",
    "hybrid": "hybrid",
    "mlp": "mlp",
    "moe": "moe",
}
# Fields that give some layers other heads, or caches of a kind that is not worked out here.
ODD_FIELDS = (
    "swa_num_key_value_heads", "swa_head_dim", "attention_other_setting", "hybrid_layer_pattern",
    "compress_ratios", "cross_attention_layers", "linear_attn_config",
    "attn_type_list",
)  # fmt: skip
# model_type → its own names for the usual fields
OWN_NAMES: dict[str, dict[str, str]] = {
    "chatglm": {
        "num_hidden_layers": "num_layers",
        "head_dim": "kv_channels",
        "num_key_value_heads": "multi_query_group_num",
    },
    "gpt2": {
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
    },
    "gptj": {
        "num_hidden_layers": "n_layer", "num_attention_heads": "n_head", "hidden_size": "n_embd",
    },
    "bloom": {"num_hidden_layers": "n_layer", "num_attention_heads": "n_head"},
    "mpt": {
        "num_hidden_layers": "n_layers", "num_attention_heads": "n_heads", "hidden_size": "d_model",
    },
}  # fmt: skip
# Bare files: classes whose head is hidden size / heads unless the file says otherwise …
QUOTIENT_HEAD = frozenset((
    "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "phi3", "phi", "gpt2", "gptj", "gpt_neox", "opt",
    "bloom", "mpt", "starcoder2", "stablelm", "granite", "granitemoe", "granitemoehybrid", "olmo", "olmo2",
    "cohere", "cohere2", "lfm2", "nemotron-nas",
))  # fmt: skip
# … and those with as many KV heads as heads unless the file says otherwise.
MULTI_HEAD = frozenset((
    "llama", "phi3", "phi", "gpt2", "gptj", "gpt_neox", "opt", "bloom", "mpt", "granite", "cohere",
    "olmo", "olmo2",
))  # fmt: skip
# Classes that a bare file with explicit heads is read of.
WITH_ATTENTION = QUOTIENT_HEAD | {
    "qwen3", "qwen3_moe", "gemma", "gemma2", "gemma3_text", "gemma3n_text", "gpt_oss", "chatglm", "glm4",
    "qwen3_next", "falcon_h1", "zamba2", "nemotron_h", "smollm3", "ernie4_5",
}  # fmt: skip
MLA = frozenset(("deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "glm4_moe_lite"))
STATES_ONLY = ("mamba", "mamba2", "falcon_mamba")
# Classes with a switch ``use_sliding_window`` that is off unless the file sets it.
SWITCHED = ("qwen2", "qwen2_moe", "qwen3", "qwen3_moe")
# Classes whose every layer slides where the file has a window; none where the class has no default of one.
ALL_SLIDE = {"mistral": False, "mixtral": True, "phi3": True, "starcoder2": True}


def language_config(config: Config) -> dict[str, Any]:
    """The language model's part, under the usual names."""
    text = config.get("text_config")
    found = dict(text if isinstance(text, Mapping) else config)
    for name, own in OWN_NAMES.get(str(found.get("model_type")), {}).items():
        if found.get(name) is None and found.get(own) is not None:
            found[name] = found[own]
    return found


def layer_kinds(config: Config, resolved: bool = False) -> list[str]:
    """attention | sliding | shared | mamba | linear | conv | hybrid | mlp | moe | none, a layer.

    shared: attention that reads the cache of an earlier layer. hybrid: attention and state in one layer.
    ``resolved``: the config has its class's defaults. Raises NotKnown.
    """
    kinds = _kinds(config, resolved)
    if config.get("is_encoder_decoder"):
        raise NotKnown("an encoder and a decoder keep caches of two kinds")
    odd = [field for field in ODD_FIELDS if config.get(field)]
    if odd:
        raise NotKnown(f"'{odd[0]}' gives it layers of a kind that is not worked out here")
    last = len(kinds) - int(config.get("num_kv_shared_layers") or 0)
    return [
        "shared" if index >= last > 0 and kind in ("attention", "sliding") else kind
        for index, kind in enumerate(kinds)
    ]


def _kinds(config: Config, resolved: bool) -> list[str]:
    model_type = str(config.get("model_type"))
    count = config.get("num_hidden_layers")
    if blocks := config.get("block_configs"):
        return [_of_block(block) for block in blocks]
    if model_type == "falcon_h1" and count:
        return ["hybrid"] * whole(
            count, "num_hidden_layers"
        )  # attention and Mamba2 side by side in every layer
    if listed := config.get("layers_block_type") or config.get("layer_types"):
        return [_named(str(kind)) for kind in listed]
    if not count:
        raise NotKnown("the config does not say how many layers it has")
    count = whole(count, "num_hidden_layers")
    if "full_attn_idxs" in config:
        full = set(config["full_attn_idxs"])
        return ["attention" if layer in full else "conv" for layer in range(count)]
    if "full_attention_interval" in config:
        every = int(config["full_attention_interval"])
        return ["linear" if (layer + 1) % every else "attention" for layer in range(count)]
    if model_type in STATES_ONLY:
        return ["mamba"] * count
    if resolved:
        # vLLM: a window in a config that lists no layers is that of all of them
        return ["sliding" if config.get("sliding_window") else "attention"] * count
    return _bare_kinds(config, model_type, count)


def _bare_kinds(config: Config, model_type: str, count: int) -> list[str]:
    if model_type not in WITH_ATTENTION | MLA:
        raise NotKnown(f"the files of '{model_type}' do not say all of its layers")
    window = config.get("sliding_window")
    if model_type in SWITCHED:
        if not config.get("use_sliding_window"):
            return ["attention"] * count
        if not window or config.get("max_window_layers") is None:
            raise NotKnown("its file leaves out which layers have a sliding window")
        full = int(config["max_window_layers"])  # 0: all slide
        return ["attention" if layer < full else "sliding" for layer in range(count)]
    every = config.get("sliding_window_pattern")
    if every and window:
        return ["sliding" if (layer + 1) % int(every) else "attention" for layer in range(count)]
    if model_type in ("gemma2", "gpt_oss") and window:
        return ["sliding" if (layer + 1) % 2 else "attention" for layer in range(count)]
    if model_type in ALL_SLIDE:
        if "sliding_window" not in config and not ALL_SLIDE[model_type]:
            raise NotKnown("its file leaves out 'sliding_window', and the class has a default")
        return ["sliding" if window else "attention"] * count
    windowed = ("gemma2", "gemma3_text", "gemma3n_text", "gpt_oss", "cohere2")
    if model_type in windowed or window:
        raise NotKnown("its file leaves out which layers have a sliding window")
    return ["attention"] * count


def _named(kind: str) -> str:
    if kind not in KINDS:
        raise NotKnown(f"layers of kind '{kind}' are not worked out here")
    return KINDS[kind]


def _of_block(block: Any) -> str:
    """A block of nemotron-nas; attention may be left out, or replaced by a matrix."""
    attention = block.get("attention") if isinstance(block, Mapping) else None
    if not isinstance(attention, Mapping):
        raise NotKnown("'block_configs' does not say which blocks have attention")
    return "none" if attention.get("no_op") or attention.get("replace_with_linear") else "attention"


def whole(value: Any, name: str) -> int:
    """A size or a number of things, from 1 to LARGEST. Raises NotKnown."""
    if isinstance(value, bool) or not isinstance(value, int | float) or int(value) != value:
        raise NotKnown(f"'{name}' is {str(value)[:40]!r} and no whole number")
    if not 1 <= value <= LARGEST:
        raise NotKnown(f"'{name}' is {str(value)[:40]}, which no model has")
    return int(value)


def is_mla(config: Config, shape: ModelShape | None) -> bool:
    """Whether one compressed vector a token stands for K and V. Raises NotKnown."""
    if shape is not None and shape.mla is not None:
        return shape.mla
    if config.get("kv_lora_rank") is None:
        return False
    if config.get("model_type") not in MLA:
        raise NotKnown(
            f"vLLM may serve the latent attention of '{config.get('model_type')}' expanded"
        )
    return True


def heads_of(config: Config, index: int, kind: str, shape: ModelShape | None) -> Heads:
    """KV heads of one layer with attention. Raises NotKnown."""
    heads = config.get("num_attention_heads")
    if blocks := config.get("block_configs"):
        heads = whole(heads, "num_attention_heads")
        group = whole(blocks[index]["attention"]["n_heads_in_group"], "n_heads_in_group")
        size = config.get("head_dim") or whole(config.get("hidden_size"), "hidden_size") // heads
        return Heads(heads // group, whole(size, "head_dim"))
    if shape is not None:
        return _resolved_heads(config, index, shape)
    found = Heads(_bare_kv_heads(config), _bare_head_size(config))
    if config.get("v_head_dim") not in (None, found.size):
        raise NotKnown("its values have another size than its keys")
    if kind == "attention" and config.get("global_head_dim"):  # gemma4: wider where nothing slides
        wide = config.get("num_global_key_value_heads") if config.get("attention_k_eq_v") else None
        kv = whole(wide or found.kv, "num_global_key_value_heads")
        return Heads(kv, whole(config["global_head_dim"], "global_head_dim"))
    return found


def _resolved_heads(config: Config, index: int, shape: ModelShape) -> Heads:
    """Those of all layers, or where layers differ of this one."""
    if not shape.head_size or not shape.kv_heads:
        raise NotKnown("vLLM finds no heads of attention in its config")
    varying = config.get("per_layer_overrides")
    own = varying[index] if varying else {}
    size = own.get("head_size", shape.head_size)
    if not varying and config.get("v_head_dim") not in (None, size):
        raise NotKnown("its values have another size than its keys")
    return Heads(own.get("total_num_kv_heads", shape.kv_heads), size)


def _bare_kv_heads(config: Config) -> int:
    model_type = str(config.get("model_type"))
    if model_type == "mpt" and (config.get("attn_config") or {}).get("kv_n_heads"):
        return whole(config["attn_config"]["kv_n_heads"], "kv_n_heads")
    said = config.get("num_key_value_heads")
    if model_type == "chatglm" and not config.get("multi_query_attention"):
        said = config.get("num_attention_heads")
    if said is not None:
        return whole(said, "num_key_value_heads")
    if model_type in MULTI_HEAD:
        return whole(config.get("num_attention_heads"), "num_attention_heads")
    raise NotKnown("its file leaves out 'num_key_value_heads', and the class has a default")


def _bare_head_size(config: Config) -> int:
    if size := config.get("attention_head_dim") or config.get("head_dim"):
        return whole(size, "head_dim")
    if config.get("model_type") in QUOTIENT_HEAD:
        heads = whole(config.get("num_attention_heads"), "num_attention_heads")
        return whole(whole(config.get("hidden_size"), "hidden_size") / heads, "hidden_size / heads")
    raise NotKnown("its file leaves out 'head_dim', and the class has a default")

"""What vLLM's own code says of a model, against arithmetic by hand, against what vLLM itself would serve,
and against the pages that its KV cache would take."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from vllm.config import ModelConfig as VllmModel
from vllm.utils.torch_utils import nvfp4_kv_cache_full_dim
from vllm.v1.attention.backends.triton_attn import TritonAttentionBackend
from vllm.v1.kv_cache_interface import FullAttentionSpec, get_kv_quant_mode

from analysis.model.cache import cache_shape
from analysis.model.formats import kept_by_heads
from greenbench.contract.config import (
    CONFIGS,
    ROOT,
    BackendChoice,
    ModelConfig,
    ServerRequest,
    load_model,
)
from greenbench.contract.model_shape import ModelShape
from servers.backends.host_facts import HostFacts, other_host
from servers.backends.registry import BACKENDS
from servers.launch.command import plan
from servers.models import resolver
from servers.models.shapes import facts_of

GEMMA3_AS_PUBLISHED: dict[str, Any] = {  # what its file leaves out is the default of its class
    "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3",
    "text_config": {
        "model_type": "gemma3_text", "sliding_window": 1024, "hidden_size": 3840,
        "intermediate_size": 15360, "num_attention_heads": 16, "num_key_value_heads": 8,
        "num_hidden_layers": 48, "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
    },
    "vision_config": {"hidden_size": 1152},
}  # fmt: skip
GEMMA3_TEXT = {
    **GEMMA3_AS_PUBLISHED["text_config"], "architectures": ["Gemma3ForCausalLM"],
}  # fmt: skip
LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 3584,
    "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
    "num_hidden_layers": 28, "vocab_size": 152064, "max_position_embeddings": 4096,
}  # fmt: skip
QWEN2 = {
    **{key: value for key, value in LLAMA.items() if key != "max_position_embeddings"},
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2",
}  # fmt: skip
SLIDING_FIRST = ["sliding_attention"] * 4 + ["full_attention"]


def by_heads(kv_heads: int, size: int, layers: int) -> int:
    """Bytes a token of K and V in 16 bits."""
    return layers * 2 * kv_heads * size * 2


# name → (config, window, head size, bytes a token of all layers, of those that keep every token)
CASES: dict[str, tuple[dict[str, Any], int | None, int | None, int, int]] = {
    "gemma3": (GEMMA3_AS_PUBLISHED, 131_072, 256, by_heads(8, 256, 48), by_heads(8, 256, 8)),
    "gemma2": (
        {"model_type": "gemma2", "hidden_size": 3584, "num_hidden_layers": 42,
         "num_attention_heads": 16, "num_key_value_heads": 8, "sliding_window": 4096},
        8192, 256, by_heads(8, 256, 42), by_heads(8, 256, 21),
    ),
    "gemma3n: the last layers read the caches of earlier ones": (
        {"model_type": "gemma3n_text", "hidden_size": 2048, "num_attention_heads": 8,
         "num_key_value_heads": 2, "head_dim": 256, "num_hidden_layers": 15,
         "num_kv_shared_layers": 5, "sliding_window": 512, "layer_types": SLIDING_FIRST * 3,
         "max_position_embeddings": 32768},
        32_768, 256, by_heads(2, 256, 10), by_heads(2, 256, 2),
    ),
    "qwen2, the window not said": (QWEN2, 32_768, 128, by_heads(4, 128, 28), by_heads(4, 128, 28)),
    "qwen2, layers from 20 on slide": (
        {**QWEN2, "use_sliding_window": True, "sliding_window": 4096, "max_window_layers": 20},
        32_768, 128, by_heads(4, 128, 28), by_heads(4, 128, 20),
    ),
    "qwen3, the head not said": (
        {**QWEN2, "model_type": "qwen3", "num_attention_heads": 16},
        32_768, 128, by_heads(4, 128, 28), by_heads(4, 128, 28),
    ),
    "mistral, all slide": (
        {**LLAMA, "model_type": "mistral", "sliding_window": 512}, 4096, 128, by_heads(4, 128, 28), 0,
    ),
    "linear scaling lengthens the window": (
        {**LLAMA, "rope_scaling": {"type": "linear", "factor": 8.0}},
        32_768, 128, by_heads(4, 128, 28), by_heads(4, 128, 28),
    ),
    "yarn does not": (
        {**LLAMA, "rope_scaling": {
            "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512}},
        4096, 128, by_heads(4, 128, 28), by_heads(4, 128, 28),
    ),
    "longrope: the long window": (
        {**LLAMA, "model_type": "phi3", "num_key_value_heads": 28,
         "max_position_embeddings": 131_072, "original_max_position_embeddings": 4096,
         "rope_scaling": {"type": "longrope", "short_factor": [1.0] * 64,
                          "long_factor": [1.0] * 64}},
        131_072, 128, by_heads(28, 128, 28), by_heads(28, 128, 28),
    ),
    "chatglm": (
        {"model_type": "chatglm", "hidden_size": 4096, "num_attention_heads": 32,
         "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128,
         "num_layers": 40, "seq_length": 131_072, "padded_vocab_size": 151_552},
        131_072, 128, by_heads(2, 128, 40), by_heads(2, 128, 40),
    ),
    "gpt2": (
        {"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12, "n_positions": 1024},
        1024, 64, by_heads(12, 64, 12), by_heads(12, 64, 12),
    ),
    "mpt": (
        {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32, "max_seq_len": 2048,
         "attn_config": {"alibi": True}},
        2048, 128, by_heads(32, 128, 32), by_heads(32, 128, 32),
    ),
    "gemma4: wider heads where nothing slides": (
        {"model_type": "gemma4_text", "hidden_size": 2048, "num_attention_heads": 8,
         "num_key_value_heads": 4, "head_dim": 256, "global_head_dim": 512,
         "num_hidden_layers": 10, "sliding_window": 512, "layer_types": SLIDING_FIRST * 2,
         "max_position_embeddings": 65_536, "num_kv_shared_layers": 0},
        65_536, 512, by_heads(4, 256, 8) + by_heads(4, 512, 2), by_heads(4, 512, 2),
    ),
    "falcon: one KV head": (
        {"model_type": "falcon", "hidden_size": 4544, "num_attention_heads": 71,
         "num_hidden_layers": 32, "multi_query": True, "new_decoder_architecture": False},
        2048, 64, by_heads(1, 64, 32), by_heads(1, 64, 32),
    ),
    "deepseek: 512 + 64 values": (
        {"model_type": "deepseek_v3", "hidden_size": 7168, "num_attention_heads": 128,
         "num_hidden_layers": 61, "kv_lora_rank": 512, "qk_rope_head_dim": 64,
         "qk_nope_head_dim": 128, "v_head_dim": 128, "max_position_embeddings": 163_840},
        163_840, 576, 61 * 576 * 2, 61 * 576 * 2,
    ),
    "mamba2: no attention, no window": (
        {"model_type": "mamba2", "hidden_size": 2048, "num_hidden_layers": 4, "num_heads": 64,
         "head_dim": 64, "expand": 2},
        None, None, 0, 0,
    ),
}  # fmt: skip


def resolved(config: dict[str, Any], **order: Any) -> ModelShape:
    answer = resolver.answer({"config": config, **order})
    return ModelShape.model_validate(answer.get("shape") or answer)


@pytest.mark.parametrize("name", CASES)
def test_window_head_size_and_cache(name: str) -> None:
    config, window, head_size, all_bytes, full_bytes = CASES[name]
    shape = resolved(config)
    assert (shape.unknown, shape.window_tokens, shape.head_size) == (None, window, head_size)
    found = cache_shape(shape.config, "auto", "bfloat16", shape)
    assert (found.kv_bytes_per_token, found.full_bytes_per_token) == (all_bytes, full_bytes)
    assert sum(found.window_bytes.values()) == all_bytes - full_bytes


OVERRIDES = {
    "max_position_embeddings": 16_384,
    "rope_parameters": {
        "rope_type": "yarn", "rope_theta": 1e10, "factor": 2.0,
        "original_max_position_embeddings": 8192,
    },
}  # fmt: skip


@pytest.mark.parametrize(
    ("config", "overrides"),
    [
        (LLAMA, {}),
        (LLAMA, OVERRIDES),
        (LLAMA, {"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0}}),
        (GEMMA3_TEXT, {}),
        (GEMMA3_TEXT, {"max_position_embeddings": 65_536}),
    ],
    ids=["llama", "yarn over it", "linear over it", "gemma3", "a shorter gemma3"],
)
def test_it_is_what_vllm_would_serve(
    config: dict[str, Any], overrides: dict[str, Any], tmp_path: Path
) -> None:
    """The second method: vLLM's ModelConfig, which also looks for the model's class."""
    (tmp_path / "config.json").write_text(json.dumps(config))
    theirs = VllmModel(model=str(tmp_path), hf_overrides=json.loads(json.dumps(overrides)))
    ours = resolved(config, overrides=overrides)
    assert ours.window_tokens == theirs.max_model_len
    assert ours.head_size == theirs.get_head_size()
    assert ours.kv_heads == theirs.get_total_num_kv_heads()
    assert (ours.mla, ours.vocab_size) == (theirs.use_mla, theirs.get_vocab_size())


def test_overrides_reach_into_a_part() -> None:
    within = {"text_config": {"max_position_embeddings": 65_536}}
    assert resolved(GEMMA3_AS_PUBLISHED, overrides=within).window_tokens == 65_536


@pytest.mark.parametrize(
    ("order", "why"),
    [
        ({"config": {"model_type": "nope"}}, "model type `nope`"),
        ({"config": {}}, "model_type"),
        ({"config": {"model_type": "llama", "hidden_size": "wide"}}, "hidden_size"),
        ({"folder": "/no/such/folder"}, "folder"),
    ],
)
def test_what_cannot_be_resolved_says_why_in_one_sentence(order: dict[str, Any], why: str) -> None:
    answer = resolver.answer(order)
    assert set(answer) == {"unknown"}
    assert why in answer["unknown"] and "\n" not in answer["unknown"]


@pytest.mark.parametrize(
    ("kv_dtype", "stored"),
    [
        ("bfloat16", torch.bfloat16),
        ("fp8", torch.uint8),
        ("int8_per_token_head", torch.int8),
        ("int4_per_token_head", torch.uint8),
    ],
)
def test_a_format_keeps_what_a_page_of_vllm_has(kv_dtype: str, stored: torch.dtype) -> None:
    """Bytes of one token in one layer, scales included, as a backend of vLLM lays it out."""
    spec = FullAttentionSpec(
        block_size=16, num_kv_heads=4, head_size=128, dtype=stored,
        kv_quant_mode=get_kv_quant_mode(kv_dtype),
    )  # fmt: skip
    page = TritonAttentionBackend.customize_spec(spec).page_size_bytes
    kept = kept_by_heads(kv_dtype, 4, 128)
    assert page == 16 * (kept.values + kept.scales)


def test_nvfp4_keeps_half_a_byte_and_the_scales_of_blocks() -> None:
    kept = kept_by_heads("nvfp4", 4, 128)
    assert (kept.values, kept.scales) == (2 * 4 * nvfp4_kv_cache_full_dim(128), 0)


RECIPES = [path.stem for path in sorted((CONFIGS / "models").glob("*.yaml"))]
BUILT = [name for name in RECIPES if load_model(name).build is not None]
TRAINED = [name for name in RECIPES if name not in BUILT]


def built(name: str) -> tuple[ModelConfig, ModelShape]:
    model = load_model(name)
    assert model.build is not None
    return model, resolved({**model.build.config, "vocab_size": model.build.vocab_size})


@pytest.mark.parametrize("name", BUILT)
def test_a_model_that_the_project_builds(name: str) -> None:
    """It fits its window, can be planned, and its bare recipe gives the same cache as its class."""
    model, shape = built(name)
    facts = facts_of(name, shape)
    assert model.max_model_len and fits(model.max_model_len, shape)
    assert model.build is not None and facts.vocab_size == model.build.vocab_size
    on_cpu = "cpu_mla" if shape.mla else "cpu_attn"
    assert facts.head_size is None or facts.head_size in BACKENDS[on_cpu].head_sizes
    tiny = name.startswith("tiny-")
    host = HostFacts(vllm_build="cpu") if tiny else other_host("h100")
    choice = BackendChoice(name=on_cpu if tiny else "flash_attn")
    assert plan(ServerRequest(model=model, backend=choice), host, facts).refusals == []
    by_class = cache_shape(shape.config, "auto", "bfloat16", shape)
    assert by_class == cache_shape(model.build.config, "auto", "bfloat16")


@pytest.mark.parametrize("name", TRAINED)
def test_a_model_that_the_project_trained(name: str) -> None:
    """It fits its window, and the model has an embedding for every token of its tokenizer."""
    model = load_model(name)
    assert model.path is not None and model.max_model_len
    shape = ModelShape.model_validate(resolver.answer({"folder": str(ROOT / model.path)})["shape"])
    assert fits(model.max_model_len, shape)
    tokens = Tokenizer.from_file(str(ROOT / model.path / "tokenizer.json")).get_vocab().values()
    assert shape.vocab_size is not None and max(tokens) < shape.vocab_size


def fits(tokens: int, shape: ModelShape) -> bool:
    """Whether vLLM accepts such a ``max_model_len``; a model without positions has no window."""
    return shape.unknown is None and (shape.window_tokens is None or tokens <= shape.window_tokens)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        ("mamba2-1.3b", None), ("zamba2-1.2b", 128), ("llama-3.2-1b", 64), ("qwen2.5-1.5b", 128),
        ("qwen3-next-small", 256),
    ],
)  # fmt: skip
def test_head_sizes_of_our_recipes(name: str, size: int | None) -> None:
    """zamba2: attention is twice as wide as the model."""
    assert built(name)[1].head_size == size

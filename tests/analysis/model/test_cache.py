"""Bytes of cache of configs as people bring them: right by hand, or not known with the reason."""

import copy
import random
from pathlib import Path
from typing import Any

import pytest

from analysis.model.cache import cache_shape
from analysis.model.source import model_source
from analysis.model.work import model_work
from greenbench.contract.manifest import Server
from greenbench.contract.model_shape import ModelShape

LLAMA: dict[str, Any] = {
    "model_type": "llama", "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8,
}  # fmt: skip
QWEN2 = {**LLAMA, "model_type": "qwen2"}
GEMMA3 = {
    "model_type": "gemma3_text", "sliding_window": 1024, "hidden_size": 3840, "head_dim": 256,
    "num_attention_heads": 16, "num_key_value_heads": 8, "num_hidden_layers": 48,
    "sliding_window_pattern": 6,
}  # fmt: skip
DEEPSEEK = {
    "model_type": "deepseek_v3", "num_hidden_layers": 61, "num_attention_heads": 128,
    "hidden_size": 7168, "kv_lora_rank": 512, "qk_rope_head_dim": 64, "v_head_dim": 128,
}  # fmt: skip
ATTENTION = {"attention": {"n_heads_in_group": 8, "no_op": False}}
NO_OP = {"attention": {"n_heads_in_group": None, "no_op": True}}
LINEAR = {"attention": {"no_op": False, "replace_with_linear": True}}
NAS = {
    "model_type": "nemotron-nas", "hidden_size": 8192, "num_attention_heads": 64,
    "num_key_value_heads": None, "num_hidden_layers": 6,
    "block_configs": [ATTENTION, ATTENTION, NO_OP, LINEAR, ATTENTION, NO_OP],
}  # fmt: skip
GEMMA4 = {
    "model_type": "gemma4_text", "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256,
    "global_head_dim": 512, "num_global_key_value_heads": 1, "attention_k_eq_v": True,
    "sliding_window": 1024, "layer_types": ["sliding_attention"] * 5 + ["full_attention"],
}  # fmt: skip


def of_heads(kv: int, size: int, layers: int) -> int:
    return layers * 2 * kv * size * 2  # K and V, two bytes


@pytest.mark.parametrize(
    ("config", "full", "windows"),
    [
        (LLAMA, of_heads(8, 128, 32), {}),
        ({"text_config": LLAMA, "vision_config": {}}, of_heads(8, 128, 32), {}),
        ({**LLAMA, "num_key_value_heads": None}, of_heads(32, 128, 32), {}),
        (GEMMA3, of_heads(8, 256, 8), {1024: of_heads(8, 256, 40)}),
        ({**QWEN2, "sliding_window": 4096}, of_heads(8, 128, 32), {}),  # its switch is off
        (
            {**QWEN2, "sliding_window": 4096, "use_sliding_window": True, "max_window_layers": 20},
            of_heads(8, 128, 20), {4096: of_heads(8, 128, 12)},
        ),
        ({**LLAMA, "model_type": "mistral", "sliding_window": None}, of_heads(8, 128, 32), {}),
        (
            {**LLAMA, "model_type": "mistral", "sliding_window": 4096},
            0, {4096: of_heads(8, 128, 32)},
        ),
        (NAS, of_heads(8, 128, 3), {}),
        (GEMMA4, of_heads(1, 512, 1), {1024: of_heads(4, 256, 5)}),
        (
            {"model_type": "chatglm", "hidden_size": 4096, "num_attention_heads": 32,
             "multi_query_attention": True, "multi_query_group_num": 2, "kv_channels": 128,
             "num_layers": 40},
            of_heads(2, 128, 40), {},
        ),
        ({"model_type": "gpt2", "n_embd": 768, "n_head": 12, "n_layer": 12}, of_heads(12, 64, 12), {}),
        (
            {"model_type": "mpt", "d_model": 4096, "n_heads": 32, "n_layers": 32,
             "attn_config": {"kv_n_heads": 8}},
            of_heads(8, 128, 32), {},
        ),
        (DEEPSEEK, 61 * 576 * 2, {}),
    ],
    ids=[
        "llama", "in a part", "no KV heads said", "every sixth is full", "qwen2", "qwen2 slides",
        "mistral", "mistral slides", "blocks", "two head sizes", "chatglm", "gpt2", "mpt", "mla",
    ],
)  # fmt: skip
def test_a_bare_file_that_says_enough(
    config: dict[str, Any], full: int, windows: dict[int, int]
) -> None:
    shape = cache_shape(config, "auto", "bfloat16")
    assert (shape.notes, shape.full_bytes_per_token, shape.window_bytes) == ((), full, windows)
    assert shape.kv_bytes_per_token == full + sum(windows.values())


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ({**GEMMA3, "head_dim": None}, "its file leaves out 'head_dim', and the class has a default"),
        ({**GEMMA3, "sliding_window_pattern": None}, "which layers have a sliding window"),
        ({**QWEN2, "num_key_value_heads": None}, "leaves out 'num_key_value_heads'"),
        ({**LLAMA, "model_type": "mistral"}, "leaves out 'sliding_window'"),
        ({**QWEN2, "use_sliding_window": True}, "which layers have a sliding window"),
        ({**LLAMA, "model_type": "brandnew"}, "the files of 'brandnew' do not say all of its layers"),
        ({"model_type": "llama"}, "does not say how many layers"),
        (
            {**DEEPSEEK, "model_type": "minicpm3", "layer_types": ["full_attention"]},
            "latent attention of 'minicpm3' expanded",
        ),
        ({**DEEPSEEK, "index_topk": 2048}, "a second cache"),
        ({**LLAMA, "is_encoder_decoder": True}, "an encoder and a decoder"),
        ({**LLAMA, "swa_head_dim": 192}, "'swa_head_dim' gives it layers of a kind"),
        ({**LLAMA, "layer_types": ["chunked_attention"] * 32}, "layers of kind 'chunked_attention'"),
        ({**LLAMA, "hidden_size": "wide"}, "'hidden_size' is 'wide' and no whole number"),
        ({**LLAMA, "num_hidden_layers": -1}, "'num_hidden_layers' is -1, which no model has"),
        ({**LLAMA, "num_hidden_layers": 2**70}, "which no model has"),
        ({**LLAMA, "num_attention_heads": 33}, "no whole number"),
        ({**LLAMA, "block_configs": 3}, "another form than is known here"),
        ({**LLAMA, "layer_types": [["full_attention"]]}, "layers of kind"),
        ({**NAS, "block_configs": [3]}, "does not say which blocks have attention"),
    ],
)  # fmt: skip
def test_what_a_bare_file_leaves_open_is_not_known(config: dict[str, Any], why: str) -> None:
    shape = cache_shape(config, "auto", "bfloat16")
    assert shape.kv_bytes_per_token is None and shape.sequence_bytes(100) is None
    [note] = shape.notes
    assert note.startswith("bytes a token are not known, because ") and why in note
    assert model_work(config) is None


@pytest.mark.parametrize(
    ("config", "kv_dtype", "values", "scales"),
    [
        (LLAMA, "float32", 32 * 2 * 8 * 128 * 4, 0),
        (LLAMA, "fp8", 32 * 2 * 8 * 128, 0),
        (LLAMA, "int8_per_token_head", 32 * 2 * 8 * 128, 32 * 2 * 8 * 4),
        (LLAMA, "int4_per_token_head", 32 * 8 * 128, 32 * 2 * 8 * 4),
        (LLAMA, "nvfp4", 32 * 2 * 8 * (64 + 8), 0),  # half a byte, and one byte for 16 values
        (DEEPSEEK, "fp8", 61 * 576, 0),
        (DEEPSEEK, "fp8_ds_mla", 61 * (512 + 4 * 4 + 64 * 2), 0),
    ],
)
def test_bytes_of_each_format(
    config: dict[str, Any], kv_dtype: str, values: int, scales: int
) -> None:
    shape = cache_shape(config, kv_dtype, "bfloat16")
    assert (shape.kv_bytes_per_token, shape.scale_bytes_per_token) == (values, scales)


@pytest.mark.parametrize(
    ("config", "kv_dtype", "why"),
    [
        (LLAMA, "turboquant_k8v4", "a KV cache in 'turboquant_k8v4' is not in the table"),
        (LLAMA, "fp8_ds_mla", "a KV cache in 'fp8_ds_mla' is not in the table"),
        ({**DEEPSEEK, "kv_lora_rank": 256}, "fp8_ds_mla", "laid out for 512 + 64 values"),
    ],
)
def test_a_format_that_is_not_in_the_table_is_not_taken_for_16_bits(
    config: dict[str, Any], kv_dtype: str, why: str
) -> None:
    shape = cache_shape(config, kv_dtype, "bfloat16")
    assert shape.kv_bytes_per_token is None and why in shape.notes[0]


@pytest.mark.parametrize(
    ("config", "cards", "factor"),
    [(LLAMA, 2, 1), (LLAMA, 8, 1), (LLAMA, 16, 2), (DEEPSEEK, 8, 8)],
    ids=["4 heads a card", "one", "each twice", "latent on every card"],
)
def test_cards_that_keep_copies_count_them(config: dict[str, Any], cards: int, factor: int) -> None:
    one, all_cards = (
        cache_shape(config, "auto", "bfloat16", tensor_parallel=count) for count in (1, cards)
    )
    assert one.kv_bytes_per_token is not None
    assert all_cards.kv_bytes_per_token == factor * one.kv_bytes_per_token


def test_a_resolved_config_is_taken_at_its_word() -> None:
    """Classes of any name: all layers slide where no list says which; heads are those of vLLM."""
    config = {"model_type": "brandnew", "num_hidden_layers": 2, "sliding_window": 64}
    shape = ModelShape(head_size=80, kv_heads=3, mla=False, config=config)
    found = cache_shape(config, "auto", "float16", shape)
    assert found.window_bytes == {64: of_heads(3, 80, 2)} and found.full_bytes_per_token == 0
    varying = {**config, "per_layer_overrides": [{"total_num_kv_heads": 1, "head_size": 32}, {}]}
    differ = cache_shape(varying, "auto", "float16", shape)
    assert differ.kv_bytes_per_token == of_heads(1, 32, 1) + of_heads(3, 80, 1)
    without = cache_shape(config, "auto", "float16", ModelShape(config=config))
    assert "vLLM finds no heads of attention" in without.notes[0]


def test_no_config_ends_in_a_traceback() -> None:
    """10,000 configs with keys taken out or given values of any type."""
    rng = random.Random(18)
    values = [None, 0, -1, "x", [], [1], {}, 3.5, True, 2**70, ["full_attention"], float("nan")]
    known = 0
    for _ in range(10_000):
        config = copy.copy(rng.choice([LLAMA, QWEN2, GEMMA3, DEEPSEEK, NAS, GEMMA4]))
        for key in rng.sample([*config, "layer_types", "head_dim", "text_config"], 3):
            if rng.random() < 0.5:
                config.pop(key, None)
            else:
                config[key] = rng.choice(values)
        shape = cache_shape(config, rng.choice(["auto", "fp8", "nvfp4", "odd"]), "bfloat16")
        assert (shape.kv_bytes_per_token is None) == (shape.full_bytes_per_token is None)
        assert shape.kv_bytes_per_token is not None or shape.notes
        model_work(config)
        known += shape.kv_bytes_per_token is not None
    assert 0 < known < 10_000


def server(**changes: Any) -> Server:
    return Server(
        server_id="s", requested_backend="b", model="m", weights="real", execution="eager",
        base_url="http://h", served_model="m",
        **{"model_path": "/no/where", "dtype": "bfloat16", "kv_cache_dtype": "auto", **changes},
    )  # fmt: skip


def test_a_run_is_read_by_the_shape_that_it_stored(tmp_path: Path) -> None:
    """Before a file that may have changed since; that before nothing."""
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    stored = ModelShape(source="vLLM 1", config={"model_type": "gemma3_text"})
    both = model_source(server(shape=stored, model_path=str(tmp_path)), None)
    assert (both.config, both.shape) == (stored.config, stored)
    bare = model_source(server(model_path=str(tmp_path)), None)
    assert (bare.config, bare.shape) == ({"model_type": "llama"}, None)
    unknown = ModelShape.not_known("its class is code of its own")
    assert model_source(server(shape=unknown), None).why == "its class is code of its own"
    assert model_source(server(), None).why == "no config.json of the model is here"
    (tmp_path / "config.json").write_text("{")
    broken = model_source(server(model_path=str(tmp_path)), None)
    assert broken.config is None and "not valid JSON" in str(broken.why)


def test_work_follows_from_a_resolved_config() -> None:
    """Guards against MFU by hidden size / heads, 240, of a model whose class has heads of 256."""
    config = {
        **GEMMA3, "sliding_window_pattern": None, "head_dim": None, "intermediate_size": 15_360,
        "vocab_size": 262_208, "layer_types": (["sliding_attention"] * 5 + ["full_attention"]) * 8,
    }  # fmt: skip
    shape = ModelShape(head_size=256, kv_heads=8, mla=False, config=config)
    assert model_work(config) is None  # the bare file leaves its head size to the class
    work = model_work(config, shape=shape)
    assert work is not None
    # queries and output 16 heads, K and V 8 heads of 256; a gated feed-forward of three matrices
    layer = 3840 * (2 * 16 + 2 * 8) * 256 + 3 * 3840 * 15_360
    assert work.active_params == 48 * layer

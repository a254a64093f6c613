"""Built models: the same config and seed give the same bytes, and the weights are no degenerate ones."""

import hashlib
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from greenbench.contract.config import load_model
from servers.models.builder import TIME_STEPS, build, fill_time_steps
from servers.models.tokenizer import LEARNED_VOCAB, train_tokenizer

CONFIG = {
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    "tie_word_embeddings": True,
}
VOCAB = 600


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "tiny"
    build(CONFIG, seed=3, vocab_size=VOCAB, folder=folder)
    return folder


def hashes(folder: Path) -> dict[str, str]:
    return {
        file.name: hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.iterdir())
    }


def test_the_same_seed_gives_the_same_files(folder: Path):
    again = folder.with_name("again")
    build(CONFIG, seed=3, vocab_size=VOCAB, folder=again)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(hashes(folder))
    assert hashes(folder) == hashes(again)


def test_another_seed_gives_other_weights_and_another_tokenizer(folder: Path):
    other = folder.with_name("other")
    build(CONFIG, seed=4, vocab_size=VOCAB, folder=other)
    mine, theirs = hashes(folder), hashes(other)
    assert mine["config.json"] == theirs["config.json"]
    assert mine["model.safetensors"] != theirs["model.safetensors"]
    assert mine["tokenizer.json"] != theirs["tokenizer.json"]


def test_nothing_half_built_is_left(folder: Path):
    with pytest.raises(ValueError):
        build({**CONFIG, "model_type": "no-such-type"}, 1, VOCAB, folder.with_name("broken"))
    assert {path.name for path in folder.parent.iterdir()} <= {"tiny", "again", "other"}


def test_layers_differ_and_have_the_stated_scale(folder: Path):
    """vLLM's dummy loader gives equal layers: a backend that mixes layers up would go unseen."""
    weights = load_file(folder / "model.safetensors")
    first, second = (weights[f"model.layers.{index}.self_attn.q_proj.weight"] for index in (0, 1))
    assert not torch.equal(first, second)
    assert first.std().item() == pytest.approx(1.5 / 64**0.5, rel=0.05)  # QK_GAIN / sqrt(fan_in)
    down = weights["model.layers.0.mlp.down_proj.weight"]
    assert down.std().item() == pytest.approx(1 / 128**0.5, rel=0.05)
    assert torch.all(weights["model.norm.weight"] == 1)


def test_attention_is_peaky_and_logits_have_winners(folder: Path):
    """Uniform attention would average wrong pages away; flat logits would make every token a tie."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    ids = torch.randint(3, VOCAB, (1, 200), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        out = model(ids, output_attentions=True)
    weights = out.attentions[1][0, :, -1]  # last query over 200 keys
    effective_keys = (1 / weights.square().sum(-1)).mean().item()
    assert effective_keys < 100  # 200 if uniform
    assert 1.5 < out.logits[0].std(-1).mean().item() < 6  # LOGIT_STD is 3


def test_tokenizer_round_trips_anything_and_keeps_digits_single(folder: Path):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == VOCAB
    for text in ("The clerk wrote 4096.\n", "naïve – 東京 🙂\t x", "", "  two  spaces "):
        assert tokenizer.decode(tokenizer.encode(text)) == text
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("90210"))
    assert pieces == ["9", "0", "2", "1", "0"]
    turn = [{"role": "user", "content": "hello"}]
    assert "user: hello" in tokenizer.apply_chat_template(turn, tokenize=False)


def test_a_large_vocabulary_is_filled_to_its_exact_size():
    size = LEARNED_VOCAB + 500
    tokenizer = train_tokenizer(1, size)
    assert tokenizer.get_vocab_size() == size
    text = "The reserved pieces are never reached, <4097> neither."
    ids = tokenizer.encode(text).ids
    assert tokenizer.decode(ids) == text and max(ids) < LEARNED_VOCAB
    assert tokenizer.decode([size - 1]) == f" <{size - 1}>"


def test_a_states_time_steps_remember_thousands_of_tokens():
    """A bias of 1, as some architectures start, forgets within a few tokens at any context length."""
    bias = torch.empty(4000)
    fill_time_steps(bias, "k")
    steps = torch.nn.functional.softplus(bias)
    assert TIME_STEPS[0] * 0.99 < steps.min() < 0.0012 and 0.09 < steps.max() < TIME_STEPS[1] * 1.01
    assert steps.log().median().exp().item() == pytest.approx(0.01, rel=0.1)  # log-uniform


@pytest.mark.parametrize(
    ("name", "low", "high"),
    [
        ("llama-3.2-1b", 1.2, 1.3),
        ("llama-3.2-3b", 3.1, 3.3),
        ("qwen2.5-1.5b", 1.5, 1.6),
        ("qwen3-1.7b", 1.7, 1.8),
        ("mamba2-1.3b", 1.3, 1.4),
        ("mamba2-2.7b", 2.6, 2.8),
        ("falcon-h1-1.5b", 1.5, 1.6),
        ("falcon-h1-3b", 3.1, 3.2),
        ("granite-4.0-h-1b", 1.4, 1.5),
        ("granite-4.0-h-micro", 3.1, 3.3),
        ("qwen3-next-small", 2.0, 2.2),
        ("lfm2-1.2b", 1.1, 1.2),
        ("zamba2-1.2b", 1.1, 1.3),
        ("nemotron-h-small", 1.6, 1.8),
    ],
)
def test_shapes_have_the_size_their_names_say(name: str, low: float, high: float):
    model = load_model(name)
    assert model.build is not None
    config = AutoConfig.for_model(**{**model.build.config, "vocab_size": model.build.vocab_size})
    with torch.device("meta"):
        built = AutoModelForCausalLM.from_config(config)
    assert low * 1e9 < sum(p.numel() for p in built.parameters()) < high * 1e9

"""The shipped retriever: plain Llama, small, its circuit where construct.py says, its answers right."""

import argparse
import json
import random

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from greenbench.contract.config import PromptRequest
from loadgen.make_prompts import make_prompts
from loadgen.prompts import haystack
from loadgen.prompts.encoder import load_encoder
from loadgen.tasks.grading import grade_reply
from models.retriever import construct as built
from models.retriever.data import Maker
from models.retriever.network import Retriever, Shape, rope_tables, rotate
from models.retriever.train import train
from models.retriever.vocabulary import FOLDER, build, sample_texts

WEIGHTS = FOLDER / "model.safetensors"
MIB = 2**20


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def shape() -> Shape:
    return Shape(vocab_size=json.loads((FOLDER / "config.json").read_text())["vocab_size"])


@pytest.fixture(scope="module")
def shipped(shape) -> Retriever:
    net = Retriever(shape)
    net.load_state_dict({name: t.float() for name, t in load_file(WEIGHTS).items()})
    return net


@pytest.fixture(scope="module")
def constructed(shape) -> Retriever:
    encoder = load_encoder(str(FOLDER))
    return built.construct(shape, 1, encoder.token_id(","), encoder.opening[0])


def test_weights_are_small_bfloat16_and_the_config_describes_them(shape):
    assert WEIGHTS.stat().st_size <= 12 * MIB
    assert json.loads((FOLDER / "config.json").read_text()) == shape.hf_config()
    with safe_open(WEIGHTS, "pt") as file:
        assert {str(file.get_tensor(name).dtype) for name in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118


def test_committed_tokenizer_is_the_one_that_vocabulary_builds():
    assert json.loads(build(sample_texts()).to_str()) == json.loads(
        (FOLDER / "tokenizer.json").read_text()
    )


def test_transformers_tokenizer_gives_the_same_ids():
    text = "Report 7. The code of falcon is 482133. Zürich!"
    ours = load_encoder(str(FOLDER))
    theirs = AutoTokenizer.from_pretrained(FOLDER)(text)["input_ids"]
    assert theirs == [*ours.opening, *ours.encode([text])[0]]


def test_network_is_the_llama_that_transformers_loads(shipped, shape):
    llama = AutoModelForCausalLM.from_pretrained(FOLDER, dtype=torch.float32)
    ids = torch.randint(2, shape.vocab_size, (1, 200), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        ours, theirs = shipped.lm_head(shipped.hidden(ids)), llama(ids).logits
    assert torch.allclose(ours, theirs, atol=2e-2)
    assert theirs.std() > 1  # a comparison of zeros would prove nothing


@pytest.mark.parametrize("length", [64, 8192])
def test_built_heads_look_their_offset_back_at_any_position(constructed, shape, length):
    """The attention probabilities of layer 0, worked out here from its weights."""
    layer = constructed.model.layers[0]
    ids = torch.randint(2, shape.vocab_size, (length,), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x = layer.input_layernorm(constructed.model.embed_tokens(ids))
        cos, sin = rope_tables(shape, length, ids.device)
        size = shape.head_dim
        q = rotate(layer.self_attn.q_proj(x).view(length, -1, size).transpose(0, 1), cos, sin)
        k = rotate(layer.self_attn.k_proj(x).view(length, -1, size).transpose(0, 1), cos, sin)
        for head, offset in enumerate(built.BACK):
            scores = q[head, -1] @ k[head // 2].T / size**0.5
            probability = scores.softmax(0)
            assert probability[length - 1 - offset] > 0.99


def test_slow_dimensions_hardly_turn_within_the_window(shape):
    slow = built.slow_dimensions(shape)
    cos, _ = rope_tables(shape, shape.max_position_embeddings, torch.device("cpu"))
    assert len(slow) >= built.CODE  # else the codes of two tokens could not be told apart
    assert all(cos[-1, d % (shape.head_dim // 2)] > 0.96 for d in slow)  # cos 0.25 = 0.969


def greedy(net: Retriever, ids: list[int], count: int) -> list[int]:
    said: list[int] = []
    with torch.no_grad():
        for _ in range(count):
            hidden = net.hidden(torch.tensor([ids + said]))
            said.append(int(net.lm_head(hidden[:, -1]).argmax()))
    return said


def share_right(
    net: Retriever, task: str, context: int, count: int, tokens: int, **params
) -> float:
    request = PromptRequest.model_validate(
        {
            "model_path": str(FOLDER),
            "task": {"name": task, "params": params},
            "context_tokens": context,
            "count": count,
            "seed": 99,
        }
    )
    encoder = load_encoder(str(FOLDER))
    right = 0
    for prompt in make_prompts(request, encoder):
        text = encoder.decode(greedy(net, prompt.token_ids, tokens))
        right += bool(grade_reply(prompt, "r", text, None).correct)
    return right / count


def test_shipped_weights_answer(shipped):
    assert share_right(shipped, "retrieve", 512, 10, 3) == 1
    assert share_right(shipped, "retrieve", 512, 5, 2, absent_share=1.0) == 1
    assert share_right(shipped, "multi_key", 700, 1, 30) == 1


def test_it_reads_the_report_and_does_not_guess(shipped):
    # with the record's code changed in the prompt, the answer must change with it
    encoder = load_encoder(str(FOLDER))
    for code in ("111222", "987654"):
        filler = " The old mill was sold." * 40
        text = f"Report 1.{filler} {haystack.record('falcon', code)}{filler}"
        ids = encoder.opening + encoder.encode([text + haystack.ask_one("falcon").plain])[0]
        assert encoder.decode(greedy(shipped, ids, 2)).strip() == code


def test_training_sequences_hold_what_they_ask(shape):
    maker = Maker(str(FOLDER), "test")
    for length in (512, 2000):
        made = maker.sequence(length)
        assert len(made.token_ids) == len(made.weights) == length
        text = maker.encoder.decode(made.token_ids)
        report, _, asked = text.partition("\n\n")
        told = set(haystack.CODE.findall(report))
        answered = haystack.CODE.findall(asked)
        assert answered and set(answered[:-1]) <= told  # the last may be cut at the end
    assert random.Random("test").random() != maker.rng.random()


def test_training_starts_goes_on_and_leaves_a_loadable_checkpoint(tmp_path, shape):
    args = argparse.Namespace(
        out=tmp_path,
        stages=[(128, 1.0)],
        deadline_s=60,
        steps=3,
        batch_tokens=256,
        peak=1e-3,
        seed=1,
        workers=0,
        start=WEIGHTS,
        report_s=0,
        check=[128],
        check_sequences=1,
    )
    train(args)
    rows = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert rows[0]["answer_loss"] < 1  # it did go on from the shipped weights
    Retriever(shape).load_state_dict(
        {name: t.float() for name, t in load_file(tmp_path / "model.safetensors").items()}
    )

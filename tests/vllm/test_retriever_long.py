"""The long retrievers: what vLLM will load is what was trained, and the shipped weights answer."""

import argparse
import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from greenbench.contract.config import ROOT, PromptRequest, load_model
from loadgen.make_prompts import make_prompts
from loadgen.prompts import haystack
from loadgen.prompts.encoder import load_encoder
from loadgen.tasks.grading import grade_reply
from models.retriever.network import Shape, rotate
from models.retriever.vocabulary import build
from models.retriever_long import construct as built
from models.retriever_long import network
from models.retriever_long.data import COUNTED_WEIGHT, Maker
from models.retriever_long.grade import greedy
from models.retriever_long.network import Mamba, Network, Plan, from_checkpoint, to_checkpoint
from models.retriever_long.plans import plans
from models.retriever_long.scales import copy_with_scale
from models.retriever_long.train import fresh, parse_stages, stage_at, train
from models.retriever_long.vocabulary import HERE, TOKENIZER, sample_texts

MODELS = ("head128", "head64", "hybrid", "mamba2")
ATTENDING = MODELS[:3]
MB = 10**6
SMALL = Shape(
    vocab_size=300,
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=32,
    max_position_embeddings=1024,
)
SMALL_PLANS = {
    "llama": Plan("llama", SMALL),
    "falcon_h1": Plan("falcon_h1", SMALL, Mamba(heads=4, head_dim=32, state=48)),
    "mamba2": Plan("mamba2", SMALL, Mamba(heads=4, head_dim=32, state=48, gated_norm=True)),
    "tied": Plan(
        "mamba2", SMALL, Mamba(heads=4, head_dim=32, state=48, gated_norm=True), tied=True
    ),
}


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def vocab_size() -> int:
    return len(json.loads((TOKENIZER / "tokenizer.json").read_text())["model"]["vocab"])


def shipped(name: str) -> Network:
    net = Network(plans(vocab_size())[name])
    from_checkpoint(net, load_file(HERE / name / "model.safetensors"))
    return net.eval()


def random_net(plan: Plan) -> Network:
    torch.manual_seed(1)
    net = Network(plan)
    for parameter in net.parameters():
        if parameter.dim() == 2:
            torch.nn.init.normal_(parameter, 0, 0.1)
    for layer in net.model.layers:
        if layer.mamba is not None:
            layer.mamba.A_log.data.uniform_(-2, 2)
            layer.mamba.dt_bias.data.uniform_(-4, 1)
    return net


@pytest.mark.parametrize("name", MODELS)
def test_weights_are_small_bfloat16_and_the_config_describes_them(name):
    folder = HERE / name
    assert json.loads((folder / "config.json").read_text()) == plans(vocab_size())[name].hf_config()
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert {str(file.get_tensor(key).dtype) for key in file.keys()} == {"torch.bfloat16"}  # noqa: SIM118
    assert (folder / "tokenizer.json").read_bytes() == (TOKENIZER / "tokenizer.json").read_bytes()


def test_all_weights_of_the_repository_stay_within_60_mb():
    sizes = [path.stat().st_size for path in HERE.parent.rglob("*.safetensors")]
    assert len(sizes) == len(MODELS) + 1
    assert sum(sizes) <= 60 * MB


def test_a_copy_with_scales_differs_in_them_alone(tmp_path):
    source = HERE / "head64"
    copy_with_scale(source, 0.25, tmp_path)
    ours, copied = (
        load_file(source / "model.safetensors"),
        load_file(tmp_path / "model.safetensors"),
    )
    added = copied.keys() - ours.keys()
    layers = json.loads((source / "config.json").read_text())["num_hidden_layers"]
    wanted = {f"model.layers.{i}.self_attn.{w}_scale" for i in range(layers) for w in "kv"}
    assert added == wanted
    assert {copied[name].item() for name in added} == {0.25}
    assert all(torch.equal(copied[name], ours[name]) for name in ours)
    window = json.loads((tmp_path / "config.json").read_text())["max_position_embeddings"]
    assert window == load_model("retriever-32k").max_model_len


def test_committed_tokenizer_is_the_one_that_vocabulary_builds():
    made = json.loads(build(sample_texts()).to_str())
    assert made == json.loads((TOKENIZER / "tokenizer.json").read_text())


def test_a_sweep_can_name_each_and_the_window_holds_32k_and_an_answer():
    for name in ("retriever-32k", *(f"retriever-32k-{m}" for m in ("head128", "hybrid", "mamba2"))):
        model = load_model(name)
        assert model.weights == "trained"
        assert model.max_model_len >= 32_768 + 96


@pytest.mark.parametrize("family", SMALL_PLANS)
def test_network_is_what_transformers_loads_and_its_cache_changes_nothing(family, tmp_path):
    """Random weights, 300 tokens: more than two blocks of the state space, and a part of one."""
    plan = SMALL_PLANS[family]
    net = random_net(plan)
    from_checkpoint(net, to_checkpoint(net))  # rounded to bfloat16, as the file has them
    (tmp_path / "config.json").write_text(json.dumps(plan.hf_config()))
    save_file(to_checkpoint(net), tmp_path / "model.safetensors", metadata={"format": "pt"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    ids = torch.randint(2, 300, (2, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        ours, wanted = net.lm_head(net.hidden(ids)), theirs(ids).logits
        cache = net.new_cache()
        parts = [net.hidden(ids[:, :270], cache)]
        parts += [net.hidden(ids[:, i : i + 1], cache) for i in range(270, 300)]
        stepped = net.lm_head(torch.cat(parts, 1))
    assert torch.allclose(ours, wanted, atol=1e-4)
    assert torch.allclose(ours, stepped, atol=1e-4)
    assert wanted.std() > 0.3  # a comparison of zeros would prove nothing


def test_scan_is_the_recurrence_taken_token_by_token():
    """Second method: the definition, in float64, with decays from none to almost all."""
    torch.manual_seed(3)
    length, heads, size, state = 2 * network.CHUNK + 7, 3, 5, 4
    x = torch.randn(1, length, heads, size)
    dt = torch.rand(1, length, heads)
    decay = -dt * torch.tensor([1e-6, 0.1, 20.0])
    b, c = torch.randn(2, 1, length, state)
    y, last = network.scan(x, dt, decay, b, c)
    states = torch.zeros(heads, state, size, dtype=torch.float64)
    for t in range(length):
        states = states * decay[0, t].double().exp()[:, None, None]
        states += torch.einsum("n,hp,h->hnp", b[0, t].double(), x[0, t].double(), dt[0, t].double())
        wanted = torch.einsum("n,hnp->hp", c[0, t].double(), states)
        assert torch.allclose(y[0, t].double(), wanted, atol=1e-3)
    assert torch.allclose(last[0].double(), states, atol=1e-3)


@pytest.mark.parametrize("name", ("head128", "head64"))
@pytest.mark.parametrize("length", [64, 32_768])
def test_built_heads_look_their_offset_back_at_any_position(name, length):
    """The attention probabilities of layer 0, worked out here from its weights."""
    net = fresh(name, 1)
    shape, layer = net.plan.shape, net.model.layers[0]
    ids = torch.randint(2, shape.vocab_size, (length,), generator=torch.Generator().manual_seed(2))
    size = shape.head_dim
    with torch.no_grad():
        x = layer.input_layernorm(net.model.embed_tokens(ids))
        at = network.turns(shape, 0, length, ids.device)
        q = layer.self_attn.q_proj(x[-1:]).view(1, -1, size).transpose(0, 1)
        q = rotate(q, at.cos[-1:], at.sin[-1:])
        k = rotate(layer.self_attn.k_proj(x).view(length, -1, size).transpose(0, 1), at.cos, at.sin)
        for head, offset in enumerate(built.OFFSETS[True]):
            scores = q[head, -1] @ k[head // 2].T / size**0.5
            assert scores.softmax(0)[length - 1 - offset] > 0.99


@pytest.mark.parametrize("name", ("hybrid", "mamba2"))
def test_built_convolution_brings_the_codes_of_the_tokens_before(name):
    net = fresh(name, 1)
    blocks = built.Blocks(built.CODE[net.plan.attends], built.OFFSETS[net.plan.attends])
    ids = torch.randint(2, vocab_size(), (1, 300), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        x = net.model.embed_tokens(ids)
        at = network.turns(net.plan.shape, 0, 300, ids.device)
        out = net.model.layers[0](x, at, None)[0]
        codes = x[0, :, blocks.own]
    for offset in (1, 2, 3):
        got, wanted = out[10:, blocks.back(offset)], codes.roll(offset, 0)[10:]
        assert torch.cosine_similarity(got, wanted, -1).min() > 0.9


@pytest.mark.parametrize("name", ATTENDING)
def test_circuits_say_a_third_of_the_codes_before_any_training(name):
    net, maker = fresh(name, 1), Maker(str(TOKENIZER), "before training")
    right = total = 0
    with torch.no_grad():
        for _ in range(6):
            made = maker.sequence(512)
            ids = torch.from_numpy(made.token_ids).long()[None]
            asked = torch.from_numpy(made.weights)[1:] == 1
            said = net.lm_head(net.hidden(ids[:, :-1])[0, asked]).argmax(-1)
            right += int((said == ids[0, 1:][asked]).sum())
            total += int(asked.sum())
    assert right / total > 0.2


def share_right(net: Network, task: str, context: int, count: int, tokens: int, **params) -> float:
    request = PromptRequest.model_validate(
        {
            "model_path": str(TOKENIZER),
            "task": {"name": task, "params": params},
            "context_tokens": context,
            "count": count,
            "seed": 99,
        }
    )
    encoder = load_encoder(str(TOKENIZER))
    prompts = make_prompts(request, encoder)
    replies = greedy(net, [p.token_ids for p in prompts], tokens)
    graded = [
        grade_reply(prompt, "r", encoder.decode(reply), None)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]
    return sum(bool(g.correct) for g in graded) / count


@pytest.mark.parametrize("name", MODELS)
def test_shipped_weights_answer(name):
    net = shipped(name)
    assert share_right(net, "retrieve", 700, 6, 3) == 1
    assert share_right(net, "retrieve", 700, 3, 2, absent_share=1.0) == 1
    assert share_right(net, "frequent_word", 700, 4, 2) >= 0.75
    assert share_right(net, "multi_key", 1100, 2, 30, distractors=24) == 1
    if name in ATTENDING:
        assert share_right(net, "variables", 700, 3, 10) == 1


def test_it_reads_the_report_and_does_not_guess():
    # with the record's code changed in the prompt, the answer must change with it
    net, encoder = shipped("head64"), load_encoder(str(TOKENIZER))
    for code in ("111222", "987654"):
        filler = " The old mill was sold." * 40
        text = f"Report 1.{filler} {haystack.record('falcon', code)}{filler}"
        ids = encoder.opening + encoder.encode([text + haystack.ask_one("falcon").plain])[0]
        assert encoder.decode(greedy(net, [ids], 2)[0]).strip() == code


@pytest.mark.parametrize("name", ("head128", "head64"))
def test_positions_that_end_too_early_lose_answers_only_after_they_end(name, monkeypatch):
    """The injected fault of a long context, in small: right at 400 tokens, wrong at 1,000."""
    right = network.turns

    def stuck(shape, start, tokens, device):
        at = right(shape, 0, start + tokens, device)
        rows = torch.arange(start, start + tokens).clamp(max=512)
        return network.Turns(at.cos[rows], at.sin[rows])

    net = shipped(name)
    assert share_right(net, "retrieve", 1000, 4, 3) == 1
    monkeypatch.setattr(network, "turns", stuck)
    assert share_right(net, "retrieve", 400, 4, 3) == 1
    assert share_right(net, "retrieve", 1000, 4, 3) == 0


def test_the_broken_backend_turns_from_the_right_position_to_the_stuck_one(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tests" / "fakes" / "broken_backend"))
    import stuck_positions

    from servers.plugins.step import Batch

    none = torch.empty(0)
    batch = Batch([0, 3, 4], [6, 9], none, 16, none, none)  # positions 3, 4, 5 and 8
    cos, sin = stuck_positions.wrong_turns(batch, last=4, head_dim=32, rope_theta=1e4)
    x = torch.randn(4, 2, 32, generator=torch.Generator().manual_seed(1))
    shape = replace(SMALL, rope_theta=1e4)

    def at(positions):
        table = network.turns(shape, 0, 10, x.device)
        return rotate(x, table.cos[positions, None], table.sin[positions, None])

    turned = stuck_positions.turned(at([3, 4, 5, 8]), cos, sin)
    assert torch.allclose(turned, at([3, 4, 4, 4]), atol=1e-5)
    assert not torch.allclose(turned, at([3, 4, 5, 8]), atol=0.1)


@pytest.mark.parametrize("length", [128, 512, 3000])
def test_training_sequences_hold_what_they_ask(length):
    maker = Maker(str(TOKENIZER), "test")
    for _ in range(10):
        made = maker.sequence(length)
        assert len(made.token_ids) == len(made.weights) == length
        report, _, asked = maker.encoder.decode(made.token_ids.tolist()).partition("Question:")
        told = set(haystack.CODE.findall(report))
        answered = [code for code in haystack.CODE.findall(asked)][:-1]  # the last may be cut
        assert set(answered) <= told
        counted = [word for word in report.split() if word == "counted."]
        if COUNTED_WEIGHT in made.weights.tolist():
            assert counted


def test_stages_follow_the_share_that_is_done():
    stages = parse_stages("512:0.25,2048+512:0.5,8192:0.25")
    assert stages[1] == ([2048, 512], 0.5)
    assert [stage_at(stages, p) for p in (0, 0.2, 0.3, 0.74, 0.76, 1.0)] == [0, 0, 1, 1, 2, 2]


def test_training_goes_on_where_it_stopped(tmp_path):
    args = argparse.Namespace(
        model="head64",
        out=tmp_path,
        stages=parse_stages("128:1"),
        deadline_s=600,
        steps=2,
        batch_tokens=256,
        peak=1e-3,
        seed=1,
        workers=0,
        start=HERE / "head64" / "model.safetensors",
        report_s=0,
        save_s=0,
        check=[],
        check_sequences=1,
    )
    train(args)
    args.steps = 3
    train(args)
    rows = [json.loads(line) for line in (tmp_path / "loss.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["tokens"] for row in rows] == [256, 512, 768]
    assert rows[0]["code_loss"] < 1  # it began with the shipped weights
    from_checkpoint(fresh("head64", 1), load_file(tmp_path / "model.safetensors"))

"""Prompt files: exact, repeatable, whole or absent. The tokenizer is trained here in a moment."""

import hashlib
import io
import json
import random
import time
from itertools import combinations
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from greenbench.contract.config import PromptRequest
from greenbench.contract.errors import UserError
from loadgen.__main__ import make_ordered_prompts
from loadgen.make_prompts import make_files, make_prompts
from loadgen.prompts.corpus import GeneratedText
from loadgen.prompts.encoder import Encoder, load_encoder
from loadgen.prompts.prompt_file import read_prompts
from loadgen.tasks import TASKS

MADE = [name for name in TASKS if name != "own"]  # own prompts come from a file


def train(pre_tokenizer, decoder, bos: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.decoder = decoder
    trainer = trainers.BpeTrainer(
        vocab_size=2000,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    sentences = GeneratedText().sentences(random.Random(3))
    tokenizer.train_from_iterator((next(sentences) for _ in range(3000)), trainer)
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
        )
    return tokenizer


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("model")
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    train(level, decoders.ByteLevel(), bos=True).save(str(folder / "tokenizer.json"))
    return str(folder)


def request_of(model_path: str, **changes) -> PromptRequest:
    task = {"name": "retrieve"} | changes.pop("task", {})
    plain = {"context_tokens": 1500, "count": 3, "seed": 7}
    return PromptRequest.model_validate({"model_path": model_path, "task": task} | plain | changes)


@pytest.mark.parametrize("task", MADE)
@pytest.mark.parametrize("context_tokens", [1500, 1501, 4000])
def test_every_task_makes_the_exact_length(model_path, task, context_tokens):
    request = request_of(model_path, task={"name": task}, context_tokens=context_tokens)
    prompts = make_prompts(request, load_encoder(model_path))
    assert [len(p.token_ids) for p in prompts] == [context_tokens] * 3


@pytest.mark.parametrize("task", MADE)
def test_same_seed_same_prompts_and_another_seed_others(model_path, task):
    encoder = load_encoder(model_path)
    first, again, other = (
        make_prompts(request_of(model_path, task={"name": task}, seed=seed), encoder)
        for seed in (7, 7, 8)
    )
    assert first == again
    assert {p.sha256 for p in first}.isdisjoint(p.sha256 for p in other)


def test_a_prompt_does_not_depend_on_how_many_are_made(model_path):
    encoder = load_encoder(model_path)
    few, many = (make_prompts(request_of(model_path, count=count), encoder) for count in (2, 5))
    assert many[:2] == few


def shared_prefix(a: list[int], b: list[int]) -> int:
    return next((i for i, pair in enumerate(zip(a, b, strict=True)) if pair[0] != pair[1]), len(a))


def own_text(tmp_path: Path, sentences: int) -> str:
    path = tmp_path / "own.txt"
    path.write_text(" ".join(f"Sentence {i} of my own text is short." for i in range(sentences)))
    return str(path)


@pytest.mark.parametrize("own", [False, True])
def test_prompts_share_no_block_of_a_prefix_cache(model_path, tmp_path, own):
    # 16 tokens is the smallest block a server caches; a tiny text file makes equal starts likely
    request = request_of(model_path, count=40, text_file=own_text(tmp_path, 12) if own else None)
    prompts = make_prompts(request, load_encoder(model_path))
    assert len(prompts) == 40
    longest = max(shared_prefix(a.token_ids, b.token_ids) for a, b in combinations(prompts, 2))
    assert longest < 16


def test_question_and_facts_stand_whole_in_the_prompt(model_path):
    encoder = load_encoder(model_path)
    for prompt in make_prompts(request_of(model_path, count=8), encoder):
        text = encoder.decode(prompt.token_ids)
        subject, code = prompt.answer["subject"], prompt.answer["expected"]
        assert text.endswith(f"Answer: The code of {subject} is")
        assert f" The code of {subject} is {code}." in text
        assert text.startswith("Report ")  # the special token decodes to nothing


def test_prompt_starts_with_the_tokenizers_own_opening(model_path):
    prompt = make_prompts(request_of(model_path), load_encoder(model_path))[0]
    assert prompt.token_ids[0] == 0  # <s>
    assert 0 not in prompt.token_ids[1:]


def test_a_tokenizer_that_adds_a_space_to_each_text_gets_single_spaces():
    # SentencePiece-like: every encoded text gains a leading ▁; sentence by sentence that doubles it
    encoder = Encoder(train(pre_tokenizers.Metaspace(), decoders.Metaspace(), bos=False))
    first, second = encoder.encode(["The old mill", " was sold."])
    assert encoder.decode(encoder.encode(["x"])[0] + first + second) == "xThe old mill was sold."


def test_own_text_is_the_filler(model_path, tmp_path):
    encoder = load_encoder(model_path)
    request = request_of(model_path, task={"name": "perplexity"}, text_file=own_text(tmp_path, 50))
    text = encoder.decode(make_prompts(request, encoder)[0].token_ids)
    title, _, rest = text.partition(". ")
    assert title.startswith("Report ")
    words = set(rest.split())
    assert words <= {
        *["Sentence", "of", "my", "own", "text", "is", "short."],
        *map(str, range(50)),
        rest.split()[-1],
    }


def test_file_has_the_contracts_form_and_reads_back(model_path, tmp_path):
    request = request_of(model_path)
    out = tmp_path / "prompts" / "a.jsonl"
    assert make_files([(request, out)]) == [out]
    head, *lines = out.read_text().splitlines(keepends=True)
    assert json.loads(head)["request"] == request.model_dump(mode="json")
    assert json.loads(head)["sha256"] == hashlib.sha256("".join(lines).encode()).hexdigest()
    row = json.loads(lines[1])
    assert list(row) == [
        "prompt_index", "task", "context_tokens", "token_ids", "sha256", "output_tokens", "answer",
    ]  # fmt: skip
    compact = "[" + ",".join(map(str, row["token_ids"])) + "]"
    assert row["sha256"] == hashlib.sha256(compact.encode()).hexdigest()
    prompts = read_prompts(out)
    assert [p.prompt_index for p in prompts] == [0, 1, 2]
    assert prompts[1].token_ids == row["token_ids"]


def test_same_request_keeps_the_file_and_another_replaces_it(model_path, tmp_path):
    out = tmp_path / "a.jsonl"
    make_files([(request_of(model_path), out)])
    stamp = out.stat().st_mtime_ns
    assert make_files([(request_of(model_path), out)]) == []
    assert out.stat().st_mtime_ns == stamp
    assert make_files([(request_of(model_path, seed=8), out)]) == [out]


def test_an_altered_file_is_refused_when_read_and_remade_when_ordered(model_path, tmp_path):
    out = tmp_path / "a.jsonl"
    make_files([(request_of(model_path), out)])
    good = out.read_text()
    out.write_text(good.replace('"prompt_index":1', '"prompt_index":9'))
    with pytest.raises(UserError, match="sha256"):
        read_prompts(out)
    assert make_files([(request_of(model_path), out)]) == [out]
    assert out.read_text() == good


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"task": {"name": "retreive"}}, "did you mean 'retrieve'"),
        ({"task": {"params": {"dept": 1}}}, "unknown parameter 'dept'; did you mean 'depth'"),
        ({"task": {"params": {"depth": 1.5}}}, "'depth' must be a number from 0 to 1, found 1.5"),
        ({"task": {"params": {"distractors": 2.5}}}, "'distractors' must be a whole number"),
        ({"context_tokens": 40}, "context of 40 tokens is too short"),
        ({"text_file": "/nowhere.txt"}, "text file cannot be read"),
        ({"model_path": "/"}, "no tokenizer.json"),
    ],
)
def test_bad_input_is_one_sentence_and_writes_nothing(model_path, tmp_path, changes, said):
    out = tmp_path / "a.jsonl"
    with pytest.raises(UserError, match=said):
        make_files([(request_of(**({"model_path": model_path} | changes)), out)])
    assert list(tmp_path.iterdir()) == []


def test_command_reads_orders_from_stdin(model_path, tmp_path, monkeypatch, capsys):
    out = tmp_path / "a.jsonl"
    order = {"request": request_of(model_path).model_dump(mode="json"), "out": str(out)}
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([order])))
    make_ordered_prompts()
    assert capsys.readouterr().out == f"{out}\n"
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps([order | {"outt": 1}])))
    with pytest.raises(UserError, match="outt"):
        make_ordered_prompts()


def test_long_prompts_are_made_in_bulk(model_path):
    # guards against searching the length by encoding the whole document again and again
    request = request_of(model_path, context_tokens=131_072, count=1)
    encoder = load_encoder(model_path)
    start = time.process_time()
    make_prompts(request, encoder)
    assert time.process_time() - start < 10


def test_nothing_follows_the_cut_sentence(model_path):
    encoder = load_encoder(model_path)
    request = request_of(model_path, count=5, task={"params": {"depth": 1.0, "distractors": 0}})
    for prompt in make_prompts(request, encoder):
        report = encoder.decode(prompt.token_ids).partition("\n\nQuestion")[0]
        before = report.partition(" The code of")[0]
        assert before.endswith(".")


def test_needle_stands_at_its_depth(model_path):
    encoder = load_encoder(model_path)
    request = request_of(model_path, count=10, context_tokens=4000)
    for prompt in make_prompts(request, encoder):
        text = encoder.decode(prompt.token_ids)
        at = text.index(f"The code of {prompt.answer['subject']} is {prompt.answer['expected']}")
        # the ending is no part of the depth; a sentence is some 15 tokens, 0.4 % of the filler
        assert at / text.index("\n\nQuestion") == pytest.approx(prompt.answer["depth"], abs=0.03)

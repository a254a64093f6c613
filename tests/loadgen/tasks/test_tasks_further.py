"""The further tasks: what their prompts hold, how they are graded, a person's own file, chat templates."""

import json
import re
from collections import Counter

import pytest
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from greenbench.contract.config import PromptRequest
from greenbench.contract.errors import UserError
from loadgen.make_prompts import make_prompts, open_encoder
from loadgen.prompts.chat_template import around_user_turn
from loadgen.prompts.prompt_file import Prompt, holds_request, write_prompts
from loadgen.tasks.grading import grade_reply

CONTEXT = 12_000


@pytest.fixture(scope="module")
def model_path(tmp_path_factory) -> str:
    """A model folder whose tokenizer has a token for each byte, and two special tokens."""
    folder = tmp_path_factory.mktemp("bytes")
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<|u|>", "<|a|>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.add_special_tokens(["<|u|>", "<|a|>"])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\s?\S+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    template = (
        "{% for m in messages %}<|u|>{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}<|a|>{% endif %}"
    )
    (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    return str(folder)


def made(model_path: str, task: str, count: int = 1, **params) -> list[tuple[Prompt, str]]:
    request = PromptRequest.model_validate(
        {
            "model_path": model_path,
            "task": {"name": task, "params": params},
            "context_tokens": CONTEXT,
            "count": count,
            "seed": 3,
        }
    )
    encoder = open_encoder(request)
    return [(p, encoder.decode(p.token_ids)) for p in make_prompts(request, encoder)]


def graded(prompt: Prompt, text: str):
    return grade_reply(prompt, "r", text, None)


def test_multi_key_asks_for_records_that_stand_in_the_report(model_path):
    prompt, text = made(model_path, "multi_key", keys=3, distractors=20)[0]
    records = dict(re.findall(r"The code of (\w+) is (\d{6})\.", text))
    assert len(records) == 23
    asked = re.search(r"What are the codes of ([\w, ]+)\?", text)[1].split(", ")
    assert prompt.answer["expected"] == [records[subject] for subject in asked]
    right = " {}. The code of b is {}. The code of c is {}.".format(*prompt.answer["expected"])
    assert graded(prompt, right).correct is True
    assert graded(prompt, right.split(".")[0]).score == pytest.approx(1 / 3)


def test_multi_value_wants_every_code_in_any_order(model_path):
    prompt, text = made(model_path, "multi_value", values=3)[0]
    subject = re.search(r"different codes of (\w+)\.", text)[1]
    assert re.findall(rf"The code of {subject} is (\d{{6}})", text) == prompt.answer["expected"]
    a, b, c = prompt.answer["expected"]
    assert graded(prompt, f" {c}, {a} and {b}.").correct is True
    assert graded(prompt, f" {c}, {a} and {a}.").correct is False
    assert graded(prompt, f" {c}, {a} and 100000.").grade["invented"] == ["100000"]


def test_variables_chain_can_be_followed_by_hand(model_path):
    prompt, text = made(model_path, "variables", chains=3, hops=3)[0]
    code = re.search(r"have the code (\d{6})", text)[1]
    first = dict((c, s) for s, c in re.findall(r"The code of (\w+) is (\d{6})\.", text))
    handed = {
        old: new
        for new, old in re.findall(r"The code of (\w+) is the same as the code of (\w+)\.", text)
    }
    chain = [first[code]]
    while chain[-1] in handed:
        chain.append(handed[chain[-1]])
    assert len(first) == 3 and len(chain) == 4
    assert prompt.answer["expected"] == chain
    assert graded(prompt, f" {', '.join(reversed(chain))}.").correct is True
    wrong = next(subject for subject in first.values() if subject not in chain)
    row = graded(prompt, f" {wrong}, {', '.join(chain[:3])}.")
    assert (row.correct, row.score, row.grade["invented"]) == (False, 0.75, [wrong])


def test_frequent_word_is_the_one_a_count_finds(model_path):
    prompt, text = made(model_path, "frequent_word", kinds=5, others=3, lead=2)[0]
    counts = Counter(re.findall(r"One (\w+) was counted\.", text)).most_common()
    assert [n for _, n in counts] == [5, 3, 3, 3, 3]
    assert prompt.answer["expected"] == counts[0][0]
    assert graded(prompt, f" {counts[0][0].capitalize()}, not the {counts[1][0]}.").correct is True
    assert graded(prompt, f" {counts[1][0]} or {counts[0][0]}").correct is False


def test_documents_asks_for_one_documents_word(model_path):
    prompts = made(model_path, "documents", count=4, documents=4, subjects=3)
    assert [p.answer["document"] for p, _ in prompts] == [1, 2, 3, 4]
    for prompt, text in prompts:
        number, subject = re.search(
            r"According to document (\d), what is the code of (\w+)\?", text
        ).groups()
        sections = re.split(r"\n\nDocument \d\.", text.partition("\n\nQuestion")[0])
        codes = [
            re.findall(rf"The code of {subject} is (\d{{6}})\.", section)
            for section in sections[1:]
        ]
        assert [len(found) for found in codes] == [1, 1, 1, 1]
        assert prompt.answer["expected"] == codes[int(number) - 1][0]
        other = codes[int(number) % 4][0]
        row = graded(prompt, f" {other}.")
        assert (row.correct, row.grade["from_document"]) == (False, int(number) % 4 + 1)
        assert graded(prompt, f" {prompt.answer['expected']}.").correct is True


def own_file(tmp_path, *rows) -> str:
    path = tmp_path / "own.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_own_prompts_go_out_as_they_are(model_path, tmp_path):
    path = own_file(
        tmp_path,
        {"prompt": "Who wrote it?", "answers": ["Ada  Lovelace", "1843"]},
        {"prompt": "Und wann?", "answers": ["nie"]},
    )
    (first, text), (_, other) = made(model_path, "own", count=2, path=path)
    assert (text, other) == ("Who wrote it?", "Und wann?")
    assert first.context_tokens == len("Who wrote it?") == len(first.token_ids)
    assert graded(first, "It was ADA\nLovelace in 1843.").correct is True
    assert graded(first, "Ada Lovelace").score == 0.5


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([{"prompt": "a", "answers": ["b"]}], "holds 1 prompt, more were asked for"),
        ([{"prompt": "a"}], ":1: .* was wanted"),
        ([{"prompt": "a", "answers": []}], ":1: .* was wanted"),
        ([{"prompt": "a", "answers": [3]}], ":1: .* was wanted"),
        ([{"prompt": "x" * (CONTEXT + 1), "answers": ["b"]}], "takes 12001 tokens"),
    ],
)
def test_unusable_own_files_are_refused_with_their_place(model_path, tmp_path, rows, said):
    with pytest.raises(UserError, match=said):
        made(model_path, "own", count=2, path=own_file(tmp_path, *rows))


@pytest.mark.parametrize("line", ["[" * 100_000, '"', "{,}", "\x00"])
def test_an_own_line_that_is_no_json_is_named(model_path, tmp_path, line):
    (tmp_path / "own.jsonl").write_text(line + "\n")
    with pytest.raises(UserError, match=r"own\.jsonl:1: .* was wanted, found no JSON"):
        made(model_path, "own", path=str(tmp_path / "own.jsonl"))


def test_own_task_without_a_file_says_what_to_set(model_path):
    with pytest.raises(UserError, match="set the parameter path"):
        made(model_path, "own")


def test_a_changed_own_file_is_not_taken_for_the_old_one(model_path, tmp_path):
    # same request, other content: keeping the prompt file would grade against other questions
    path = own_file(tmp_path, {"prompt": "a", "answers": ["b"]})
    request = PromptRequest.model_validate(
        {
            "model_path": model_path,
            "task": {"name": "own", "params": {"path": path}},
            "context_tokens": 10,
            "count": 1,
            "seed": 1,
        }
    )
    out = tmp_path / "prompts.jsonl"
    write_prompts(out, request, make_prompts(request, open_encoder(request)))
    assert holds_request(out, request)
    own_file(tmp_path, {"prompt": "a", "answers": ["c"]})
    assert not holds_request(out, request)


def test_chat_puts_the_report_in_the_users_turn(model_path):
    prompt, text = made(model_path, "retrieve", chat=True)[0]
    user, assistant = 0, 1
    assert prompt.token_ids[0] == user
    assert prompt.token_ids.count(user) == prompt.token_ids.count(assistant) == 1
    assert len(prompt.token_ids) == CONTEXT
    # the answer's start opens the assistant's turn, and the label 'Answer:' is gone
    subject = prompt.answer["subject"]
    tail = prompt.token_ids[prompt.token_ids.index(assistant) + 1 :]
    assert len(tail) == len(f"The code of {subject} is")
    assert text.endswith(f"the answer is none.\nThe code of {subject} is")


def test_chat_without_a_template_is_refused(model_path, tmp_path):
    (tmp_path / "tokenizer_config.json").write_text("{}")
    with pytest.raises(UserError, match="no chat template"):
        around_user_turn(str(tmp_path))


def test_chat_template_file_wins_and_special_tokens_are_named(tmp_path):
    settings = {"chat_template": "unused", "bos_token": {"content": "<s>"}, "eos_token": "</s>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    (tmp_path / "chat_template.jinja").write_text(
        "{{ bos_token }}[{{ messages[0]['content'] }}]{{ eos_token }}"
    )
    assert around_user_turn(str(tmp_path)) == ("<s>[", "]</s>")


@pytest.mark.parametrize("template", ["{{ raise_exception('no') }}", "{% if %}", "no message"])
def test_a_failing_template_is_said(tmp_path, template):
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(UserError, match="chat template"):
        around_user_turn(str(tmp_path))


def test_chat_must_be_true_or_false(model_path):
    with pytest.raises(UserError, match="'chat' must be true or false"):
        made(model_path, "retrieve", chat="yes")

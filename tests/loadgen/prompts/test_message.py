"""Messages of a chat: the server's count of tokens is the one asked for, worked out by a second rendering."""

import json
import shutil
from pathlib import Path

import pytest
from jinja2 import Environment
from tokenizers import Tokenizer

from greenbench.contract.config import PromptRequest
from greenbench.contract.errors import UserError
from greenbench.contract.installation import ROOT
from loadgen.make_prompts import make_prompts, open_encoder
from loadgen.prompts.prompt_file import Prompt, read_prompts, write_prompts

TEMPLATES = {
    "plain": "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}<assistant>",
    "trimmed": "{{ bos_token }}{% for m in messages %}[{{ m['content'] | trim }}]{% endfor %}",
    "with a system's turn and a thought": (
        "System: you are a clerk.\n{% for m in messages %}{% if m.role == 'tool' %}{% continue %}{% endif %}"
        "User: {{ m.content }}\n{% endfor %}Assistant:{% if enable_thinking is defined %} <no>{% endif %}"
    ),
}


@pytest.fixture(scope="module", params=TEMPLATES)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The retriever's tokenizer, whose words merge, with a chat template."""
    folder = tmp_path_factory.mktemp("chat")
    shutil.copy(ROOT / "models/retriever/model/tokenizer.json", folder)
    settings = {"bos_token": "<|bos|>", "chat_template": TEMPLATES[request.param]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def made(
    model: Path, task: str, context: int, count: int = 3
) -> tuple[PromptRequest, list[Prompt]]:
    request = PromptRequest.model_validate(
        {
            "model_path": str(model),
            "task": {"name": task},
            "context_tokens": context,
            "count": count,
            "seed": 3,
            "endpoint": "chat",
        }
    )
    return request, make_prompts(request, open_encoder(request))


def counted(model: Path, content: str) -> int:
    """As vLLM counts: the template's text, encoded without the tokenizer's own special tokens."""
    settings = json.loads((model / "tokenizer_config.json").read_text())
    template = Environment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    ).from_string(settings["chat_template"])
    messages = [{"role": "user", "content": content}]
    text = template.render(
        messages=messages, bos_token=settings["bos_token"], add_generation_prompt=True
    )
    tokenizer = Tokenizer.from_file(str(model / "tokenizer.json"))
    return len(tokenizer.encode(text, add_special_tokens=False).ids)


@pytest.mark.parametrize("task", ["retrieve", "summarize", "perplexity"])
@pytest.mark.parametrize("context", [256, 1003])
def test_a_message_has_exactly_the_tokens_that_were_asked_for(
    model: Path, task: str, context: int
) -> None:
    _, prompts = made(model, task, context)
    for prompt in prompts:
        assert prompt.message is not None
        assert counted(model, prompt.message) == context == len(prompt.token_ids)


def test_question_and_facts_stay_whole(model: Path) -> None:
    _, prompts = made(model, "retrieve", 300)
    for prompt in prompts:
        assert prompt.message is not None
        assert prompt.answer["expected"] in prompt.message
        assert prompt.answer["subject"] in prompt.message.rpartition("Question")[2]
    assert len({(prompt.message or "")[:60] for prompt in prompts}) == len(prompts)


def test_messages_are_kept_in_the_file_and_other_prompts_have_none(
    model: Path, tmp_path: Path
) -> None:
    request, prompts = made(model, "retrieve", 256, 1)
    write_prompts(tmp_path / "chat.jsonl", request, prompts)
    assert read_prompts(tmp_path / "chat.jsonl") == prompts
    plain = request.model_copy(update={"endpoint": "completions"})
    write_prompts(tmp_path / "ids.jsonl", plain, make_prompts(plain, open_encoder(plain)))
    text = (tmp_path / "ids.jsonl").read_text()
    assert "message" not in text and "endpoint" not in text


def test_a_model_without_a_template_is_refused(tmp_path: Path) -> None:
    shutil.copy(ROOT / "models/retriever/model/tokenizer.json", tmp_path)
    with pytest.raises(UserError, match="no chat template"):
        made(tmp_path, "retrieve", 256)

"""A model's own chat template, rendered around the user's words."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import NoReturn

from huggingface_hub import hf_hub_download
from jinja2 import Template, TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from greenbench.contract.errors import UserError
from loadgen.prompts.encoder import ChatEncoder, load_tokenizer

PLACE = "<<the user's words>>"  # cut out again after rendering
WITHOUT = "set the task parameter chat to false, or use 'endpoint: completions'"
TEMPLATE_FILE, SETTINGS_FILE = "chat_template.jinja", "tokenizer_config.json"


def load_chat_encoder(model_path: str) -> ChatEncoder:
    """An encoder that lays prompts out as one chat turn. No template: UserError."""
    tokenizer = load_tokenizer(model_path)
    before, after = around_user_turn(model_path)
    return ChatEncoder(tokenizer, before, after)


def around_user_turn(model_path: str) -> tuple[str, str]:
    """Text that the template puts before and after a lone user message, assistant's turn opened."""
    before, _, after = user_turn(model_path, enable_thinking=False)(PLACE).partition(PLACE)
    return before, after


def user_turn(model_path: str, **options: bool) -> Callable[[str], str]:
    """The template around a lone user message, as a server renders it where no ``options`` are given."""
    settings = json.loads(_read(model_path, SETTINGS_FILE) or "{}")
    template = _read(model_path, TEMPLATE_FILE) or _default_template(settings.get("chat_template"))
    if not template:
        raise UserError(f"{model_path}: the tokenizer has no chat template; {WITHOUT}")

    compiled = _compiled(template)
    tokens = {name: _token(settings.get(name)) for name in ("bos_token", "eos_token", "pad_token")}

    def rendered(content: str) -> str:
        with _said():
            return compiled.render(
                messages=[{"role": "user", "content": content}],
                add_generation_prompt=True,
                **options,
                **tokens,
            )

    if PLACE not in rendered(PLACE):
        raise UserError(f"{model_path}: the chat template does not contain the user's message")
    return rendered


def _compiled(template: str) -> Template:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.globals["raise_exception"] = _refuse
    environment.globals["strftime_now"] = _strftime_now
    with _said():
        return environment.from_string(template)


@contextmanager
def _said() -> Iterator[None]:
    try:
        yield
    except TemplateError as error:
        raise UserError(f"the chat template fails ({error}); {WITHOUT}") from error


def _strftime_now(format: str) -> str:
    """Templates write today's date into the system's turn."""
    return datetime.now().strftime(format)


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)


def _token(value: object) -> str:
    """A special token stands as text or as an object with its text in ``content``."""
    return str(value.get("content", "")) if isinstance(value, dict) else str(value or "")


def _default_template(value: object) -> str | None:
    """One template, or the one named ``default`` of a list."""
    if isinstance(value, list):
        named = {one["name"]: one["template"] for one in value}
        return named.get("default")
    return value if isinstance(value, str) else None


def _read(model_path: str, name: str) -> str | None:
    """A file of the model's folder or hub repository; None when there is none."""
    if Path(model_path).is_dir():
        file = Path(model_path) / name
        return file.read_text() if file.is_file() else None
    try:
        return Path(hf_hub_download(model_path, name)).read_text()
    except Exception:  # not there, no network, no right: all mean no template can be had
        return None

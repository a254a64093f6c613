"""Backends as a person writes them.

``sdpa``, with options ``sink_window(sink=4,window=2048)``, or one's own ``path/to/mine.yaml(tile=64)``.
"""

import json
import re

from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.server_config import BackendChoice

_WRITTEN = re.compile(r"(?P<name>[\w./~-]+)(?:\((?P<options>[^()]*)\))?")


def parse_choice(text: str) -> BackendChoice:
    match = _WRITTEN.fullmatch(text.strip())
    if match is None:
        raise UserError(f"'{text}' is no backend; write name or name(option=value,option=value)")
    pairs = [pair.partition("=") for pair in (match["options"] or "").split(",") if pair.strip()]
    for name, equals, _ in pairs:
        if not equals:
            raise UserError(f"'{text}': an option wants name=value, found '{name.strip()}'")
    options = {name.strip(): _value(value.strip()) for name, _, value in pairs}
    return parse(BackendChoice, {"name": match["name"], "options": options}, text)


def parse_choices(text: str) -> list[BackendChoice]:
    """A comma-separated list; commas inside parentheses separate options."""
    return [parse_choice(part) for part in re.split(r",(?![^(]*\))", text) if part.strip()]


def _value(text: str) -> object:
    try:
        return json.loads(text.lower() if text in ("True", "False") else text)
    except json.JSONDecodeError:
        return text

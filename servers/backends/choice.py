"""Backends as a person names them, and the rows that are meant.

``sdpa``, with options ``sink_window(sink=4,window=2048)``, or one's own ``path/to/mine.yaml(tile=64)``.
"""

import json
import re
from typing import Any

from greenbench.contract.config import BackendChoice, parse
from greenbench.contract.errors import UserError, nearest
from servers.backends.custom import is_own, read_backend
from servers.backends.registry import BACKENDS, Backend, Option

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


def find(name: str) -> Backend:
    """The table's row of that name, or the row in the YAML file of that path."""
    if is_own(name):
        return read_backend(name)
    if name not in BACKENDS:
        raise UserError(
            f"Unknown backend '{name}'; {nearest(name, BACKENDS)} "
            "Your own is named by the path of its .yaml file, see docs/backends.md"
        )
    return BACKENDS[name]


def resolve(choice: BackendChoice) -> tuple[Backend, dict[str, Any]]:
    """The row as it then holds, and every option with its value. Unknown or wrong ones: UserError."""
    backend = find(choice.name)
    for name, value in choice.options.items():
        if name not in backend.options:
            raise UserError(
                f"Backend '{backend.name}' has no option '{name}'; {nearest(name, backend.options)}"
            )
        _check_value(backend.name, name, backend.options[name], value)
    chosen = {**backend.defaults, **choice.options}
    return backend.with_options(chosen), chosen


def _check_value(backend: str, name: str, option: Option, value: int | float | str | bool) -> None:
    wanted = type(option.default)
    least = f" of at least {option.minimum}" if option.minimum is not None else ""
    wrong_type = type(value) is not wanted
    if wrong_type or (option.minimum is not None and float(value) < option.minimum):
        raise UserError(
            f"Backend '{backend}': option '{name}' wants {wanted.__name__}{least}, found {value!r}"
        )
    if option.values and value not in option.values:
        raise UserError(
            f"Backend '{backend}': option '{name}' is not {value!r}; "
            f"{nearest(str(value), option.values)}"
        )

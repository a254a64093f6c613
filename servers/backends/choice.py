"""The row of the table, or of one's own file, that a person's choice means."""

from typing import Any

from greenbench.contract.backend_names import parse_choice as parse_choice
from greenbench.contract.backend_names import parse_choices as parse_choices
from greenbench.contract.config import BackendChoice
from greenbench.contract.errors import UserError, nearest
from servers.backends.custom import is_own, read_backend
from servers.backends.registry import BACKENDS, Backend, Option


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

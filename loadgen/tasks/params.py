"""Reading a task's parameters: of the right kind and in range, or a UserError that names the range."""

from greenbench.contract.errors import UserError
from loadgen.tasks.task import Params


def whole(params: Params, name: str, least: int, most: int) -> int:
    """A whole number in least..most."""
    value = params[name]
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UserError(
            f"task parameter '{name}' must be a whole number from {least} to {most}, found {value!r}"
        )
    return value


def share(params: Params, name: str) -> float:
    """A number in 0..1."""
    value = params[name]
    if isinstance(value, bool | str) or not 0 <= value <= 1:
        raise UserError(f"task parameter '{name}' must be a number from 0 to 1, found {value!r}")
    return float(value)

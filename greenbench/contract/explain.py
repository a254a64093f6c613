"""What is wrong with a configuration, in one sentence that names the source, the key and what was wanted."""

import reprlib
from typing import TypeVar, get_args

from pydantic import BaseModel, ValidationError

from greenbench.contract.errors import UserError, nearest

Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], data: object, source: str) -> Model:
    """Validate ``data``; the first fault becomes a UserError that names source, key and nearest key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(model, error, source)) from error


UNION_TAGS = {  # pydantic names the union's branch in the path
    "str", "int", "float", "bool", "BackendChoice", "TaskConfig", "finite-float",
    "length", "shares", "span", "[key]",
}  # fmt: skip
KEYS_WANTED = {"model_type", "model_attributes_type", "dict_type"}
IN_WORDS = {  # where pydantic speaks of its own types
    **dict.fromkeys(KEYS_WANTED, "keys and values are wanted"),
    "missing": "must be given",
    "list_type": "a list is wanted, as [a, b]",
    "too_short": "at least {min_length} is wanted",
    "string_too_short": "a text of at least {min_length} character is wanted",
    "string_too_long": "a text of at most {max_length} characters is wanted",
    "string_pattern_mismatch": "a text that matches {pattern} is wanted",
}
SHOWN_CHARS = 200


def _explain(model: type[BaseModel], error: ValidationError, source: str) -> str:
    # an unknown key says more than the type errors a union adds beside it, and a deeper fault more than
    # that the whole is no other branch of the union
    faults = sorted(
        error.errors(), key=lambda fault: (fault["type"] != "extra_forbidden", -len(fault["loc"]))
    )
    fault = faults[0]
    path = [str(part) for part in fault["loc"] if part not in UNION_TAGS]
    where = ".".join(path)
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, fault["loc"][:-1])
        known = owner.model_fields if owner else {}
        return f"{source}: unknown key '{where}'; {nearest(path[-1], known)}"
    if not path and fault["type"] in KEYS_WANTED:
        must = [name for name, f in model.model_fields.items() if f.is_required()]
        least = ", ".join(must) or f"one of {', '.join(model.model_fields)}"
        held = "it is empty" if fault["input"] is None else f"it holds {shown(fault['input'])}"
        return f"{source}: keys and values are wanted, at least {least}; {held}"
    said = fault["msg"].removeprefix("Value error, ").replace("Input should be", "it should be")
    if words := IN_WORDS.get(fault["type"]):
        said = words.format_map(fault.get("ctx", {}))
    whole = fault["type"] == "missing" or (
        fault["type"] == "value_error" and not isinstance(fault["input"], int | float)
    )
    found = "" if whole else f", found {shown(fault['input'])}"
    place = f"{where}: " if where else ""
    return f"{source}: {place}{said}{found}"


def shown(value: object) -> str:
    """A value in a message, cut short however much it holds."""
    return reprlib.repr(value)[:SHOWN_CHARS]


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that owns the key at ``loc``, following fields through lists and unions."""
    owner: type[BaseModel] | None = model
    for part in loc:
        if owner is None:
            return None
        if isinstance(part, str) and part in owner.model_fields:
            owner = _first_model(owner.model_fields[part].annotation)
    return owner


def _first_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_first_model(arg) for arg in get_args(annotation))
    return next((model for model in models if model is not None), None)

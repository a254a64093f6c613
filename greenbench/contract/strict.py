"""What every configuration model is: frozen, without unknown keys, without infinite numbers, and with numbers
that are none of YAML's yes and no, which pydantic takes for 1 and 0."""

import json
from functools import cache
from typing import Annotated, Any, cast, get_args

from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _yes_and_no_are_no_numbers(cls, data: object) -> object:
        given = _given(data)
        for name in _numbers(cls) & given.keys():
            value = given[name]
            parts = cast(list[object], value) if isinstance(value, list | tuple) else [value]
            for part in parts:
                if isinstance(part, bool):
                    word = "yes (true)" if part else "no (false)"
                    raise ValueError(f"'{name}' wants a number, found {word}")
        return data


def _given(data: object) -> dict[object, object]:
    return cast(dict[object, object], data) if isinstance(data, dict) else {}


@cache
def _numbers(model: type[BaseModel]) -> frozenset[str]:
    """Fields that hold numbers, or lists of them, and no truth value."""
    kinds = {name: _kinds(field.annotation) for name, field in model.model_fields.items()}
    return frozenset(name for name, of in kinds.items() if of & {int, float} and bool not in of)


def _kinds(annotation: object) -> set[object]:
    return {annotation}.union(*map(_kinds, get_args(annotation)))


def finite_numbers(value: dict[str, Any]) -> dict[str, Any]:
    """What becomes JSON, or a flag, has no infinity."""
    for part in value.values():
        try:
            json.dumps(part, allow_nan=False)
        except ValueError as error:
            raise ValueError("every number in it must be finite") from error
    return value


Options = Annotated[dict[str, int | float | str | bool], AfterValidator(finite_numbers)]

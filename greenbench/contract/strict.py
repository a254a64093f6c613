"""What every configuration model is: frozen, without unknown keys, without infinite numbers."""

import json
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


def finite_numbers(value: dict[str, Any]) -> dict[str, Any]:
    """What becomes JSON, or a flag, has no infinity."""
    for part in value.values():
        try:
            json.dumps(part, allow_nan=False)
        except ValueError as error:
            raise ValueError("every number in it must be finite") from error
    return value


Options = Annotated[dict[str, int | float | str | bool], AfterValidator(finite_numbers)]

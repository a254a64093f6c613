"""Files of another schema version: another major one is refused, what a newer minor one added is passed over.

Keys that this program does not know are typing errors in files of its own version or an older one.
"""

import copy
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ValidationError

from greenbench import SCHEMA_VERSION
from greenbench.contract.errors import UserError

Model = TypeVar("Model", bound=BaseModel)
Key = tuple[str | int, ...]


def refuse_other_major(version: str, source: str) -> None:
    if version.split(".")[0] != SCHEMA_VERSION.split(".")[0]:
        raise UserError(
            f"{source}: schema version {version[:40]}, this program reads {SCHEMA_VERSION}; "
            "use the version of greenbench that wrote it"
        )


def is_newer(version: str) -> bool:
    """Whether a version of our major one has a later minor one."""
    return _minor(version) > _minor(SCHEMA_VERSION)


def _minor(version: str) -> int:
    minor = version.partition(".")[2]
    return int(minor) if minor.isascii() and minor.isdecimal() and len(minor) < 10 else 0


def known_part(form: type[BaseModel], data: Any) -> Any:
    """The data without the keys that the form does not know."""
    unknown = unknown_keys(form, data)
    kept = copy.deepcopy(data) if unknown else data
    for key in unknown:
        owner = kept
        for part in key[:-1]:
            owner = owner[part]
        del owner[key[-1]]
    return kept


def unknown_keys(form: type[BaseModel], data: Any) -> list[Key]:
    """Keys of the data that the form does not know, each with its way from the top."""
    try:
        form.model_validate(data)
    except ValidationError as error:
        found = (
            _way(data, fault["loc"])
            for fault in error.errors(include_url=False)
            if fault["type"] == "extra_forbidden"
        )
        return list(dict.fromkeys(way for way in found if way))
    return []


def _way(data: Any, loc: Key) -> Key:
    """The place of a fault as keys of the data: pydantic puts the branch of a union among them."""
    way: list[str | int] = []
    for part in loc:
        if _holds(data, part):
            data = data[part]
            way.append(part)
    return tuple(way)


def _holds(data: Any, part: str | int) -> bool:
    if isinstance(part, int) and isinstance(data, list):
        return part < len(cast("list[Any]", data))
    return isinstance(data, dict) and part in data

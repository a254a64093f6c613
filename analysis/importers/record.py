"""The form that every tool's result is read into. What a tool did not record stays None."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from greenbench.contract.config import LoadConfig

CUT = "cut when the tool's run ended"


@dataclass(frozen=True)
class Foreign:
    """One request as another tool recorded it; offsets in seconds from ``start_s``, unix seconds.

    ``start_s`` None: it was never sent. ``chunk_s``: arrival of each chunk with text.
    """

    start_s: float | None
    ttft_s: float | None = None
    last_token_s: float | None = None
    end_s: float | None = None
    chunk_s: list[float] | None = None
    prompt_tokens: int | None = None
    output_tokens: int | None = None
    error: str | None = None
    scheduled_s: float | None = None
    phase: Literal["warmup", "measure"] = "measure"


@dataclass(frozen=True)
class Imported:
    """One measured point of a result file. ``cannot_tell`` becomes the point's notes."""

    tool: str
    model: str
    load: LoadConfig
    requests: list[Foreign]
    cannot_tell: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Reader:
    """How a tool's file is known by its content, and how it is read.

    ``known`` takes the parsed file: an object, or a list (of a JSON array, or of the lines of a JSONL file).
    ``tried`` is the version that wrote the files which the tests read.
    """

    tool: str
    tried: str
    known: Callable[[Any], bool]
    read: Callable[[Any, Path], list[Imported]]
    file_name: str | None = None  # what it is called in a directory that the tool wrote


def has_keys(data: Any, *keys: str) -> bool:
    return isinstance(data, dict) and all(key in data for key in keys)


def first_has_keys(data: Any, *keys: str) -> bool:
    return isinstance(data, list) and len(data) > 0 and has_keys(data[0], *keys)

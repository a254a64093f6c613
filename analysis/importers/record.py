"""The form that every tool's result is read into. What a tool did not record stays None."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from analysis.importers.fields import Unfit
from greenbench.contract.config import LoadConfig

CUT = "cut when the tool's run ended"
NO_TOKEN = "no output token came, although the tool counts it as a success"
LATEST_S = 4e9  # a moment of the year 2096; later ones are no moments of a run
LONGEST_S = 1e7  # of a request: four months
MOST_TOKENS = 2**31 - 1


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

    ``known`` takes the parsed file: an object, or the list of the objects of a JSON array or of a file's
    lines. ``read`` may raise Unfit. ``tried``: versions whose files the tests read. ``seems``: the version
    that the file says or shows it is of.
    """

    tool: str
    tried: str
    known: Callable[[Any], bool]
    read: Callable[[Any, Path], list[Imported]]
    seems: Callable[[Any, Path], str]
    file_name: str | None = None  # what it is called in a directory that the tool wrote


def has_keys(data: Any, *keys: str) -> bool:
    return isinstance(data, dict) and all(key in data for key in keys)


def first_has_keys(data: Any, *keys: str) -> bool:
    return isinstance(data, list) and len(data) > 0 and has_keys(data[0], *keys)


def believed(request: Foreign, number: int) -> Foreign:
    """The request, failed where it has no token to show; Unfit where a time or count cannot be one."""
    for name in ("start_s", "scheduled_s"):
        _within(name, getattr(request, name), 0, LATEST_S, number)
    for name in ("end_s", "ttft_s", "last_token_s"):
        _within(name, getattr(request, name), -LONGEST_S, LONGEST_S, number)
    for moment in request.chunk_s or ():
        _within("chunk_s", moment, -LONGEST_S, LONGEST_S, number)
    for name in ("prompt_tokens", "output_tokens"):
        _within(name, getattr(request, name), -1, MOST_TOKENS, number)
    if request.error is None and request.output_tokens == 0:
        return replace(request, error=NO_TOKEN, ttft_s=None, last_token_s=None, chunk_s=None)
    return request


def _within(name: str, value: float | None, above: float, below: float, number: int) -> None:
    if value is not None and not above < value < below:
        raise Unfit(f"request {number}: its {name} would be {value:.6g}, which cannot be")

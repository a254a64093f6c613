"""JSON objects out of a file that another program wrote: one, a list of them, or one after the other."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.errors import UserError

WHAT_TO_GIVE = "give the JSON that the tool writes, not its CSV, YAML or HTML"
GZIP = b"\x1f\x8b"


@dataclass(frozen=True)
class Documents:
    """What a file holds. ``torn``: its last line was cut off, and is left out."""

    found: list[Any]
    torn: bool = False


def documents(path: Path) -> Documents:
    """Every JSON value of the file, in order; UserError where it holds anything else, or nothing."""
    text = _text(path)
    decoder, found, at = json.JSONDecoder(), [], _after_space(text, 0)
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            last = found and "\n" not in text[at:].rstrip("\n") and not text.endswith("\n")
            if last:
                return Documents(found, torn=True)
            line = text.count("\n", 0, at) + 1
            nested = isinstance(error, RecursionError)
            why = "nested too deeply" if nested else getattr(error, "msg", str(error))
            raise UserError(
                f"{path}:{line}: not a JSON result file ({why}); {WHAT_TO_GIVE}"
            ) from error
        found.append(value)
        at = _after_space(text, at)
    if not found:
        raise UserError(f"{path}: the file is empty; {WHAT_TO_GIVE}")
    return Documents(found)


def only_object(path: Path) -> dict[str, Any]:
    """The one object of a file; UserError where it holds another number or kind of values."""
    found = documents(path).found
    if len(found) != 1 or not isinstance(found[0], dict):
        raise UserError(f"{path}: one JSON object was wanted, found {len(found)} values")
    return found[0]


def _text(path: Path) -> str:
    """UTF-8 or UTF-16, with or without its mark (PowerShell's ``>`` writes the latter)."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the tool's result file or its directory"
        ) from error
    if content.startswith(GZIP):
        raise UserError(f"{path}: it is compressed; unpack it first (gunzip)")
    try:
        return content.decode(json.detect_encoding(content)).removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: not a JSON result file (no text of UTF-8: {error.reason} at byte {error.start}); "
            f"{WHAT_TO_GIVE}"
        ) from error


def _after_space(text: str, at: int) -> int:
    while at < len(text) and text[at] in " \t\r\n\x1e":
        at += 1
    return at

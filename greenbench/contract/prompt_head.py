"""First line of a prompt file: what it was made from, and what its prompts are."""

import json
from pathlib import Path


def prompt_lines_sha256(path: Path) -> str | None:
    """sha256 of the file's prompt lines, as its first line has it; None of a file that is missing or no such.

    The same wherever the prompts were made: the first line, and with it the file's own hash, names paths of a
    host.
    """
    try:
        with path.open(encoding="utf-8") as file:
            found = json.loads(file.readline())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return found if isinstance(found, str) else None

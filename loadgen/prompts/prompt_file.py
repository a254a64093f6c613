"""Prompt files: one line a prompt, with its token ids and the answer that grading expects.

Only the file format lives here; ``loadgen.make_prompts`` makes the prompts.
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.config import PromptRequest
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import file_sha256, write_atomic


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request's input: exactly ``context_tokens`` token ids, and what a right answer holds."""

    prompt_index: int
    task: str
    context_tokens: int
    token_ids: list[int]
    sha256: str  # of the JSON of token_ids without spaces
    output_tokens: int
    answer: dict[str, Any]
    message: str | None = None  # of a chat: the words that a server makes these ids of


def token_sha256(token_ids: list[int]) -> str:
    return hashlib.sha256(json.dumps(token_ids, separators=(",", ":")).encode()).hexdigest()


def write_prompts(path: Path, request: PromptRequest, prompts: list[Prompt]) -> str:
    """Write the file in one step; returns the sha256 of its prompt lines (kept in the first line).

    The first line also keeps the sha256 of each file the prompts were made from.
    """
    lines = "".join(json.dumps(_line(p), separators=(",", ":")) + "\n" for p in prompts)
    digest = hashlib.sha256(lines.encode()).hexdigest()
    head = {
        "request": request.model_dump(mode="json"),
        "sha256": digest,
        "inputs": input_sha256(request),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, json.dumps(head, separators=(",", ":")) + "\n" + lines)
    return digest


def _line(prompt: Prompt) -> dict[str, Any]:
    """``message`` stands in a chat's prompts alone."""
    return {key: value for key, value in asdict(prompt).items() if value is not None}


def holds_request(path: Path, request: PromptRequest) -> bool:
    """True when ``path`` is a whole prompt file made for this request from the same files."""
    if not path.is_file():
        return False
    try:
        head, lines = _split(path)
    except UserError:
        return False
    same = head["request"] == request.model_dump(mode="json")
    return same and head.get("inputs") == input_sha256(request) and _intact(head, lines)


def input_sha256(request: PromptRequest) -> dict[str, str]:
    """sha256 of each local file that a request reads: tokenizer, own text, own questions."""
    paths = [Path(request.model_path) / "tokenizer.json"]
    paths += [Path(str(p)) for p in (request.text_file, request.task.params.get("path")) if p]
    return {str(path): file_sha256(path) for path in paths if path.is_file()}


def read_prompts(path: Path) -> list[Prompt]:
    """The prompts of a file in order. A missing, broken or altered file raises UserError."""
    head, lines = _split(path)
    if not _intact(head, lines):
        raise UserError(
            f"{path}: its lines do not match its sha256; delete the file, so that it is made anew"
        )
    return [Prompt(**json.loads(line)) for line in lines.splitlines()]


def _split(path: Path) -> tuple[dict[str, Any], str]:
    try:
        first, _, lines = path.read_text().partition("\n")
        head = json.loads(first)
        if not {"request", "sha256"} <= head.keys():
            raise ValueError("no prompt-file header")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: cannot be read as a prompt file ({error!r}); make it anew"
        ) from error
    return head, lines


def _intact(head: dict[str, Any], lines: str) -> bool:
    return hashlib.sha256(lines.encode()).hexdigest() == head["sha256"]

"""The words of a stored prompt: the stretch around what was to be found, and the question at its end.

Prompts are stored as token ids, so the model's own tokenizer is needed. Where it, or the prompt, is not at
hand, the reason takes the words' place.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from analysis.runs.run import Run
from greenbench.contract.config import ROOT
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import read_jsonl

AROUND = 90  # characters either side of what was to be found
QUESTION_MOST = 240
PROMPTS_DIR = "prompts"


@dataclass(frozen=True)
class PromptWords:
    """Text cut from one prompt; None with a reason."""

    excerpt: str | None = None
    question: str | None = None
    reason: str | None = None


def prompt_words(run: Run, prompt_index: int, wanted: str) -> PromptWords:
    """Around the first ``wanted`` in the prompt, and its last paragraph. "" finds no place."""
    tokenizer = _tokenizer(run.manifest.server.model_path)
    if tokenizer is None:
        return PromptWords(
            reason="the model's tokenizer is not at hand, so the prompt stays in token ids"
        )
    token_ids = _token_ids(prompt_file(run), prompt_index)
    if token_ids is None:
        return PromptWords(reason="the prompt file is not at hand")
    text: str = tokenizer.decode(token_ids, skip_special_tokens=True)
    return PromptWords(excerpt=around(text, wanted), question=question(text))


def around(text: str, wanted: str) -> str | None:
    """``wanted`` with AROUND characters either side, cut at words; None when it does not occur."""
    at = text.find(wanted) if wanted else -1
    if at < 0:
        return None
    start, end = max(0, at - AROUND), min(len(text), at + len(wanted) + AROUND)
    cut = " ".join(text[start:end].split())
    if start:
        cut = "… " + cut.partition(" ")[2]
    if end < len(text):
        cut = cut.rpartition(" ")[0] + " …"
    return cut


def question(text: str) -> str:
    """The last paragraph: what the prompt asks."""
    last = text.rstrip().rpartition("\n\n")[2]
    words = " ".join(last.split())
    return words if len(words) <= QUESTION_MOST else "… " + words[-QUESTION_MOST:].partition(" ")[2]


def prompt_file(run: Run) -> Path:
    """Where the point found its prompts, or the sweep's own folder when the runs were moved."""
    stored = Path(run.live.prompts_path)
    moved = run.path.parent / PROMPTS_DIR / stored.name
    return moved if moved.is_file() else stored


def _token_ids(path: Path, prompt_index: int) -> list[int] | None:
    """None where there is no such prompt, and where the file is broken: a report only shows its words."""
    if not path.is_file():
        return None
    try:
        for number, prompt in enumerate(read_jsonl(path)):
            if (
                number and prompt.get("prompt_index") == prompt_index
            ):  # the first line is the header
                return prompt.get("token_ids")
    except UserError:
        return None
    return None


@lru_cache(maxsize=4)
def _tokenizer(model_path: str) -> Any:
    """None without the library or the file; a relative path is one of the project's own models."""
    path = ROOT / model_path / "tokenizer.json"
    if not path.is_file():
        return None
    try:
        from tokenizers import Tokenizer
    except ImportError:
        return None
    return Tokenizer.from_file(str(path))

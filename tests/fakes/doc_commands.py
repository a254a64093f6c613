"""The command lines that documents show, word by word: of blocks, and of code in a sentence."""

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

SHELL = {"sh", "bash", "shell", "console"}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
ASSIGNED = re.compile(r"[A-Z_][A-Z0-9_]*=")
# what a line of an indented block that is a command starts with; other such lines are output, or a formula
PROGRAMS = {
    "greenbench", "make", "python", "python3", "locust", "pip", "docker", "docker-compose", "kubectl",
    "sbatch", "curl", "cd", "env", "pre-commit", "npm", "apt-get", "kustomize", "promtool", "pytest",
    "export", "git",
}  # fmt: skip
NUMBERS = {"N", "P", "S", "PORT", "PID"}  # placeholders for which a number is typed


@dataclass(frozen=True)
class Command:
    """``typed``: as the page has it. ``words``: one of the ways in which it can be read, placeholders filled.

    ``whole``: it stands in a block, to be pasted; else it is of a sentence, which may leave something out.
    """

    page: str
    typed: str
    words: tuple[str, ...]
    whole: bool

    @property
    def program(self) -> str:
        return self.words[0]


def commands(page: Path, root: Path) -> list[Command]:
    text, name = page.read_text(), str(page.relative_to(root))
    blocks: list[str] = []

    def taken(found: re.Match[str]) -> str:
        if found[1] in SHELL:
            blocks.append(found[2])
        return ""

    prose = FENCE.sub(taken, text)
    blocks += re.findall(r"(?:^    \S.*\n)+", prose + "\n", flags=re.MULTILINE)
    in_sentences = re.findall(r"`([^`\n]+)`", prose)
    found = [
        command
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        for command in read(line.strip(), name, whole=True)
    ]
    found += [one for piece in in_sentences for one in read(piece, name, whole=False)]
    return found


def read(line: str, page: str, whole: bool) -> Iterator[Command]:
    """Of each command of a line that starts with a program; a choice `a|b` in a word is read both ways."""
    line = re.sub(r"\s#\s.*$", "", line).replace("\\|", "|")
    if "{" in line and not whole:  # a metric's labels, or JSON
        return
    for typed in map(str.strip, _split(line)):
        for words in _ways(typed):
            if words and is_program(words[0]) and (len(words) > 1 or whole):
                yield Command(page, typed, tuple(words), whole)


def is_program(word: str) -> bool:
    return word in PROGRAMS or (word.startswith(("scripts/", "deploy/")) and word.endswith(".sh"))


def _split(line: str) -> Iterator[str]:
    """At `;`, `&&`, `|` with a space on both sides, and at the end of one that goes to the background."""
    yield from (part for part in re.split(r"\s*(?:;|&&|\s\|\s|&(?=\s|$))\s*", line) if part)


def _ways(typed: str) -> Iterator[list[str]]:
    bare = (
        re.sub(r"[\[\]]|(?<!--[a-z]{8} )…", "", typed)
        if not re.search(r"'[^']*\[", typed)
        else typed
    )
    try:
        words = shlex.split(bare)
    except ValueError:
        return
    while words and ASSIGNED.match(words[0]):
        words.pop(0)
    if not words:
        return
    words[0] = re.sub(r"^\.venv[\w-]*/bin/", "", words[0]).replace("python3", "python")
    words = [
        re.sub(r"^<?([A-Z]+)>?$", lambda m: "1" if m[1] in NUMBERS else m[0], w) for w in words
    ]
    for way in itertools.product(*(_choices(word) for word in words)):
        yield list(way)


def _choices(word: str) -> list[str]:
    return word.split("|") if "|" in word and " " not in word else [word]

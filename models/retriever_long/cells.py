"""What is measured of a long retriever: cells of one task at one length, and their results on disk."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from greenbench.contract.config import PromptRequest, TaskConfig
from greenbench.contract.run_dir import write_atomic
from loadgen.make_prompts import make_files
from loadgen.prompts.build import spread_depth
from loadgen.prompts.prompt_file import Prompt, read_prompts
from models.retriever_long.vocabulary import HERE, TOKENIZER

RESULTS = HERE / "results"  # MODEL.HOW.json, one a model and way of measuring
SEED = 20_261_129  # no training sequence is made from it
LENGTHS = (2048, 8192, 32_768)
NOTHING: dict[str, Any] = {"right": 0, "count": 0, "wrong": []}


@dataclass(frozen=True, slots=True)
class Cell:
    """``count`` prompts of one task at one length (tokens)."""

    task: str
    context_tokens: int
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    count: int = 200

    @property
    def key(self) -> str:
        return f"{self.task}/{self.context_tokens}/{json.dumps(self.params, sort_keys=True)}"

    def request(self) -> PromptRequest:
        return PromptRequest(
            model_path=str(TOKENIZER),
            task=TaskConfig(name=self.task, params=self.params),
            context_tokens=self.context_tokens,
            count=self.count,
            seed=SEED,
        )


ABSENT = {"absent_share": 1.0}
# the bars first; what is beyond them after
CELLS = [
    *(Cell("retrieve", n) for n in (2048, 8192, 16_384, 32_768)),
    *(Cell("multi_key", n) for n in LENGTHS),
    *(Cell("frequent_word", n) for n in LENGTHS),
    *(Cell("variables", n) for n in LENGTHS),
    *(Cell("retrieve", n, ABSENT, 100) for n in LENGTHS),
    *(Cell("summarize", n, count=100) for n in LENGTHS),
    *(Cell("multi_value", n, count=100) for n in LENGTHS),
    *(Cell("documents", n, count=100) for n in LENGTHS),
    *(Cell("retrieve", n, count=40) for n in (65_536, 131_000)),
    *(Cell("multi_key", n, count=20) for n in (65_536, 131_000)),
]

# enough to see that a backend is wrong, and from which length on; the last needle stands in one block
FAULT_CELLS = [
    *(Cell(task, n) for task in ("retrieve", "multi_key") for n in (2048, 8192)),
    Cell("retrieve", 8192, {"depth": 0.02}),
]


def prompts_of(cell: Cell, folder: Path) -> list[Prompt]:
    """The cell's prompts, made once and kept in the folder."""
    request = cell.request()
    params = "".join(f"-{name}{value}" for name, value in sorted(cell.params.items()))
    path = folder / f"{cell.task}-{cell.context_tokens}{params}.jsonl"
    make_files([(request, path)])
    return read_prompts(path)


def by_tenth(found: dict[str, Any]) -> list[tuple[int, int]]:
    """(right, asked) of each tenth of depth, of a cell whose needles are spread."""
    tenths = [int(spread_depth(index) * 10) for index in range(found["count"])]
    wrong = [tenths[index] for index in found["wrong"]]
    return [(tenths.count(t) - wrong.count(t), tenths.count(t)) for t in range(10)]


def load_results(path: Path, weights: str) -> dict[str, Any]:
    """What was measured of weights with this sha256 and written to ``path``; nothing yet otherwise."""
    if path.is_file():
        kept = json.loads(path.read_text())
        if kept["weights"] == weights:
            return kept
    return {"weights": weights, "where": "", "cells": {}}


def holds(results: dict[str, Any], cell: Cell) -> bool:
    return results["cells"].get(cell.key, NOTHING)["count"] >= cell.count


def write_results(path: Path, results: dict[str, Any]) -> None:
    path.parent.mkdir(exist_ok=True)
    write_atomic(path, json.dumps(results, indent=1) + "\n")

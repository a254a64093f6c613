"""Measure the retriever on a real vLLM CPU server and rewrite the tables of its model card.

``python -m models.retriever.measure`` starts the server, sends fresh prompts (greedy decoding), grades
them exactly and updates ``measured.json`` and ``README.md``. Cells already measured with these weights are
kept, so it may be stopped and started again at any time; ``--again`` measures everything anew.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from greenbench.contract.config import ROOT, PromptRequest, TaskConfig
from greenbench.contract.run_dir import file_sha256, write_atomic
from loadgen.make_prompts import make_prompts
from loadgen.prompts.build import spread_depth
from loadgen.prompts.encoder import load_encoder
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply

HERE = Path(__file__).parent
FOLDER = HERE / "model"
MEASURED = HERE / "measured.json"
CARD = HERE / "README.md"
OPENING, CLOSING = "<!-- measured by measure.py -->", "<!-- end of measured -->"
SEED = 20_261_123  # no training sequence is made from it
AT_ONCE = 8
PART = 25  # prompts between two writes of measured.json
NOTHING: dict[str, Any] = {"right": 0, "count": 0, "wrong": []}
LENGTHS = (512, 2048, 6144)


@dataclass(frozen=True, slots=True)
class Cell:
    """One number of the card: ``count`` prompts of one task at one length."""

    task: str
    context_tokens: int
    params: dict[str, Any] = field(default_factory=dict[str, Any])
    count: int = 200

    @property
    def key(self) -> str:
        return f"{self.task}/{self.context_tokens}/{json.dumps(self.params, sort_keys=True)}"


SPREAD = [Cell("retrieve", n) for n in LENGTHS]
MULTI = [Cell("multi_key", n) for n in LENGTHS[1:]]
ABSENT = [Cell("retrieve", n, {"absent_share": 1.0}) for n in LENGTHS]
SUMMARY = [Cell("summarize", n) for n in LENGTHS]
LONG = [Cell(task, 8000, count=50) for task in ("retrieve", "multi_key")]
UNTAUGHT = [
    Cell(task, 2048, count=50)
    for task in ("multi_value", "variables", "frequent_word", "documents")
]
# one group after the other, the cells of a group by turns: what is stopped has some of each
GROUPS = [
    [*SPREAD[:2], *MULTI[:1], *ABSENT[:2]],
    SPREAD[2:],
    [*MULTI[1:], *ABSENT[2:]],
    SUMMARY,
    [*UNTAUGHT, *LONG],
]
CELLS = [cell for group in GROUPS for cell in group]


@contextmanager
def server() -> Iterator[dict[str, Any]]:
    """A real server of this model; yields the ``server`` part of its server.json."""
    with tempfile.TemporaryDirectory() as out:
        argv = [sys.executable, "-m", "servers", "--backend", "cpu_attn", "--model", "retriever"]
        process = subprocess.Popen(
            [*argv, "--out", out], cwd=ROOT, stdout=sys.stderr, start_new_session=True
        )
        try:
            yield wait_ready(Path(out) / "server.json", process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def wait_ready(path: Path, process: subprocess.Popen[bytes]) -> dict[str, Any]:
    while process.poll() is None:
        if path.is_file():
            found = json.loads(path.read_text())
            if found["state"] == "ready":
                return found["server"]
        time.sleep(0.5)
    raise SystemExit("the server did not start; its messages stand above")


def measure(
    cell: Cell, done: dict[str, Any], count: int, client: httpx.Client, served_model: str
) -> dict[str, Any]:
    """Prompts number done["count"] to ``count``, added to what was measured before."""
    request = PromptRequest(
        model_path=str(FOLDER),
        task=TaskConfig(name=cell.task, params=cell.params),
        context_tokens=cell.context_tokens,
        count=count,
        seed=SEED,
    )
    prompts = make_prompts(request, load_encoder(str(FOLDER)))

    def right(prompt: Prompt) -> bool:
        body = TASKS[cell.task].body(served_model, prompt) | {"stream": False}
        body.pop("stream_options")
        reply = client.post("/v1/completions", json=body).raise_for_status().json()
        assert reply["usage"]["prompt_tokens"] == cell.context_tokens
        graded = grade_reply(prompt, "measure", reply["choices"][0]["text"], None)
        return bool(graded.correct)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(right, prompts[done["count"] :]))
    wrong = [i for i, result in enumerate(results, start=done["count"]) if not result]
    return {
        "right": done["right"] + sum(results),
        "count": count,
        "wrong": done["wrong"] + wrong,
    }


def parts(groups: list[list[Cell]]) -> Iterator[tuple[Cell, int]]:
    """Steps of PART prompts, the cells of a group by turns."""
    for group in groups:
        for until in range(PART, max(cell.count for cell in group) + 1, PART):
            yield from ((cell, until) for cell in group if until <= cell.count)


def table(measured: dict[str, Any]) -> str:
    """The card's tables, in Markdown. A cell not measured yet says so."""
    cells = measured["cells"]

    def share(cell: Cell) -> str:
        found = cells.get(cell.key)
        if found is None:
            return "not measured"
        return f"{100 * found['right'] / found['count']:.1f} % of {found['count']}"

    rows = ["| task | context | right |", "|---|---|---|"]
    names = (
        (SPREAD, "single needle, 8 distractors, depths spread"),
        (MULTI, "4 keys among 64 distractor keys, all four right and in order"),
        (ABSENT, "key absent, `none` is right"),
        (SUMMARY, "4 findings, all stated, in order, none invented"),
        (LONG, "near the window"),
        (UNTAUGHT, "never trained on"),
    )
    rows += [
        f"| {name} (`{c.task}`) | {c.context_tokens} | {share(c)} |"
        for group, name in names
        for c in group
    ]
    rows += ["", "The single needles by depth:", "", f"| depth | {' | '.join(map(str, LENGTHS))} |"]
    rows.append("|---" * (len(LENGTHS) + 1) + "|")
    columns = [by_tenth(cells.get(cell.key, NOTHING)) for cell in SPREAD]
    for tenth, row in enumerate(zip(*columns, strict=True)):
        shown = [f"{right} of {count}" for right, count in row]
        rows.append(f"| {tenth / 10:.1f} to {(tenth + 1) / 10:.1f} | {' | '.join(shown)} |")
    where = measured["where"]
    rows += [
        "",
        f"vLLM {where['vllm']}, {where['backend']}, {where['dtype']}, "
        f"weights sha256 `{measured['weights'][:16]}…`, prompt seed {SEED}.",
    ]
    return "\n".join(rows)


def by_tenth(found: dict[str, Any]) -> list[tuple[int, int]]:
    """(right, asked) of each tenth of depth, of a cell whose needles are spread."""
    tenths = [int(spread_depth(index) * 10) for index in range(found["count"])]
    wrong = [tenths[index] for index in found["wrong"]]
    return [(tenths.count(t) - wrong.count(t), tenths.count(t)) for t in range(10)]


def write_card(measured: dict[str, Any]) -> None:
    before, _, rest = CARD.read_text().partition(OPENING)
    _, _, after = rest.partition(CLOSING)
    write_atomic(CARD, f"{before}{OPENING}\n{table(measured)}\n{CLOSING}{after}")


def load_measured(again: bool) -> dict[str, Any]:
    weights = file_sha256(FOLDER / "model.safetensors")
    if MEASURED.is_file() and not again:
        kept = json.loads(MEASURED.read_text())
        if kept["weights"] == weights:
            return kept
    return {"weights": weights, "where": {}, "cells": {}}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--again", action="store_true", help="keep nothing measured before")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="start nothing new after this"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too
    measured = load_measured(args.again)
    left = any(measured["cells"].get(c.key, NOTHING)["count"] < c.count for c in CELLS)
    started = time.monotonic()
    if left:
        # a connection that waits between two parts would be closed by the server just when it is used;
        # no time limit, since nothing is timed and the machine may have other work
        limits = httpx.Limits(max_keepalive_connections=0)
        with (
            server() as found,
            httpx.Client(base_url=found["base_url"], timeout=600, limits=limits) as client,
        ):
            measured["where"] = {
                "vllm": found["vllm_version"],
                "backend": found["observed_backend"],
                "dtype": found["dtype"],
            }
            for cell, until in parts(GROUPS):
                if time.monotonic() - started > args.limit_s:
                    break
                done = measured["cells"].get(cell.key, NOTHING)
                if done["count"] >= until:
                    continue
                result = measure(cell, done, until, client, found["served_model"])
                measured["cells"][cell.key] = result
                write_atomic(MEASURED, json.dumps(measured, indent=1) + "\n")
                write_card(measured)
                print(
                    f"{time.monotonic() - started:6.0f} s {cell.key}: "
                    f"{result['right']}/{result['count']}",
                    flush=True,
                )
    write_card(measured)


if __name__ == "__main__":
    main()

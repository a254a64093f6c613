"""Measure a long retriever on a real vLLM server on this machine's CPU, with any backend.

``python -m models.retriever_long.measure retriever-32k --backend cpu_attn --longest 8192 --count 20`` starts
the server, asks the prompts of ``cells.py`` by greedy decoding, grades them and writes
``results/MODEL.BACKEND.json``; cells that it holds already, of these weights, are kept.
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
from pathlib import Path
from typing import Any

import httpx

from greenbench.contract.config import ROOT, load_model
from greenbench.contract.run_dir import file_sha256, slug
from loadgen.prompts.prompt_file import Prompt
from loadgen.tasks import TASKS
from loadgen.tasks.grading import grade_reply
from models.retriever.measure import wait_ready
from models.retriever_long.cells import (
    CELLS,
    FAULT_CELLS,
    RESULTS,
    Cell,
    holds,
    load_results,
    prompts_of,
    write_results,
)

AT_ONCE = 4


@contextmanager
def server(model: str, backend: str, max_model_len: int) -> Iterator[dict[str, Any]]:
    """A real server; yields the ``server`` part of its server.json."""
    with tempfile.TemporaryDirectory() as out:
        argv = [sys.executable, "-m", "servers", "--backend", backend, "--model", model]
        argv += ["--max-model-len", str(max_model_len), "--out", out]
        process = subprocess.Popen(argv, cwd=ROOT, stdout=sys.stderr, start_new_session=True)
        try:
            yield wait_ready(Path(out) / "server.json", process)
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(60)


def measure(cell: Cell, client: httpx.Client, served_model: str, folder: Path) -> dict[str, Any]:
    """The cell's result, as ``grade.measure`` gives it."""

    def right(prompt: Prompt) -> bool:
        body = TASKS[cell.task].body(served_model, prompt) | {"stream": False}
        body.pop("stream_options")
        reply = client.post("/v1/completions", json=body).raise_for_status().json()
        assert reply["usage"]["prompt_tokens"] == cell.context_tokens
        graded = grade_reply(prompt, "measure", reply["choices"][0]["text"], None)
        return bool(graded.correct)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        results = list(pool.map(right, prompts_of(cell, folder)))
    wrong = [index for index, one in enumerate(results) if not one]
    return {"right": sum(results), "count": cell.count, "wrong": wrong}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a name in configs/models/")
    parser.add_argument("--backend", default="cpu_attn")
    parser.add_argument(
        "--faults", action="store_true", help="the few cells that show a wrong backend"
    )
    parser.add_argument("--tasks", default="", help="comma-separated; all by default")
    parser.add_argument(
        "--shortest", type=int, default=0, help="leave shorter contexts out (tokens)"
    )
    parser.add_argument(
        "--longest", type=int, default=8192, help="leave longer contexts out (tokens)"
    )
    parser.add_argument("--count", type=int, default=20, help="prompts a cell, at most")
    parser.add_argument(
        "--limit-s", type=float, default=float("inf"), help="start nothing new after"
    )
    args = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped too
    model = load_model(args.model)
    label = slug(Path(args.backend).stem if args.backend.endswith(".yaml") else args.backend)
    path = RESULTS / f"{Path(str(model.path)).name}.{label}.json"
    results = load_results(path, file_sha256(Path(str(model.path)) / "model.safetensors"))
    asked = args.tasks.split(",") if args.tasks else [cell.task for cell in CELLS]
    cells = [
        Cell(c.task, c.context_tokens, c.params, min(c.count, args.count))
        for c in (FAULT_CELLS if args.faults else CELLS)
        if args.shortest <= c.context_tokens <= args.longest and c.task in asked
    ]
    cells = [cell for cell in cells if not holds(results, cell)]
    started = time.monotonic()
    # a connection that waits between two parts would be closed by the server just when it is used;
    # no time limit, since nothing is timed and the machine may have other work
    limits = httpx.Limits(max_keepalive_connections=0)
    with (
        tempfile.TemporaryDirectory() as folder,
        server(args.model, args.backend, args.longest + 256) as found,
        httpx.Client(base_url=found["base_url"], timeout=600, limits=limits) as client,
    ):
        results["where"] = (
            f"vLLM {found['vllm_version']}, {found['observed_backend']}, {found['dtype']}, CPU"
        )
        for cell in cells:
            if time.monotonic() - started > args.limit_s:
                break
            measured = measure(cell, client, found["served_model"], Path(folder))
            results["cells"][cell.key] = measured
            write_results(path, results)
            print(
                f"{time.monotonic() - started:6.0f} s {label} {cell.key}: "
                f"{measured['right']}/{measured['count']}",
                flush=True,
            )
    print(json.dumps({"wrote": str(path)}))


if __name__ == "__main__":
    main()

"""How fast our attention backends are beside vLLM's own: ``python -m servers.plugins.bench``.

Each backend runs in its own process, as vLLM's offline engine on the same model, one scheduler step a
call. The processes take turns, a few steps each, so that a slow minute of the machine falls on all of
them; only one works at a time. Times are of whole engine steps (scheduler, model, attention, sampling),
since those are what a user waits for. A turn's time is its least step: another program on the machine can
only add to it. The ratio is the median over turns of (backend / cpu_attn).
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from greenbench.contract.cpu import dtype_on_cpu, this_cpu
from greenbench.contract.run_dir import write_atomic
from servers.plugins.bench_layer import bench_layers

REFERENCE = "cpu_attn"
ARMS: dict[str, str | None] = {
    REFERENCE: None,
    "sdpa": "servers.plugins.sdpa.SdpaBackend",
    "sink_window": "servers.plugins.sink_window.SinkWindowBackend",
    "sdpa_gather": "servers.plugins.sdpa_gather.SdpaGatherBackend",
}
STEPS_PER_TURN = 8


@dataclass(frozen=True, slots=True)
class Point:
    kind: str  # decode: one step of the batch; prefill: from prompt to first token
    context: int
    batch: int

    @property
    def label(self) -> str:
        return f"{self.kind} {self.context:,} × {self.batch}"


POINTS = [
    *(Point("decode", context, batch) for batch in (1, 8) for context in (128, 2048, 7000)),
    *(Point("prefill", context, 1) for context in (2048, 7000)),
]


class Engine:
    """One backend's engine, stepped by hand."""

    def __init__(self, model: str, dtype: str, block_size: int) -> None:
        from vllm import EngineArgs, LLMEngine

        arguments = EngineArgs(
            model=model,
            dtype=dtype,
            block_size=block_size,
            max_model_len=8192,
            max_num_batched_tokens=2048,
            max_num_seqs=16,
            enable_prefix_caching=False,
            enforce_eager=True,
            kv_cache_memory_bytes=2**30,
            attention_backend="CUSTOM" if os.environ.get("GREENBENCH_ATTENTION_CLASS") else None,
        )
        self.engine = LLMEngine.from_engine_args(arguments)
        self.vocabulary = self.engine.model_config.get_vocab_size()
        self.sent = 0

    def add(self, context: int, output: int) -> str:
        """Queue one request of ``context`` pseudo-random tokens, another for each request."""
        from vllm import SamplingParams

        self.sent += 1
        step = 2 * self.sent + 1
        tokens = [(17 + at * step + at * at) % (self.vocabulary - 16) + 8 for at in range(context)]
        name = f"r{self.sent}"
        sampling = SamplingParams(
            max_tokens=output, temperature=0, ignore_eos=True, detokenize=False
        )
        self.engine.add_request(name, {"prompt_token_ids": tokens}, sampling)
        return name

    def start(self, point: Point) -> None:
        """Prefill a batch that then decodes until ``stop``."""
        self.names = [self.add(point.context, 8192 - point.context) for _ in range(point.batch)]
        waiting = set(self.names)
        while waiting:
            waiting -= {
                output.request_id for output in self.engine.step() if output.outputs[0].token_ids
            }

    def decode(self, steps: int) -> list[float]:
        return [self._timed_step() for _ in range(steps)]

    def prefill(self, point: Point) -> float:
        """Seconds from the first step of one request to its first token, which is its last."""
        self.add(point.context, 1)
        seconds = 0.0
        while self.engine.has_unfinished_requests():
            seconds += self._timed_step()
        return seconds

    def stop(self) -> None:
        self.engine.abort_request(self.names)
        while self.engine.has_unfinished_requests():
            self.engine.step()

    def _timed_step(self) -> float:
        start = time.perf_counter()
        self.engine.step()
        return time.perf_counter() - start


def serve(orders: Connection, backend: str, options: str, engine_arguments: dict[str, Any]) -> None:
    """A child process: make the engine, then obey (method, arguments) until None comes."""
    os.environ |= {
        "VLLM_PLUGINS": "greenbench,greenbench_cpu",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's steps run in this process
    }
    if path := ARMS[backend]:
        os.environ |= {"GREENBENCH_ATTENTION_CLASS": path, "GREENBENCH_ATTENTION_OPTIONS": options}
    engine = Engine(**engine_arguments)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        method, *arguments = order
        orders.send(getattr(engine, method)(*arguments))


class Arm:
    """The parent's end of one backend's process."""

    def __init__(self, name: str, options: str, engine_arguments: dict[str, Any]) -> None:
        self.name = name
        context = multiprocessing.get_context("spawn")
        self.orders, theirs = context.Pipe()
        self.process = context.Process(
            target=serve, args=(theirs, name, options, engine_arguments), daemon=True
        )
        self.process.start()
        theirs.close()

    def wait_ready(self) -> None:
        assert self.orders.recv() == "ready"

    def __call__(self, *order: object) -> Any:
        self.orders.send(order)
        return self.orders.recv()

    def close(self) -> None:
        self.orders.send(None)
        self.process.join()


def measure(arms: list[Arm], point: Point, turns: int) -> dict[str, list[float]]:
    """Seconds of each turn by backend; turn i of all backends ran side by side in time."""
    seconds: dict[str, list[float]] = {arm.name: [] for arm in arms}
    if point.kind == "decode":
        for arm in arms:
            arm("start", point)
            arm("decode", 4)  # warm
        for _ in range(turns):
            for arm in arms:
                seconds[arm.name].append(min(arm("decode", STEPS_PER_TURN)))
        for arm in arms:
            arm("stop")
    else:
        for arm in arms:
            arm("prefill", point)  # warm
        for _ in range(turns):
            for arm in arms:
                seconds[arm.name].append(arm("prefill", point))
    return seconds


def ratio(own: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Median, least and largest of the turn-by-turn ratios."""
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(results: dict[Point, dict[str, list[float]]], names: list[str]) -> str:
    """Markdown: a row a point, milliseconds of the reference, ratios of the others."""
    others = [name for name in names if name != REFERENCE]
    lines = [
        f"| whole step | {REFERENCE} ms | " + " | ".join(f"{name} ×" for name in others) + " |",
        "|---|" + "---|" * (len(others) + 1),
    ]
    for point, seconds in results.items():
        reference = seconds[REFERENCE]
        cells = [f"{1e3 * min(reference):.1f}"]
        for name in others:
            middle, least, most = ratio(seconds[name], reference)
            cells.append(f"{middle:.2f} ({least:.2f}–{most:.2f})")
        lines.append(f"| {point.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def model_folder(name: str) -> str:
    """The folder of a model of configs/models, built if need be."""
    command = [sys.executable, "-m", "servers", "build", "--model", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def bench_steps(arguments: argparse.Namespace) -> dict[str, Any]:
    """Whole engine steps on the CPU: all figures, JSON-able; the table is printed."""
    names = arguments.backends or list(ARMS)
    engine = {
        "model": model_folder(arguments.model),
        "dtype": arguments.dtype,
        "block_size": arguments.block_size,
    }
    arms = [Arm(name, "{}", engine) for name in names]
    for arm in arms:
        arm.wait_ready()
    results: dict[Point, dict[str, list[float]]] = {}
    for point in POINTS:
        results[point] = measure(arms, point, arguments.turns)
        shown = {n: f"{1e3 * statistics.median(s):.1f} ms" for n, s in results[point].items()}
        print(point.label, shown, file=sys.stderr, flush=True)
    for arm in arms:
        arm.close()
    print(table(results, names))
    return {
        "level": "step",
        "device": "cpu",
        **engine,
        "results": {point.label: seconds for point, seconds in results.items()},
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m servers.plugins.bench", description=__doc__)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--layer", action="store_true", help="one layer alone (always so on cuda)")
    parser.add_argument("--backends", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--limit-s", type=float, default=60, help="one layer: for each backend")
    parser.add_argument("--within-s", type=float, default=math.inf, help="one layer: for all")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--model", default="tiny-llama", help="name, YAML file or folder")
    auto = dtype_on_cpu(this_cpu().flags)
    parser.add_argument("--dtype", default=auto.name, help=f"of whole steps; default {auto.name}")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=9)
    arguments = parser.parse_args()

    def keep(figures: dict[str, Any]) -> None:
        if arguments.out:
            write_atomic(arguments.out, json.dumps(figures, indent=1) + "\n")

    if arguments.layer or arguments.device == "cuda":
        limits = arguments.limit_s, arguments.within_s
        bench_layers(arguments.device, arguments.backends, *limits, keep)
    else:
        keep(bench_steps(arguments))


if __name__ == "__main__":
    main()

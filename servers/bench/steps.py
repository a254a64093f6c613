"""How fast our attention backends are beside vLLM's own: ``python -m servers.bench.steps``, on a CPU.

Each backend runs in its own process, as vLLM's offline engine on the same model, one scheduler step a
call. The processes take turns, a few steps each, so that a slow minute of the machine falls on all of
them; only one works at a time. Times are of whole engine steps (scheduler, model, attention, sampling),
since those are what a user waits for. A turn's time is its least step: another program on the machine can
only add to it. The ratio is the median over turns of (backend / the first backend).
"""

import argparse
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from greenbench.contract.cpu import Dtype, dtype_on_cpu, this_cpu
from greenbench.contract.errors import exit_on_user_error
from greenbench.contract.run_dir import write_atomic
from servers.backends.registry import Backend
from servers.bench.arms import POINTS, Arm, Point, arms_on, vllm_backend

if TYPE_CHECKING:
    from vllm import PoolingRequestOutput, RequestOutput

STEPS_PER_TURN = 8
MAX_MODEL_LEN = 8192

Seconds = dict[str, list[float]]  # of each turn, by the arm's name


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What all arms have in common."""

    model: str
    dtype: Dtype
    block_size: int


class Engine:
    """One backend's engine, stepped by hand."""

    def __init__(self, config: EngineConfig, backend: Backend) -> None:
        from vllm import EngineArgs, LLMEngine

        arguments = EngineArgs(
            model=config.model,
            dtype=config.dtype,
            block_size=config.block_size,
            max_model_len=MAX_MODEL_LEN,
            max_num_batched_tokens=2048,
            max_num_seqs=16,
            enable_prefix_caching=False,
            enforce_eager=True,
            kv_cache_memory_bytes=2**30,
            attention_backend=vllm_backend(backend),
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
        self.names = [
            self.add(point.context, MAX_MODEL_LEN - point.context) for _ in range(point.batch)
        ]
        waiting = set(self.names)
        while waiting:
            waiting -= {output.request_id for output in self.engine.step() if has_token(output)}

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


def has_token(output: "RequestOutput | PoolingRequestOutput") -> bool:
    from vllm import RequestOutput

    return isinstance(output, RequestOutput) and bool(output.outputs[0].token_ids)


def serve(orders: Connection, arm: Arm, config: EngineConfig) -> None:
    """A child process: make the engine, then obey (method, arguments) until None comes."""
    os.environ |= {
        "VLLM_PLUGINS": "greenbench,greenbench_cpu",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine's steps run in this process
        **arm.env,
    }
    engine = Engine(config, arm.backend)
    orders.send("ready")
    while (order := orders.recv()) is not None:
        method, *arguments = order
        orders.send(getattr(engine, method)(*arguments))


class Worker:
    """The parent's end of one arm's process."""

    def __init__(self, arm: Arm, config: EngineConfig) -> None:
        self.name = arm.name
        context = multiprocessing.get_context("spawn")
        self.orders, theirs = context.Pipe()
        self.process = context.Process(target=serve, args=(theirs, arm, config), daemon=True)
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


def measure(workers: list[Worker], point: Point, turns: int) -> Seconds:
    """Seconds of each turn; turn i of all arms ran side by side in time."""
    act = decode_turn if point.kind == "decode" else prefill_turn
    for worker in workers:
        warm_up(worker, point)
    seconds: Seconds = {worker.name: [] for worker in workers}
    for _ in range(turns):
        for worker in workers:
            seconds[worker.name].append(act(worker, point))
    if point.kind == "decode":
        for worker in workers:
            worker("stop")
    return seconds


def warm_up(worker: Worker, point: Point) -> None:
    if point.kind == "decode":
        worker("start", point)
        worker("decode", 4)
    else:
        worker("prefill", point)


def decode_turn(worker: Worker, _: Point) -> float:
    return min(worker("decode", STEPS_PER_TURN))


def prefill_turn(worker: Worker, point: Point) -> float:
    return worker("prefill", point)


def ratio(own: list[float], reference: list[float]) -> tuple[float, float, float]:
    """Median, least and largest of the turn-by-turn ratios."""
    ratios = [a / b for a, b in zip(own, reference, strict=True)]
    return statistics.median(ratios), min(ratios), max(ratios)


def table(results: dict[Point, Seconds]) -> str:
    """Markdown: a row a point, milliseconds of the first arm, ratios of the others."""
    reference, *others = next(iter(results.values()))
    lines = [
        f"| whole step | {reference} ms | " + " | ".join(f"{name} ×" for name in others) + " |",
        "|---|" + "---|" * (len(others) + 1),
    ]
    for point, seconds in results.items():
        cells = [f"{1e3 * min(seconds[reference]):.1f}"]
        for name in others:
            middle, least, most = ratio(seconds[name], seconds[reference])
            cells.append(f"{middle:.2f} ({least:.2f}–{most:.2f})")
        lines.append(f"| {point.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def model_folder(name: str) -> str:
    """The folder of a model of configs/models, built if need be."""
    command = [sys.executable, "-m", "servers", "build", "--model", name]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


def bench_steps(arms: list[Arm], config: EngineConfig, turns: int) -> dict[Point, Seconds]:
    workers = [Worker(arm, config) for arm in arms]
    for worker in workers:
        worker.wait_ready()
    results: dict[Point, Seconds] = {}
    for point in POINTS["cpu"]:
        results[point] = measure(workers, point, turns)
        shown = {n: f"{1e3 * statistics.median(s):.1f} ms" for n, s in results[point].items()}
        print(point.label, shown, file=sys.stderr, flush=True)
    for worker in workers:
        worker.close()
    return results


def main() -> None:
    auto = dtype_on_cpu(this_cpu().flags)
    parser = argparse.ArgumentParser(prog="python -m servers.bench.steps", description=__doc__)
    parser.add_argument("--backends", help="by commas; default: all of the CPU")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    parser.add_argument("--model", default="tiny-llama", help="name, YAML file or folder")
    parser.add_argument("--dtype", default=auto.name, help=f"default {auto.name}")
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--turns", type=int, default=9)
    given = parser.parse_args()
    arms = arms_on("cpu", given.backends)
    config = EngineConfig(model_folder(given.model), given.dtype, given.block_size)
    results = bench_steps(arms, config, given.turns)
    print(table(results))
    if given.out:
        figures = {"level": "step", "device": "cpu", **asdict(config)}
        figures["results"] = {point.label: seconds for point, seconds in results.items()}
        write_atomic(given.out, json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))

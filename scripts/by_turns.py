"""Our client and `vllm bench serve` by turns on one real server, the recorder and exporter on and off.

    python scripts/by_turns.py measure --out DIR --model llama-3.2-1b --backend flash_attn3 \\
        --shape 8192x16:ours,on,off,off,on --shape 32768x8:ours,on,ours
    python scripts/by_turns.py read DIR

A shape is CONTEXTxUSERS and its turns: `ours` is an ordinary point of a sweep, `on` and `off` are
`vllm bench serve` with and without our recorder and exporter beside it. Both clients keep USERS requests
open on the same prompts of CONTEXT tokens, with --output-tokens forced ones; theirs sends them as text.
`read` works out both clients' throughput by one rule, from the requests that ended while all users were busy.
A shape begins with `ours`: its rate tells how many requests --their-s wants.

The card's energy counter is read once a second in every turn, by this program and nothing else in `off`.
"""

import argparse
import json
import os
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from greenbench.contract.config import ROOT, PointConfig, SweepConfig, load_model
from greenbench.contract.cuda_devices import shown
from greenbench.contract.manifest import Server
from greenbench.contract.new_run import point_hash
from greenbench.contract.run_dir import RunDir, read_json, read_jsonl, write_atomic
from greenbench.sweep import provenance
from greenbench.sweep.child_processes import Child, RecorderStage, ServerStage, python_module
from greenbench.sweep.claims import Claim
from greenbench.sweep.order import ServerStart, expand
from greenbench.sweep.point_run import Origin, run_point
from greenbench.sweep.runner import build_model, make_prompts
from greenbench.vllm_python import vllm_python
from loadgen.prompts.prompt_file import read_prompts
from telemetry.sensors.gpu import GpuIdentity, NoGpu
from telemetry.sensors.nvml import NvmlReader

WARMUP_S = 5.0
ROUNDS = 24  # answers of every user, at least, in a turn of theirs
THEIR_SCRIPT = ROOT / "scripts" / "peers" / "vllm_bench_serve.py"
TURNS = ("ours", "on", "off")


@dataclass(frozen=True, slots=True)
class Shape:
    context: int
    users: int
    turns: tuple[str, ...]

    @classmethod
    def parse(cls, text: str) -> "Shape":
        size, _, turns = text.partition(":")
        context, _, users = size.partition("x")
        names = tuple(turns.split(","))
        numbers = context.isdigit() and users.isdigit()
        if set(names) - set(TURNS) or names[0] != "ours" or not numbers:
            raise argparse.ArgumentTypeError(
                f"'{text}' is no shape; give e.g. 8192x16:ours,on,off with turns out of {TURNS}, ours first"
            )
        return cls(int(context), int(users), names)

    @property
    def label(self) -> str:
        return f"{self.context}x{self.users}"


def start_of(options: argparse.Namespace) -> ServerStart:
    """One server and all its points, as the sweep of the same settings would have them."""
    sweep = SweepConfig.model_validate({
        "name": "by-turns",
        "models": [options.model],
        "backends": [options.backend],
        "contexts": sorted({shape.context for shape in options.shape}),
        "tasks": [{"name": "retrieve", "output_tokens": options.output_tokens}],
        "loads": [{"kind": "closed", "users": n} for n in {s.users for s in options.shape}],
        "prompts_per_point": 24,
        "server": {
            "execution": options.execution,
            "max_model_len": max(shape.context for shape in options.shape) + 2048,
            "max_num_batched_tokens": options.step_tokens,
            "max_num_seqs": 32,
            "kv_cache_gib": options.kv_cache_gib,
        },
        "phases": {"warmup_s": WARMUP_S, "measure_s": options.our_s, "drain_s": 60},
        "telemetry": {"period_s": 0.05},
    })  # fmt: skip
    (start,) = expand(sweep, [load_model(options.model)], sweep.contenders)
    return start


def point_of(start: ServerStart, shape: Shape) -> PointConfig:
    return next(
        point
        for point in start.points
        if (point.context_tokens, point.load.users) == (shape.context, shape.users)
    )


def first_visible(cards: list[GpuIdentity]) -> int | None:
    """Index of the card that a server of one GPU takes, CUDA's device 0; None where it cannot be told."""
    devices = shown([card.for_cuda() for card in cards], os.environ).devices
    first = devices[0] if devices and len(devices[0]) == 1 else ()
    return next((card.index for card in cards if card.uuid in first), None)


class Counter:
    """That card's energy counter, once a second: rows (monotonic s, mJ). Empty without a card."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, int]] = []
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        with suppress(NoGpu):
            reader = NvmlReader()
            index = first_visible(reader.gpus())
            while index is not None and not self._over.wait(1.0):
                energy = reader.read(index).energy_mj
                if energy is not None:
                    self.rows.append((time.monotonic(), energy))
            reader.close()

    def __enter__(self) -> "Counter":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(5)


@contextmanager
def watched(folder: Path, server: Server) -> Iterator[None]:
    """Our recorder and our exporter beside whatever runs in the block."""
    recorder = RecorderStage(RunDir(folder), server, 0.05, 0.5)
    exporter = Child(
        python_module("telemetry", "serve", "--port", "0"), folder / "exporter.log", True
    )
    try:
        recorder.wait_started()
        yield
    finally:
        exporter.stop(10)
        recorder.stop()


def as_text(prompts: Path, model_path: str, out: Path) -> Path:
    """Our prompts as a dataset file of theirs, which wants text."""
    tokenizer = Tokenizer.from_file(str(Path(model_path) / "tokenizer.json"))
    texts = (tokenizer.decode(prompt.token_ids, False) for prompt in read_prompts(prompts))
    write_atomic(out, "".join(json.dumps({"prompt": text}) + "\n" for text in texts))
    return out


def their_requests(users: int, per_s: float, least_s: float) -> int:
    """For ``least_s`` after the warm-up and ROUNDS at least: users keep in step, so rounds are the sample."""
    return users + round(max(per_s * least_s, ROUNDS * users) + per_s * WARMUP_S)


def their_turn(
    server: Server, shape: Shape, texts: Path, count: int, output_tokens: int, with_us: bool
) -> None:
    folder = texts.parent
    argv = [
        str(vllm_python()),
        str(THEIR_SCRIPT),
        "--backend",
        "vllm",
        "--base-url",
        server.base_url,
    ]
    argv += ["--model", server.served_model, "--tokenizer", server.model_path]
    argv += ["--dataset-name", "custom", "--dataset-path", str(texts), "--skip-chat-template"]
    argv += ["--custom-output-len", str(output_tokens), "--ignore-eos", "--disable-tqdm"]
    argv += ["--num-prompts", str(count), "--max-concurrency", str(shape.users)]
    argv += ["--save-result", "--save-detailed", "--result-dir", str(folder)]
    argv += ["--result-filename", "theirs.json"]
    with ExitStack() as beside:
        if with_us:
            beside.enter_context(watched(folder, server))
        client = Child(argv, folder / "theirs.log", True)
        client.process.wait()
    if client.code != 0:
        print(f"vllm bench serve {client.how_it_ended()}", flush=True)


def measure(options: argparse.Namespace) -> int:
    out: Path = options.out
    start = start_of(options)
    end_s = time.monotonic() + options.limit_s
    model_path = build_model(start.request)
    prompts = make_prompts(out, list(start.points), model_path)
    with Claim(out) as claim, ServerStage(start.request, out / "server") as stage:
        origin = Origin(out, provenance.code(), provenance.host(), os.getpid(), claim)
        server = stage.start(lambda: None)
        print(f"ready after {server.ready_s} s, {server.observed_backend}", flush=True)
        rates: dict[str, float] = {}
        for shape in options.shape:
            for number, turn in enumerate(shape.turns):
                if time.monotonic() + options.our_s + 20 > end_s:
                    print(f"{shape.label} {number} {turn}: not run, no time left", flush=True)
                    continue
                folder = out / "turns" / f"{shape.label}-{number}-{turn}"
                folder.mkdir(parents=True)
                about: dict[str, Any] = {"shape": shape.label, "turn": turn}
                point = point_of(start, shape)
                began = time.monotonic()
                with Counter() as counter:
                    if turn == "ours":
                        prompt_file = prompts[point_hash(point)]
                        made = run_point(origin, stage, server, point, prompt_file, lambda: None)
                        about["run"] = made.run_id
                        rates[shape.label] = made.counts.ok / (options.our_s + WARMUP_S)
                    else:
                        count = their_requests(shape.users, rates[shape.label], options.their_s)
                        path = Path(prompts[point_hash(point)].path)
                        texts = as_text(path, server.model_path, folder / "prompts.jsonl")
                        their_turn(server, shape, texts, count, options.output_tokens, turn == "on")
                about["counter"] = counter.rows
                write_atomic(folder / "turn.json", json.dumps(about))
                took_s = time.monotonic() - began
                print(f"{shape.label} {number} {turn}: {took_s:.0f} s", flush=True)
    return 0


@dataclass(frozen=True, slots=True)
class Sent:
    """One good request, in seconds of one monotonic clock."""

    start_s: float
    chunk_s: list[float]
    tokens: int


def theirs(folder: Path) -> list[Sent]:
    raw = read_json(folder / "theirs.json")
    columns = ("start_times", "ttfts", "itls", "output_lens", "errors")
    rows = zip(*(raw[name] for name in columns), strict=True)
    return [
        Sent(start, list(np.cumsum([start + ttft, *gaps])), tokens)
        for start, ttft, gaps, tokens, error in rows
        if not error
    ]


def ours(run: Path) -> list[Sent]:
    rows = [row for file in (run / "requests").glob("*.jsonl") for row in read_jsonl(file)]
    return [
        Sent(
            row["sent_mono_ns"] / 1e9,
            [(row["sent_mono_ns"] + at) / 1e9 for at in row["chunk_ns"]],
            row["output_tokens"],
        )
        for row in rows
        if row["error_type"] is None
    ]


def busy_window(sent: list[Sent]) -> tuple[float, float]:
    """From WARMUP_S after the first request to the last one's start: every user has one open."""
    starts = [request.start_s for request in sent]
    return min(starts) + WARMUP_S, max(starts)


def figures(sent: list[Sent], counter: list[tuple[float, int]]) -> dict[str, float | None] | None:
    """Of the requests that ended while all users were busy; None where none did.

    tokens_per_s is Little's law, requests in flight over the time of one: a count of the tokens in a
    window is off by up to one round of the users, who keep in step (6 % for 16 rounds).
    """
    start_s, end_s = busy_window(sent)
    ended = [request for request in sent if start_s <= request.chunk_s[-1] < end_s]
    if not ended:
        return None
    busy_s = sum(
        max(0.0, min(end_s, request.chunk_s[-1]) - max(start_s, request.start_s))
        for request in sent
    )
    in_flight = busy_s / (end_s - start_s)
    e2e_s = statistics.fmean(request.chunk_s[-1] - request.start_s for request in ended)
    tokens = statistics.fmean(request.tokens for request in ended)
    return {
        "window_s": end_s - start_s,
        "requests": len(ended),
        "in_flight": in_flight,
        "tokens_per_s": in_flight * tokens / e2e_s,
        "mean_ttft_ms": statistics.fmean(1e3 * (r.chunk_s[0] - r.start_s) for r in ended),
        "mean_tpot_ms": statistics.fmean(
            1e3 * (r.chunk_s[-1] - r.chunk_s[0]) / (r.tokens - 1) for r in ended
        ),
        "watts": watts(counter, start_s, end_s),
    }


def watts(counter: list[tuple[float, int]], start_s: float, end_s: float) -> float | None:
    """Mean power between the first and the last reading inside the window; None with fewer than two."""
    inside = [(at, energy) for at, energy in counter if start_s <= at <= end_s]
    if len(inside) < 2:
        return None
    (first_s, first_mj), (last_s, last_mj) = inside[0], inside[-1]
    return (last_mj - first_mj) / 1e3 / (last_s - first_s)


def read(options: argparse.Namespace) -> int:
    for folder in sorted((options.out / "turns").iterdir()):
        about = read_json(folder / "turn.json")
        sent = ours(options.out / about["run"]) if "run" in about else theirs(folder)
        measured = figures(sent, about["counter"])
        if measured is None:
            print(f"{folder.name}  no request ended while all users were busy")
            continue
        words = (f"{name} {value:.2f}" for name, value in measured.items() if value is not None)
        print(folder.name, *words, sep="  ")
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("measure")
    command.set_defaults(run=measure)
    command.add_argument("--out", type=lambda text: Path(text).resolve(), required=True)
    command.add_argument("--model", default="tiny-llama")
    command.add_argument("--backend", default="cpu_attn")
    command.add_argument("--execution", default="eager")
    command.add_argument("--shape", type=Shape.parse, action="append", required=True)
    command.add_argument("--output-tokens", type=int, default=128)
    command.add_argument("--step-tokens", type=int, default=8192)
    command.add_argument("--kv-cache-gib", type=float, default=1.0)
    command.add_argument("--our-s", type=float, default=62.0, help="measured seconds of our turns")
    command.add_argument("--their-s", type=float, default=15.0, help="about, of theirs")
    command.add_argument(
        "--limit-s", type=float, default=1e9, help="no turn starts too late for it"
    )
    command = commands.add_parser("read")
    command.set_defaults(run=read)
    command.add_argument("out", type=Path)
    options = parser.parse_args()
    return options.run(options)


if __name__ == "__main__":
    sys.exit(main())

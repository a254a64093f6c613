"""One attention layer of each backend on random pages: ``python -m servers.bench.layers --device cuda``.

What whole engine steps show last, and a GPU shows fast: the layer's KV write and attention alone, with
the metadata that each backend's own builder makes. Every backend runs in its own process, so that a
kernel that faults ends alone. Pages of a step are random blocks; successive calls read other requests,
more of them than the L2 cache holds.
"""

import argparse
import json
import math
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast, get_args

import torch

from greenbench.contract.errors import exit_on_user_error
from greenbench.contract.run_dir import write_atomic
from servers.backends.host_facts import Device
from servers.backends.registry import Backend
from servers.bench.arms import POINTS, Arm, Point, arms_on, vllm_backend
from servers.plugins import OPTIONS_ENV

if TYPE_CHECKING:
    from vllm.config import VllmConfig
    from vllm.v1.attention.backend import AttentionBackend, CommonAttentionMetadata

Call = Callable[[], None]  # of the layer, for one step
Figures = dict[str, Any]  # of one arm: a dict by each point's label, and its "error" as text


@dataclass(frozen=True, slots=True)
class Shape:
    """Attention of one layer; the defaults are Llama-3.1-8B's."""

    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    dtype: Literal["bfloat16"] = "bfloat16"


SHAPES: dict[Device, Shape] = {"cuda": Shape(), "cpu": Shape(heads=4, kv_heads=2, head_size=64)}
POOL_TOKENS: dict[Device, int] = {"cuda": 32 * 32768 + 65536, "cpu": 8 * 7000 + 16384}
BEYOND_CACHE_BYTES = 256 * 2**20  # what calls read before they come back to the same pages
MAX_TOKENS = 65536


class Impl(Protocol):
    """What the rig calls of a backend's implementation; vLLM's base class declares the second alone."""

    def do_kv_cache_update(self, layer: object, *tensors: torch.Tensor) -> None: ...

    def forward(
        self, layer: object, *tensors: torch.Tensor, attn_metadata: Any, output: torch.Tensor
    ) -> torch.Tensor: ...


class LayerRig:
    """One backend's layer, its KV cache, and steps to run through it."""

    def __init__(self, backend: Backend, shape: Shape, device: Device, folder: Path) -> None:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.layers.attention import Attention

        if device == "cuda":
            torch.set_num_threads(1)  # as vLLM does to serve; with 32 a plan took 48 ms
        self.shape, self.device = shape, torch.device(device)
        self.dtype: torch.dtype = getattr(torch, shape.dtype)
        self.block_size = backend.block_sizes[device]
        config = engine_config(backend, shape, self.block_size, folder)
        attention = attention_class(backend)
        self.context = lambda: set_current_vllm_config(config)
        torch.set_default_dtype(self.dtype)
        with self.context(), torch.device(device):
            self.layer = Attention(
                shape.heads,
                shape.head_size,
                shape.head_size**-0.5,
                shape.kv_heads,
                cache_config=config.cache_config,
                prefix="model.layers.0.self_attn.attn",
                attn_backend=attention,
            )
            spec = self.layer.get_kv_cache_spec(config)
            self.cache = self.new_cache(attention, config, POOL_TOKENS[device] // self.block_size)
        # one for each step: FlashInfer's holds the plan of its last step, and its calls would read that
        self.new_builder = lambda: attention.get_builder_cls()(
            spec, [self.layer.layer_name], config, self.device
        )
        self.separate_write = not attention.forward_includes_kv_cache_update
        self.free_blocks = torch.randperm(len(self.cache) - 1) + 1

    def new_cache(
        self, attention: "type[AttentionBackend]", config: "VllmConfig", blocks: int
    ) -> torch.Tensor:
        """Random [blocks, kv_heads, block, 2 D], in the layout that the backend likes best."""
        from vllm.v1.kv_cache_layout import KVCacheLayout

        layouts = attention.supported_kv_cache_layouts() or (KVCacheLayout.LBNHC,)
        config.cache_config.kv_cache_layout = layouts[0].name
        axes = [blocks, self.shape.kv_heads, self.block_size, 2 * self.shape.head_size]
        order = layouts[0].layer_view_order
        cache = torch.randn([axes[axis] for axis in order], dtype=self.dtype, device=self.device)
        return cache.permute([order.index(axis) for axis in range(4)])

    def steps(self, point: Point) -> "list[CommonAttentionMetadata]":
        """Steps that read disjoint pages, as many as the pool and the L2 rule ask for."""
        pages = -(-point.context // self.block_size) * point.batch
        token_bytes = 4 * self.shape.kv_heads * self.shape.head_size
        wanted = 1
        if point.kind == "decode":
            wanted = 1 + BEYOND_CACHE_BYTES // (point.context * point.batch * token_bytes)
        count = max(1, min(wanted, len(self.free_blocks) // pages, 32))
        return [self.common(point, self.free_blocks[i * pages :][:pages]) for i in range(count)]

    def common(self, point: Point, blocks: torch.Tensor) -> "CommonAttentionMetadata":
        from vllm.v1.attention.backend import CommonAttentionMetadata

        new = 1 if point.kind == "decode" else point.context
        starts = torch.arange(point.batch + 1, dtype=torch.int32) * new
        lengths = torch.full((point.batch,), point.context, dtype=torch.int32)
        table = blocks.view(point.batch, -1).int()
        positions = torch.arange(point.context - new, point.context).repeat(point.batch, 1)
        slots = table.long().gather(1, positions // self.block_size) * self.block_size
        slots = (slots + positions % self.block_size).flatten()
        return CommonAttentionMetadata(
            query_start_loc=starts.to(self.device),
            query_start_loc_cpu=starts,
            seq_lens=lengths.to(self.device),
            seq_lens_cpu_upper_bound=lengths,
            num_reqs=point.batch,
            num_actual_tokens=point.batch * new,
            max_query_len=new,
            max_seq_len=point.context,
            block_table_tensor=table.to(self.device),
            slot_mapping=slots.to(self.device),
        )

    def runner(self, point: Point) -> tuple[list[Call], float]:
        """Calls of the layer, one a step, and the median seconds that building their metadata took."""
        steps = self.steps(point)
        built, build_s = self.metadata(steps)
        sizes = (self.shape.heads, self.shape.kv_heads, self.shape.kv_heads)
        query, key, value = (
            torch.randn(
                steps[0].num_actual_tokens,
                heads,
                self.shape.head_size,
                dtype=self.dtype,
                device=self.device,
            )
            for heads in sizes
        )
        output = torch.empty_like(query)
        impl = cast(Impl, self.layer.impl)

        def call(slots: torch.Tensor, metadata: Any) -> None:
            if self.separate_write:
                impl.do_kv_cache_update(self.layer, key, value, self.cache, slots)
            tensors = query, key, value, self.cache
            impl.forward(self.layer, *tensors, attn_metadata=metadata, output=output)

        pairs = zip(steps, built, strict=True)
        calls = [lambda s=step.slot_mapping, m=metadata: call(s, m) for step, metadata in pairs]
        return calls, statistics.median(build_s)

    def metadata(self, steps: "list[CommonAttentionMetadata]") -> tuple[list[Any], list[float]]:
        """What the backend's builder makes of each step, and the seconds it took."""
        built, build_s, scratch = [], [], None
        with self.context():
            for common in steps:
                builder: Any = self.new_builder()
                if hasattr(builder, "set_workspace_buffer"):
                    # FlashInfer's takes 4 GiB here, and its builders can share it
                    scratch = builder._get_workspace_buffer() if scratch is None else scratch
                    builder.set_workspace_buffer(scratch)
                builder.build(0, common)  # loads what a builder needs
                self.wait()
                start = time.perf_counter()
                built.append(builder.build(0, common))
                self.wait()
                build_s.append(time.perf_counter() - start)
        return built, build_s

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, calls: list[Call], repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` calls: CUDA events on a GPU, the host's clock on a CPU."""
        turns = [calls[turn % len(calls)] for turn in range(repeats)]
        with self.context(), torch.no_grad():
            for call in calls[:3]:
                call()
            self.wait()
            return by_events(turns) if self.device.type == "cuda" else by_clock(turns)

    def graph_seconds(self, calls: list[Call], repeats: int) -> float | None:
        """Seconds of a call, all captured as one CUDA graph: the GPU's time without the host's.

        The median over replays; None where the calls cannot be captured.
        """
        graph = torch.cuda.CUDAGraph()
        try:
            with self.context(), torch.no_grad(), torch.cuda.graph(graph):
                for call in calls:
                    call()
        except Exception as error:  # a kernel that asks the host while it is captured
            print(f"not captured: {str(error).splitlines()[0]}", flush=True)
            return None
        whole = [graph.replay] * max(3, repeats // len(calls))
        return statistics.median(self.seconds(whole, len(whole))) / len(calls)


def by_clock(calls: list[Call]) -> list[float]:
    marks = [time.perf_counter()]
    for call in calls:
        call()
        marks.append(time.perf_counter())
    return [b - a for a, b in pairwise(marks)]


def by_events(calls: list[Call]) -> list[float]:
    events = [torch.cuda.Event(enable_timing=True) for _ in range(len(calls) + 1)]
    events[0].record()
    for call, event in zip(calls, events[1:], strict=True):
        call()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]


def attention_class(backend: Backend) -> "type[AttentionBackend]":
    """Ours or a person's own by its path, vLLM's own by its name."""
    from vllm.utils.import_utils import resolve_obj_by_qualname

    if backend.class_folder is not None:
        sys.path.append(backend.class_folder)
    path = backend.class_path or vllm_backend(backend).get_path()
    return resolve_obj_by_qualname(path)


def engine_config(backend: Backend, shape: Shape, block_size: int, folder: Path) -> "VllmConfig":
    """vLLM's configuration of a model of that one layer; ``folder`` gets its config.json."""
    from vllm.config.attention import AttentionConfig
    from vllm.engine.arg_utils import EngineArgs

    (folder / "config.json").write_text(json.dumps(model_config(shape)))
    return EngineArgs(
        model=str(folder),
        dtype=shape.dtype,
        skip_tokenizer_init=True,
        enforce_eager=True,
        max_model_len=MAX_TOKENS,
        max_num_batched_tokens=MAX_TOKENS,
        block_size=block_size,
        attention_config=AttentionConfig(flash_attn_version=fa_version(backend)),
    ).create_engine_config()


def fa_version(backend: Backend) -> Literal[2, 3, 4] | None:
    known: tuple[Literal[2, 3, 4], ...] = (2, 3, 4)
    return next((version for version in known if version == backend.flash_attn_version), None)


def model_config(shape: Shape) -> dict[str, Any]:
    """config.json of a Llama whose attention has ``shape``; no weights are ever loaded."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.heads * shape.head_size,
        "head_dim": shape.head_size,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "intermediate_size": 1024,
        "num_hidden_layers": 1,
        "vocab_size": 4096,
        "max_position_embeddings": MAX_TOKENS,
        "torch_dtype": shape.dtype,
    }


def repeats(point: Point) -> int:
    return 40 if point.kind == "decode" else 5


def run_arm(results: Connection, arm: Arm, device: Device) -> None:
    """A child process: send {label: figures} for each point as it is done, then None; a failure as text."""
    try:
        os.environ[OPTIONS_ENV] = json.dumps(dict(arm.options))  # the class is given to the layer
        with tempfile.TemporaryDirectory() as folder:
            rig = LayerRig(arm.backend, SHAPES[device], device, Path(folder))
            send_figures(results, rig, device)
        results.send(None)
    except BaseException:  # whatever it is, it is this arm's result
        results.send(traceback.format_exc())


def send_figures(results: Connection, rig: LayerRig, device: Device) -> None:
    done: list[tuple[Point, list[Call], dict[str, Any]]] = []
    for point in POINTS[device]:
        calls, build_s = rig.runner(point)
        figures = launched(rig.seconds(calls, repeats(point)), build_s, len(calls))
        results.send({point.label: figures})
        done.append((point, calls, figures))
    if device == "cpu":
        return
    # all of these last: what a failed capture leaves behind would spoil the launches
    for point, calls, figures in done:
        graph_s = rig.graph_seconds(calls, repeats(point))
        graph_us = None if graph_s is None else 1e6 * graph_s
        results.send({point.label: figures | {"graph_us": graph_us}})


def launched(seconds: list[float], build_s: float, distinct_steps: int) -> dict[str, Any]:
    return {
        "median_us": 1e6 * statistics.median(seconds),
        "least_us": 1e6 * min(seconds),
        "build_us": 1e6 * build_s,
        "calls": len(seconds),
        "distinct_steps": distinct_steps,
    }


def measure_arm(arm: Arm, device: Device, limit_s: float) -> Figures:
    """Figures by point label, and ``error`` where the arm failed or took longer than ``limit_s``."""
    fork = multiprocessing.get_context("fork")  # after the imports, before CUDA is touched
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=run_arm, args=(theirs, arm, device), daemon=True)
    process.start()
    theirs.close()
    figures: Figures = {}
    deadline = time.monotonic() + limit_s
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            message = ours.recv()
            if message is None:
                return figures
            if not isinstance(message, dict):
                return figures | {"error": message}
            figures |= message
        return figures | {"error": f"took longer than {limit_s:.0f} s"}
    except EOFError:
        process.join(5)
        return figures | {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def layer_table(results: dict[str, Figures], points: list[Point], column: str, title: str) -> str:
    """Markdown: microseconds of the first arm by ``column``, ratios of the others to it."""
    reference, *others = results
    lines = [
        f"| {title} | {reference} µs | " + " | ".join(f"{name} ×" for name in others) + " |",
        "|---|" + "---|" * len(results),
    ]
    for point in points:
        own, *rest = (results[name].get(point.label, {}).get(column) for name in results)
        cells = [f"{own:.0f}" if own else "–"]
        cells += [f"{other / own:.2f}" if own and other else "–" for other in rest]
        lines.append(f"| {point.label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def bench_layers(
    device: Device,
    arms: list[Arm],
    limit_s: float,
    within_s: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Run every arm; ``keep`` gets all figures so far, JSON-able, after each of them.

    An arm may take ``limit_s``, all together ``within_s``.
    """
    about = {
        **versions(),
        "level": "layer",
        "device": device,
        "shape": asdict(SHAPES[device]),
        "arms": {arm.name: described(arm, device) for arm in arms},
    }
    results: dict[str, Figures] = {}
    end = time.monotonic() + within_s
    for arm in arms:
        left_s = max(0.0, min(limit_s, end - time.monotonic()))
        results[arm.name] = measure_arm(arm, device, left_s)
        print(f"{arm.name}: {results[arm.name].get('error') or 'done'}", flush=True)
        keep({**about, "results": results})
    print(layer_table(results, POINTS[device], "median_us", "one layer, launched"))
    if device == "cuda":
        print(layer_table(results, POINTS[device], "graph_us", "one layer, as a CUDA graph"))


def described(arm: Arm, device: Device) -> dict[str, Any]:
    row = arm.backend
    return {
        "backend": row.name,
        "flash_attn_version": row.flash_attn_version,
        "options": dict(arm.options),
        "block_size": row.block_sizes[device],
    }


def versions() -> dict[str, str]:
    """Of what every arm uses, imported here once, before the arms' processes are forked."""
    # asking for CUDA must not start it before the fork
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    import vllm
    import vllm.model_executor.layers.attention

    return {"torch": torch.__version__, "vllm": vllm.__version__}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m servers.bench.layers", description=__doc__)
    parser.add_argument("--device", choices=get_args(Device), default="cpu")
    parser.add_argument("--backends", help="by commas; default: all of the device")
    parser.add_argument("--limit-s", type=float, default=60, help="for each backend")
    parser.add_argument("--within-s", type=float, default=math.inf, help="for all together")
    parser.add_argument("--out", type=Path, help="write all figures as JSON")
    given = parser.parse_args()

    def keep(figures: dict[str, Any]) -> None:
        if given.out:
            write_atomic(given.out, json.dumps(figures, indent=1) + "\n")

    arms = arms_on(given.device, given.backends)
    bench_layers(given.device, arms, given.limit_s, given.within_s, keep)


if __name__ == "__main__":
    sys.exit(exit_on_user_error(main))

"""One attention layer of each backend on random pages: ``python -m servers.plugins.bench --device cuda``.

What whole engine steps show last, and a GPU shows fast: the layer's KV write and attention alone, with
the metadata that each backend's own builder makes. Every backend runs in its own process, so that a
kernel that faults ends alone. Pages of a step are random blocks; successive calls read other requests,
more of them than the L2 cache holds.
"""

import json
import multiprocessing
import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

OURS = "servers.plugins"
STOCK = "vllm.v1.attention.backends"


@dataclass(frozen=True, slots=True)
class LayerArm:
    path: str  # of the backend class
    attention_config: dict[str, Any]  # vLLM's, e.g. which FlashAttention
    options: dict[str, Any]  # ours
    block_size: int


CUDA_ARMS = {
    "flash_attn3": LayerArm(
        f"{STOCK}.flash_attn.FlashAttentionBackend", {"flash_attn_version": 3}, {}, 16
    ),
    "flash_attn2": LayerArm(
        f"{STOCK}.flash_attn.FlashAttentionBackend", {"flash_attn_version": 2}, {}, 16
    ),
    "triton": LayerArm(f"{STOCK}.triton_attn.TritonAttentionBackend", {}, {}, 16),
    "flashinfer": LayerArm(f"{STOCK}.flashinfer.FlashInferBackend", {}, {}, 16),
    "sdpa": LayerArm(f"{OURS}.sdpa.SdpaBackend", {}, {}, 256),
    "sdpa_gather": LayerArm(f"{OURS}.sdpa_gather.SdpaGatherBackend", {}, {}, 16),
    "xformers": LayerArm(f"{OURS}.xformers_attn.XformersBackend", {}, {}, 64),
    "xformers cutlass": LayerArm(
        f"{OURS}.xformers_attn.XformersBackend", {}, {"prefill": "cutlass"}, 64
    ),
    "sink_window": LayerArm(f"{OURS}.sink_window.SinkWindowBackend", {}, {}, 16),
}
CPU_ARMS = {
    "cpu_attn": LayerArm(f"{STOCK}.cpu_attn.CPUAttentionBackend", {}, {}, 128),
    "sdpa": LayerArm(f"{OURS}.sdpa.SdpaBackend", {}, {}, 128),
    "sdpa_gather": LayerArm(f"{OURS}.sdpa_gather.SdpaGatherBackend", {}, {}, 128),
    "sink_window": LayerArm(f"{OURS}.sink_window.SinkWindowBackend", {}, {}, 128),
}


@dataclass(frozen=True, slots=True)
class Shape:
    """Attention of one layer; the defaults are Llama-3.1-8B's."""

    heads: int = 32
    kv_heads: int = 8
    head_size: int = 128
    dtype: str = "bfloat16"


@dataclass(frozen=True, slots=True)
class LayerPoint:
    kind: str  # decode or prefill
    context: int
    batch: int

    @property
    def label(self) -> str:
        return f"{self.kind} {self.context:,} × {self.batch}"


CUDA_POINTS = [
    *(LayerPoint("decode", c, b) for b in (1, 8, 32) for c in (2048, 8192, 32768)),
    *(LayerPoint("prefill", c, 1) for c in (2048, 8192, 32768)),
]
CPU_POINTS = [
    *(LayerPoint("decode", c, b) for b in (1, 8) for c in (128, 2048, 7000)),
    *(LayerPoint("prefill", c, 1) for c in (2048, 7000)),
]
POOL_TOKENS = {"cuda": 32 * 32768 + 65536, "cpu": 8 * 7000 + 16384}
BEYOND_CACHE_BYTES = (
    256 * 2**20
)  # what successive calls read before they come back to the same pages


class LayerRig:
    """One backend's layer, its KV cache, and steps to run through it."""

    def __init__(self, arm: LayerArm, shape: Shape, device: str, folder: Path) -> None:
        import torch
        from vllm.config import set_current_vllm_config
        from vllm.engine.arg_utils import EngineArgs
        from vllm.model_executor.layers.attention import Attention
        from vllm.utils.import_utils import resolve_obj_by_qualname
        from vllm.v1.kv_cache_layout import KVCacheLayout

        self.torch, self.shape, self.device = torch, shape, torch.device(device)
        if device == "cuda":
            torch.set_num_threads(1)  # as vLLM does to serve; with 32 a plan took 48 ms
        self.dtype = getattr(torch, shape.dtype)
        (folder / "config.json").write_text(json.dumps(model_config(shape)))
        self.config = EngineArgs(
            model=str(folder),
            dtype=shape.dtype,
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=65536,
            max_num_batched_tokens=65536,
            block_size=arm.block_size,
            attention_config=arm.attention_config,
        ).create_engine_config()
        self.context = lambda: set_current_vllm_config(self.config)
        backend = resolve_obj_by_qualname(arm.path)
        torch.set_default_dtype(self.dtype)
        with self.context(), torch.device(device):
            self.layer = Attention(
                shape.heads,
                shape.head_size,
                shape.head_size**-0.5,
                shape.kv_heads,
                cache_config=self.config.cache_config,
                prefix="model.layers.0.self_attn.attn",
                attn_backend=backend,
            )
            spec = self.layer.get_kv_cache_spec(self.config)
            layouts = backend.supported_kv_cache_layouts() or (KVCacheLayout.LBNHC,)
            self.config.cache_config.kv_cache_layout = layouts[0].name
            # one for each step: FlashInfer's holds the plan of its last step, and its calls would read that
            self.new_builder = lambda: backend.get_builder_cls()(
                spec, [self.layer.layer_name], self.config, self.device
            )
        self.block_size = arm.block_size
        self.separate_write = not backend.forward_includes_kv_cache_update
        blocks = POOL_TOKENS[device] // arm.block_size
        axes = [blocks, shape.kv_heads, arm.block_size, 2 * shape.head_size]
        order = layouts[0].layer_view_order
        cache = torch.randn([axes[axis] for axis in order], dtype=self.dtype, device=self.device)
        self.cache = cache.permute([order.index(axis) for axis in range(4)])
        self.free_blocks = torch.randperm(blocks - 1) + 1

    def steps(self, point: LayerPoint) -> list[Any]:
        """Metadata of steps that read disjoint pages, as many as the pool and the L2 rule ask for."""
        pages = -(-point.context // self.block_size) * point.batch
        token_bytes = 4 * self.shape.kv_heads * self.shape.head_size
        wanted = 1
        if point.kind == "decode":
            wanted = 1 + BEYOND_CACHE_BYTES // (point.context * point.batch * token_bytes)
        count = max(1, min(wanted, len(self.free_blocks) // pages, 32))
        return [self.common(point, self.free_blocks[i * pages :][:pages]) for i in range(count)]

    def common(self, point: LayerPoint, blocks: Any) -> Any:
        from vllm.v1.attention.backend import CommonAttentionMetadata

        torch = self.torch
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

    def runner(self, point: LayerPoint) -> tuple[list[Callable[[], None]], float]:
        """Calls of the layer, one a step, and the median seconds that building their metadata took."""
        torch = self.torch
        steps, build_s, built = self.steps(point), [], []
        scratch = None
        with self.context():
            for common in steps:
                builder = self.new_builder()
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
        tokens = steps[0].num_actual_tokens
        sizes = (self.shape.heads, self.shape.kv_heads, self.shape.kv_heads)
        query, key, value = (
            torch.randn(tokens, heads, self.shape.head_size, dtype=self.dtype, device=self.device)
            for heads in sizes
        )
        output = torch.empty_like(query)

        def call(common: Any, metadata: Any) -> None:
            impl = self.layer.impl
            if self.separate_write:
                impl.do_kv_cache_update(self.layer, key, value, self.cache, common.slot_mapping)
            impl.forward(self.layer, query, key, value, self.cache, metadata, output=output)

        calls = [lambda c=c, m=m: call(c, m) for c, m in zip(steps, built, strict=True)]
        return calls, statistics.median(build_s)

    def wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def seconds(self, calls: list[Callable[[], None]], repeats: int) -> list[float]:
        """Seconds of each of ``repeats`` calls: CUDA events on a GPU, the host's clock on a CPU."""
        torch = self.torch
        with self.context(), torch.no_grad():
            for call in calls[:3]:
                call()
            self.wait()
            if self.device.type == "cpu":
                marks = [time.perf_counter()]
                for turn in range(repeats):
                    calls[turn % len(calls)]()
                    marks.append(time.perf_counter())
                return [b - a for a, b in pairwise(marks)]
            events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
            events[0].record()
            for turn in range(repeats):
                calls[turn % len(calls)]()
                events[turn + 1].record()
            self.wait()
            return [a.elapsed_time(b) / 1e3 for a, b in pairwise(events)]

    def graph_seconds(self, calls: list[Callable[[], None]], repeats: int) -> float | None:
        """Seconds of a call, all captured as one CUDA graph: the GPU's time without the host's.

        The median over replays; None where the calls cannot be captured.
        """
        torch = self.torch
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
        "max_position_embeddings": 65536,
        "torch_dtype": shape.dtype,
    }


def repeats(point: LayerPoint) -> int:
    return 40 if point.kind == "decode" else 5


def run_arm(
    results: Connection, arm: LayerArm, shape: Shape, device: str, points: list[LayerPoint]
) -> None:
    """A child process: send {label: figures} for each point as it is done, then None; a failure as text."""
    try:
        os.environ["GREENBENCH_ATTENTION_OPTIONS"] = json.dumps(arm.options)
        with tempfile.TemporaryDirectory() as folder:
            rig = LayerRig(arm, shape, device, Path(folder))
            done: list[tuple[LayerPoint, list[Callable[[], None]], dict[str, Any]]] = []
            for point in points:
                calls, build_s = rig.runner(point)
                seconds = rig.seconds(calls, repeats(point))
                figures = {
                    "median_us": 1e6 * statistics.median(seconds),
                    "least_us": 1e6 * min(seconds),
                    "build_us": 1e6 * build_s,
                    "calls": len(seconds),
                    "distinct_steps": len(calls),
                }
                results.send({point.label: figures})
                done.append((point, calls, figures))
            # all of these last: what a failed capture leaves behind would spoil the launches
            for point, calls, figures in done if device == "cuda" else ():
                graph_s = rig.graph_seconds(calls, repeats(point))
                graph_us = None if graph_s is None else 1e6 * graph_s
                results.send({point.label: figures | {"graph_us": graph_us}})
        results.send(None)
    except BaseException:  # whatever it is, it is this arm's result
        results.send(traceback.format_exc())


def measure_arm(
    arm: LayerArm, shape: Shape, device: str, points: list[LayerPoint], limit_s: float
) -> dict[str, Any]:
    """Figures by point label, and ``error`` where the arm failed or took longer than ``limit_s``."""
    fork = multiprocessing.get_context("fork")  # after the imports, before CUDA is touched
    ours, theirs = fork.Pipe(duplex=False)
    process = fork.Process(target=run_arm, args=(theirs, arm, shape, device, points), daemon=True)
    process.start()
    theirs.close()
    figures: dict[str, Any] = {}
    deadline = time.monotonic() + limit_s
    try:
        while ours.poll(max(0.0, deadline - time.monotonic())):
            message = ours.recv()
            if message is None:
                return figures
            figures |= message if isinstance(message, dict) else {"error": message}
            if "error" in figures:
                return figures
        return figures | {"error": f"took longer than {limit_s:.0f} s"}
    except EOFError:
        process.join(5)
        return figures | {"error": f"the process ended with exit code {process.exitcode}"}
    finally:
        process.kill()
        process.join()


def layer_table(
    results: dict[str, dict[str, Any]], points: list[LayerPoint], column: str, title: str
) -> str:
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
    device: str,
    names: list[str] | None,
    limit_s: float,
    within_s: float,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Run every arm of ``device``; ``keep`` gets all figures so far, JSON-able, after each of them.

    An arm may take ``limit_s``, all together ``within_s``.
    """
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = (
        "1"  # asking for CUDA must not start it before the fork
    )
    import torch
    import vllm
    from vllm.model_executor.layers.attention import Attention  # noqa: F401  (paid once, before the forks)

    arms, points = (CUDA_ARMS, CUDA_POINTS) if device == "cuda" else (CPU_ARMS, CPU_POINTS)
    shape = Shape() if device == "cuda" else Shape(heads=4, kv_heads=2, head_size=64)
    results: dict[str, dict[str, Any]] = {}
    about = {
        "level": "layer",
        "device": device,
        "torch": torch.__version__,
        "vllm": vllm.__version__,
        "shape": asdict(shape),
        "arms": {name: asdict(arm) for name, arm in arms.items()},
    }
    end = time.monotonic() + within_s
    for name in names or arms:
        left_s = max(0.0, min(limit_s, end - time.monotonic()))
        results[name] = measure_arm(arms[name], shape, device, points, left_s)
        error = results[name].get("error")
        print(f"{name}: {error or 'done'}", flush=True)
        keep({**about, "results": results})
    print(layer_table(results, points, "median_us", "one layer, launched"))
    if device == "cuda":
        print(layer_table(results, points, "graph_us", "one layer, as a CUDA graph"))

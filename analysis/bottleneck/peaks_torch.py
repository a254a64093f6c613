"""What a server of this machine can do at most: linear layers and memory streams, timed in its environment.

    python -m analysis.bottleneck.peaks_torch

A line of JSON for each figure as it is found, ``{"says": …}``, and last ``{"found": …}``. On a CPU the
cores are those that vLLM gives a worker (it keeps one for its scheduler), and a linear layer is called as
vLLM calls it (its own dispatch: oneDNN with packed weights, else torch): a plain product of matrices may
take another kernel, up to fifty times slower. Best of many rounds: a ceiling is what is reached when
nothing disturbs. Every figure has its share of what the imports left of TOTAL_S, so that a slow machine
measures less and not longer.
"""

import json
import os
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any, Protocol, cast

import psutil
import torch

TOTAL_S, LEAST_S = 18.0, 5.0  # from the start of the process; for the figures alone
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
# (tokens of a step, inputs, outputs) of a linear layer, by growing work. Small ones stay in a CPU's caches.
LAYERS = {
    "cpu": ((256, 256, 768), (2048, 256, 768), (2048, 1024, 1024), (2048, 2048, 2048)),
    "cuda": ((4096, 4096, 4096), (8192, 8192, 8192)),
}
STREAM_BYTES = 1 << 29  # far beyond any cache
# Far above the clock's error, and so short that among many some meet no other program: the threads of a
# product wait for the slowest of them.
ROUND_S = 0.002

Act = Callable[[], object]


def say(**line: object) -> None:
    print(json.dumps(line), flush=True)


def best_s(act: Act, device: str, seconds: float) -> float:
    """Shortest mean time of one act over rounds of ROUND_S for ``seconds``, after one to warm up."""

    def timed(times: int) -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(times):
            act()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - before) / times

    end = time.perf_counter() + seconds
    timed(1)
    best = timed(1)
    while time.perf_counter() < end:
        best = min(best, timed(max(1, round(ROUND_S / best))))
    return best


class Dispatched(Protocol):
    """A linear layer once vLLM's dispatch has packed it for a CPU."""

    weight: torch.Tensor
    cpu_linear: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]


def vllm_dispatch() -> Callable[..., None] | None:
    """What gives a layer its ``cpu_linear``; None in a vLLM that calls torch's own."""
    try:
        from vllm.model_executor.layers.utils import dispatch_cpu_unquantized_gemm
    except ImportError:
        return None
    return dispatch_cpu_unquantized_gemm


def worker_cores() -> set[int]:
    """The cores that vLLM binds the worker of an unsharded server to; all, where it does not tell."""
    parallel = SimpleNamespace(
        local_world_size=1, data_parallel_rank_local=None, _api_process_count=1
    )
    try:
        from vllm.utils.ompmultiprocessing import OMPProcessManager

        # what that class reads of vLLM's whole configuration
        config: Any = SimpleNamespace(parallel_config=parallel, kv_transfer_config=None)
        cores = set(OMPProcessManager(config).cpu_lists[0])
    except (ImportError, AttributeError, IndexError, AssertionError):  # another vLLM, or no binding
        cores = set()
    return cores or os.sched_getaffinity(0)


def linear(tokens: int, inputs: int, outputs: int, dtype: torch.dtype, device: str) -> Act:
    """One call of a layer. Normal numbers: zeros would draw less power and run faster."""
    layer = torch.nn.Linear(inputs, outputs, bias=False, dtype=dtype, device=device)
    rows = torch.randn(tokens, inputs, device=device).to(dtype)
    dispatch = vllm_dispatch() if device == "cpu" else None
    if dispatch is None:
        return lambda: layer(rows)
    dispatch(layer, remove_weight=False)
    packed = cast(Dispatched, layer)
    call = packed.cpu_linear
    return lambda: call(rows, packed.weight, None)


def linear_flops(dtype: torch.dtype, device: str, seconds: float) -> float:
    """FLOP/s of the best of LAYERS; one that would take longer than its share of the time is not tried."""
    best, share_s = 0.0, seconds / len(LAYERS[device])
    for tokens, inputs, outputs in LAYERS[device]:
        work = 2 * tokens * inputs * outputs
        if best == 0 or 3 * work / best < share_s:
            act = linear(tokens, inputs, outputs, dtype, device)
            best = max(best, work / best_s(act, device, share_s))
    return best


@torch.inference_mode()
def measure() -> dict[str, object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    vllm_dispatch()  # imported before the time is shared out
    if device == "cpu":
        cores = worker_cores()
        os.sched_setaffinity(0, cores)  # before a first product starts threads
        torch.set_num_threads(len(cores))
    flops: dict[str, float] = {}
    imports_s = time.time() - psutil.Process().create_time()
    share_s = max(LEAST_S, TOTAL_S - imports_s) / (len(DTYPES) + 2)
    for name, dtype in DTYPES.items():
        try:
            flops[name] = linear_flops(dtype, device, share_s)
        except RuntimeError as error:  # no kernel for it here: then no server computes in it either
            say(says=f"{name}: not computed here ({str(error).splitlines()[0][:100]})")
        else:
            say(says=f"linear layers in {name}: {flops[name] / 1e9:,.0f} GFLOP/s")
    source = torch.ones(STREAM_BYTES // 4, device=device)
    target = torch.empty_like(source)
    copy = 2 * STREAM_BYTES / best_s(lambda: target.copy_(source), device, share_s)
    read = STREAM_BYTES / best_s(lambda: source.sum(), device, share_s)
    say(says=f"memory: copy {copy / 1e9:,.1f} GB/s, read {read / 1e9:,.1f} GB/s")
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "flops_per_s": flops,
        "copy_bytes_per_s": copy,
        "read_bytes_per_s": read,
    }


if __name__ == "__main__":
    say(found=measure())

"""What this machine can do at most: large matmuls and streams, timed with torch.

Runs in the server's environment, because that is the torch that serves:  python -m analysis.ceilings_torch
Prints one JSON object. Best of several rounds: a ceiling is what is reached when nothing disturbs.
"""

import json
import time
from collections.abc import Callable

import torch  # type: ignore[import-not-found]  # lives in the server environment

MATMUL_SIZES = {"cpu": (512, 1024, 2048), "cuda": (4096, 8192)}  # small ones stay in a CPU's caches
LEAST_FLOPS = 2e9  # a round, so that the clock's own error does not count
STREAM_BYTES = 1 << 29  # far beyond any cache
ROUNDS = 5


def best_s(action: Callable[[], object], device: str, repeats: int = 1) -> float:
    """Shortest time of one action over the rounds, after one to warm up."""

    def once() -> float:
        if device == "cuda":
            torch.cuda.synchronize()
        before = time.perf_counter()
        for _ in range(repeats):
            action()
        if device == "cuda":
            torch.cuda.synchronize()
        return (time.perf_counter() - before) / repeats

    once()
    return min(once() for _ in range(ROUNDS))


def matmul_flops(size: int, dtype: torch.dtype, device: str) -> float:
    """FLOP/s of square matrix products. Normal numbers: zeros would draw less power and run faster."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    work = 2 * size**3
    return work / best_s(lambda: a @ b, device, repeats=max(1, round(LEAST_FLOPS / work)))


def measure() -> dict[str, object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    found: dict[str, object] = {
        "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    for name, dtype in (("bf16", torch.bfloat16), ("fp32", torch.float32)):
        found[f"{name}_flops"] = max(matmul_flops(n, dtype, device) for n in MATMUL_SIZES[device])
    source = torch.ones(STREAM_BYTES // 4, device=device)
    target = torch.empty_like(source)
    found["copy_bytes_per_s"] = 2 * STREAM_BYTES / best_s(lambda: target.copy_(source), device)
    found["read_bytes_per_s"] = STREAM_BYTES / best_s(lambda: source.sum(), device)
    return found


if __name__ == "__main__":
    print(json.dumps(measure()))

"""A GPU load of known kind, driven line by line: the other half of `python -m telemetry selftest`.

Runs under the Python that has torch (VLLM_PYTHON), by path, and imports nothing of the project. Reads one
JSON command a line on stdin and answers with one JSON line on stdout; a closed stdin ends it:

    {"op": "matmul", "seconds": 12, "fill": "normal"}
    {"ok": true, "start_mono_ns": …, "end_mono_ns": …, "count": 5120, "flop": …, "bytes": …}
"""

import json
import sys
import time
from collections.abc import Callable
from typing import Any

import torch  # pyright: ignore[reportMissingImports]  (lives in the server's environment)

SIDE = 8192  # of the square matrices: 2 · 8192³ FLOP, long enough to be bound by the tensor cores
COPY_BYTES = 4 * 2**30
IN_FLIGHT = 8  # launches before a wait, so that the queue never runs more than some 15 ms ahead
DEVICE = "cuda:0"


def filled(shape: tuple[int, ...], fill: str) -> torch.Tensor:
    """Values decide how many bits toggle: the same matmul on zeros took 396 W where normals took 691 W."""
    if fill == "zeros":
        return torch.zeros(shape, dtype=torch.bfloat16, device=DEVICE)
    if fill == "uniform":  # what vLLM's dummy weights look like
        return torch.empty(shape, dtype=torch.bfloat16, device=DEVICE).uniform_(-1e-3, 1e-3)
    if fill == "normal":
        return torch.randn(shape, dtype=torch.bfloat16, device=DEVICE)
    raise ValueError(f"unknown fill {fill!r}")


class Work:
    """One kind of work on tensors that are made once, with what one launch of it counts for."""

    def __init__(self, kind: str, fill: str) -> None:
        torch.cuda.empty_cache()
        torch.manual_seed(1)
        if kind == "matmul":
            left, right = filled((SIDE, SIDE), fill), filled((SIDE, SIDE), fill)
            out = torch.empty_like(left)
            self.launch: Callable[[], Any] = lambda: torch.mm(left, right, out=out)
            self.flop, self.bytes = 2 * SIDE**3, 0
        elif kind == "copy":
            free_bytes, _ = torch.cuda.mem_get_info()
            items = min(COPY_BYTES, free_bytes // 4) // 2
            source = filled((items,), fill)
            target = torch.empty_like(source)
            self.launch = lambda: target.copy_(source)
            self.flop, self.bytes = 0, 2 * 2 * items  # read and written, two bytes an element
        else:
            raise ValueError(f"unknown kind {kind!r}")
        for _ in range(3):
            self.launch()
        torch.cuda.synchronize()

    def run_until(self, deadline_ns: int) -> int:
        """Launch until the deadline; returns launches done. The GPU is idle again on return."""
        count = 0
        while time.monotonic_ns() < deadline_ns:
            for _ in range(IN_FLIGHT):
                self.launch()
            count += IN_FLIGHT
            torch.cuda.synchronize()
        return count

    def run_bursts(self, period_ns: int, end_ns: int) -> int:
        """On for half of each period, off for the other half, by absolute deadlines."""
        start_ns, count, n = time.monotonic_ns(), 0, 0
        while (edge_ns := start_ns + n * period_ns) < end_ns:
            sleep_until(edge_ns)
            while time.monotonic_ns() < edge_ns + period_ns // 2:
                self.launch()
                torch.cuda.synchronize()
                count += 1
            n += 1
        return count

    def run_count(self, launches: int) -> int:
        for n in range(launches):
            self.launch()
            if n % IN_FLIGHT == IN_FLIGHT - 1:
                torch.cuda.synchronize()
        torch.cuda.synchronize()
        return launches


def sleep_until(mono_ns: int) -> None:
    time.sleep(max(0, mono_ns - time.monotonic_ns()) / 1e9)


def serve() -> None:
    works: dict[tuple[str, str], Work] = {}
    torch.cuda.init()
    torch.zeros(1, device=DEVICE)
    properties = torch.cuda.get_device_properties(DEVICE)
    uuid = str(getattr(properties, "uuid", "") or "")
    answer({"ok": True, "name": properties.name, "uuid": uuid, "torch": torch.__version__})
    for line in sys.stdin:
        try:
            answer({"ok": True, **perform(json.loads(line), works)})
        except (
            RuntimeError,
            ValueError,
            KeyError,
        ) as error:  # torch's out-of-memory is a RuntimeError
            answer({"ok": False, "error": f"{type(error).__name__}: {error}"[:500]})


def perform(command: dict[str, Any], works: dict[tuple[str, str], Work]) -> dict[str, Any]:
    """Do one command; tensors are made before the clock starts."""
    op = command["op"]
    if op == "idle":
        start_ns = time.monotonic_ns()
        sleep_until(start_ns + round(command["seconds"] * 1e9))
        return {"start_mono_ns": start_ns, "end_mono_ns": time.monotonic_ns(), "count": 0}
    key = (command.get("kind", "matmul") if op != "copy" else "copy", command.get("fill", "normal"))
    if key not in works:
        works.clear()  # one set of tensors at a time
        works[key] = Work(*key)
    work = works[key]
    start_ns = time.monotonic_ns()
    end_ns = start_ns + round(command.get("seconds", 0) * 1e9)
    if op in ("matmul", "copy"):
        count = work.run_until(end_ns)
    elif op == "square":
        count = work.run_bursts(round(command["period_s"] * 1e9), end_ns)
    elif op == "count":
        count = work.run_count(command["launches"])
    else:
        raise ValueError(f"unknown op {op!r}")
    return {
        "start_mono_ns": start_ns,
        "end_mono_ns": time.monotonic_ns(),
        "count": count,
        "flop": count * work.flop,
        "bytes": count * work.bytes,
    }


def answer(what: dict[str, Any]) -> None:
    print(json.dumps(what), flush=True)


if __name__ == "__main__":
    serve()

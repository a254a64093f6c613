"""As much of torch as the self-test's load uses, on a card that does not exist.

Launches take their time and draw their watts on paper only: each stretch of work is a line
``start_ns end_ns watts`` in $FAKE_GPU_TIMELINE, from which the fake NVML beside this file makes its readings.
"""

import os
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

__version__ = "fake"
bfloat16 = "bfloat16"
LAUNCH_NS = {"mm": 1_600_000, "copy": 2_000_000}
WATTS = {
    ("mm", "normal"): 690,
    ("mm", "uniform"): 691,
    ("mm", "zeros"): 396,
    ("copy", "normal"): 636,
    ("copy", "uniform"): 630,
    ("copy", "zeros"): 500,
}
COPY_BYTES_PER_S = 4.23e12

_timeline = Path(os.environ["FAKE_GPU_TIMELINE"]).open("a")  # noqa: SIM115 open for life
_busy_until_ns = 0


class Tensor:
    def __init__(self, shape: tuple[int, ...], fill: str) -> None:
        self.shape, self.fill = shape, fill

    def uniform_(self, low: float, high: float) -> "Tensor":
        self.fill = "uniform"
        return self

    def copy_(self, other: "Tensor") -> None:
        _launch("copy", other.fill, round(4 * other.shape[0] / COPY_BYTES_PER_S * 1e9))


def _launch(kind: str, fill: str, length_ns: int) -> None:
    global _busy_until_ns
    start_ns = max(time.monotonic_ns(), _busy_until_ns)
    _busy_until_ns = start_ns + length_ns
    _timeline.write(f"{start_ns} {_busy_until_ns} {WATTS[kind, fill]}\n")


def mm(left: Tensor, right: Tensor, out: Tensor) -> None:
    _launch("mm", left.fill, LAUNCH_NS["mm"])


def zeros(shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
    return Tensor(shape, "zeros")


def empty(shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
    return Tensor(shape, "none")


def empty_like(other: Tensor) -> Tensor:
    return Tensor(other.shape, "none")


def randn(shape: Any, dtype: Any = None, device: Any = None) -> Tensor:
    return Tensor(shape, "normal")


def manual_seed(seed: int) -> None: ...


def _synchronize() -> None:
    _timeline.flush()
    time.sleep(max(0, _busy_until_ns - time.monotonic_ns()) / 1e9)


cuda = SimpleNamespace(
    init=lambda: None,
    empty_cache=lambda: None,
    mem_get_info=lambda: (64 * 2**30, 80 * 2**30),
    synchronize=_synchronize,
    get_device_properties=lambda device: SimpleNamespace(name="Fake H200", uuid="0000-fake"),
)

"""What a CPU is and can compute (/proc/cpuinfo), the dtype to serve in on it, the cores one may use."""

import os
import platform
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Dtype = Literal["auto", "bfloat16", "float16", "float32"]

# flag in /proc/cpuinfo → the instructions that multiply bfloat16. Without one oneDNN and torch compute
# bfloat16 through float32, at a fraction of float32's own speed.
BFLOAT16_FLAGS = {"avx512_bf16": "AVX512_BF16", "amx_bf16": "AMX", "bf16": "Arm BF16"}


@dataclass(frozen=True, slots=True)
class Cpu:
    """``flags`` is None where the machine does not tell them (no /proc/cpuinfo)."""

    name: str
    flags: frozenset[str] | None


@dataclass(frozen=True, slots=True)
class ServedDtype:
    """The value of vLLM's --dtype; ``why`` is why ``auto`` chose it, or what speaks against one asked for."""

    name: Dtype
    why: str | None = None

    def __str__(self) -> str:
        return f"{self.name} ({self.why})" if self.why else self.name


def read_cpu(cpuinfo: str) -> Cpu:
    """Of the first CPU in the text; Arm calls its flags Features and names no model."""
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value.strip())
    flags = fields.get("flags", fields.get("Features"))
    name = fields.get("model name") or platform.processor() or platform.machine() or "unknown"
    return Cpu(name, None if flags is None else frozenset(flags.split()))


@cache
def this_cpu() -> Cpu:
    path = Path("/proc/cpuinfo")
    return read_cpu(path.read_text() if path.is_file() else "")


def usable_cores() -> int:
    """How many cores this process may use; where the system does not say (macOS), how many there are."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def dtype_on_cpu(flags: frozenset[str] | None, asked: Dtype = "auto") -> ServedDtype:
    """What ``auto`` means on a CPU: bfloat16 where it has instructions for it, else float32.

    By the CPU alone, so that all backends and models of a sweep are served alike. What is asked for by
    name is served.
    """
    auto = _auto(flags)
    if asked == "auto":
        return auto
    if asked == "bfloat16" != auto.name:
        return ServedDtype(asked, f"asked for by name; auto would be {auto}")
    return ServedDtype(asked)


def _auto(flags: frozenset[str] | None) -> ServedDtype:
    has = [words for flag, words in BFLOAT16_FLAGS.items() if flag in (flags or ())]
    if has:
        return ServedDtype("bfloat16", f"this CPU computes it ({' and '.join(has)})")
    if flags is None:
        return ServedDtype("float32", "this CPU does not say whether it computes bfloat16")
    return ServedDtype(
        "float32", "this CPU has neither AVX512_BF16 nor AMX, without which bfloat16 is slower"
    )

"""One GPU as every source of readings describes it: identity, reading, and what a reader can do."""

import os
from dataclasses import dataclass
from typing import Literal, Protocol

from telemetry.sensors.capability import Capability

PowerScope = Literal["gpu", "module", "memory"]


@dataclass(frozen=True, slots=True)
class GpuIdentity:
    """What a card is and how it is set. Joined by ``uuid``; the index follows the PCI bus and can move."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    driver: str | None = None
    nvml: str | None = None
    vbios: str | None = None
    compute_capability: str | None = None
    power_limit_w: float | None = None  # enforced
    max_sm_clock_mhz: int | None = None
    ecc: bool | None = None
    mig: bool | None = None
    persistence: bool | None = None
    virtual: bool | None = None  # a vGPU: its power is not its own
    pcie_generation: int | None = None
    scope: str = "gpu"  # of energy and power: gpu board, or module (CPU + GPU) on Grace-Hopper


@dataclass(frozen=True, slots=True)
class GpuReading:
    """One look at one card. Units in the names; ``error`` holds ``source:code`` words."""

    power_w: float | None = None
    power_avg_w: float | None = None
    power_mem_w: float | None = None
    energy_mj: int | None = None
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    temp_c: int | None = None
    mem_used_bytes: int | None = None
    util_pct: int | None = None
    throttle_reasons: int | None = None
    error: str | None = None


class Reader(Protocol):
    """Where GPU readings come from: NVML, a DCGM exporter, zeus, or a fake that plays known truths."""

    name: str

    def gpus(self) -> list[GpuIdentity]: ...

    def capabilities(self, index: int) -> dict[str, Capability]:
        """Which of counter, average, instant, memory_scope, gpm answer on this card."""
        ...

    def read(self, index: int) -> GpuReading: ...

    def pids(self, index: int) -> list[int] | None:
        """Processes with a context on the card; None when they cannot be listed."""
        ...

    def close(self) -> None: ...


class NoGpu(Exception):
    """No GPU can be read; the text is the reason that sources.json gives."""


def visible_uuids(
    identities: list[GpuIdentity], environ: dict[str, str] | None = None
) -> list[str]:
    """UUIDs that CUDA_VISIBLE_DEVICES leaves: by UUID (or its start), else by position in PCI order."""
    chosen = (environ if environ is not None else os.environ).get("CUDA_VISIBLE_DEVICES")
    if chosen is None:
        return [gpu.uuid for gpu in identities]
    uuids: list[str] = []
    for word in filter(None, (part.strip() for part in chosen.split(","))):
        matches = [g.uuid for g in identities if g.uuid.startswith(word) or str(g.index) == word]
        uuids += matches[:1]
    return uuids

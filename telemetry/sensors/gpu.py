"""One GPU as every source of readings describes it: identity, reading, and what a reader can do."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

from greenbench.contract.cuda_devices import (
    ORDER,
    VISIBLE,
    CudaCard,
    Shown,
    capability_of,
    shown,
)
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
    mig_uuids: tuple[str, ...] | None = None  # of its MIG devices; None where they were not listed

    def for_cuda(self) -> CudaCard:
        capability = capability_of(self.name, self.compute_capability)
        return CudaCard(
            self.uuid, self.name, capability, self.memory_bytes, bool(self.mig), self.mig_uuids
        )


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
    masked: bool  # whether it lists only what CUDA_VISIBLE_DEVICES leaves

    @property
    def host(self) -> str | None:
        """Where an exporter's cards are, maybe another machine; None: this one."""
        ...

    def gpus(self) -> list[GpuIdentity]:
        """The cards that can be read."""
        ...

    def unread(self) -> dict[int, str]:
        """Index → reason of each card that is there and cannot be read."""
        ...

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


def shown_gpus(reader: Reader, environ: Mapping[str, str]) -> Shown:
    """The cards that CUDA shows a process with that environment."""
    cards: dict[int, CudaCard | None] = dict.fromkeys(reader.unread())
    cards |= {gpu.index: gpu.for_cuda() for gpu in reader.gpus()}
    if reader.masked and VISIBLE in environ:
        return _left_by_the_reader(reader, environ)
    return shown([cards[index] for index in sorted(cards)], environ)


def _left_by_the_reader(reader: Reader, environ: Mapping[str, str]) -> Shown:
    """Of a reader that has left out the hidden cards by itself, counting them as NVML does."""
    listed = [gpu.uuid for gpu in reader.gpus()]
    if environ.get(ORDER) == "PCI_BUS_ID":
        return Shown(tuple(frozenset({uuid}) for uuid in listed))
    return Shown(tuple(frozenset({*listed, "a card that is not listed"}) for _ in listed))


def visible_uuids(
    identities: Sequence[GpuIdentity], environ: Mapping[str, str] | None = None
) -> list[str]:
    """UUIDs of the cards that CUDA shows, in its order where it is known; empty where they are not."""
    cards = [gpu.for_cuda() for gpu in identities]
    return list(shown(cards, os.environ if environ is None else environ).uuids or ())

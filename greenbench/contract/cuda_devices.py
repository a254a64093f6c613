"""Which cards CUDA shows a process, and as which device, told from its environment without CUDA.

Sources: CUDA C++ Programming Guide, "CUDA Environment Variables"; MIG User Guide, "Device Enumeration":

* ``CUDA_DEVICE_ORDER=PCI_BUS_ID``: devices are numbered as NVML and nvidia-smi list them. Without it
  (``FASTEST_FIRST``) device 0 is the fastest and **the order of the others is not specified**. Equal
  cards keep the order of the bus in practice.
* ``CUDA_VISIBLE_DEVICES``: numbers, UUIDs or their beginnings; reading stops at the first that names no
  device. A device named twice leaves none.
* Where a MIG device can be used, a process is shown one MIG device and no whole card.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

ORDER = "CUDA_DEVICE_ORDER"
VISIBLE = "CUDA_VISIBLE_DEVICES"
Capability = tuple[int, int]

# Compute capability by model, for drivers and tools that do not say it (nvidia-smi before driver 510,
# dcgm-exporter): NVIDIA's list of CUDA GPUs (developer.nvidia.com/cuda-gpus).
CAPABILITIES: dict[str, Capability] = {
    "P100": (6, 0), "P4": (6, 1), "P40": (6, 1), "V100": (7, 0), "T4": (7, 5),
    "A100": (8, 0), "A800": (8, 0), "A30": (8, 0),
    "A2": (8, 6), "A10": (8, 6), "A10G": (8, 6), "A16": (8, 6), "A40": (8, 6),
    "L4": (8, 9), "L20": (8, 9), "L40": (8, 9), "L40S": (8, 9),
    "H20": (9, 0), "H100": (9, 0), "H200": (9, 0), "H800": (9, 0), "GH200": (9, 0),
    "B200": (10, 0), "GB200": (10, 0), "B300": (10, 3), "GB300": (10, 3), "GB10": (12, 1),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class CudaCard:
    """One card as NVML or nvidia-smi lists it; lists of cards are in their order, which is the PCI bus'."""

    uuid: str
    name: str
    capability: Capability | None = None
    memory_bytes: int | None = None
    mig: bool = False
    mig_uuids: tuple[str, ...] | None = None  # of its MIG devices; None where they were not listed

    @property
    def parted(self) -> bool:
        """Whether it may hold MIG devices."""
        return self.mig and self.mig_uuids != ()


@dataclass(frozen=True, slots=True)
class Shown:
    """CUDA's devices 0, 1, …: of each the UUIDs of the cards that it may be, one where it can be told."""

    devices: tuple[frozenset[str], ...]

    @property
    def uuids(self) -> tuple[str, ...] | None:
        """The cards shown, in CUDA's order where that is known; None where it cannot be told which."""
        cards = self.possible
        if len(cards) != len(self.devices):
            return None
        if all(len(device) == 1 for device in self.devices):
            return tuple(uuid for device in self.devices for uuid in device)
        return tuple(sorted(cards))

    @property
    def possible(self) -> frozenset[str]:
        """Every card that may be shown."""
        return frozenset(uuid for device in self.devices for uuid in device)


def capability_of(name: str, said: str | None = None) -> Capability | None:
    """``said`` is the driver's word ("9.0"); without a usable one it goes by the model in the name."""
    found = re.fullmatch(r"(\d+)\.(\d+)", (said or "").strip())
    if found:
        return int(found[1]), int(found[2])
    return CAPABILITIES.get(model_of(name).split()[0].split("-")[0]) if name.strip() else None


def model_of(name: str) -> str:
    """Name without its maker, which older drivers leave out: NVIDIA A100-SXM4-80GB → A100-SXM4-80GB."""
    return re.sub(r"^(NVIDIA|Tesla) ", "", re.sub(r"^NVIDIA ", "", name.strip()))


def shown(cards: Sequence[CudaCard | None], environ: Mapping[str, str]) -> Shown:
    """What CUDA shows a process with that environment. None in ``cards`` stands for one that cannot be read.

    Whether CUDA still counts such a card is not known: devices after it are told by their UUID only.
    """
    chosen = environ.get(VISIBLE)
    known = [card for card in cards if card is not None]
    if chosen is None:
        return _all(known, cards, environ.get(ORDER))
    numbered = _numbered(known, cards, environ.get(ORDER))
    devices: list[frozenset[str]] = []
    for word in (part.strip() for part in chosen.split(",")):
        device = _named(word, known, numbered)
        if device is None:
            break
        devices.append(device)
    certain = [device for device in devices if len(device) == 1]
    words = [word.strip() for word in chosen.split(",")][: len(devices)]
    if len(set(certain)) < len(certain) or len(set(words)) < len(words):
        return Shown(())
    return Shown(tuple(devices))


def _all(known: Sequence[CudaCard], cards: Sequence[CudaCard | None], order: str | None) -> Shown:
    """Without a choice: every card, or one MIG device where there are any."""
    parted = frozenset(card.uuid for card in known if card.parted)
    if parted:
        return Shown((parted,))
    whole = [card for card in known if not card.mig]
    return Shown(tuple(_numbered(whole, [c for c in cards if c is None or c in whole], order)))


def _numbered(
    known: Sequence[CudaCard], cards: Sequence[CudaCard | None], order: str | None
) -> list[frozenset[str]]:
    """The cards that each of CUDA's numbers may mean, before any choice."""
    every = frozenset(card.uuid for card in known)
    by_bus = order == "PCI_BUS_ID" or len({card.name for card in known}) < 2
    if by_bus:
        gap = next((i for i, card in enumerate(cards) if card is None), len(cards))
        return [
            frozenset({card.uuid}) if i < gap else every - {c.uuid for c in known[:gap]}
            for i, card in enumerate(known)
        ]
    first = _fastest(known) if len(known) == len(cards) and order in (None, "FASTEST_FIRST") else ()
    front = frozenset(first) or every
    rest = every - front if len(front) == 1 else every
    return [front, *[rest] * (len(known) - 1)]


def _fastest(cards: Sequence[CudaCard]) -> list[str]:
    """The cards of the one model that is surely the fastest; empty where there is none."""
    for model in dict.fromkeys(card.name for card in cards):
        own = [card for card in cards if card.name == model]
        if all(_faster(own[0], other) for other in cards if other.name != model):
            return [card.uuid for card in own]
    return []


def _faster(one: CudaCard, other: CudaCard) -> bool:
    """Newer and with no less memory: CUDA's own rule is not published, so only a clear lead is told."""
    mine, theirs = (card.capability or capability_of(card.name) for card in (one, other))
    if mine is None or theirs is None or mine <= theirs:
        return False
    sizes = (one.memory_bytes, other.memory_bytes)
    return None in sizes or sizes[0] >= sizes[1]  # type: ignore[operator]


def _named(
    word: str, cards: Sequence[CudaCard], numbered: Sequence[frozenset[str]]
) -> frozenset[str] | None:
    """What one entry of CUDA_VISIBLE_DEVICES means; None where it names no device, which ends the list."""
    if word.startswith("GPU-"):
        found = [card.uuid for card in cards if card.uuid.startswith(word)]
        return frozenset(found) if len(found) == 1 else None
    if word.startswith("MIG-GPU-"):  # MIG-<UUID of the card>/<GPU instance>/<compute instance>
        card = word.removeprefix("MIG-").partition("/")[0]
        return frozenset({card}) if card in {each.uuid for each in cards} else None
    if word.startswith("MIG-"):
        return _parent(word, cards)
    number = re.match(r"[+-]?\d+", word)  # as C's strtoul: 1x is 1
    index = int(number[0]) if number else -1
    return numbered[index] if 0 <= index < len(numbered) else None


def _parent(mig: str, cards: Sequence[CudaCard]) -> frozenset[str] | None:
    """The card that a MIG device is a part of; any card with MIG on where its devices could not be listed."""
    found = {c.uuid for c in cards if any(each.startswith(mig) for each in c.mig_uuids or ())}
    unlisted = {card.uuid for card in cards if card.mig and card.mig_uuids is None}
    return frozenset(found or unlisted) or None

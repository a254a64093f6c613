"""What nvidia-smi says of a host's cards. A field or card that it cannot read is missing; the others stand.

nvidia-smi and not NVML's binding: it is there wherever the driver is, in any Python.
"""

import re
import subprocess
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from greenbench.contract.cuda_devices import Capability, CudaCard, Shown, capability_of, shown

FIELDS: tuple[str, ...] = (
    "index", "uuid", "name", "memory.total", "power.limit", "compute_cap", "mig.mode.current",
    "driver_version",
)  # fmt: skip
TIMEOUT_S = 20.0
MIB = 2**20
# What stands in a cell in place of a value: [N/A], [Not Supported], [Unknown Error], [GPU is lost], ERR!
_NO_VALUE = re.compile(r"\[.*\]|N/A|ERR!|Err!|Unknown Error|")
_UNKNOWN_FIELD = re.compile(r'Field "([^"]+)" is not a valid field to query')


@dataclass(frozen=True, slots=True)
class SmiCard:
    """One row. None: not said."""

    index: int
    uuid: str
    name: str
    memory_bytes: int | None = None
    power_limit_w: float | None = None
    capability: Capability | None = None
    mig: bool | None = None
    driver: str | None = None

    def for_cuda(self) -> CudaCard:
        return CudaCard(
            self.uuid, self.name, self.capability, self.memory_bytes, mig=bool(self.mig)
        )


@dataclass(frozen=True, slots=True)
class SmiAnswer:
    """``faults``: what it said of cards that it cannot read, in its words."""

    cards: tuple[SmiCard, ...] = ()
    faults: tuple[str, ...] = ()

    def shown(self, environ: Mapping[str, str]) -> Shown:
        """What CUDA shows a process with that environment."""
        known = {card.index: card.for_cuda() for card in self.cards}
        listed = [known.get(index) for index in range(max(known, default=-1) + 1)]
        unread_last = [None] if self.faults and None not in listed else []
        return shown([*listed, *unread_last], environ)


def ask(run: Callable[[list[str]], str] | None = None) -> SmiAnswer:
    """The host's cards; none without a driver. ``run`` gives the output of a command line.

    A field that an older driver does not know is left out of the question.
    """
    run = run or _run
    fields = list(FIELDS)
    while fields:
        told = run(
            ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
        )
        unknown = _UNKNOWN_FIELD.search(told)
        if unknown is None or unknown[1] not in fields:
            return parse(told, fields)
        fields.remove(unknown[1])
    return SmiAnswer()


def parse(told: str, fields: Sequence[str] = FIELDS) -> SmiAnswer:
    """Rows of ``--format=csv,noheader,nounits`` (MiB, W), and the lines between them."""
    cards: list[SmiCard] = []
    faults: list[str] = []
    for line in filter(None, (line.strip() for line in told.splitlines())):
        cells = [cell.strip() for cell in line.split(",")]
        card = _card(dict(zip(fields, cells, strict=True))) if len(cells) == len(fields) else None
        if card is not None:
            cards.append(card)
        else:
            faults.append(line)
    return SmiAnswer(tuple(cards), tuple(faults))


def _card(cells: Mapping[str, str]) -> SmiCard | None:
    """None for a row that does not say which card it is of."""
    index, uuid, name = (value(cells.get(key)) for key in ("index", "uuid", "name"))
    if index is None or not index.isdigit() or name is None:
        return None
    memory_mib, power_w = number(cells.get("memory.total")), number(cells.get("power.limit"))
    return SmiCard(
        index=int(index),
        uuid=uuid or f"index {index}",
        name=name,
        memory_bytes=None if memory_mib is None else round(memory_mib * MIB),
        power_limit_w=power_w,
        capability=capability_of(name, value(cells.get("compute_cap"))),
        mig={"Enabled": True, "Disabled": False}.get(cells.get("mig.mode.current", "")),
        driver=value(cells.get("driver_version")),
    )


def value(cell: str | None) -> str | None:
    """The cell's text; None where nvidia-smi wrote a reason in place of a value."""
    text = (cell or "").strip()
    return None if _NO_VALUE.fullmatch(text) else text


def number(cell: str | None) -> float | None:
    """``81559``, ``700.00 W`` or, by a locale with a decimal comma, ``700,00 W``; None for no number."""
    found = re.fullmatch(r"(-?\d+)(?:\.(\d+)|,(\d\d))?(?: ?[A-Za-z%]+)?", value(cell) or "")
    return float(f"{found[1]}.{found[2] or found[3] or 0}") if found else None


def _run(argv: list[str]) -> str:
    """Its output whatever the exit code: with a card lost it lists the others and ends with an error."""
    try:
        done = subprocess.run(
            argv, capture_output=True, text=True, errors="replace", timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout + (done.stderr if done.returncode else "")

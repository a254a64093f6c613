"""CPU energy counters of Linux' powercap tree (RAPL), where the machine lets them be read."""

from dataclasses import dataclass
from pathlib import Path

from telemetry.sensors.capability import Capability, available, unavailable

POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True, slots=True)
class Zone:
    """One counter, e.g. ``intel-rapl:0 package-0``. It wraps to 0 after ``max_uj`` microjoules."""

    name: str
    path: Path
    max_uj: int | None


def probe(root: Path = POWERCAP) -> tuple[list[Zone], Capability]:
    """Readable zones, and whether there are any. AMD uses the same tree and the same names."""
    if not root.is_dir():
        return [], unavailable(f"no {root} (a virtual machine or container hides it)")
    folders = sorted(root.glob("intel-rapl:*"))
    if not folders:
        return [], unavailable(f"{root} has no intel-rapl zone")
    zones: list[Zone] = []
    refused: list[str] = []
    for folder in folders:
        try:
            label = (folder / "name").read_text().strip()
            int((folder / "energy_uj").read_text())
        except PermissionError:
            refused.append(folder.name)
            continue
        except (OSError, ValueError):
            continue
        zones.append(Zone(f"{folder.name} {label}", folder / "energy_uj", _max_uj(folder)))
    if not zones:
        denied = "energy_uj is readable by root only; run as root or give read access"
        return [], unavailable(denied if refused else "no zone gives a number")
    maxima = {zone.name: zone.max_uj for zone in zones}
    return zones, available(zones=maxima, refused=refused)


def _max_uj(folder: Path) -> int | None:
    try:
        return int((folder / "max_energy_range_uj").read_text())
    except (OSError, ValueError):
        return None


def read(zones: list[Zone]) -> dict[str, int] | None:
    """Zone name → raw counter in µJ; a zone that fails is left out; None when none answers."""
    readings: dict[str, int] = {}
    for zone in zones:
        try:
            readings[zone.name] = int(zone.path.read_text())
        except (OSError, ValueError):
            continue
    return readings or None

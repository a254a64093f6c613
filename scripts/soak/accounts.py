"""What a soak is judged by: pure functions of rows, counts and times. Times are monotonic seconds."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final

import numpy as np

from analysis.statistics import student_t
from scripts.soak.faults import Kind

SEPARATE_S: Final = 5.0  # failures so far apart are two holes
GAP_PERIODS: Final = 5.0  # of a recording, until its next row is late
NEAR_S: Final = 5.0  # a hole that begins or ends so near to a fault can be its own
SETTLED_SHARE: Final = 0.25  # of a process's life: it still fills its caches
LEAST_LIFE_S: Final = 300.0  # a shorter life has no slope that means anything
STRETCHES: Final = 8  # of a settled life; the slope is that of their means
MIB: Final = 2**20


@dataclass(frozen=True, slots=True)
class Check:
    name: str
    holds: bool
    found: str


@dataclass(frozen=True, slots=True)
class Broken:
    """A fault that was made. ``mended_s``: when all services answered again."""

    kind: Kind
    began_s: float
    mended_s: float


@dataclass(frozen=True, slots=True)
class Hole:
    """Where good answers of a load, or rows of a recording, are missing. ``cause`` None: unexplained."""

    lane: str
    from_s: float
    to_s: float
    what: str
    cause: Kind | None = None


@dataclass(frozen=True, slots=True)
class Slope:
    """MiB/h with its 95 % interval."""

    mib_per_h: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.mib_per_h:+.1f} ({self.low:+.1f} to {self.high:+.1f}) MiB/h"


@dataclass(frozen=True, slots=True)
class Growth:
    """Of one process, over its longest life. ``slope`` None: no life was long enough."""

    process: str
    life_s: float
    first_mib: float
    last_mib: float
    slope: Slope | None


# Where a fault may leave a hole; a hole in another lane is not its own.
LANES: Final[dict[Kind, frozenset[str]]] = {
    Kind.SERVER: frozenset({"open", "closed", "server metrics"}),
    Kind.ENGINE: frozenset({"open", "closed", "server metrics"}),
    Kind.GATEWAY: frozenset({"open", "closed"}),
    Kind.CUT_CLIENT: frozenset({"open", "closed"}),
    Kind.CUT_SERVER: frozenset({"open", "closed"}),
    Kind.RECORDER: frozenset({"host samples", "server metrics"}),
    Kind.DISK: frozenset({"host samples", "server metrics"}),
    Kind.CLOCK: frozenset(),
    Kind.STALL: frozenset({"open", "closed", "host samples", "server metrics"}),
}
MAY_HIDE: Final = frozenset(
    {Kind.DISK, Kind.CLOCK, Kind.STALL}
)  # rows wait for a full disk; a step is no hole


def failures(lane: str, rows: Iterable[tuple[float, str | None]]) -> list[Hole]:
    """``rows``: (when, error type or None). Failures next to each other are one hole."""
    bad = sorted((at, error) for at, error in rows if error is not None)
    holes: list[list[tuple[float, str]]] = []
    for each in bad:
        if holes and each[0] - holes[-1][-1][0] <= SEPARATE_S:
            holes[-1].append(each)
        else:
            holes.append([each])
    return [
        Hole(
            lane, found[0][0], found[-1][0],
            f"{len(found)} requests failed: "
            + ", ".join(f"{error} {n}" for error, n in Counter(e for _, e in found).most_common()),
        )
        for found in holes
    ]  # fmt: skip


def gaps(
    lane: str, moments: Iterable[float], period_s: float, starts: Sequence[float] = ()
) -> list[Hole]:
    """Where a recording with rows each ``period_s`` has none, or was begun anew (``starts``)."""
    return [
        Hole(lane, a, b, f"no row for {b - a:.1f} s")
        for a, b in pairwise(sorted(moments))
        if b - a > GAP_PERIODS * period_s or any(a < start <= b for start in starts)
    ]


def explained(holes: Iterable[Hole], faults: Sequence[Broken]) -> list[Hole]:
    """Each hole with the fault that it overlaps in time and whose lane it is in."""
    return [
        Hole(hole.lane, hole.from_s, hole.to_s, hole.what, _cause(hole, faults))
        for hole in sorted(holes, key=lambda each: each.from_s)
    ]


def _cause(hole: Hole, faults: Sequence[Broken]) -> Kind | None:
    for fault in faults:
        near = fault.began_s - NEAR_S <= hole.to_s and hole.from_s <= fault.mended_s + NEAR_S
        if near and hole.lane in LANES[fault.kind]:
            return fault.kind
    return None


def unseen(holes: Iterable[Hole], faults: Sequence[Broken]) -> list[Broken]:
    """Faults that should have left a hole and left none."""
    found = list(holes)
    return [
        fault
        for fault in faults
        if fault.kind not in MAY_HIDE and not any(_cause(hole, [fault]) for hole in found)
    ]


def once(name: str, ids: Iterable[str]) -> Check:
    counted = Counter(ids)
    twice = [each for each, n in counted.items() if n > 1]
    found = f"{len(counted):,} ids" + (f"; twice: {_some(twice)}" if twice else ", none twice")
    return Check(name, not twice, found)


def none_missing(name: str, wanted: Iterable[str], there: Iterable[str]) -> Check:
    wanted, there = set(wanted), set(there)
    missing = sorted(wanted - there)
    found = f"{len(wanted):,} wanted, {len(missing)} missing"
    return Check(name, not missing, found + (f": {_some(missing)}" if missing else ""))


def unbroken(name: str, numbers: Iterable[int]) -> Check:
    """The numbers of requests are 0, 1, 2, … to the last: no row is missing from the middle."""
    there = set(numbers)
    missing = sorted(set(range(max(there, default=-1) + 1)) - there)
    found = f"0 to {max(there, default=-1):,}, {len(missing)} missing"
    return Check(name, bool(there) and not missing, found)


def logged(
    name: str, lines: Sequence[Mapping[str, Any]], records: Sequence[Mapping[str, Any]], kills: int
) -> Check:
    """Lines of an access log beside the loads' records. The soak's own probes are lines too, but no POST. A
    killed gateway may have sent an answer's last byte and not have written its line.
    """
    asked = [line for line in lines if line["method"] == "POST"]
    complete = sum(line["ended"] == "complete" and line["status"] == 200 for line in asked)
    good = sum(row["error_type"] is None for row in records)
    return Check(
        name,
        good - kills <= complete <= len(records),
        f"{len(asked):,} lines, {complete:,} complete; {good:,} good of {len(records):,} records",
    )


def growth(process: str, lives: Sequence[Sequence[tuple[float, int]]]) -> Growth:
    """Over the longest life, without its first quarter. ``lives``: (seconds, bytes)."""
    longest = max(lives, key=lambda life: life[-1][0] - life[0][0] if life else 0.0, default=())
    if not longest:
        return Growth(process, 0.0, 0.0, 0.0, None)
    at, held = np.array([s for s, _ in longest]), np.array([b for _, b in longest]) / MIB
    length_s = float(at[-1] - at[0])
    settled = at >= at[0] + SETTLED_SHARE * length_s
    slope = _slope(at[settled], held[settled]) if length_s >= LEAST_LIFE_S else None
    return Growth(process, length_s, float(held[settled][0]), float(held[-1]), slope)


def _slope(at_s: np.ndarray, mib: np.ndarray) -> Slope:
    """Least squares through the means of `STRETCHES` equal parts, with Student's interval.

    Of means, for neighbouring samples hardly differ and would make the interval far too narrow.
    """
    parts = list(
        zip(np.array_split(at_s / 3600, STRETCHES), np.array_split(mib, STRETCHES), strict=True)
    )
    hours, means = (np.array([float(each[which].mean()) for each in parts]) for which in (0, 1))
    per_h, level = np.polyfit(hours, means, 1)
    spread = float(np.sum((means - level - per_h * hours) ** 2)) / (STRETCHES - 2)
    error = float(np.sqrt(spread / np.sum((hours - hours.mean()) ** 2)))
    half = float(student_t.ppf(0.975, STRETCHES - 2)) * error
    return Slope(float(per_h), float(per_h) - half, float(per_h) + half)


def sequence_of(row: Mapping[str, Any]) -> int:
    """The number of a request in its run; turns of a conversation share one."""
    return int(row["request_id"].split("-t")[0].rsplit("-", 1)[1])


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + (" …" if len(names) > 3 else "")

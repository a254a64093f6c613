"""From wall time to monotonic time, where the two clocks kept step; refused where they did not.

Requests, samples and events all carry stamps of CLOCK_MONOTONIC, which one host has only one of. Windows are
found on the client's wall stamps and carried over here, by the offsets that were recorded during the run.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from greenbench.contract.clock import Anchor

LARGEST_STEP_NS = 50_000_000


@dataclass(frozen=True, slots=True)
class WallClock:
    """Wall minus monotonic time during a run: its median, and how far it moved. Nanoseconds."""

    offset_ns: int
    moved_ns: int

    @property
    def anchor(self) -> Anchor:
        return Anchor(unix_ns=self.offset_ns, mono_ns=0)

    @property
    def reason(self) -> str | None:
        """``clock_stepped`` when wall stamps of the run cannot be joined to each other."""
        return "clock_stepped" if self.moved_ns > LARGEST_STEP_NS else None

    def to_mono_ns(self, unix_ns: int) -> int | None:
        return None if self.reason else self.anchor.to_mono_ns(unix_ns)


def wall_clock(stamps: Iterable[tuple[int, int]]) -> WallClock:
    """From (unix_ns, mono_ns) pairs of anchors, events, samples and requests; at least one."""
    offsets = np.array([unix_ns - mono_ns for unix_ns, mono_ns in stamps], dtype=np.int64)
    if not len(offsets):
        raise ValueError("no stamps: a run without events has no clock")
    return WallClock(int(np.median(offsets)), int(offsets.max() - offsets.min()))

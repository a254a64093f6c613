"""The highest value of a load that meets an SLO: doubling, bisection, and when a probe is decided.

A value holds when the share of good requests is at least the target: its Wilson interval lies above. It
fails when the interval lies below. In between the probe is repeated, then decided by the share itself and
said to be uncertain.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from greenbench.contract.config import SloConfig
from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.slo import is_good, time_per_token_ns

Z_95: Final = 1.959964  # two-sided 95 % of the normal distribution
REPEATS: Final = 3  # of a probe whose interval holds the target
MAX_PROBES: Final = 40


@dataclass
class Probe:
    """Requests of the measured phase at one value, over all its runs."""

    value: float
    good: int = 0
    total: int = 0
    runs: int = 0

    @property
    def share(self) -> float:
        return self.good / self.total if self.total else 0.0

    @property
    def interval(self) -> tuple[float, float]:
        return wilson(self.good, self.total)


def wilson(good: int, total: int, z: float = Z_95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927). Without requests: nothing is known."""
    if total == 0:
        return 0.0, 1.0
    share, spread = good / total, z * z / total
    middle = (share + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    return max(0.0, middle - half), min(1.0, middle + half)


@dataclass
class Search:
    """What to probe next, from what is known. ``step``: smallest ratio of neighbours worth telling apart."""

    start: float
    target: float = 0.9
    step: float = 1.1
    whole: bool = False  # users are counted, rates are not
    most: float = 1e6
    probes: dict[float, Probe] = field(default_factory=dict[float, Probe])

    def verdict(self, probe: Probe) -> bool | None:
        """True: holds. False: fails. None: the interval holds the target and more runs may decide."""
        low, high = probe.interval
        if probe.total == 0 and probe.runs:
            return False  # nothing came back at all
        if low >= self.target:
            return True
        if high < self.target:
            return False
        return probe.share >= self.target if probe.runs >= REPEATS else None

    def next(self) -> float | None:
        """The value to probe, or None when the answer stands."""
        for probe in self.probes.values():
            if self.verdict(probe) is None:
                return probe.value
        best, worst = self.best, self.worst
        if best is None and worst is None:
            return self.start
        if worst is None:
            assert best is not None
            return None if best >= self.most else min(2 * best, self.most)
        if best is None:
            lower = worst / 2
            return None if lower < (1 if self.whole else self.start / 64) else self._rounded(lower)
        between = self._rounded(math.sqrt(best * worst))
        near = worst / best <= self.step or (self.whole and worst - best <= 1)
        return None if near or between in self.probes else between

    def _rounded(self, value: float) -> float:
        return float(round(value)) if self.whole else float(f"{value:.3g}")

    @property
    def best(self) -> float | None:
        """The highest value that holds, below every value that fails."""
        held = [p.value for p in self.probes.values() if self.verdict(p)]
        worst = self.worst
        return max((v for v in held if worst is None or v < worst), default=None)

    @property
    def worst(self) -> float | None:
        """The lowest value that fails."""
        return min(
            (p.value for p in self.probes.values() if self.verdict(p) is False), default=None
        )


def meets(row: dict[str, Any], slo: SloConfig) -> bool:
    """Whether a request's row is good, by ``greenbench.contract.slo``. A reply that is not streamed comes at
    once: its first token is its end.
    """
    end_ns, sent_ns = _number(row["end_ns"]), row["sent_unix_ns"]
    first_ns = _number(row["first_token_ns"] if row["first_token_ns"] is not None else end_ns)
    late_ns = 0.0 if row["scheduled_unix_ns"] is None else sent_ns - row["scheduled_unix_ns"]
    tokens = row["output_tokens"] or 0
    pace_ns = time_per_token_ns(
        first_ns, _number(row["last_token_ns"]), tokens, row.get("chunk_tokens")
    )
    return is_good(
        slo,
        row["error_type"] is None and row["end_ns"] is not None,
        (first_ns + late_ns) / 1e9,
        pace_ns / 1e9,
        (end_ns + late_ns) / 1e9,
        tokens,
    )


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def count_good(run_path: Path, slo: SloConfig) -> tuple[int, int]:
    """(good, all) requests of the measured phase of a run."""
    rows = [
        row
        for file in (run_path / "requests").glob("*.jsonl")
        for row in read_jsonl(file)
        if row["phase"] == "measure"
    ]
    return sum(meets(row, slo) for row in rows), len(rows)


def run_search(
    search: Search, probe: Callable[[float, int], tuple[int, int]], save: Callable[[Probe], object]
) -> float | None:
    """Probe until the answer stands. ``probe(value, number)`` gives (good, all) of one run."""
    for _ in range(MAX_PROBES):
        value = search.next()
        if value is None:
            return search.best
        known = search.probes.setdefault(value, Probe(value))
        good, total = probe(value, known.runs)
        known.good, known.total, known.runs = known.good + good, known.total + total, known.runs + 1
        save(known)
    return search.best

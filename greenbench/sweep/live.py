"""What a point that is being measured does right now, from the tails of its files."""

import json
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.clock import NS_PER_S
from greenbench.contract.config import PointConfig
from greenbench.contract.forms import Sources
from greenbench.contract.run_dir import RunDir

TAIL_BYTES = 1 << 17
RUNNING, WAITING = "vllm:num_requests_running", "vllm:num_requests_waiting"


@dataclass(frozen=True, slots=True)
class Sign:
    """A sign of life; None is not known. ``open``: as the server says, waiting ones counted."""

    phase: str
    left_s: float | None = None
    done: int = 0
    open: int | None = None
    ttft_s: float | None = None
    power_w: float | None = None

    @property
    def words(self) -> str:
        said = [self.phase]
        said += [f"{self.left_s:.0f} s left at most"] if self.left_s is not None else []
        said += [f"{self.open} open"] if self.open is not None else []
        said += [f"{self.done} done"]
        said += [f"last TTFT {self.ttft_s * 1e3:.0f} ms"] if self.ttft_s is not None else []
        said += [f"{self.power_w:.0f} W"] if self.power_w is not None else []
        return ", ".join(said)


class Lines:
    """How many lines a growing file has, and the last whole one of no great length."""

    def __init__(self) -> None:
        self.count = self._at = 0
        self.last = b""

    def look(self, path: Path) -> None:
        with path.open("rb") as file:
            file.seek(self._at)
            new = file.read()
        end = new.rfind(b"\n") + 1
        if end:
            self._at += end
            self.count += new.count(b"\n")
            self.last = new[new.rfind(b"\n", 0, end - 1) + 1 : end]


class Live:
    """The view of one point; ``look`` reads what is new."""

    def __init__(self, run: RunDir, point: PointConfig) -> None:
        self.run = run
        self.point = point
        self._rows: dict[Path, Lines] = {}
        self._marks: dict[str, int] = {}  # name → monotonic ns

    @property
    def done(self) -> int:
        return sum(lines.count for lines in self._rows.values())

    @property
    def measured_s(self) -> float | None:
        """Since measuring began; None before that, and when it has ended."""
        start = self._marks.get("measure_start")
        if start is None or self.ended:
            return None
        return max(0.0, (time.monotonic_ns() - start) / NS_PER_S)

    @property
    def ended(self) -> bool:
        return "measure_end" in self._marks

    @property
    def length_s(self) -> float | None:
        """Of the measured phase, once it has ended."""
        start, end = (self._marks.get(name) for name in ("measure_start", "measure_end"))
        return None if start is None or end is None else (end - start) / NS_PER_S

    def look(self) -> None:
        with suppress(OSError, ValueError, KeyError):
            text = self.run.events_path.read_text()  # a few lines
            events = [json.loads(line) for line in text.splitlines()]
            self._marks = {event["name"]: event["mono_ns"] for event in events}
        with suppress(OSError):
            for path in self.run.requests_dir.glob("*.jsonl"):
                self._rows.setdefault(path, Lines()).look(path)

    def sign(self) -> Sign:
        self.look()
        return Sign(*self._phase(), self.done, self._open(), self._ttft_s(), _power_w(self.run))

    def _phase(self) -> tuple[str, float | None]:
        phases = self.point.phases
        if self.ended:
            since_s = (time.monotonic_ns() - self._marks["measure_end"]) / NS_PER_S
            return "draining", max(0.0, phases.drain_s - since_s)
        if self.measured_s is not None:
            return "measuring", max(0.0, phases.longest_s - self.measured_s)
        if "warmup_start" in self._marks:
            since_s = (time.monotonic_ns() - self._marks["warmup_start"]) / NS_PER_S
            return "warming up", max(0.0, phases.warmup_s - since_s) + phases.longest_s
        return "starting the load", None

    def _open(self) -> int | None:
        newest: dict[str, float] = {}
        moment = None
        for row in _backwards(self.run.telemetry_dir / "server.jsonl"):
            if row.get("metric") not in (RUNNING, WAITING):
                continue
            if moment is not None and row["unix_ns"] != moment:
                break
            moment = row["unix_ns"]
            newest[f"{row['metric']}{row.get('labels')}"] = float(row["value"])
        return round(sum(newest.values())) if newest else None

    def _ttft_s(self) -> float | None:
        for lines in self._rows.values():
            with suppress(ValueError):
                first_ns = json.loads(lines.last).get("first_token_ns")
                return None if first_ns is None else first_ns / NS_PER_S
        return None


def _power_w(run: RunDir) -> float | None:
    """Newest readings of the server's cards together; of all cards where those are not known."""
    serving = _serving(run)
    newest: dict[str, float] = {}
    seen: set[str] = set()
    for row in _backwards(run.telemetry_dir / "gpu.jsonl"):
        card, watts = str(row.get("gpu_uuid")), row.get("power_avg_w") or row.get("power_w")
        if card in seen:
            break
        seen.add(card)
        if watts is not None and (serving is None or card in serving):
            newest[card] = float(watts)
    return sum(newest.values()) if newest else None


def _serving(run: RunDir) -> list[str] | None:
    with suppress(OSError, ValueError):
        facts = Sources.model_validate_json((run.telemetry_dir / "sources.json").read_bytes()).facts
        return facts.own_cards or facts.possible_cards
    return None


def _backwards(path: Path) -> Iterator[dict[str, Any]]:
    """Rows from the last whole line back, within a file's tail."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL_BYTES))
            lines = file.read().split(b"\n")[1:-1]
    except OSError:
        return
    for line in reversed(lines):
        with suppress(ValueError):
            yield json.loads(line)

"""From what a soak left behind, to checks, holes and figures."""

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from greenbench.contract.run_dir import read_jsonl
from greenbench.contract.segments import read_bytes
from scripts.soak.accounts import (
    Broken,
    Check,
    Growth,
    Hole,
    explained,
    failures,
    gaps,
    growth,
    logged,
    none_missing,
    once,
    sequence_of,
    unbroken,
    unseen,
)
from scripts.soak.faults import Kind
from scripts.soak.kept import Kept, Life
from scripts.soak.recording import moments, whole_lines
from scripts.soak.rig import LOADS, REQUEST_S, STEP_S, Rig

HOST_PERIOD_S, SCRAPE_PERIOD_S = 1.0, 2.0
GROWTH_LIMIT_MIB_PER_H: Final = 16.0
FLAT: Final = frozenset({"open", "closed", "recorder", "gateway", "exporter"})  # ours


@dataclass
class Log:
    """What the soak itself did and saw. Seconds are the monotonic clock's."""

    began_s: float = field(default_factory=time.monotonic)
    broken: list[Broken] = field(default_factory=list[Broken])
    stalls: list[Broken] = field(default_factory=list[Broken])
    scrapes: int = 0
    scrapes_failed: int = 0
    strays: list[str] = field(default_factory=list[str])
    counters: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    ended_s: float = 0.0


@dataclass(frozen=True)
class Verdict:
    checks: list[Check]
    holes: list[Hole]
    growths: list[Growth]
    figures: dict[str, Any]

    @property
    def holds(self) -> bool:
        return all(check.holds for check in self.checks)


Rows = dict[str, list[dict[str, Any]]]  # by load


def judge(rig: Rig, log: Log) -> Verdict:
    rows: Rows = {load: list(read_all(rig.run(load) / "requests")) for load in LOADS}
    audits = {load: audit(rig.run(load)) for load in LOADS}
    found = [*_failed(rows), *_recorded(rig.run("open"))]
    holes = explained(found, [*log.broken, *log.stalls])
    growths = [growth(kept.name, [life.rss for life in kept.lives]) for kept in rig.processes]
    checks = [
        *_counted(rows, rig, audits),
        logged(
            "the gateway's access log agrees, and each of its lines is whole",
            list(read_jsonl(rig.disk / "access.jsonl")),
            [row for each in rows.values() for row in each],
            kills=sum(fault.kind is Kind.GATEWAY for fault in log.broken),
        ),
        *([_served(rows, log)] if not rig.wanted.fake else []),
        _torn(rig.run("open")),
        *_holes(holes, log.broken),
        _clock(log.broken, rows["closed"]),
        flat(growths),
        Check("no process is left over", not log.strays, ", ".join(log.strays) or "none"),
        *_ends(rig, log),
    ]
    good = {load: sum(row["error_type"] is None for row in each) for load, each in rows.items()}
    figures = {
        "requests": {load: len(each) for load, each in rows.items()},
        "good": good,
        "seen_before_gateway": len(rig.before.seen),
        "seen_behind_gateway": len(rig.behind.seen),
        "scrapes_of_exporter_and_gateway": log.scrapes,
    }
    return Verdict(checks, holes, growths, figures)


def read_all(folder: Path) -> Iterator[dict[str, Any]]:
    for path in sorted(folder.glob("*.jsonl")):
        yield from read_jsonl(path)


def audit(run: Path) -> dict[str, Any]:
    found = sorted((run / "client_audit").glob("*.json"))
    return json.loads(found[0].read_text()) if found else {}


def sent_s(row: dict[str, Any]) -> float:
    return row["sent_mono_ns"] / 1e9


# --- records --------------------------------------------------------------------------------------


def _counted(rows: Rows, rig: Rig, audits: dict[str, dict[str, Any]]) -> Iterator[Check]:
    every = [row for each in rows.values() for row in each]
    ids = [row["request_id"] for row in every]
    seen = [name for _, name in rig.before.seen]
    behind = {name for _, name in rig.behind.seen}
    yield once("no record twice", ids)
    yield none_missing("each request that the network saw has a record", seen, ids)
    yield none_missing(
        "each answer in the records was asked for before the gateway",
        [row["request_id"] for row in every if row["http_status"] is not None], seen,
    )  # fmt: skip
    yield none_missing(
        "each good answer in the records was asked of the server",
        [row["request_id"] for row in every if row["error_type"] is None], behind,
    )  # fmt: skip
    for load, each in rows.items():
        yield unbroken(f"the numbers of the {load} load have no hole", map(sequence_of, each))
        sent = audits[load].get("counts", {}).get("rows")
        yield Check(
            f"as many records of the {load} load as it says", sent == len(each),
            f"{len(each):,} there, {sent if sent is None else format(sent, ',')} said",
        )  # fmt: skip
    again = sum(each.get("figures", {}).get("sent_again", 0) for each in audits.values())
    yield Check(
        "the network saw a request twice only where the client says so",
        len(seen) - len(set(seen)) <= again,
        f"{len(seen) - len(set(seen))} twice, {again} said",
    )


def _served(rows: Rows, log: Log) -> Check:
    """The server's own count since its last start, beside the records of that time."""
    (from_s, first), (_, last) = log.counters[0], log.counters[-1]
    sent = [row for each in rows.values() for row in each if row["sent_mono_ns"]]
    good = sum(sent_s(row) >= from_s and row["error_type"] is None for row in sent)
    possible = sum(sent_s(row) + (row["end_ns"] or REQUEST_S * 1e9) / 1e9 >= from_s for row in sent)
    counted = round(last - first)
    return Check(
        "the server's own count since its last start agrees",
        good <= counted <= possible,
        f"{counted:,} answered by its counter, {good:,} good records, {possible:,} in all",
    )


# --- holes ----------------------------------------------------------------------------------------


def _failed(rows: Rows) -> Iterator[Hole]:
    for load, each in rows.items():
        timed = [(sent_s(row), row["error_type"]) for row in each if row["sent_mono_ns"]]
        yield from failures(load, timed)
        yield from gaps(load, (at for at, error in timed if error is None), 3.0)


def _recorded(run: Path) -> Iterator[Hole]:
    marks = read_jsonl(run / "events.jsonl")
    starts = [mark["mono_ns"] / 1e9 for mark in marks if mark["name"] == "recorder_started"]
    for lane, name, period_s in (
        ("host samples", "host", HOST_PERIOD_S),
        ("server metrics", "server", SCRAPE_PERIOD_S),
    ):
        rows = set(moments(run / "telemetry" / f"{name}.jsonl"))
        yield from gaps(lane, rows, period_s, starts[1:])


def _torn(run: Path) -> Check:
    """Lines that are no JSON, in the recording of a recorder that was killed and met a full disk."""
    counts = {
        path.name: sum(1 for _ in read_bytes(path).splitlines()) - sum(1 for _ in whole_lines(path))
        for path in sorted((run / "telemetry").glob("*.jsonl"))
    }
    torn = {name: n for name, n in counts.items() if n}
    return Check("no line of the recordings is torn", not torn, str(torn or "none is"))


def _holes(holes: Sequence[Hole], broken: Sequence[Broken]) -> Iterator[Check]:
    strange = [hole for hole in holes if hole.cause is None]
    said = "; ".join(f"{hole.lane}: {hole.what}" for hole in strange[:3])
    yield Check("each hole has its cause", not strange, said or f"{len(holes)} holes")
    quiet = unseen(holes, broken)
    said = ", ".join(fault.kind for fault in quiet)
    yield Check("each fault shows", not quiet, f"not seen: {said}" if quiet else f"{len(broken)}")


def _clock(broken: Sequence[Broken], rows: list[dict[str, Any]]) -> Check:
    """Wall clock less monotonic clock moves by the steps made, and no duration by any."""
    made_s = STEP_S * sum(fault.kind is Kind.CLOCK for fault in broken)
    apart = [
        (row["sent_unix_ns"] - row["sent_mono_ns"]) / 1e9 for row in rows if row["sent_mono_ns"]
    ]
    noted_s = max(apart, default=0.0) - min(apart, default=0.0)
    longest_s = max((row["end_ns"] / 1e9 for row in rows if row["end_ns"]), default=0.0)
    shortest_s = min((row["end_ns"] / 1e9 for row in rows if row["end_ns"]), default=0.0)
    return Check(
        "a step of the clock is in the records, and in no duration",
        abs(noted_s - made_s) < 1 and shortest_s >= 0 and longest_s < REQUEST_S + 1,
        f"{made_s} s made, {noted_s:.1f} s noted; the longest request took {longest_s:.1f} s",
    )


# --- processes ------------------------------------------------------------------------------------


def flat(growths: Sequence[Growth]) -> Check:
    """Held against the interval's upper end: what may grow faster than the limit is not called flat."""
    slopes = {each.process: each.slope for each in growths if each.slope and each.process in FLAT}
    holds = all(slope.high <= GROWTH_LIMIT_MIB_PER_H for slope in slopes.values())
    said = "no process lived long enough to say"
    if slopes:
        worst = max(slopes, key=lambda process: slopes[process].high)
        said = f"most: {worst}, {slopes[worst]}; limit {GROWTH_LIMIT_MIB_PER_H:g}"
    return Check("memory is flat", holds, said)


def _ends(rig: Rig, log: Log) -> Iterator[Check]:
    bad = [f"{load.name} {load.lives[-1].code}" for load in rig.loads if load.lives[-1].code != 0]
    yield Check("both loads ended in order", not bad, ", ".join(bad) or "exit code 0")
    own = [f"{kept.name} at {life.ended_s - log.began_s:.0f} s ({life.code})"
           for kept in rig.services for life in kept.lives
           if life.ended_s is not None and not _of_a_fault(kept, life, log)]  # fmt: skip
    yield Check("no service ended by itself", not own, ", ".join(own) or "none did")
    yield Check(
        "exporter and gateway answered each scrape while they were up", log.scrapes_failed == 0,
        f"{log.scrapes_failed} of {log.scrapes:,} failed",
    )  # fmt: skip


KILLS: Final[dict[Kind, str]] = {
    Kind.SERVER: "server",
    Kind.ENGINE: "server",
    Kind.GATEWAY: "gateway",
    Kind.RECORDER: "recorder",
    Kind.DISK: "recorder",
}


def _of_a_fault(kept: Kept, life: Life, log: Log) -> bool:
    ended_s = life.ended_s or 0.0
    return ended_s >= log.ended_s or any(
        KILLS.get(fault.kind) == kept.name and fault.began_s <= ended_s <= fault.mended_s + 1
        for fault in log.broken
    )

"""What no honest run can hold of times: clocks that part, phases that differ, requests out of their phase or
load. Each function is one invariant and yields faults or none; ``analysis.runs.invariants`` has the others.
"""

from collections.abc import Callable, Iterator
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from analysis.runs.chunk_marks import ROUNDING_NS
from analysis.runs.clocks import LARGEST_STEP_NS
from analysis.runs.fault import Fault
from analysis.runs.run import Run
from analysis.runs.wrong_rows import Mask, fault, imported
from greenbench.contract.clock import NS_PER_S
from greenbench.contract.config import LoadConfig
from greenbench.contract.counted import counted

LATE_NS = (
    NS_PER_S  # of sending after a user took the request up; later, the client is over its budget
)
SLEW = 1e-3  # by which a wall clock may run fast while it is corrected: twice NTP's 500 ppm
PHASE_SLACK = 0.01  # of the measured phase's length, beside a second
ARRIVAL_SIGMAS = 6
PHASES = ("warmup", "measure", "drain")
MARKS = ("warmup_start", "measure_start", "measure_end", "drain_end")

Moments = npt.NDArray[np.int64]
Span = tuple[int, int]  # least and most of wall minus monotonic time, ns


def clocks(run: Run) -> Iterator[Fault]:
    """Wall minus monotonic time is one number through events, rows and telemetry of a run.

    Clients on other hosts have another monotonic clock: with several, each must agree with itself.
    """
    clients = _client_spans(run)
    several = len(clients) > 1
    for client, (least, most) in clients if several else ():
        if most - least > LARGEST_STEP_NS:
            yield _stepped(f"request rows of {client}", most - least)
    rows = [("request rows", span) for _, span in clients if not several]
    lowest: list[int] = []
    highest: list[int] = []
    for where, (least, most) in (*_event_spans(run), *rows, *_telemetry_spans(run)):
        lowest.append(least)
        highest.append(most)
        step_ns = max(highest) - min(lowest)
        if step_ns > LARGEST_STEP_NS:
            yield _stepped(where, step_ns)
            return


def _event_spans(run: Run) -> Iterator[tuple[str, Span]]:
    stamps = [(event.unix_ns, event.mono_ns) for event in run.events]
    if not imported(run):
        stamps.append((run.manifest.clock.unix_ns, run.manifest.clock.mono_ns))
    if stamps:
        yield "events", _span(*np.array(stamps, dtype=np.int64).T)


def _client_spans(run: Run) -> list[tuple[str, Span]]:
    rows = run.requests[["client_id", "sent_unix_ns", "sent_mono_ns"]].dropna()
    return [
        (str(client), _span(sent["sent_unix_ns"], sent["sent_mono_ns"]))
        for client, sent in rows.groupby("client_id", sort=True)
    ]


def _telemetry_spans(run: Run) -> Iterator[tuple[str, Span]]:
    for name, samples in (("gpu", run.gpu), ("host", run.host), ("server", run.server)):
        if len(samples):
            yield f"telemetry/{name}.jsonl", _span(samples["unix_ns"], samples["mono_ns"])


def _span(unix_ns: pd.Series | Moments, mono_ns: pd.Series | Moments) -> Span:
    """Exact, since wall times do not fit a float."""
    offsets = np.asarray(unix_ns, dtype=np.int64) - np.asarray(mono_ns, dtype=np.int64)
    return int(offsets.min()), int(offsets.max())


def _stepped(where: str, step_ns: int) -> Fault:
    sentence = (
        f"wall and monotonic time parted by {step_ns / NS_PER_S:.3f} s during the run (in {where})"
    )
    return Fault("clock_stepped", sentence)


def phases(run: Run) -> Iterator[Fault]:
    """The manifest's phases, the marks of the events, and the length that was asked for."""
    for clauses in (_turned_phases, _marks_against_phases, _parted_phases, _measured_length):
        yield from (Fault("phases_differ", sentence) for sentence in clauses(run))


def _turned_phases(run: Run) -> Iterator[str]:
    for name, (start, end) in run.manifest.phases.items():
        if start > end + ROUNDING_NS:  # marks of one moment, each turned into wall time by itself
            yield f"the phase {name} ends before it starts"


def _parted_phases(run: Run) -> Iterator[str]:
    told = run.manifest.phases
    for one, two in pairwise(PHASES):
        if one in told and two in told and abs(told[one][1] - told[two][0]) > ROUNDING_NS:
            yield f"{two} does not start where {one} ends"


def _marks_against_phases(run: Run) -> Iterator[str]:
    marks: dict[str, int] = {}
    for event in run.events:
        if event.name in MARKS and event.name in marks:
            yield f"events.jsonl has more than one {event.name}"
        marks[event.name] = event.unix_ns
    for name, edges in zip(PHASES, pairwise(MARKS), strict=True):
        for mark, moment in zip(edges, run.manifest.phases.get(name, ()), strict=False):
            if mark in marks and abs(marks[mark] - moment) > ROUNDING_NS:
                yield f"{mark} is at {marks[mark]} in events.jsonl and at {moment} in the manifest"


def _measured_length(run: Run) -> Iterator[str]:
    start, end = run.manifest.phases.get("measure", (0, 0))
    length_s, asked_s = (end - start) / NS_PER_S, run.point.phases.longest_s
    if length_s > asked_s * (1 + PHASE_SLACK) + 1:
        yield f"the measured phase took {length_s:.1f} s, {asked_s:g} at most were asked for"


def outside_phases(run: Run) -> Iterator[Fault]:
    """A request belongs to the phase in which a user took it up: it was sent a moment later at most."""
    told = run.manifest.phases
    if imported(run) or "measure" not in told:
        return
    rows = run.requests
    base = rows["scheduled_unix_ns"].fillna(rows["sent_unix_ns"]).astype("Int64")
    late = rows["connect_ns"].fillna(0).astype("int64") + LATE_NS
    late = late.where(rows["scheduled_unix_ns"].isna(), 0) + LARGEST_STEP_NS
    start, end = told["measure"]
    first = told["warmup"][0] if "warmup" in told else None
    phase = rows["phase"]
    wrong = (phase == "measure") & ((base < start - LARGEST_STEP_NS) | (base > end + late))
    wrong |= (phase == "warmup") & (base > start + late)
    wrong |= (phase == "drain") & (base < end - LARGEST_STEP_NS)
    if first is not None:
        wrong |= base < first - LARGEST_STEP_NS
    what = "were not taken up in the phase that their row says"
    yield from fault("outside_phases", rows, wrong, what)
    cut = rows["sent_unix_ns"] + rows["end_ns"] < end - LARGEST_STEP_NS
    what = "were cut at the drain and ended before it"
    yield from fault("outside_phases", rows, cut & (rows["error_type"] == "cut_at_drain"), what)


def in_flight(run: Run) -> Iterator[Fault]:
    users = run.point.load.users
    if imported(run) or users is None:
        return
    rows = run.requests
    said = rows["in_flight_at_send"] >= users
    what = f"had as many other requests open as the load has users ({users}), or more"
    yield from fault("too_many_in_flight", rows, said, what)
    most = most_open(rows)
    if most > users:
        yield Fault(
            "too_many_in_flight",
            f"{most} requests were open at one moment, and the load has {counted(users, 'user')}",
        )
        return

    yield from fault(
        "too_many_in_flight", rows, beside_own(rows), "had another of its own user open"
    )


def beside_own(rows: pd.DataFrame) -> Mask:
    """Requests that their user sent while an earlier one of the same user was open."""
    wrong = pd.Series(False, index=rows.index)
    known = rows[rows["user"].notna() & rows["sent_unix_ns"].notna() & rows["end_ns"].notna()]
    start, end = _open(known)
    user = known["user"].to_numpy(dtype=np.int64)
    order = np.lexsort((start, user))
    beside = (user[order][1:] == user[order][:-1]) & (start[order][1:] < end[order][:-1])
    wrong.loc[known.index[order[1:][beside]]] = True
    return wrong


def most_open(rows: pd.DataFrame) -> int:
    """Most requests open at one moment; an end counts sooner by what two clocks may differ in its length."""
    sent = rows[rows["sent_unix_ns"].notna() & rows["end_ns"].notna()]
    if not len(sent):
        return 0
    start, end = (np.sort(moments) for moments in _open(sent))
    level = np.arange(1, len(start) + 1) - np.searchsorted(end, start, side="right")
    return int(level.max())


def _open(sent: pd.DataFrame) -> tuple[Moments, Moments]:
    """When requests were sent, and when they were surely over."""
    start = sent["sent_unix_ns"].to_numpy(dtype=np.int64)
    length = sent["end_ns"].to_numpy(dtype=np.int64)
    slack = (SLEW * length).astype(np.int64) + ROUNDING_NS
    return start, start + length - np.minimum(length, slack)


def schedule(run: Run) -> Iterator[Fault]:
    """An open loop sends what is due, not before it is due, and as many as its rate asks for."""
    load = run.point.load
    if imported(run) or load.kind != "open":
        return
    rows = run.requests
    unknown = rows["scheduled_unix_ns"].isna()
    yield from fault("not_as_scheduled", rows, unknown, "of an open loop were never due")
    early = rows["sent_unix_ns"] < rows["scheduled_unix_ns"] - LARGEST_STEP_NS
    yield from fault("not_as_scheduled", rows, early, "were sent before they were due")
    if load.rate_per_s is None or load.ramp_s is not None or "measure" not in run.manifest.phases:
        return
    start, end = run.manifest.phases["measure"]
    due = int(((rows["scheduled_unix_ns"] >= start) & (rows["scheduled_unix_ns"] < end)).sum())
    wanted = load.rate_per_s * (end - start) / NS_PER_S
    if abs(due - wanted) > ARRIVAL_SIGMAS * np.sqrt(wanted * _dispersion(load)) + 2:
        yield Fault(
            "not_as_scheduled",
            f"{due} requests were due in the measured phase, the rate asks for {wanted:.0f}",
        )


def _dispersion(load: LoadConfig) -> float:
    """Variance over mean of the number of arrivals in a long time (a renewal process: cv² of the gaps)."""
    return {"constant": 0.0, "poisson": 1.0, "gamma": 1 / load.burstiness}[load.arrivals]


Invariant = Callable[[Run], Iterator[Fault]]
BY_WALL_TIME: tuple[Invariant, ...] = (phases, outside_phases, in_flight, schedule)


def broken_times(run: Run) -> Iterator[Fault]:
    """Every invariant that does not hold. Where the clock stepped, wall times are not asked further."""
    stepped = list(clocks(run))
    yield from stepped
    for invariant in () if stepped else BY_WALL_TIME:
        yield from invariant(run)

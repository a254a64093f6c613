"""One run directory to one ``Point``: what it measured, in which window, and whether it may be used."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import pandas as pd

from analysis.point.answers import Answers, answers
from analysis.point.failures import errors, failures
from analysis.point.goodput import Goodput, good_requests, goodput
from analysis.point.latency import (
    Doubt,
    Edges,
    Latencies,
    LatencyValues,
    MedianError,
    PerLatency,
    doubt,
    latency,
    latency_values,
    median_errors,
)
from analysis.point.memory import MemoryResult
from analysis.point.requests import PointRequests, point_requests, run_cycles
from analysis.point.resources import PointEnergy, energy, kv_share_per_sequence, memory
from analysis.point.steady_window import Window, ml_energy_window, steady_window
from analysis.point.throughput import Rates, Throughput, point_rates, throughput
from analysis.runs.activity import Series, activity
from analysis.runs.boundary import of_one_run
from analysis.runs.fault import Fault
from analysis.runs.identity import Block, Candidate, Identity, Scenario
from analysis.runs.labels import labels
from analysis.runs.run import Run
from analysis.runs.scrapes import kv_usage_series
from analysis.runs.validity import faults, of_manifest, superseded
from analysis.statistics.rates import Cycles, users_of
from greenbench.contract.config import LoadConfig
from greenbench.contract.counted import counted
from greenbench.contract.manifest import Counts

PointStatus = Literal["ok", "invalid", "failed", "interrupted", "superseded"]
LITTLE = 0.05  # Little's law and the rate may differ by so much and no note says so
BURSTS = 0.2  # median gap over the median time a token, below which tokens came in bursts
# they spoil times or what was recorded beside them, not what the model said
TIMING_FAULTS = {"client_bound", "clock_stepped", "recorder_failed", "no_steady_state"}


@dataclass(frozen=True)
class Extra:
    """Figures that other parts need. ``output_tokens_per_request``: where all have the same."""

    output_tokens_per_request: int | None
    kv_share_per_sequence: float | None
    itl_tail_in_doubt: str | None  # why


@dataclass(frozen=True)
class Point:
    """A measured point. Metric groups are None when the point may not be used; ``reasons`` say why.

    Its answers stay where only its times are not to be believed (``answers_stand``).
    """

    run_id: str
    path: str
    status: PointStatus
    reasons: list[str]
    notes: list[str]
    identity: Identity
    scenario: Scenario  # where it is compared; beside other points see identity.scenarios
    backend: str  # the candidate's label, see analysis.runs.labels
    task: str  # label, with the parameters that tell it from others
    load: str  # label, with whatever else tells its scenario from others
    observed_backend: str | None
    proof: str
    server_id: str
    created_unix_ns: int
    counts: Counts
    errors: dict[str, int]
    failures: tuple[int, int]  # requests of the measured phase that failed, and all of them
    window: Window | None = None
    ml_energy_window: Window | None = None  # ML.ENERGY's, for comparison with its figures
    latency: Latencies | None = None
    medians: PerLatency[MedianError] | None = None
    throughput: Throughput | None = None
    goodput: Goodput | None = None
    answers: Answers | None = None
    memory: MemoryResult | None = None
    energy: PointEnergy | None = None
    extra: Extra | None = None
    # of the counted requests, and where the window cuts them
    values: LatencyValues | None = field(default=None, repr=False, compare=False)
    edges: Edges | None = field(default=None, repr=False, compare=False)
    faults: list[str] = field(default_factory=list)  # codes of analysis.runs.validity

    @property
    def usable(self) -> bool:
        return self.status == "ok"

    @property
    def answers_stand(self) -> bool:
        """Whether its answers may be judged: also where only its times are not to be believed."""
        return answers_stand(self.status, self.faults)

    @property
    def candidate(self) -> Candidate:
        return self.identity.candidate

    @property
    def block(self) -> Block:
        return self.identity.block

    @property
    def model(self) -> str:
        return self.candidate.model

    @property
    def weights(self) -> str:
        return self.candidate.weights

    @property
    def context_tokens(self) -> int:
        return self.identity.workload.context_tokens

    @property
    def repeat(self) -> int:
        return self.identity.replicate.repeat

    @property
    def arm(self) -> int:
        return self.identity.replicate.arm


def answers_stand(status: PointStatus, faults: Iterable[str]) -> bool:
    """A late client or a window without a steady state says nothing against what the model said."""
    return status in ("ok", "invalid") and TIMING_FAULTS.issuperset(faults)


def measured_phase(run: Run) -> tuple[int, int] | None:
    """The measure phase in unix ns, from the manifest, or from the events where it lacks it."""
    if "measure" in run.manifest.phases:
        return run.manifest.phases["measure"]
    marks = {event.name: event.unix_ns for event in run.events}
    if "measure_start" in marks and "measure_end" in marks:
        return marks["measure_start"], marks["measure_end"]
    return None


def choose_window(run: Run) -> Window | None:
    """The steady window of a run; None when it has no measure phase."""
    phase = measured_phase(run)
    if phase is None:
        return None
    return window_of(run.requests, phase, run.point.load, kv_usage_series(run))


def window_of(
    requests: pd.DataFrame, phase: tuple[int, int], load: LoadConfig, kv_usage: Series | None
) -> Window:
    """The steady window of requests in order of sending."""
    pausing = load.turn_pause_s if load.turns > 1 else 0.0
    users = users_of(requests) if pausing else None
    return steady_window(activity(requests, users, pausing), phase, load.users, kv_usage)


def window_faults(window: Window | None) -> list[Fault]:
    """Why a run that has no other fault gives no figures; empty for a steady window."""
    if window is None:
        return [Fault("no_steady_state", "it has no measure phase")]
    return [Fault("no_steady_state", f"no steady state: {reason}") for reason in window.reasons]


def analyse(run: Run, replaced_by: str | None = None) -> Point:
    """Everything the report says of one run."""
    if replaced_by is not None:
        again = f"measured again: {replaced_by} stands for it"
        return _without_metrics(run, "superseded", [*_why(run, of_manifest(run)), again])
    return of_one_run(run.path, lambda: _analysed(run), lambda why: _unfit(run, why))


def _why(run: Run, found: Iterable[Fault]) -> list[str]:
    """Each fault's sentence; where a failure is told, the manifest's codes would say it again in general."""
    manifest = run.manifest
    told = manifest.invalid_reasons if manifest.status == "failed" and manifest.failure else ()
    return [fault.sentence for fault in found if fault.code not in told]


def _unfit(run: Run, why: str) -> Point:
    """Of a run that holds what no rule foresaw."""
    return _without_metrics(run, "invalid", [why], faults=["unreadable"])


def _analysed(run: Run) -> Point:
    found = faults(run)
    codes = [fault.code for fault in found]
    status = _status(run, codes)
    if status != "ok":
        return _without_metrics(run, status, _why(run, found), faults=codes)
    window = choose_window(run)
    if window is None or not window.valid:
        unsteady = [fault.sentence for fault in window_faults(window)]
        return _without_metrics(run, "invalid", unsteady, window)
    cycles = run_cycles(run, window)
    return _with_metrics(run, window, point_requests(run, window, cycles), cycles)


def analyse_all(
    runs: list[Run], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[Point]:
    """``analyse`` of each run, in order; one that was measured again says which run stands for it."""
    replaced = superseded(runs)
    points: list[Point] = []
    for number, run in enumerate(runs, start=1):
        points.append(analyse(run, replaced.get(run.path)))
        progress(number, len(runs))
    return points


def _status(run: Run, codes: list[str]) -> PointStatus:
    if run.manifest.status == "running":
        return "interrupted"
    if run.manifest.status == "failed" or "no_good_requests" in codes:
        return "failed"
    return "invalid" if codes else "ok"


def _bare(run: Run, status: PointStatus, reasons: list[str], notes: list[str]) -> Point:
    """What ran, without a figure."""
    manifest, known = run.manifest, run.identity
    named = labels([known.candidate], [known.scenario])
    finished = manifest.status != "running"
    return Point(
        run_id=manifest.run_id,
        path=str(run.path),
        status=status,
        reasons=reasons,
        notes=notes,
        identity=known,
        scenario=known.scenario,
        backend=named.candidates[known.candidate],
        task=named.tasks[known.scenario],
        load=named.loads[known.scenario],
        observed_backend=manifest.server.observed_backend,
        proof=manifest.server.proof,
        server_id=manifest.server.server_id,
        created_unix_ns=manifest.created_unix_ns,
        counts=manifest.counts,
        errors=errors(run) if finished else {},
        failures=failures(run) if finished else (0, 0),
    )


def _without_metrics(
    run: Run,
    status: PointStatus,
    reasons: list[str],
    window: Window | None = None,
    faults: list[str] | None = None,
) -> Point:
    return replace(
        _bare(run, status, reasons, _source_notes(run)),
        window=window,
        answers=answers(run) if answers_stand(status, faults or []) else None,
        faults=faults or [],
    )


def _with_metrics(
    run: Run, window: Window, measured: PointRequests, cycles: Cycles | None
) -> Point:
    doubted = doubt(run)
    frame = measured.frame
    times = latency(measured, doubted)
    good = good_requests(frame, run.point.slo)
    rates = point_rates(frame, cycles, window, good)
    edges = Edges.of(measured, window, cycles)
    return replace(
        _bare(run, "ok", [], _notes(run, window, measured, times, rates)),
        window=window,
        ml_energy_window=ml_energy_window(run.requests, _in_flight_limit(run)),
        latency=times,
        medians=median_errors(edges, doubted),
        throughput=throughput(measured, rates),
        goodput=_doubtful_goodput(run, doubted) or goodput(frame, good, cycles, rates.good),
        answers=answers(run),
        memory=memory(run, window),
        energy=energy(run, window, frame, cycles),
        extra=_extra(run, window, measured, doubted),
        values=latency_values(measured, doubted),
        edges=edges,
    )


def _doubtful_goodput(run: Run, doubted: Doubt) -> Goodput | None:
    """The goodput of an SLO that bounds what is in doubt; None where it does not."""
    if doubted.gaps is None or run.point.slo.tpot_s is None:
        return None
    return Goodput(reason=f"the SLO bounds TPOT, and {doubted.gaps}")


def _extra(run: Run, window: Window, measured: PointRequests, doubted: Doubt) -> Extra:
    counted = measured.frame[measured.frame["counted"]]
    lengths = counted["output_tokens"].dropna().unique()
    return Extra(
        output_tokens_per_request=int(lengths[0]) if len(lengths) == 1 else None,
        kv_share_per_sequence=kv_share_per_sequence(run, window),
        itl_tail_in_doubt=doubted.tail,
    )


def _in_flight_limit(run: Run) -> int:
    limit = run.point.server.max_num_seqs
    return min(limit, run.point.load.users or limit)


def _notes(
    run: Run,
    window: Window,
    measured: PointRequests,
    times: Latencies,
    rates: Rates,
) -> list[str]:
    """What does not make a point invalid and a reader should still know."""
    notes = _rate_notes(window, rates)
    gap, pace = times.itl_s.p50, times.tpot_s.p50
    if gap is not None and pace and gap < BURSTS * pace:
        notes.append(
            f"tokens arrived in bursts: half of the gaps are under {gap * 1e3:.3g} ms, while a request "
            f"took {pace * 1e3:.3g} ms a token; the ITL says little"
        )
    if run.manifest.server.proof == "unproven":
        notes.append("which attention class ran is unproven")
    failed = sum(errors(run).values())
    if failed:
        notes.append(f"{counted(failed, 'measured request')} failed")
    if measured.untimed:
        notes.append(
            f"{counted(measured.untimed, 'request', 'carries', 'carry')} no token counts per chunk: "
            "not in ITL"
        )
    notes += _source_notes(run)
    if run.manifest.code.dirty:
        notes.append("the code had uncommitted changes")
    return notes


def _rate_notes(window: Window, rates: Rates) -> list[str]:
    """A trend, what the window leaves out, and where the check by Little's law does not hold."""
    notes: list[str] = []
    by_unit = (
        ("output tokens/s", rates.output.trend),
        ("tokens/s", rates.total.trend),
        ("requests/s", rates.requests.trend),
    )
    trend = next(((unit, trend) for unit, trend in by_unit if trend), None)
    pace = window.evidence.pace
    if trend is not None:
        unit, found = trend
        notes.append(
            f"the pace changed in the phase: {found.early:.4g} {unit} in its first half, {found.late:.4g} in "
            "its second; the figures are those of both, and their error covers either"
        )
    elif pace is not None:
        notes.append(
            f"the pace changed in the phase: a request took {pace.early_s:.3g} s on average in its first "
            f"half, {pace.late_s:.3g} s in its second; the figures are those of both"
        )
    if window.evidence.left_out is not None:
        notes.append(f"the window leaves out {window.evidence.left_out}")
    if rates.requests.reason is not None:
        notes.append(f"no rates: {rates.requests.reason}")
    if rates.little is not None and abs(rates.little - 1) > LITTLE:
        notes.append(
            f"by Little's law {rates.little:.3g} times as many requests would have been open as were: the "
            "rates or the request times are not those of a steady state"
        )
    return notes


def _source_notes(run: Run) -> list[str]:
    """Where another tool's result comes from and what it cannot tell; what a running server does not give."""
    shown = run.manifest.server.shown
    imported = [f"imported from {shown.imported_from}"] if shown.imported_from else []
    return [*imported, *shown.cannot_tell, *(f"the server gives {lack}" for lack in shown.lacks)]

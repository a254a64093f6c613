"""One run directory to one ``Point``: what it measured, in which window, and whether it may be used."""

import math
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.point.answers import answers
from analysis.point.failures import errors, failures
from analysis.point.goodput import Goodput, good_requests, goodput
from analysis.point.latency import LATENCIES, latency
from analysis.point.requests import PointRequests, point_requests, run_cycles
from analysis.point.resources import energy, kv_share_per_sequence, memory
from analysis.point.steady_window import Window, ml_energy_window, steady_window
from analysis.point.throughput import Rates, point_rates, throughput
from analysis.runs.activity import activity
from analysis.runs.identity import Block, Candidate, Identity, Place, identity
from analysis.runs.labels import labels
from analysis.runs.run import Run
from analysis.runs.scrapes import metric_series
from analysis.runs.validity import faults, superseded
from analysis.statistics.medians import Modes, median_edge, median_edge_open, modes
from analysis.statistics.rates import Cycles, Ratio, users_of
from analysis.statistics.samples import Statistic

NS = 1e9
PointStatus = Literal["ok", "invalid", "failed", "interrupted", "superseded"]
LITTLE = 0.05  # Little's law and the rate may differ by so much and no note says so
BURSTS = 0.2  # median gap over the median time a token, below which tokens came in bursts
# they spoil times or what was recorded beside them, not what the model said
TIMING_FAULTS = {"client_bound", "clock_stepped", "recorder_failed"}


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
    place: Place  # where it is compared; beside other points see identity.places
    backend: str  # the candidate's label, see analysis.runs.labels
    task: str  # label, with the parameters that tell it from others
    load: str  # label, with whatever else tells its place from others
    observed_backend: str | None
    proof: str
    server_id: str
    created_unix_ns: int
    counts: dict[str, int]
    errors: dict[str, int]
    failures: tuple[int, int]  # requests of the measured phase that failed, and all of them
    window: dict[str, Any] | None = None
    latency: dict[str, dict[str, Any]] | None = None
    throughput: dict[str, Any] | None = None
    goodput: dict[str, Any] | None = None
    answers: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    energy: dict[str, Any] | None = None
    # by objective: relative standard error that comes from the window's edges, the same in every start
    edge_errors: dict[str, float] = field(default_factory=dict)
    bimodal: dict[str, Modes] = field(
        default_factory=dict
    )  # by objective: whose median says nothing
    extra: dict[str, Any] = field(default_factory=dict)
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
    load = run.point.load
    pausing = load.turn_pause_s if load.turns > 1 else 0.0
    users = users_of(run.requests) if pausing else None
    return steady_window(
        activity(run.requests, users, pausing),
        phase,
        load.users,
        metric_series(run, "vllm:kv_cache_usage_perc"),
    )


def analyse(run: Run, replaced_by: str | None = None) -> tuple[Point, dict[str, np.ndarray]]:
    """Everything the report says of one run, and its latencies as one value a request (ITL: a token)."""
    found = faults(run)
    if replaced_by is not None:
        reason = f"measured again: {replaced_by} stands for it"
        return _without_metrics(run, "superseded", [reason]), {}
    status = _status(run, [fault.code for fault in found])
    if status != "ok":
        codes = [fault.code for fault in found]
        return _without_metrics(run, status, [f.sentence for f in found], faults=codes), {}
    window = choose_window(run)
    if window is None:
        return _without_metrics(run, "invalid", ["it has no measure phase"]), {}
    if not window.valid:
        reasons = [f"no steady state: {reason}" for reason in window.reasons]
        return _without_metrics(run, "invalid", reasons, window), {}
    cycles = run_cycles(run, window)
    measured = point_requests(run, window, cycles)
    counted = measured.frame[measured.frame["counted"]]
    samples = {name: counted[name].to_numpy(dtype=float) for name in ("ttft_s", "tpot_s", "e2e_s")}
    samples["itl_s"] = measured.itl_s
    if doubt(run)[0] is not None:  # not to be pooled with other starts' either
        samples |= {name: np.empty(0) for name in ("itl_s", "tpot_s")}
    return _with_metrics(run, window, measured, cycles), samples


def analyse_all(
    runs: list[Run], progress: Callable[[int, int], None] = lambda done, total: None
) -> list[tuple[Point, dict[str, np.ndarray]]]:
    """``analyse`` of each run, in order; one that was measured again says which run stands for it."""
    replaced = superseded(runs)
    found: list[tuple[Point, dict[str, np.ndarray]]] = []
    for number, run in enumerate(runs, start=1):
        found.append(analyse(run, replaced.get(run.path)))
        progress(number, len(runs))
    return found


def _status(run: Run, codes: list[str]) -> PointStatus:
    if run.manifest.status == "running":
        return "interrupted"
    if run.manifest.status == "failed" or "no_good_requests" in codes:
        return "failed"
    return "invalid" if codes else "ok"


def _identity(run: Run) -> dict[str, Any]:
    manifest, found = run.manifest, identity(run)
    named = labels([found.candidate], [found.place])
    return {
        "run_id": manifest.run_id,
        "path": str(run.path),
        "identity": found,
        "place": found.place,
        "backend": named.candidates[found.candidate],
        "task": named.tasks[found.place],
        "load": named.loads[found.place],
        "observed_backend": manifest.server.observed_backend,
        "proof": manifest.server.proof,
        "server_id": manifest.server.server_id,
        "created_unix_ns": manifest.created_unix_ns,
        "counts": manifest.counts.model_dump(),
        "errors": errors(run) if manifest.status != "running" else {},
        "failures": failures(run) if manifest.status != "running" else (0, 0),
    }


def _without_metrics(
    run: Run,
    status: PointStatus,
    reasons: list[str],
    window: Window | None = None,
    faults: list[str] | None = None,
) -> Point:
    return Point(
        **_identity(run),
        status=status,
        reasons=reasons,
        notes=_imported_notes(run),
        window=_window_json(window) if window else None,
        answers=asdict(answers(run)) if answers_stand(status, faults or []) else None,
        faults=faults or [],
    )


def _with_metrics(
    run: Run, window: Window, measured: PointRequests, cycles: Cycles | None
) -> Point:
    whole, tail = doubt(run)
    frame = measured.frame
    times = believed(latency(measured), whole, tail)
    good = good_requests(frame, run.point.slo)
    rates = point_rates(frame, cycles, window, good)
    met = goodput(frame, good, cycles, rates.good)
    used = energy(run, window, frame, cycles)
    if whole is not None and run.point.slo.tpot_s is not None:
        met = Goodput(reason=f"the SLO bounds TPOT, and {whole}")
        rates = replace(rates, good=Ratio(reason=met.reason))
    doubted = {"tpot"} if whole is not None else set[str]()
    return Point(
        **_identity(run),
        status="ok",
        reasons=[],
        notes=_notes(run, window, measured, times, rates),
        window=_window_json(window)
        | {"ml_energy": _window_json(ml_energy_window(run.requests, _in_flight_limit(run)))},
        latency=times,
        throughput=throughput(measured, rates),
        goodput=asdict(met),
        answers=asdict(answers(run)),
        memory=memory(run, window),
        energy=used,
        edge_errors={
            name: error
            for name, error in _edge_errors(window, frame, cycles, rates, used).items()
            if name not in doubted
        },
        bimodal={name: two for name, two in _bimodal(frame).items() if name not in doubted},
        extra=_extra(run, window, measured),
    )


ENERGIES = {
    "energy": "j_per_output_token",
    "energy_total": "j_per_total_token",
    "energy_request": "j_per_request",
}


def _edge_errors(
    window: Window,
    frame: pd.DataFrame,
    cycles: Cycles | None,
    rates: Rates,
    used: dict[str, Any],
) -> dict[str, float]:
    """By objective, of those that have one."""
    joules = (used.get("gross") or {}).get("edge_errors", {})
    found: dict[str, float | None] = {
        name: rate.edge_error for name, rate in rates.items().items() if rate.value
    }
    found |= {name: joules.get(key) for name, key in ENERGIES.items()}
    for name, column in LATENCIES.items():
        found[name] = _median_edge(window, frame, cycles, column)
    return {name: error for name, error in found.items() if error is not None}


def _median_edge(
    window: Window, frame: pd.DataFrame, cycles: Cycles | None, column: str
) -> float | None:
    values, counted = frame[column].to_numpy(dtype=float), frame["counted"].to_numpy(dtype=bool)
    if cycles is not None:
        return median_edge(values, counted, cycles)
    counted = counted & ~np.isnan(values)
    span = window.start_unix_ns, window.end_unix_ns
    reach_ns = min(window.evidence["mean_residence_s"] * NS, (span[1] - span[0]) / 4)
    base_ns = frame["base_ns"][counted].to_numpy(dtype=np.int64)
    edge, pace = (
        median_edge_open(values[counted], base_ns, span, reach_ns),
        window.evidence.get("pace"),
    )
    if edge is None or pace is None:
        return edge
    return math.hypot(edge, math.log(pace["late_s"] / pace["early_s"]) / 2)


def _bimodal(frame: pd.DataFrame) -> dict[str, Modes]:
    counted = frame[frame["counted"]]
    found = {
        name: modes(counted[column].to_numpy(dtype=float)) for name, column in LATENCIES.items()
    }
    return {name: two for name, two in found.items() if two is not None}


def _extra(run: Run, window: Window, measured: PointRequests) -> dict[str, Any]:
    """Figures that other parts need: output tokens of a request, share of the KV pool a sequence takes."""
    counted = measured.frame[measured.frame["counted"]]
    lengths = counted["output_tokens"].dropna().unique()
    return {
        "output_tokens_per_request": int(lengths[0]) if len(lengths) == 1 else None,
        "kv_share_per_sequence": kv_share_per_sequence(run, window),
        "itl_tail_in_doubt": doubt(run)[1],
    }


def _in_flight_limit(run: Run) -> int:
    limit = run.point.server.max_num_seqs
    return min(limit, run.point.load.users or limit)


def _window_json(window: Window) -> dict[str, Any]:
    return {
        "definition": window.definition,
        "start_unix_ns": window.start_unix_ns,
        "end_unix_ns": window.end_unix_ns,
        "duration_s": window.duration_s,
        "reasons": list(window.reasons),
        "evidence": window.evidence,
    }


def doubt(run: Run) -> tuple[str | None, str | None]:
    """Why the gaps between tokens are not to be believed, and why their tail is not; by the client's word.

    Chunks that were read together carry one time, and the client works out how far off that can be.
    """
    whole: str | None = None
    tail: str | None = None
    for audit in run.manifest.client_audit.values():
        if not isinstance(audit, dict):
            continue
        figures = audit.get("figures") or {}
        if audit.get("itl_in_doubt"):
            whole = f"chunks shared reads: {figures.get('shared_time_p90_ms') or 0:.3g} ms of doubt at p90"
        if audit.get("itl_tail_in_doubt"):
            tail = f"chunks shared reads: {figures.get('shared_time_p99_ms') or 0:.3g} ms of doubt at p99"
    return whole, tail


def believed(
    times: dict[str, dict[str, Any]], whole: str | None, tail: str | None
) -> dict[str, dict[str, Any]]:
    """Latency statistics without those that are in doubt: ITL and TPOT, or the tail of ITL only."""
    kept = dict(times)
    for name in ("itl_s", "tpot_s"):
        if whole is not None:
            kept[name] = asdict(Statistic(times[name]["n"], refused=[whole]))
    if whole is None and tail is not None:
        refused = [f"{name}: {tail}" for name in ("p90", "p99") if times["itl_s"][name] is not None]
        kept["itl_s"] = times["itl_s"] | {
            "p90": None,
            "p99": None,
            "refused": [*times["itl_s"]["refused"], *refused],
        }
    return kept


def _notes(
    run: Run,
    window: Window,
    measured: PointRequests,
    times: dict[str, dict[str, Any]],
    rates: Rates,
) -> list[str]:
    """What does not make a point invalid and a reader should still know."""
    notes = _rate_notes(window, rates)
    gap, pace = times["itl_s"]["p50"], times["tpot_s"]["p50"]
    if gap is not None and pace and gap < BURSTS * pace:
        notes.append(
            f"tokens arrived in bursts: half of the gaps are under {gap * 1e3:.3g} ms, while a request "
            f"took {pace * 1e3:.3g} ms a token; the ITL says little"
        )
    if run.manifest.server.proof == "unproven":
        notes.append("which attention class ran is unproven")
    failed = sum(errors(run).values())
    if failed:
        notes.append(f"{failed} measured requests failed")
    if measured.untimed:
        notes.append(f"{measured.untimed} requests carry no token counts per chunk: not in ITL")
    notes += _imported_notes(run)
    if run.manifest.code.dirty:
        notes.append("the code had uncommitted changes")
    return notes


def _rate_notes(window: Window, rates: Rates) -> list[str]:
    """A trend, what the window leaves out, and where the check by Little's law does not hold."""
    notes: list[str] = []
    units = {"output": "output tokens/s", "total": "tokens/s", "requests": "requests/s"}
    trend = next(
        ((u, r.trend) for n, r in rates.items().items() if (u := units.get(n)) and r.trend), None
    )
    pace = window.evidence.get("pace")
    if trend is not None:
        unit, found = trend
        notes.append(
            f"the pace changed in the phase: {found.early:.4g} {unit} in its first half, {found.late:.4g} in "
            "its second; the figures are those of both, and their error covers either"
        )
    elif pace is not None:
        notes.append(
            f"the pace changed in the phase: a request took {pace['early_s']:.3g} s on average in its first "
            f"half, {pace['late_s']:.3g} s in its second; the figures are those of both"
        )
    if "left_out" in window.evidence:
        notes.append(f"the window leaves out {window.evidence['left_out']}")
    if rates.requests.reason is not None:
        notes.append(f"no rates: {rates.requests.reason}")
    if rates.little is not None and abs(rates.little - 1) > LITTLE:
        notes.append(
            f"by Little's law {rates.little:.3g} times as many requests would have been open as were: the "
            "rates or the request times are not those of a steady state"
        )
    return notes


def _imported_notes(run: Run) -> list[str]:
    """Where another tool's result comes from, and what it cannot tell."""
    detail = run.manifest.server.proof_detail
    source = detail.get("imported_from")
    return [f"imported from {source}", *detail.get("cannot_tell", [])] if source else []

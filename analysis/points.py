"""One run directory to one ``Point``: what it measured, in which window, and whether it may be used."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from analysis.checks import faults, superseded
from analysis.identity import Block, Candidate, Identity, Place, identity
from analysis.labels import labels
from analysis.load import Run
from analysis.metrics import (
    Goodput,
    PointRequests,
    Statistic,
    answers,
    edge_change,
    errors,
    goodput,
    latency,
    point_requests,
    throughput,
)
from analysis.resources import energy, kv_share_per_sequence, memory, metric_series
from analysis.windows import Window, activity, ml_energy_window, steady_window

PointStatus = Literal["ok", "invalid", "failed", "interrupted", "superseded"]
EDGES = 0.02  # of the output tokens/s: what the window's edges may change and no note says so
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
    backend: str  # the candidate's label, see analysis.labels
    task: str  # label, with the parameters that tell it from others
    load: str  # label, with whatever else tells its place from others
    observed_backend: str | None
    proof: str
    server_id: str
    created_unix_ns: int
    counts: dict[str, int]
    errors: dict[str, int]
    window: dict[str, Any] | None = None
    latency: dict[str, dict[str, Any]] | None = None
    throughput: dict[str, Any] | None = None
    goodput: dict[str, Any] | None = None
    answers: dict[str, Any] | None = None
    memory: dict[str, Any] | None = None
    energy: dict[str, Any] | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)  # codes of analysis.checks
    edge_errors: dict[str, float] = field(default_factory=dict)
    bimodal: dict[str, Any] = field(default_factory=dict)

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

    @property
    def failed_share(self) -> float:
        """Of the measured phase's requests, those that failed; 0 where none was sent."""
        failed = sum(self.errors.values())
        good = self.counts.get("ok", 0)
        return failed / (failed + good) if failed + good else 0.0


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
    return steady_window(
        activity(run.requests),
        phase,
        run.point.load.users,
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
    measured = point_requests(run, window)
    counted = measured.frame[measured.frame["in_window"] & measured.frame["ok"]]
    samples = {name: counted[name].to_numpy(dtype=float) for name in ("ttft_s", "tpot_s", "e2e_s")}
    samples["itl_s"] = measured.itl_s
    if doubt(run)[0] is not None:  # not to be pooled with other starts' either
        samples |= {name: np.empty(0) for name in ("itl_s", "tpot_s")}
    return _with_metrics(run, window, measured), samples


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


def _with_metrics(run: Run, window: Window, measured: PointRequests) -> Point:
    whole, tail = doubt(run)
    times = believed(latency(measured), whole, tail)
    rates = throughput(measured, window.duration_s)
    edges = edge_change(run, window, rates["output_tokens_per_s"])
    met = goodput(measured.frame, run.point.slo, window.duration_s)
    if whole is not None and run.point.slo.tpot_s is not None:
        met = Goodput(reason=f"the SLO bounds TPOT, and {whole}")
    return Point(
        **_identity(run),
        status="ok",
        reasons=[],
        notes=_notes(run, measured, times, edges),
        window=_window_json(window)
        | {"ml_energy": _window_json(ml_energy_window(run.requests, _in_flight_limit(run)))},
        latency=times,
        throughput=rates | {"edge_change": edges},
        goodput=asdict(met),
        answers=asdict(answers(run)),
        memory=memory(run, window),
        energy=energy(run, window, window.evidence["mean_residence_s"]),
        extra=_extra(run, window, measured),
    )


def _extra(run: Run, window: Window, measured: PointRequests) -> dict[str, Any]:
    """Figures that other parts need: output tokens of a request, share of the KV pool a sequence takes."""
    counted = measured.frame[measured.frame["in_window"] & measured.frame["ok"]]
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
    run: Run, measured: PointRequests, times: dict[str, dict[str, Any]], edges: float | None
) -> list[str]:
    """What does not make a point invalid and a reader should still know."""
    notes: list[str] = []
    if edges is not None and abs(edges) > EDGES:
        notes.append(
            f"the window's edges cut rounds of users in step: by Little's law the output tokens/s would be "
            f"{edges:+.1%}, and joules per token are off by as much; a longer phases.measure_s helps"
        )
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


def _imported_notes(run: Run) -> list[str]:
    """Where another tool's result comes from, and what it cannot tell."""
    detail = run.manifest.server.proof_detail
    source = detail.get("imported_from")
    return [f"imported from {source}", *detail.get("cannot_tell", [])] if source else []

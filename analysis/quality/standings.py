"""Where each candidate's answers stand at a context length, by its gates, verification, proof and failures.

``standings`` says it of every candidate; a disqualified one may not win there.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from analysis.point.failures import failures
from analysis.point.point import Point
from analysis.quality.answers import Answered, answered
from analysis.quality.gate import LEAST_RIGHT, Gate
from analysis.quality.reference import is_exact
from analysis.runs.identity import Candidate
from analysis.runs.plain_numbers import refuse_odd
from analysis.runs.run import Run
from analysis.statistics.noninferiority import LEVEL, MARGIN
from greenbench.contract.explain import parse
from greenbench.contract.forms import VerifyFile
from greenbench.contract.run_dir import read_json

StandingKind = Literal["proven", "undecided", "disqualified", "reference"]
AtLength = tuple[str, int]  # model, context
HALF_FAILED = 0.5  # of its requests of a length: then it may not win there
FAILING = (
    MARGIN  # share of its requests: a failed one has no answer, so no more may fail than be lost
)


@dataclass(frozen=True)
class Verification:
    """One ``verify.json``: a backend's log-probabilities against the reference's."""

    model: str
    backend: str
    reference: str
    verdict: Literal["pass", "fail", "not_comparable"]
    reasons: list[str]
    steps: int | None = None
    same_choice: int | None = None
    typical_gap_nats: float | None = None
    worst_gap_nats: float | None = None
    doubts: list[str] = field(default_factory=list)  # of the reference itself


@dataclass(frozen=True)
class Evidence:
    """What stands behind a standing: gates by verdict, distinct prompts, and measured requests."""

    no_worse: int = 0
    undecided: int = 0
    worse: int = 0
    prompts: int = 0  # paired with the reference's, over all tasks
    requests: int = 0
    failed: int = 0
    unproven_runs: int = 0


@dataclass(frozen=True)
class Standing:
    """proven: its loss is shown to be below the margin. reference: the others are held to its answers.

    undecided: neither that nor a loss is shown. disqualified: it is shown to be worse. ``doubted``:
    something speaks against it (a gate that could have passed and did not, failures, no proof of what ran;
    of a reference that another answers more right), not only that nobody asked.
    """

    kind: StandingKind
    sentence: str
    evidence: Evidence
    doubted: bool = False


Standings = dict[AtLength, dict[Candidate, Standing]]


def verification_files(root: Path) -> list[Path]:
    """Every ``verify/<backend>/verify.json`` of a sweep, or of the sweeps below ``root``."""
    return sorted({*root.glob("verify/*/verify.json"), *root.glob("*/verify/*/verify.json")})


def verification(path: Path) -> Verification:
    raw = read_json(path)
    refuse_odd(raw, str(path))
    told = parse(VerifyFile, raw, str(path))
    return Verification(
        model=told.model,
        backend=told.label,
        reference=told.reference,
        verdict=told.verdict,
        reasons=told.reasons,
        steps=told.steps,
        same_choice=told.same_choice,
        typical_gap_nats=told.typical_gap_nats,
        worst_gap_nats=told.worst_gap_nats,
        doubts=told.doubts,
    )


def standings(
    found: Sequence[Gate],
    checked: Sequence[Verification],
    runs: Sequence[Run],
    points: Sequence[Point],
) -> Standings:
    """Of every candidate at every model and context that it was measured at.

    ``found`` are the gates of those ``runs`` whose answers stand; ``points`` say which runs those are, and
    which were measured again.
    """
    told = {p.path for p in points if p.answers_stand}
    finished = {p.path for p in points if p.status not in ("superseded", "interrupted")}
    graded = _graded([run for run in runs if str(run.path) in told])
    groups: dict[AtLength, dict[Candidate, list[Run]]] = {}
    for run in runs:
        if str(run.path) in finished:
            where = run.point.model.name, run.point.context_tokens
            groups.setdefault(where, {}).setdefault(run.identity.candidate, []).append(run)
    return {
        where: {
            who: _standing(where, who, own, found, checked, graded.get((where, who), []))
            for who, own in by_candidate.items()
        }
        for where, by_candidate in groups.items()
    }


def _graded(runs: Sequence[Run]) -> dict[tuple[AtLength, Candidate], list[Answered]]:
    out: dict[tuple[AtLength, Candidate], list[Answered]] = {}
    for question, by_candidate in answered(runs).items():
        for who, told in by_candidate.items():
            where = question.model, question.context_tokens
            out.setdefault((where, who), []).append(told)
    return out


def _standing(
    where: AtLength,
    who: Candidate,
    runs: Sequence[Run],
    found: Sequence[Gate],
    checked: Sequence[Verification],
    graded: Sequence[Answered],
) -> Standing:
    here = [g for g in found if (g.model, g.context_tokens) == where]
    own = [g for g in here if g.candidate == who]
    evidence = _evidence(own, runs)
    failed = [
        v
        for v in checked
        if (v.model, v.backend, v.verdict) == (where[0], who.backend_label, "fail")
    ]
    if failed:
        because = f" ({failed[0].reasons[0]})" if failed[0].reasons else ""
        why = f"it fails verification against `{failed[0].reference}`{because}"
        return Standing("disqualified", why, evidence)
    kind, sentence, doubted = by_gates(own, [g for g in here if g.reference_candidate == who])
    if kind == "undecided" and not here and _alone_and_exact(graded):
        kind, sentence = "reference", "exact by design; no other candidate answered its prompts"
    if kind == "disqualified":
        return Standing(kind, sentence, evidence)
    if evidence.failed > FAILING * evidence.requests:
        sentence = f"{evidence.failed} of its {evidence.requests} measured requests failed"
        return Standing("undecided", sentence, evidence, doubted=True)
    if evidence.unproven_runs:
        sentence = f"which attention class ran is unproven; {sentence}"
        return Standing("undecided", sentence, evidence, doubted=True)
    return Standing(kind, sentence, evidence, doubted)


def by_gates(own: Sequence[Gate], held_to: Sequence[Gate]) -> tuple[StandingKind, str, bool]:
    """Kind, sentence, and whether something speaks against it.

    ``own``: gates of the candidate; ``held_to``: those of others in which it is the reference.

    One lost gate disqualifies. A gate that could have passed and did not, or that lost prompts on balance,
    leaves it undecided, whatever the others say. A gate of too few prompts, or of a model that answers
    nothing right, neither accuses nor acquits. Where answers were graded, one gate of answers must pass:
    log-probabilities are of the prompt and say nothing of decoding.
    """
    worse = [g for g in own if g.verdict == "worse"]
    if worse:
        first = max(worse, key=lambda g: (g.kind == "answers", g.worse_by))
        return "disqualified", _said([first]), False
    doubts = [g for g in own if g.verdict == "undecided" and (g.tells or _lost_some(g))]
    if doubts:
        return "undecided", _said(doubts), True
    reference_of = [g for g in held_to if g.could_lose]
    if reference_of:
        said = f"the reference here, as the {reference_of[0].basis} candidate"
        above = [g for g in reference_of if g.p_gained is not None and g.p_gained <= LEVEL]
        if above:
            said += f"; `{above[0].backend}` answers more correctly ({_said(above[:1])})"
        return "reference", said, bool(above)
    passed = [g for g in own if g.verdict == "no worse"]
    asked = [g for g in own if g.kind == "answers" and g.could_lose]
    if passed and (not asked or any(g.kind == "answers" for g in passed)):
        only = "" if asked else " (of the prompt's tokens only: no answers were judged)"
        return "proven", f"{_said(passed)}{only}", False
    if own:
        return "undecided", _said(own), False
    return "undecided", "its answers were not compared with another's", False


def _said(told: Sequence[Gate]) -> str:
    return "; ".join(f"on {gate.task}, {gate.sentence}" for gate in told)


def _lost_some(gate: Gate) -> bool:
    return gate.kind == "answers" and gate.worse_by > 0


def _alone_and_exact(graded: Sequence[Answered]) -> bool:
    """Whether a candidate that nobody is compared with would be a reference: exact, and its answers tell."""
    telling = [
        told
        for told in graded
        if told.logprobs or (told.right_share is not None and told.right_share >= LEAST_RIGHT)
    ]
    return bool(telling) and all(is_exact(told) for told in graded)


def _evidence(own: Sequence[Gate], runs: Sequence[Run]) -> Evidence:
    counted = [failures(run) for run in runs]
    return Evidence(
        no_worse=sum(g.verdict == "no worse" for g in own),
        undecided=sum(g.verdict == "undecided" for g in own),
        worse=sum(g.verdict == "worse" for g in own),
        prompts=sum(g.prompts for g in own),
        requests=sum(total for _, total in counted),
        failed=sum(failed for failed, _ in counted),
        unproven_runs=sum(run.manifest.server.proof == "unproven" for run in runs),
    )

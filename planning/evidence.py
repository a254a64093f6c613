"""What a policy may rest on: the usable points of servers that greenbench itself started and proved.

A ``Place`` is one measured combination of load, output length and context; candidates meet there.
"""

import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from analysis.compare.cells import cells
from analysis.compare.crossovers import Crossing, crossings
from analysis.compare.decisions import Eligible
from analysis.compare.differences import Difference, Pairs, by_pair, differences, headlines
from analysis.objectives import ENERGY, GOODPUT, TPOT, Objective, objective
from analysis.point.point import Point
from analysis.quality.reference import UNQUANTISED
from analysis.runs.identity import Block, Candidate, Scenario
from analysis.runs.run import Run
from analysis.study import Study, study
from greenbench.contract.config import SloConfig
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.policy import ALLOW_UNJUDGED, PolicyObjective
from planning.folder import holds_all
from planning.hardware import the_hardware

OBJECTIVE: dict[PolicyObjective, Objective] = {
    "ttft": objective("ttft"),
    "tpot": TPOT,
    "e2e": objective("e2e"),
    "energy": ENERGY,
    "capacity": GOODPUT,
}
ATTAINED = 0.9  # share of the requests that must meet an SLO that was asked for
NONE_OF_BEST = 0.01  # what a rate of 0 counts as, of the best rate at its place


@dataclass(frozen=True)
class Place:
    """``load``: requests open at one server. ``scenarios``: one a task."""

    load: float
    output_tokens: int
    context: int
    scenarios: tuple[Scenario, ...]


@dataclass(frozen=True)
class Evidence:
    """``slo``: the bounds that were asked for, else None. ``refused``: clauses on what may not count.
    ``unjudged``: (context, candidate) whose answers nobody showed to be right there, and why.
    ``allow_unjudged``: those that may change answers serve there all the same. ``excluded``: candidates that
    take no pool; they are still compared.
    """

    root: Path
    asked: PolicyObjective
    slo: SloConfig | None
    points: tuple[Point, ...]
    servers: Mapping[Candidate, tuple[Server, ...]]
    labels: Mapping[Candidate, str]
    eligible: Mapping[tuple[Scenario, Candidate], Eligible]
    refused: tuple[str, ...]
    unjudged: Mapping[tuple[int, Candidate], str]
    allow_unjudged: bool = False
    excluded: frozenset[Candidate] = frozenset()

    @property
    def objective(self) -> Objective:
        return OBJECTIVE[self.asked]

    @cached_property
    def usable(self) -> tuple[Point, ...]:
        return tuple(point for point in self.points if point.usable)

    @cached_property
    def candidates(self) -> tuple[Candidate, ...]:
        return tuple(sorted({p.candidate for p in self.usable}, key=lambda c: self.labels[c]))

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        return tuple(sorted({point.block for point in self.usable}))

    @cached_property
    def differences(self) -> list[Difference]:
        by = headlines(self.usable, self.objective, True)
        return differences(self.usable, by)

    @cached_property
    def pairs(self) -> Pairs:
        return by_pair(self.differences)

    @cached_property
    def crossings(self) -> list[Crossing]:
        mine = [each for each in self.differences if each.objective is self.objective]
        return crossings(cells(self.usable), mine)

    @cached_property
    def places(self) -> tuple[Place, ...]:
        """In order of load, output and context."""
        found: dict[tuple[float, int, int], list[Scenario]] = {}
        loads = self._loads
        for scenario, outputs in self._outputs.items():
            key = (loads[scenario.family], outputs, scenario.context_tokens)
            found.setdefault(key, []).append(scenario)
        return tuple(Place(*key, tuple(found[key])) for key in sorted(found))

    @cached_property
    def _outputs(self) -> dict[Scenario, int]:
        """Output tokens a request of each scenario."""
        return {
            point.scenario: tokens
            for point in self.usable
            if point.extra is not None and (tokens := point.extra.output_tokens_per_request)
        }

    @cached_property
    def _loads(self) -> dict[Scenario, float]:
        """By family: the users of a closed loop; of an open one requests/s × mean time (Little's law)."""
        open_at: dict[Scenario, list[float]] = {}
        out: dict[Scenario, float] = {}
        for point in self.usable:
            users = point.scenario.workload.load.users
            if users is not None:
                out[point.scenario.family] = float(users)
            elif point.throughput and point.throughput.requests.value and point.values is not None:
                mean_s = float(np.nanmean(point.values.e2e_s))
                held = open_at.setdefault(point.scenario.family, [])
                held.append(point.throughput.requests.value * mean_s)
        means = {family: round(statistics.fmean(each), 2) for family, each in open_at.items()}
        missing = {s.family: 1.0 for s in self._outputs if s.family not in out | means}
        return out | means | missing

    @cached_property
    def values(self) -> dict[tuple[Scenario, Candidate], dict[Block, float]]:
        """The objective's value a block; equal servers of one block are averaged."""
        return self.figures(self.objective)

    def figures(self, of: Objective) -> dict[tuple[Scenario, Candidate], dict[Block, float]]:
        raw: dict[tuple[Scenario, Candidate], dict[Block, list[float]]] = {}
        for point in self.usable:
            value = of.value(point)
            if value is not None:
                blocks = raw.setdefault((point.scenario, point.candidate), {})
                blocks.setdefault(point.block, []).append(value)
        return {
            key: {block: statistics.fmean(each) for block, each in blocks.items()}
            for key, blocks in raw.items()
        }

    def costs(self, candidate: Candidate, place: Place) -> dict[Block, float] | None:
        """log cost a block, mean over the place's tasks: of a rate, that of its inverse. None where some task
        has no value.
        """
        per_task: list[dict[Block, float]] = []
        for scenario in place.scenarios:
            values = self.values.get((scenario, candidate))
            if not values:
                return None
            least = self._least(scenario)
            sign = -1 if self.objective.higher_is_better else 1
            per_task.append({b: sign * float(np.log(max(v, least))) for b, v in values.items()})
        shared = set.intersection(*(set(each) for each in per_task))
        return {b: statistics.fmean(each[b] for each in per_task) for b in sorted(shared)} or None

    def _least(self, scenario: Scenario) -> float:
        top = max(max(v.values()) for (where, _), v in self.values.items() if where == scenario)
        return top * NONE_OF_BEST or 1.0

    def cost(self, candidate: Candidate, place: Place) -> float | None:
        """log cost, mean over blocks."""
        costs = self.costs(candidate, place)
        return None if costs is None else statistics.fmean(costs.values())

    def standing(self, candidate: Candidate, place: Place) -> str | None:
        """Why a candidate may not serve there: its answers, its failures, no measurement. None: it may."""
        for scenario in place.scenarios:
            able = self.eligible.get((scenario, candidate))
            if able is not None and not able.may_win:
                return able.why_not or "it may not win there"
            here = [p for p in self.usable if (p.scenario, p.candidate) == (scenario, candidate)]
            if not here:
                return "it has no usable point there"
        why, loses = self.unjudged.get((place.context, candidate)), self.may_lose(candidate)
        if why is None or loses is None or self.allow_unjudged:
            return None
        return f"{loses}, and its answers there are not judged ({why}); {ALLOW_UNJUDGED} lets it"

    def serves_unjudged(self, candidate: Candidate) -> dict[int, str]:
        """Contexts at which it may serve without its answers being judged, and why they are not."""
        return {
            place.context: self.unjudged[place.context, candidate]
            for place in self.places
            if (place.context, candidate) in self.unjudged
            and self.standing(candidate, place) is None
        }

    def may_lose(self, candidate: Candidate) -> str | None:
        """What about it is known to change answers, as a clause; None of one that is exact by design."""
        return may_lose(candidate, self.servers.get(candidate, ()))

    def misses_slo(self, candidate: Candidate, place: Place) -> str | None:
        """Where an SLO was asked for beside another objective: how far the candidate is from meeting it."""
        if self.slo is None or self.asked == "capacity":
            return None
        shares = [
            point.goodput.share
            for point in self.usable
            if point.candidate == candidate
            and point.scenario in place.scenarios
            and point.goodput is not None
            and point.goodput.share is not None
        ]
        met = statistics.fmean(shares) if shares else 0.0
        return None if met >= ATTAINED else f"{met:.0%} of its requests met the SLO"

    def able(self, candidate: Candidate, place: Place) -> bool:
        """Whether it may be chosen there."""
        return candidate not in self.excluded and self.fit_for(candidate, place)

    def fit_for(self, candidate: Candidate, place: Place) -> bool:
        """Whether it could be chosen there, if it had a pool."""
        return (
            self.standing(candidate, place) is None
            and self.misses_slo(candidate, place) is None
            and self.cost(candidate, place) is not None
        )

    def of_blocks(self, blocks: Iterable[Block]) -> "Evidence":
        """The same, of these blocks alone. Who may serve where is still judged by all answers."""
        kept = set(blocks)
        return replace(self, points=tuple(p for p in self.points if p.block in kept))


def may_lose(candidate: Candidate, servers: Iterable[Server]) -> str | None:
    """What about it is known to change answers, as a clause; None of one that is exact by design."""
    if any(server.exactness == 0 for server in servers):
        return "it is approximate by design"
    if candidate.kv_cache_dtype not in UNQUANTISED:
        return f"its KV cache is {candidate.kv_cache_dtype}"
    return None


def unjudged(found: Study) -> dict[tuple[int, Candidate], str]:
    """(context, candidate) whose answers nobody showed to be right there, and why."""
    return {
        (context, candidate): standing.sentence
        for (_, context), of in found.standings.items()
        for candidate, standing in of.items()
        if standing.kind == "undecided"
    }


def gather(
    root: Path,
    asked: PolicyObjective,
    slo: SloConfig | None = None,
    allow_unjudged: bool = False,
    hardware: str | None = None,
) -> Evidence:
    """Of all runs at or below ``root``, on the kind of machine that ``hardware`` names where they are of
    several. UserError where no policy may rest on them.
    """
    holds_all(root)
    found = study(root, across_executions=True, slo=slo)
    return evidence_of(found, asked, slo, allow_unjudged, hardware)


def evidence_of(
    found: Study,
    asked: PolicyObjective,
    slo: SloConfig | None = None,
    allow_unjudged: bool = False,
    hardware: str | None = None,
) -> Evidence:
    """Of a study, which took its goodput by ``slo`` where one was asked for. UserError as ``gather``."""
    root = found.root
    runs = {str(run.path): run for run in found.runs}
    kept, refused = _trusted(found, runs)
    if usable := [point for point in kept if point.usable]:
        device = the_hardware(root, usable, hardware, "a policy")
        kept = [point for point in kept if point.identity.device.kind == device]
    kept, apart = _asked_alike(kept, found.labels.loads)
    refused = [*refused, *apart]
    candidates = {point.candidate for point in kept if point.usable}
    if len(candidates) < 2:
        only = "".join(f"only {found.labels.candidates[one]}" for one in candidates)
        raise UserError(
            f"{root}: a policy chooses between candidates, and {only or 'none'} has runs here that it may "
            f"rest on: {_why_so_few(kept, refused)}; measure a sweep of two backends or settings, each of "
            "whose points can be used"
        )
    _one_model(root, kept)
    _some_value(root, asked, kept)
    servers: dict[Candidate, list[Server]] = {}
    for point in kept:
        if point.usable:
            servers.setdefault(point.candidate, []).append(runs[point.path].manifest.server)
    return Evidence(
        root=root,
        asked=asked,
        slo=slo,
        points=tuple(kept),
        servers={candidate: tuple(each) for candidate, each in servers.items()},
        labels=found.labels.candidates,
        eligible=found.eligible,
        refused=tuple(refused),
        unjudged=unjudged(found),
        allow_unjudged=allow_unjudged,
    )


def _asked_alike(
    points: Sequence[Point], words: Mapping[Scenario, str]
) -> tuple[list[Point], list[str]]:
    """Of each task, load and length the one set of prompts that most candidates were given, since answers to
    others cannot be compared with theirs; and a sentence of each set that is left out.
    """
    sets: dict[Scenario, dict[Scenario, list[Point]]] = {}
    for point in points:
        workload = replace(point.scenario.workload, prompts="")
        of_one = sets.setdefault(replace(point.scenario, workload=workload), {})
        of_one.setdefault(point.scenario, []).append(point)
    kept: list[Point] = []
    left: dict[str, set[str]] = {}
    for of_one in sets.values():
        most = max(of_one.values(), key=_candidates_then_points)
        kept += most
        for scenario, others in of_one.items():
            if others is not most:
                left.setdefault(words[scenario], set()).update(
                    p.backend for p in others if p.usable
                )
    return kept, [
        f"{load}: other prompts than most candidates were given, so {', '.join(sorted(names))} there "
        "cannot be compared with theirs"
        for load, names in left.items()
        if names
    ]


def _candidates_then_points(points: Sequence[Point]) -> tuple[int, int]:
    usable = [point for point in points if point.usable]
    return len({point.candidate for point in usable}), len(usable)


def _why_so_few(kept: Sequence[Point], refused: Sequence[str]) -> str:
    if refused:
        return f"left out is {'; '.join(refused)}"
    reasons = Counter(point.reasons[0] for point in kept if not point.usable and point.reasons)
    if reasons:
        reason, n = reasons.most_common(1)[0]
        return f"{n} of {len(kept)} points cannot be used ({reason})"
    return "no other was measured on this kind of machine"


def _some_value(root: Path, asked: PolicyObjective, points: Iterable[Point]) -> None:
    of = OBJECTIVE[asked]
    found = [of.measure(point) for point in points if point.usable]
    if any(each.value is not None for each in found):
        return
    if asked == "capacity":
        raise UserError(
            f"{root}: capacity is the rate of requests that meet an SLO, and no run has one; give --slo, as "
            "in --slo ttft=2,tpot=50ms"
        )
    why = next((each.reason for each in found if each.reason), "nothing of it was recorded")
    raise UserError(
        f"{root}: no usable run has a value of {asked} ({why}); choose another --objective"
    )


def _trusted(found: Study, runs: Mapping[str, Run]) -> tuple[list[Point], list[str]]:
    """Points that may count, and a clause for each candidate, task or load that may not."""
    kept: list[Point] = []
    why: dict[str, None] = {}
    for point in found.points:
        if point.status == "superseded":
            continue
        label = found.labels.candidates.get(point.candidate, point.backend)
        reason = _refusal(runs[point.path], point, label)
        if reason is None:
            kept.append(point)
        elif point.usable:
            why[reason] = None
    return kept, list(why)


def _refusal(run: Run, point: Point, label: str) -> str | None:
    """Who or what may not count, and why; None where the point may."""
    server, load = run.manifest.server, point.scenario.workload.load
    if server.shown.imported_from is not None:
        return f"{label}, imported from {server.shown.imported_from}, which proves no backend"
    if run.point.server.base_url is not None:
        return f"{label}, found running (base_url): its start and its backend are not proven"
    if point.usable and point.proof != "proven":
        return f"{label}, unproven: which attention backend ran is not known"
    if load.turns > 1 or load.trace is not None:
        return f"the load {point.load}, whose prompts have no one length"
    if point.usable and (point.throughput is None or not point.throughput.streamed):
        return f"the task {point.task}, in which nothing is generated"
    return None


def _one_model(root: Path, points: Iterable[Point]) -> None:
    found = {point.candidate.model for point in points if point.usable}
    if len(found) > 1:
        raise UserError(
            f"{root}: a policy is for one model, the runs are of {' and '.join(sorted(found))}; give the "
            "folder of one of them"
        )

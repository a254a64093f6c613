"""All runs under one folder, worked through once: points, cells, differences, decisions."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path

from analysis.bottleneck.classify import (
    Bottleneck,
    classify,
    classify_client,
    fixed_shares,
    gather,
)
from analysis.bottleneck.peaks import HostCeilings, find_host_ceilings, run_ceilings
from analysis.bottleneck.roofline import PhaseUse, phase_uses
from analysis.compare.cells import Cell, cells
from analysis.compare.crossovers import Crossing, crossings
from analysis.compare.decisions import Decision, Eligible, decisions, eligible
from analysis.compare.differences import Difference, Headlines, differences, headlines
from analysis.objectives import BY_NAME, DEFAULT, TPOT, Objective, objective
from analysis.point.point import Point, analyse_all
from analysis.quality.depth_map import HeatMap, heat_maps
from analysis.quality.gate import Gate, gates
from analysis.quality.standings import (
    Standings,
    Verification,
    standings,
    verification,
    verification_files,
)
from analysis.runs import boundary
from analysis.runs.identity import Candidate, Scenario, scenarios
from analysis.runs.labels import Labels, labels
from analysis.runs.run import Run, read_runs, some_readable
from analysis.runs.unmeasured import LeftOut, left_out, without_a_point
from greenbench.contract.config import SloConfig, SweepConfig, load_sweep

BEATEN = 1.05  # a share of a ceiling from which it was not one; below, the noise of measuring it


@dataclass(frozen=True)
class Study:
    """What a report is made of. Points come oldest first; cells in table order.

    What compares points is worked out when it is asked for: a plan and a policy ask for none of it.
    """

    root: Path
    runs: list[Run]
    points: list[Point]
    host_ceilings: HostCeilings | None
    gates: list[Gate]
    verifications: list[Verification]
    standings: Standings
    eligible: dict[tuple[Scenario, Candidate], Eligible]
    unmeasured: list[LeftOut]
    labels: Labels
    objective: Objective  # what was asked for, else the default
    headlines: Headlines  # what the headline goes by, where
    asked: bool  # a person chose it: without a value of it there is no headline by another
    across_executions: bool  # one ranking for all of them, as was asked for

    @cached_property
    def cells(self) -> list[Cell]:
        return cells(self.points)

    @cached_property
    def differences(self) -> list[Difference]:
        return differences(self.points, self.headlines)

    @cached_property
    def decisions(self) -> list[Decision]:
        return decisions(self.points, self.differences, self.eligible)

    @cached_property
    def crossings(self) -> list[Crossing]:
        return crossings(self.cells, self.differences)

    @cached_property
    def heat_maps(self) -> list[HeatMap]:
        return heat_maps(_answering(self.runs, self.points), self.labels.candidates)

    @property
    def uses(self) -> dict[str, list[PhaseUse]]:
        """By run id: how near each phase came to the ceilings."""
        return self._bottlenecks[0]

    @property
    def bottlenecks(self) -> dict[str, Bottleneck]:
        """By run id, of usable points and of those whose client was late."""
        return self._bottlenecks[1]

    @property
    def beaten(self) -> dict[str, float]:
        """Ceilings that a point went beyond: what they are -> by what factor."""
        return self._bottlenecks[2]

    @cached_property
    def _bottlenecks(
        self,
    ) -> tuple[dict[str, list[PhaseUse]], dict[str, Bottleneck], dict[str, float]]:
        return _bottlenecks(self.host_ceilings, self.runs, self.points, self.crossings)

    @property
    def executions(self) -> list[str]:
        """Every execution that ran, sorted; points measured again later do not count."""
        ran = [point for point in self.points if point.status != "superseded"]
        return sorted({point.candidate.execution for point in ran})

    def run(self, point: Point) -> Run:
        return next(run for run in self.runs if str(run.path) == point.path)

    @property
    def usable(self) -> list[Point]:
        return [point for point in self.points if point.usable]


def study(
    root: Path,
    progress: Callable[[int, int], None] = lambda done, total: None,
    across_executions: bool = False,
    by: str | None = None,
    slo: SloConfig | None = None,
) -> Study:
    """Load and analyse every run at or below ``root``.

    ``across_executions``: eager and CUDA graphs in one ranking, as where the sweep's candidates differ in it;
    otherwise each has its own. ``by``: name of the objective of the headline; default: the sweep's
    ``objective``, else DEFAULT. ``slo``: by which requests are good; default: that of each run. UserError.
    """
    chosen = objective(by) if by else None
    sweeps, unread_sweeps = _sweeps(root)
    if chosen is None and (asked := sweep_objective(sweeps)):
        chosen = BY_NAME[asked]
    across_executions = across_executions or any(map(_compares_executions, sweeps))
    runs, unreadable = read_runs(root)
    some_readable(root, runs, unreadable)
    runs = runs if slo is None else [run.with_slo(slo) for run in runs]
    points, named = in_scenarios(analyse_all(runs, progress), across_executions)
    judged = gates(_answering(runs, points), named.candidates)
    checked, unread = _verifications(root)
    stand = standings(judged, checked, runs, points)
    host, no_ceilings = _host_ceilings(root)
    return Study(
        root=root,
        runs=runs,
        points=points,
        host_ceilings=host,
        gates=judged,
        verifications=checked,
        standings=stand,
        eligible=eligible(points, stand),
        unmeasured=[
            *left_out(root),
            *without_a_point(unreadable),
            *unread_sweeps,
            *unread,
            *no_ceilings,
        ],
        labels=named,
        objective=chosen or DEFAULT,
        headlines=headlines(points, chosen or DEFAULT, chosen is not None),
        asked=chosen is not None,
        across_executions=across_executions,
    )


def _answering(runs: Sequence[Run], points: Sequence[Point]) -> list[Run]:
    told = {point.path for point in points if point.answers_stand}
    return [run for run in runs if str(run.path) in told]


def _given_names(points: Sequence[Point]) -> dict[Candidate, str]:
    """What every sweep that has a candidate calls it: one that another sweep leaves unnamed has no name."""
    given: dict[Candidate, set[str]] = {}
    for point in points:
        given.setdefault(point.candidate, set()).add(point.identity.name or "")
    return {who: name for who, names in given.items() if len(names) == 1 and (name := min(names))}


def in_scenarios(points: Sequence[Point], across: bool) -> tuple[list[Point], Labels]:
    """The points at their scenarios beside each other, under labels that tell them apart."""
    where = scenarios({point.run_id: point.identity for point in points}, across)
    current = [point for point in points if point.status != "superseded"]
    named = labels(
        [point.candidate for point in current],
        [where[point.run_id] for point in current],
        across,
        _given_names(current),
    )
    return [
        replace(
            point,
            scenario=where[point.run_id],
            backend=named.candidates.get(point.candidate, point.backend),
            task=named.tasks.get(where[point.run_id], point.task),
            load=named.loads.get(where[point.run_id], point.load),
        )
        for point in points
    ], named


def sweep_objective(sweeps: Iterable[SweepConfig]) -> str | None:
    """The ``objective`` that all of them ask for."""
    asked = {sweep.objective for sweep in sweeps}
    return asked.pop() if len(asked) == 1 else None


def _compares_executions(sweep: SweepConfig) -> bool:
    return len({who.server.execution for who in sweep.contenders}) > 1


def _sweeps(root: Path) -> tuple[list[SweepConfig], list[LeftOut]]:
    """Of ``root``, or of the folders right below it. The report does not rest on one that cannot be read."""
    files = [root / "sweep.yaml", root.parent / "sweep.yaml", *sorted(root.glob("*/sweep.yaml"))]
    read = [
        (file, boundary.read(file.parent, partial(_sweep, file), list))
        for file in filter(Path.is_file, files)
    ]
    unread = [LeftOut(file.name, "unreadable", found.fault) for file, found in read if found.fault]
    return [sweep for _, found in read for sweep in found.value], unread


def _sweep(file: Path) -> list[SweepConfig]:
    sweep = load_sweep(file)
    if sweep.objective is not None:
        objective(sweep.objective)  # of another version it may be one that is not known here
    return [sweep]


def _verifications(root: Path) -> tuple[list[Verification], list[LeftOut]]:
    """What ``greenbench verify`` found, and the files of it that cannot be read."""
    read = [
        (path, boundary.read(path.parent, partial(_one, path), list))
        for path in verification_files(root)
    ]
    checked = [each for _, found in read for each in found.value]
    unread = [
        LeftOut(f"{path.parent.name}/{path.name}", "unreadable", found.fault)
        for path, found in read
        if found.fault
    ]
    return checked, unread


def _one(path: Path) -> list[Verification]:
    return [verification(path)]


def _host_ceilings(root: Path) -> tuple[HostCeilings | None, list[LeftOut]]:
    """The host's measured ceilings; a broken file of them costs the roofline, and is named."""
    found = boundary.read(root, lambda: find_host_ceilings(root), lambda: None)
    return found.value, [LeftOut("ceilings.json", "unreadable", found.fault)] if found.fault else []


def _bottlenecks(
    host: HostCeilings | None, runs: list[Run], points: list[Point], crossed: list[Crossing]
) -> tuple[dict[str, list[PhaseUse]], dict[str, Bottleneck], dict[str, float]]:
    """Per usable point: how near each phase came to the ceilings, and what held the point back.

    A point that is invalid because the client was late is classified too: as that. A ceiling that some
    point went beyond was taken wrongly (on a busy machine, say): it is no ceiling for any point, and the
    third value names it.
    """
    by_path = {str(run.path): run for run in runs}
    uses: dict[str, list[PhaseUse]] = {}
    bounds: dict[str, Bottleneck] = {}
    for point in points:
        run = by_path[point.path]
        held = classify_client(run, point)
        if held is not None:
            uses[point.run_id], bounds[point.run_id] = [], held
        if point.usable and point.window is not None:
            uses[point.run_id] = phase_uses(run, point.window, run_ceilings(run, host))
    uses, beaten = without_beaten(uses)
    for point in points:
        if point.usable and point.window is not None:
            evidence = gather(by_path[point.path], point.window, point)
            bounds[point.run_id] = classify(
                evidence, uses[point.run_id], _fixed_share(point, crossed)
            )
    return uses, bounds, beaten


def without_beaten(
    uses: dict[str, list[PhaseUse]],
) -> tuple[dict[str, list[PhaseUse]], dict[str, float]]:
    """MFU and MBU taken from every phase whose ceiling some phase beat by more than BEATEN."""
    highest: dict[str, float] = {}
    for use in (use for of_point in uses.values() for use in of_point):
        if use.ceiling is not None:
            top = max(use.mfu or 0.0, use.mbu or 0.0)
            highest[use.ceiling] = max(top, highest.get(use.ceiling, 0.0))
    beaten = {ceiling: top for ceiling, top in highest.items() if top > BEATEN}
    kept = {
        run_id: [
            replace(use, mfu=None, mbu=None, ceiling=None) if use.ceiling in beaten else use
            for use in of_point
        ]
        for run_id, of_point in uses.items()
    }
    return kept, beaten


def _fixed_share(point: Point, crossed: list[Crossing]) -> float | None:
    """From any fit of this candidate's time per output token over contexts that is linear."""
    for crossing in crossed:
        fits = crossing.found.fits
        linear = crossing.objective is TPOT and crossing.form == "linear"
        if linear and point.scenario in crossing.scenarios and point.backend in fits:
            return fixed_shares(fits[point.backend], point.context_tokens)
    return None

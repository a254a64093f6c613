"""One folded section a point: what ran, and which files say so, every figure with its n, and its timeline."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from analysis.point.point import Point
from analysis.point.steady_window import Window
from analysis.report import energy_section, formats
from analysis.report.figures import Figures
from analysis.report.timeline import timeline
from analysis.runs.run import Run
from analysis.statistics.samples import Statistic
from analysis.study import Study
from greenbench.contract.run_dir import RunDir


@dataclass(frozen=True)
class PointSection:
    """``anchor`` is its element's id, ``figure`` that of its timeline; ``facts``: name and words. ``files``:
    name, and the link from the page where there is one.
    """

    point: Point
    anchor: str
    figure: str | None
    facts: list[tuple[str, str]]
    command: str
    files: list[tuple[str, str | None]]


MOST_FILES = 20  # of a point are named


def point_sections(whole: Study, figures: Figures, place: Path | None = None) -> list[PointSection]:
    """``place``: the page's folder; raw files below it are linked."""
    ids = anchors(whole)
    return [
        PointSection(
            point=point,
            anchor=ids[point.path],
            figure=_timeline(whole, figures, point),
            facts=_point_facts(point)
            + _origin(whole.run(point))
            + energy_section.point_facts(point)
            + _bound_facts(whole, point)
            + [("Note", note) for note in point.notes],
            command=shlex.join(whole.run(point).manifest.server.argv),
            files=list(_files(whole.run(point), place)),
        )
        for point in whole.points
    ]


def anchors(whole: Study) -> dict[str, str]:
    """The element of each point's section, by the path of its run directory."""
    return {point.path: f"point-{number}" for number, point in enumerate(whole.points)}


def _origin(run: Run) -> list[tuple[str, str]]:
    """Proof and versions."""
    m = run.manifest
    said = m.server.shown.says or "nothing was written down"
    packages = [f"{name} {version}" for name, version in m.code.packages.items() if version]
    sha = (m.code.git_sha or "unknown")[:12] + (" with uncommitted changes" if m.code.dirty else "")
    driver = [f"driver {m.host.driver}"] if m.host.driver else []
    return [
        ("Proof", f"{m.server.proof}: {said}"),
        (
            "Versions",
            ", ".join(
                [
                    f"vLLM {m.server.vllm_version or m.code.packages.get('vllm') or 'unknown'}",
                    *driver,
                    f"greenbench {m.code.greenbench} ({sha})",
                    f"Python {m.code.python}",
                    *packages,
                ]
            ),
        ),
    ]


def _files(run: Run, place: Path | None) -> Iterator[tuple[str, str | None]]:
    """The run's folder and what was measured into it; ``derived/`` is not in an archive or a clone.

    What lies elsewhere has no link, which would name its folders.
    """
    below = place is not None and run.path.resolve().is_relative_to(place.resolve())
    start = run.path.resolve().relative_to(place.resolve()).as_posix() if below and place else None

    def link(name: str) -> str | None:
        return None if start is None else quote(f"./{start}/{name}")

    yield f"{run.path.name}/", link("")
    derived = RunDir(run.path).derived_dir
    there = sorted(
        path for path in run.path.rglob("*") if path.is_file() and derived not in path.parents
    )
    for path in there[:MOST_FILES]:
        name = path.relative_to(run.path).as_posix()
        yield name, link(name)
    if len(there) > MOST_FILES:
        yield f"and {len(there) - MOST_FILES} more", None


def _timeline(whole: Study, figures: Figures, point: Point) -> str | None:
    if point.status in ("superseded", "interrupted"):
        return None
    drawn = timeline(whole.run(point), point)
    return None if drawn is None else figures.add(drawn)


def _bound_facts(whole: Study, point: Point) -> list[tuple[str, str]]:
    bottleneck = whole.bottlenecks.get(point.run_id)
    if bottleneck is None:
        return []
    phases = [("", phase.sentence) for phase in bottleneck.phases]
    return [("Bottleneck", bottleneck.sentence), *phases]


def _point_facts(point: Point) -> list[tuple[str, str]]:
    facts = [
        ("Run", point.run_id),
        ("Server start", f"{point.server_id}, block {point.repeat}"),
        ("Attention class", f"{point.observed_backend or 'unknown'}, {point.proof}"),
        ("Requests", f"{point.counts.ok} good, {point.counts.failed} failed"),
    ]
    if point.window is not None:
        facts.append(("Window", _window_words(point.window)))
    if point.latency is not None:
        facts += [
            ("TTFT", _statistic_words(point.latency.ttft_s)),
            ("TPOT", _statistic_words(point.latency.tpot_s)),
            ("ITL", _statistic_words(point.latency.itl_s)),
            ("E2E", _statistic_words(point.latency.e2e_s)),
        ]
    if point.errors:
        facts.append(("Errors", ", ".join(f"{k} {v}" for k, v in point.errors.items())))
    return facts


def _window_words(window: Window) -> str:
    """``18.0 s, steady; on average 4.0 requests open, 1 s each; 72 completed``."""
    known = window.evidence
    words = [f"{window.duration_s:.1f} s, {window.definition}"]
    if known.mean_in_flight is not None and known.mean_residence_s is not None:
        each = formats.seconds(known.mean_residence_s)
        words.append(f"on average {known.mean_in_flight:g} requests open, {each} each")
    if known.completions is not None:
        words.append(f"{known.completions:,} completed")
    if known.pace is not None:
        early, late = formats.seconds(known.pace.early_s), formats.seconds(known.pace.late_s)
        words.append(f"a request took {early} in its first half, {late} in its second")
    if known.left_out is not None:
        words.append(f"left out {known.left_out}")
    return "; ".join(words)


def _statistic_words(found: Statistic) -> str:
    refused = f"; not given: {'; '.join(found.refused)}" if found.refused else ""
    return (
        f"p50 {formats.seconds(found.p50)}, p90 {formats.seconds(found.p90)}, "
        f"p99 {formats.seconds(found.p99)}, mean {formats.seconds(found.mean)}, "
        f"max {formats.seconds(found.maximum)}, n {found.n:,}{refused}"
    )

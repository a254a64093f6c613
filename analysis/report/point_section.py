"""One folded section a point: what it ran, in which window, every figure with its n, and its timeline."""

from typing import Any

from analysis.point.point import Point
from analysis.report import energy_section, formats
from analysis.report.figures import Figures
from analysis.report.timeline import timeline
from analysis.study import Study


def point_sections(whole: Study, figures: Figures) -> list[dict[str, Any]]:
    """One folded section a point, with its timeline."""
    return [
        {
            "point": point,
            "anchor": f"point-{number}",
            "figure": figures.add(timeline(whole.run(point), point))
            if point.status not in ("superseded", "interrupted")
            else None,
            "facts": _point_facts(point)
            + energy_section.point_facts(point)
            + _bound_facts(whole, point)
            + [("Note", note) for note in point.notes],
        }
        for number, point in enumerate(whole.points)
    ]


def _bound_facts(whole: Study, point: Point) -> list[tuple[str, str]]:
    found = whole.bottlenecks.get(point.run_id)
    if found is None:
        return []
    return [("Held back", found.sentence), *(("", phase.sentence) for phase in found.phases)]


def _point_facts(point: Point) -> list[tuple[str, str]]:
    facts = [
        ("Run", point.run_id),
        ("Server start", f"{point.server_id}, block {point.repeat}"),
        ("Attention class", f"{point.observed_backend or 'unknown'} ({point.proof})"),
        ("Requests", f"{point.counts['ok']} good, {point.counts['failed']} failed"),
    ]
    if point.window:
        evidence = ", ".join(
            f"{key.replace('_', ' ')} {value}" for key, value in point.window["evidence"].items()
        )
        facts.append(
            (
                "Window",
                f"{point.window['duration_s']:.1f} s, {point.window['definition']}; {evidence}",
            )
        )
    for name, found in (point.latency or {}).items():
        label = name.removesuffix("_s").upper()
        refused = f"; refused: {', '.join(found['refused'])}" if found["refused"] else ""
        facts.append(
            (
                label,
                f"p50 {formats.seconds(found['p50'])}, p90 {formats.seconds(found['p90'])}, "
                f"p99 {formats.seconds(found['p99'])}, mean {formats.seconds(found['mean'])}, "
                f"max {formats.seconds(found['maximum'])}, n {found['n']:,}{refused}",
            )
        )
    if point.errors:
        facts.append(("Errors", ", ".join(f"{k} {v}" for k, v in point.errors.items())))
    return facts

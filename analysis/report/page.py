"""One self-contained HTML file from a Study, and its twin in Markdown. Lays out and words; no statistics."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jinja2 import Environment

from analysis.report import document, plots
from analysis.report.charts import (
    bands,
    chart_key,
    charts,
    crossing_rows,
    drift,
    paretos,
    rooflines,
)
from analysis.report.choices import untested_words
from analysis.report.document import Library
from analysis.report.energy_section import energy_section, span
from analysis.report.figures import Figures, json_for_page
from analysis.report.first_screen import FirstScreen, first_screen
from analysis.report.memory_section import memory_rows
from analysis.report.point_section import point_sections
from analysis.report.sentences import summary_sentences
from analysis.report.tables import (
    bounds,
    decision_cell,
    decision_rows,
    entry_words,
    heat_map_groups,
    provenance,
    ran_words,
    servers,
    tables,
)
from analysis.statistics.samples import needed
from analysis.study import Study
from greenbench.contract.run_dir import write_atomic

UNTRAINED = (
    "A model that was never trained: speed, memory and energy count, its answers are not judged."
)


def write_report(whole: Study, path: Path, library: Library = document.CARRIED) -> None:
    """Render ``whole`` to ``path``, replaced atomically. The file needs no network.

    ``library``: where the page finds what draws its figures.
    """
    write_atomic(path, render(whole, path.parent, library))


def write_with_twin(whole: Study, path: Path) -> None:
    """The page, and its text and tables in Markdown beside it; each is replaced atomically."""
    common = shared(whole)
    write_atomic(path, _page(whole, common, path.parent, document.CARRIED))
    write_atomic(path.with_suffix(".md"), _twin(common))


def render(whole: Study, place: Path | None = None, library: Library = document.CARRIED) -> str:
    """``place``: the folder of the page, from which raw files are linked; without it they are only named."""
    return _page(whole, shared(whole), place, library)


def render_twin(whole: Study) -> str:
    """Of the same values as the page."""
    return _twin(shared(whole))


def _twin(common: Mapping[str, Any]) -> str:
    return document.markdown(environment()).get_template("report.md.j2").render(**common)


def _page(whole: Study, common: Mapping[str, Any], place: Path | None, library: Library) -> str:
    screen: FirstScreen = common["screen"]
    figures = Figures()
    named = [point.backend for point in whole.points] + [gate.backend for gate in whole.gates]
    look = plots.styles(named)
    drawn = bands(whole, screen, look, figures)
    units = list(dict.fromkeys(family.unit for family in screen.families))
    page = environment().get_template("report.html.j2")
    return page.render(
        **document.frame(library, document.REPORT),
        **common,
        runs_name=whole.root.name,
        shown_band=screen.shown
        and drawn.get(chart_key(screen.shown.family, screen.shown.objective)),
        units=units,
        one_unit=len(units) < 2,
        tasks=list(dict.fromkeys(family.task for family in screen.families)),
        cases_json=json_for_page(cases_json(screen, drawn)),
        headline_by=" or ".join(dict.fromkeys(each.title for each in whole.headlines.values())),
        untested=untested_words(whole.decisions),
        charts=charts(screen, drawn),
        points=point_sections(whole, figures, place),
        paretos=paretos(whole, look, figures),
        rooflines=rooflines(whole, look, figures),
        beaten=whole.beaten,
        crossings=crossing_rows(whole, look, figures),
        eligible=whole.eligible,
        verifications=whole.verifications,
        heat_maps=heat_map_groups(whole.heat_maps),
        drift=drift(whole.gates, look, figures),
        memory=memory_rows(whole.points),
        bounds=bounds(whole),
        cpu_only=not any(run.manifest.host.gpus for run in whole.runs),
        needs={p: needed(p) for p in (50, 90, 95, 99)},
        figures=figures.json,
    )


def shared(whole: Study) -> dict[str, Any]:
    """What the page and its twin in Markdown both show."""
    energy = energy_section(whole.cells)
    return {
        "title": f"Attention backends: {whole.root.name}",
        "ran": ran_words(whole),
        "disqualified": len(
            {who for (_, who), each in whole.eligible.items() if each.disqualified}
        ),
        "screen": first_screen(whole),
        "sentences": summary_sentences(whole),
        "untrained": UNTRAINED,
        "weights_random": any(p.weights == "random" for p in whole.usable),
        "decisions": decision_rows(whole),
        "some_may_not_win": any(not each.may_win for each in whole.eligible.values()),
        "tables": tables(whole.cells, joules=energy.gpu is None),
        "energy": energy,
        "gates": whole.gates,
        "excluded": [p for p in whole.points if not p.usable and p.status != "superseded"],
        "unmeasured": whole.unmeasured,
        "superseded": sum(p.status == "superseded" for p in whole.points),
        "provenance": provenance(whole.runs),
        "servers": servers(whole),
    }


def cases_json(screen: FirstScreen, drawn: Mapping[str, str]) -> dict[str, Any]:
    """What the page looks up when somebody names a case. All words stand in its templates already."""
    return {
        "families": [
            {"task": f.task, "unit": f.unit, "level": f.level, "words": f.words}
            for f in screen.families
        ],
        "cases": [
            {
                "family": case.family.number,
                "context": case.context_tokens,
                "by": case.objective.name,
                "pair": case.pair,
                "figure": drawn.get(chart_key(case.family, case.objective)),
                "note": screen.no_lengths.get((case.family.number, case.objective), ""),
            }
            for case in screen.cases
        ],
        "crossings": [
            {"family": number, "by": objective.name, "sentence": sentence}
            for number, objective, sentence in screen.crossings
        ],
        "objectives": {each.name: each.title for each in screen.objectives},
    }


def environment() -> Environment:
    made = document.environment()
    made.globals |= {"span": span, "entry": entry_words, "decision": decision_cell}
    return made

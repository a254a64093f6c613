"""One self-contained HTML file from a Study. Lays out and words; computes no statistics."""

from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup, escape
from plotly.offline import get_plotlyjs

from analysis.report import formats, plots
from analysis.report.charts import charts, crossing_rows, drift, paretos, rooflines
from analysis.report.energy_section import energy_section, span
from analysis.report.figures import Figures
from analysis.report.memory_section import memory_rows
from analysis.report.point_section import point_sections
from analysis.report.sentences import summary_sentences
from analysis.report.tables import (
    bounds,
    decision_rows,
    heat_map_groups,
    provenance,
    servers,
    tables,
)
from analysis.statistics.samples import needed
from analysis.study import Study
from greenbench.contract.run_dir import write_atomic

TEMPLATES = Path(__file__).parent / "templates"


def write_report(whole: Study, path: Path) -> None:
    """Render ``whole`` to ``path``, replaced atomically. The file needs no network."""
    write_atomic(path, render(whole))


def render(whole: Study) -> str:
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined
    )
    environment.tests["none"] = is_none
    environment.filters |= {
        "code": code,
        "answer": formats.answer,
        "breakable": breakable,
        "bare": bare,
    }
    environment.globals |= {"f": formats, "span": span}
    figures = Figures()
    named = [point.backend for point in whole.points] + [gate.backend for gate in whole.gates]
    look = plots.styles(named)
    energy = energy_section(whole.cells)
    return environment.get_template("report.html.j2").render(
        title=f"Attention backends: {whole.root.name}",
        runs_name=whole.root.name,
        sentences=summary_sentences(whole),
        provenance=provenance(whole.runs),
        servers=servers(whole),
        weights_random=any(p.weights == "random" for p in whole.usable),
        decisions=decision_rows(whole),
        headline_by=" or ".join(dict.fromkeys(each.title for each in whole.headlines.values())),
        tested=any(d.tested for d in whole.decisions),
        tables=tables(whole.cells, joules=energy.gpu is None),
        charts=charts(whole.cells, look, figures),
        points=point_sections(whole, figures),
        paretos=paretos(whole, look, figures),
        rooflines=rooflines(whole, look, figures),
        beaten=whole.beaten,
        crossings=crossing_rows(whole, look, figures),
        gates=whole.gates,
        some_may_not_win=any(not each.may_win for each in whole.eligible.values()),
        eligible=whole.eligible,
        verifications=whole.verifications,
        heat_maps=heat_map_groups(whole.heat_maps),
        drift=drift(whole.gates, look, figures),
        energy=energy,
        memory=memory_rows(whole.points),
        bounds=bounds(whole),
        excluded=[p for p in whole.points if not p.usable and p.status != "superseded"],
        unmeasured=whole.unmeasured,
        superseded=sum(p.status == "superseded" for p in whole.points),
        needs={p: needed(p) for p in (50, 90, 95, 99)},
        figures=figures.json,
        plotlyjs=Markup(get_plotlyjs()),
        css=Markup((TEMPLATES / "report.css").read_text()),
        script=Markup((TEMPLATES / "report.js").read_text()),
    )


def is_none(value: object) -> bool:
    """The test ``none`` of the templates, held to StrictUndefined too: a misspelt name is an error.

    Raises jinja2.UndefinedError.
    """
    str(value) if isinstance(value, StrictUndefined) else None
    return value is None


def code(text: str) -> Markup:
    """`word` in backticks becomes a code element, **words** strong; everything else is escaped."""
    parts = str(escape(text)).split("`")
    joined = "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(parts))
    strong = joined.split("**")
    return Markup("".join(f"<b>{p}</b>" if i % 2 else p for i, p in enumerate(strong)))


def bare(text: str) -> str:
    """A sentence where no element can stand, as in a title: without its marks."""
    return text.replace("`", "").replace("**", "")


def breakable(label: str) -> Markup:
    """A backend's label may break at its spaces, before its options and between them."""
    return Markup(str(escape(label)).replace("(", "<wbr>(").replace(",", ",<wbr>"))

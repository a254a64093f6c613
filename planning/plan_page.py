"""The plan as one self-contained page: the table, latency against traffic with its knee, replicas, kWh."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis.report import document
from analysis.report.figures import Figures
from analysis.report.plots import COLOURS, FRAME
from greenbench.contract.run_dir import write_atomic
from planning.plan import Plan
from planning.plan_told import answer, circumstances, head, rows, said

HERE = Path(__file__).parent


def write_page(made: Plan, path: Path) -> None:
    """Replaced atomically. The page needs no network."""
    write_atomic(path, render(made))


def render(made: Plan) -> str:
    figures = Figures()
    for figure in (knee(made), replicas(made), energy(made)):
        if figure is not None:
            figures.add(figure)
    return (
        document.environment(HERE)
        .get_template("plan.html.j2")
        .render(
            **document.frame(document.CARRIED, document.FIGURES),
            title="Capacity plan",
            answer=answer(made),
            circumstances=circumstances(made),
            head=head(made.currency),
            rows=rows(made),
            said=said(made),
            figures=figures.json,
        )
    )


def _figure(title: str, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    below: dict[str, Any] = FRAME | {"legend": {"orientation": "h", "y": -0.3, "yanchor": "top"}}
    figure.update_layout(
        height=420,
        title={"text": title, "font": {"size": 14}},
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}, "rangemode": "tozero"},
        **below,
    )
    return figure


def knee(made: Plan) -> go.Figure:
    """90th percentile of TTFT against the traffic, with the replicas of the plan."""
    figure = _figure(
        "Where each fleet's knee is", "requests/s to the whole fleet", "TTFT, 90th percentile, s"
    )
    for number, one in enumerate(made.needs):
        rate, ttft, busy = zip(*one.knee, strict=True)
        figure.add_scatter(
            x=rate, y=ttft, name=f"{one.replicas} × {one.label}", mode="lines+markers",
            line={"color": COLOURS[number % len(COLOURS)]}, customdata=busy,
            hovertemplate="%{y:.3g} s, %{customdata:.0%} busy",
        )  # fmt: skip
    if made.slo.ttft_s is not None:
        figure.add_hline(y=made.slo.ttft_s, line={"dash": "dot"}, annotation_text="SLO")
    return figure


def replicas(made: Plan) -> go.Figure:
    """Replicas against the traffic: what one replica takes at the SLO, in steps."""
    figure = _figure(
        "Replicas against traffic, if each takes as much as here", "requests/s", "replicas"
    )
    for number, one in enumerate(made.needs):
        if not one.replicas:
            continue
        each = one.most_rate / one.replicas
        counts = range(1, 2 * one.replicas + 3)
        figure.add_scatter(
            x=[each * (n - 1) for n in counts], y=list(counts), name=one.label,
            line={"shape": "hv", "color": COLOURS[number % len(COLOURS)]},
        )  # fmt: skip
    return figure


def energy(made: Plan) -> go.Figure | None:
    """The bar is the lower bound, the whisker the interval, or both bounds where there is none."""
    known = [(one, one.kwh_day) for one in made.needs if one.kwh_day is not None]
    if not known:
        return None
    figure = _figure("Energy of the fleet", "", "kWh a day")
    ends = [one.kwh_interval or bounds for one, bounds in known]
    lows = [bounds[0] for _, bounds in known]
    figure.add_bar(
        x=[one.label for one, _ in known], y=lows, marker={"color": COLOURS[0]},
        error_y={
            "type": "data", "symmetric": False,
            "array": [high - low for (_, high), low in zip(ends, lows, strict=True)],
            "arrayminus": [low - least for (least, _), low in zip(ends, lows, strict=True)],
        },
    )  # fmt: skip
    return figure

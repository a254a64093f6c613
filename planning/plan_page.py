"""The plan as one self-contained page: the table, latency against traffic with its knee, replicas, kWh."""

from pathlib import Path
from typing import Any

import plotly.graph_objects as go

from analysis.report import document
from analysis.report.figures import Figures
from analysis.report.plots import COLOURS, FRAME
from greenbench.contract.run_dir import write_atomic
from planning.capacity import Need
from planning.plan import Plan
from planning.plan_told import answer, circumstances, every, head, rows, said

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
        showlegend=True,  # of one alone too
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
    for number, one in enumerate(every(made)):
        rate, ttft, busy = zip(*one.knee, strict=True)
        figure.add_scatter(
            x=rate, y=ttft, name=_fleet(made, one), mode="lines+markers",
            line={"color": COLOURS[number % len(COLOURS)]}, customdata=busy,
            hovertemplate="%{y:.3g} s, %{customdata:.0%} busy",
        )  # fmt: skip
    if made.slo.ttft_s is not None:
        figure.add_hline(y=made.slo.ttft_s, line={"dash": "dot"}, annotation_text="SLO")
    return figure


def _fleet(made: Plan, one: Need) -> str:
    return _name(made, one) if one is made.mixed else f"{one.replicas} × {one.label}"


def _name(made: Plan, one: Need) -> str:
    """The legend has no room for how many of each pool; the table says it."""
    return "the policy" if one is made.mixed else one.label


def replicas(made: Plan) -> go.Figure:
    """Replicas against the traffic: what one replica takes at the SLO, in steps; of a policy all its pools as
    they are here.
    """
    figure = _figure(
        "Replicas against traffic, if each takes as much as here", "requests/s", "replicas"
    )
    for number, one in enumerate(every(made)):
        step = one.replicas if one is made.mixed else 1
        counts = range(step, 2 * (one.replicas + step) + 1, step)
        figure.add_scatter(
            x=[one.most_rate * (n - step) / one.replicas for n in counts], y=list(counts),
            name=_name(made, one),
            line={"shape": "hv", "color": COLOURS[number % len(COLOURS)]},
        )  # fmt: skip
    return figure


def energy(made: Plan) -> go.Figure | None:
    """The bar is the lower bound, the whisker the interval, or both bounds where there is none."""
    figure = _figure("Energy of the fleet", "", "kWh a day")
    figure.update_xaxes(showticklabels=False)  # the legend has the names, which are long
    for number, one in enumerate(every(made)):
        if one.kwh_day is None:
            continue
        low, _ = one.kwh_day
        least, most = one.kwh_interval or one.kwh_day
        figure.add_bar(
            x=[one.label], y=[low], name=_fleet(made, one),
            marker={"color": COLOURS[number % len(COLOURS)]},
            error_y={"type": "data", "symmetric": False, "array": [most - low], "arrayminus": [low - least]},
        )  # fmt: skip
    return figure if figure.data else None

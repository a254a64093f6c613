"""The plan as one self-contained page: the table, latency against traffic with its knee, replicas, kWh."""

from collections.abc import Sequence
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from greenbench.contract.run_dir import write_atomic
from planning.capacity import Need
from planning.plan import Plan
from planning.plan_told import row, table

COLOURS = ("#3d85c6", "#e07b39", "#38a169", "#a56cc1", "#d64550", "#17a2b8", "#a3801f", "#7f8c8d")
STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 75rem; margin: 2rem auto; padding: 0 1rem; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.9rem; }
th, td { text-align: left; padding: 0.3rem 0.6rem; border-bottom: 1px solid #8885; vertical-align: top; }
"""


def write_page(made: Plan, path: Path) -> None:
    """Replaced atomically. The page needs no network."""
    write_atomic(path, render(made))


def render(made: Plan) -> str:
    lines = table(list(made.needs), made.currency)
    said = [*lines[1 + len(made.needs) :], *(f"Left out: {why}." for why in made.refused)]
    figures = [knee(made), replicas(made), energy(made)]
    drawn = "".join(
        figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False})
        for figure in figures
        if figure is not None
    )
    bounds = ", ".join(f"{k.removesuffix('_s').upper()} ≤ {v:g} s" for k, v in made.slo if v)
    best = made.needs[0]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Capacity plan</title>'
        f"<style>{STYLE}</style><script>{get_plotlyjs()}</script></head><body>"
        f"<h1>{escape(best.label)}: {best.replicas} replica{'s' if best.replicas != 1 else ''}</h1>"
        f"<p>{escape(made.traffic)}, on {escape(made.device)}. SLO: {escape(bounds)}, met by nine of ten "
        "requests. Figures are of a simulation with step times fitted to measured runs.</p>"
        f'<div class="wide">{_table(made.needs, made.currency)}</div>{drawn}'
        f"<ul>{''.join(f'<li>{escape(sentence)}</li>' for sentence in said)}</ul></body></html>"
    )


HEAD = (
    "candidate", "replicas", "binds", "busy at the SLO", "headroom", "TTFT p50/p90/p99, s",
    "E2E p50/p90/p99, s", "prompts +25 %", "outputs +25 %", "W", "kWh a day",
)  # fmt: skip


def _table(needs: Sequence[Need], currency: str) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in (*HEAD, f"{currency} a day"))
    rows = "".join(
        f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row(one))}</tr>" for one in needs
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"


def _figure(title: str, x: str, y: str) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        template="none", height=340, hovermode="x unified", title={"text": title, "font": {"size": 14}},
        xaxis={"title": {"text": x}}, yaxis={"title": {"text": y}, "rangemode": "tozero"},
        paper_bgcolor="rgba(0,0,0,0)", plot_bgcolor="rgba(0,0,0,0)", font={"color": "#888"},
    )  # fmt: skip
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
    figure = _figure("Replicas against traffic", "requests/s", "replicas")
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
    known = [one for one in made.needs if one.kwh_day is not None]
    if not known:
        return None
    figure = _figure("Energy of the fleet", "", "kWh a day")
    lows = [one.kwh_day[0] for one in known if one.kwh_day]
    highs = [one.kwh_day[1] for one in known if one.kwh_day]
    over = [high - low for low, high in zip(lows, highs, strict=True)]
    figure.add_bar(
        x=[one.label for one in known], y=lows, marker={"color": COLOURS[0]},
        error_y={"type": "data", "symmetric": False, "array": over, "arrayminus": [0.0] * len(over)},
    )  # fmt: skip
    return figure

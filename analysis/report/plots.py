"""Figures of the report as plotly JSON. No statistics are worked out here, only laid out."""

from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from analysis.bottleneck.peaks import Ceiling
from analysis.bottleneck.roofline import PhaseUse
from analysis.compare.cells import Cell
from analysis.compare.crossovers import Crossing
from analysis.objectives import Objective
from analysis.quality.gate import Gate
from analysis.runs.identity import Candidate, Place

# read on light and on dark ground; markers differ too, so colour is never the only sign
COLOURS = ("#3d85c6", "#e07b39", "#38a169", "#a56cc1", "#d64550", "#17a2b8", "#a3801f", "#7f8c8d")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
GIB = 1 << 30


def styles(backends: Sequence[str]) -> dict[str, dict[str, str]]:
    """The same colour and marker for a backend in every figure."""
    return {
        name: {"colour": COLOURS[i % len(COLOURS)], "marker": MARKERS[i % len(MARKERS)]}
        for i, name in enumerate(sorted(set(backends)))
    }


def _figure(title: str, x: str, y: str, height: int = 300) -> go.Figure:
    figure = go.Figure()
    figure.update_layout(
        title={"text": title, "font": {"size": 14}, "y": 0.97, "x": 0.02, "xanchor": "left"},
        xaxis={"title": {"text": x}},
        yaxis={"title": {"text": y}, "rangemode": "tozero"},
        height=height,
        **FRAME,
    )
    return figure


FRAME: dict[str, Any] = {
    "template": "none",
    "margin": {"l": 60, "r": 16, "t": 64, "b": 48},
    "hovermode": "x unified",
    "legend": {"orientation": "h", "y": 1.02, "yanchor": "bottom", "x": 1, "xanchor": "right"},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
}


def context_axis(contexts: Sequence[int]) -> dict[str, Any]:
    """Ticks at the measured lengths; logarithmic where they span more than a factor of 16."""
    axis: dict[str, Any] = {
        "tickvals": sorted(set(contexts)),
        "ticktext": [f"{c:,}" for c in sorted(set(contexts))],
        "title": {"text": "context, tokens"},
    }
    if max(contexts) > 16 * min(contexts):
        axis["type"] = "log"
    return axis


def against_context(
    cells: Sequence[Cell],
    objective: Objective,
    look: dict[str, dict[str, str]],
) -> go.Figure | None:
    """One line a candidate: the pooled median for latencies, else the mean over starts."""
    unit = objective.unit
    figure = _figure(objective.title, "context, tokens", unit)
    contexts: list[int] = []
    for backend in sorted({cell.backend for cell in cells}):
        own = [cell for cell in cells if cell.backend == backend]
        rows = [(cell.context_tokens, *_value(cell, objective)) for cell in own]
        rows = [row for row in rows if row[1] is not None]
        if not rows:
            continue
        contexts += [row[0] for row in rows]
        figure.add_trace(
            go.Scatter(
                x=[row[0] for row in rows],
                y=[row[1] for row in rows],
                name=backend,
                mode="lines+markers",
                line={"color": look[backend]["colour"]},
                marker={"symbol": look[backend]["marker"], "size": 9},
                error_y=_error_bars(rows),
                customdata=[row[4] for row in rows],
                hovertemplate=f"%{{y:.4g}} {unit} (%{{customdata}})<extra>{backend}</extra>",
            )
        )
    if not contexts:
        return None
    figure.update_xaxes(**context_axis(contexts))
    return figure


def _value(
    cell: Cell, objective: Objective
) -> tuple[float | None, float | None, float | None, str]:
    """Value, low, high, and what stands behind it."""
    if objective.sample is not None and cell.starts:
        found = cell.latency[objective.sample]
        return found["p50"], found["p50_low"], found["p50_high"], f"n {found['n']:,}"
    values = cell.values(objective)
    if not values:
        return None, None, None, ""
    starts = f"{len(values)} start{'s' if len(values) > 1 else ''}"
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return cell.mean(objective), low, high, starts


def _error_bars(rows: Sequence[tuple[Any, ...]]) -> dict[str, Any] | None:
    if all(row[2] is None for row in rows):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [(row[3] or row[1]) - row[1] for row in rows],
        "arrayminus": [row[1] - (row[2] or row[1]) for row in rows],
        "thickness": 1,
    }


def crossover_figure(crossing: Crossing, look: dict[str, dict[str, str]]) -> go.Figure:
    """Measured costs, fitted curves with their bands, and the break-even with its interval."""
    cost, found = crossing.objective, crossing.found
    figure = _figure(
        f"{cost.title}: {crossing.a} and {crossing.b}", "context, tokens", cost.unit, 340
    )
    for name in (crossing.a, crossing.b):
        colour = look[name]["colour"]
        band = found.bands.get(name)
        if band is not None:
            figure.add_trace(
                go.Scatter(
                    x=[*band.contexts, *reversed(band.contexts)],
                    y=[*band.high, *reversed(band.low)],
                    fill="toself",
                    fillcolor=colour,
                    opacity=0.18,
                    line={"width": 0},
                    hoverinfo="skip",
                    showlegend=False,
                )
            )
            figure.add_trace(
                go.Scatter(
                    x=band.contexts,
                    y=band.middle,
                    name=f"{name} (fit)",
                    mode="lines",
                    line={"color": colour, "width": 1.5},
                    showlegend=False,
                )
            )
        figure.add_trace(
            go.Scatter(
                x=crossing.contexts,
                y=crossing.measured[name],
                name=name,
                mode="markers",
                marker={"color": colour, "symbol": look[name]["marker"], "size": 9},
            )
        )
    if found.context is not None and found.low is not None and found.high is not None:
        figure.add_vrect(
            x0=found.low, x1=found.high, fillcolor="#7f8c8d", opacity=0.15, line_width=0
        )
        figure.add_vline(x=found.context, line={"dash": "dash", "width": 1, "color": "#7f8c8d"})
    figure.update_xaxes(tickvals=crossing.contexts, ticktext=[f"{c:,}" for c in crossing.contexts])
    return figure


def roofline_figure(
    uses: Sequence[tuple[str, str, PhaseUse]], ceiling: Ceiling, look: dict[str, dict[str, str]]
) -> go.Figure:
    """FLOP/s against FLOPs a byte for each (backend, words, phase use), under one ceiling."""
    figure = _figure("Roofline", "FLOPs a byte", "FLOP/s", 420)
    reach = [use.intensity for _, _, use in uses]
    low, high = min(*reach, ceiling.ridge) / 4, max(*reach, ceiling.ridge) * 4
    figure.add_trace(
        go.Scatter(
            x=[low, ceiling.ridge, high],
            y=[low * ceiling.bytes_per_s, ceiling.flops_per_s, ceiling.flops_per_s],
            name=f"ceiling ({ceiling.kind})",
            mode="lines",
            line={"color": "#7f8c8d", "width": 2},
            hoverinfo="skip",
        )
    )
    for backend in sorted({name for name, _, _ in uses}):
        for phase, filled in (("prefill", ""), ("decode", "-open")):
            own = [
                (words, use) for name, words, use in uses if name == backend and use.phase == phase
            ]
            if own:
                figure.add_trace(
                    go.Scatter(
                        x=[use.intensity for _, use in own],
                        y=[use.flops_per_s for _, use in own],
                        name=f"{backend}, {phase}",
                        mode="markers",
                        text=[words for words, _ in own],
                        marker={
                            "color": look[backend]["colour"],
                            "symbol": look[backend]["marker"] + filled,
                            "size": 10,
                        },
                        hovertemplate="%{text}<br>%{y:.3g} FLOP/s at %{x:.3g} FLOP/B<extra></extra>",
                    )
                )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", rangemode="normal")
    figure.update_layout(hovermode="closest")
    return figure


def pareto_figure(
    cells: Sequence[Cell],
    x: Objective,
    y: Objective,
    look: dict[str, dict[str, str]],
    barred: set[tuple[Place, Candidate]],
) -> go.Figure | None:
    """Points of (x lower is better, y higher is better), one front a context length and execution.

    Work at two lengths is not the same work, so points of different lengths do not beat each other. A
    candidate that may not win is drawn hollow and stands on no front.
    """
    found = [(cell, _value(cell, x)[0], _value(cell, y)[0]) for cell in cells]
    spots = [(cell, a, b) for cell, a, b in found if a is not None and b is not None]
    if len(spots) < 2:
        return None
    figure = _figure(
        f"{y.title} against {x.title}", f"{x.title}, {x.unit}", f"{y.title}, {y.unit}", 360
    )

    def out(cell: Cell) -> bool:
        return (cell.place, cell.candidate) in barred

    for backend in sorted({cell.backend for cell, _, _ in spots}):
        own = [(cell, a, b) for cell, a, b in spots if cell.backend == backend]
        symbol = look[backend]["marker"]
        words = [
            f"{cell.context_tokens:,} tokens, {cell.load}" + (", may not win" if out(cell) else "")
            for cell, _, _ in own
        ]
        figure.add_trace(
            go.Scatter(
                x=[a for _, a, _ in own],
                y=[b for _, _, b in own],
                name=backend,
                mode="markers+text",
                text=[f"{cell.context_tokens:,}" for cell, _, _ in own],
                textposition="top center",
                textfont={"size": 10, "color": look[backend]["colour"]},
                customdata=words,
                marker={
                    "color": look[backend]["colour"],
                    "symbol": [symbol + "-open" if out(cell) else symbol for cell, _, _ in own],
                    "size": 10,
                },
                hovertemplate=f"%{{customdata}}<br>%{{x:.3g}}, %{{y:.4g}}<extra>{backend}</extra>",
            )
        )
    ranks = {(cell.context_tokens, cell.place.execution, cell.place.device) for cell, _, _ in spots}
    for rank in ranks:
        here = [
            (a, b)
            for c, a, b in spots
            if (c.context_tokens, c.place.execution, c.place.device) == rank and not out(c)
        ]
        front = pareto_front(here)
        figure.add_trace(
            go.Scatter(
                x=[a for a, _ in front],
                y=[b for _, b in front],
                name="front at one length",
                showlegend=False,  # the text above says what the dotted lines are
                mode="lines",
                line={"color": "#7f8c8d", "dash": "dot", "shape": "hv"},
                hoverinfo="skip",
            )
        )
    figure.update_layout(hovermode="closest")
    return figure


def pareto_front(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both: ascending x (lower is better), ascending y (higher is better)."""
    front: list[tuple[float, float]] = []
    for a, b in sorted(spots, key=lambda spot: (spot[0], -spot[1])):
        if not front or b > front[-1][1]:
            front.append((a, b))
    return front


def drift_figure(gates: Sequence[Gate], look: dict[str, dict[str, str]]) -> go.Figure:
    """Mean |Δ log p| by position, one line a backend."""
    figure = _figure(
        "Mean |Δ log p| against the reference", "position, tokens", "nats a token", 320
    )
    contexts = sorted({gate.context_tokens for gate in gates})
    for gate in gates:
        figure.add_trace(
            go.Scatter(
                x=[(bucket.start + bucket.end) / 2 for bucket in gate.drift],
                y=[bucket.absolute for bucket in gate.drift],
                name=f"{gate.backend}, {gate.context_tokens:,}",
                mode="lines+markers",
                line={
                    "color": look[gate.backend]["colour"],
                    "dash": DASHES[contexts.index(gate.context_tokens) % len(DASHES)],
                },
                marker={"symbol": look[gate.backend]["marker"]},
            )
        )
    return figure

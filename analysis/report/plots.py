"""Figures of the report as plotly JSON. No statistics are worked out here, only laid out."""

from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import plotly.graph_objects as go

from analysis.bottleneck.peaks import Ceiling
from analysis.bottleneck.roofline import PhaseUse
from analysis.compare.cells import Cell
from analysis.compare.crossovers import Crossing
from analysis.compare.decisions import Decision
from analysis.objectives import Objective
from analysis.quality.gate import Gate
from analysis.runs.identity import Candidate, DeviceKind, Scenario
from greenbench.contract.counted import counted

# read on light and on dark ground; markers differ too, so colour is never the only sign
COLOURS = ("#3d85c6", "#e07b39", "#38a169", "#a56cc1", "#d64550", "#17a2b8", "#a3801f", "#7f8c8d")
MARKERS = ("circle", "diamond", "square", "triangle-up", "x", "cross", "star", "hexagon")
DASHES = ("solid", "dash", "dot", "dashdot")
GIB = 1 << 30


@dataclass(frozen=True)
class Style:
    """How a backend is drawn, the same in every figure."""

    colour: str
    marker: str


Look = Mapping[str, Style]  # by label


def styles(backends: Sequence[str]) -> Look:
    return {
        name: Style(COLOURS[i % len(COLOURS)], MARKERS[i % len(MARKERS)])
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
    "legend": {
        "orientation": "h",
        "y": 1.02,
        "yanchor": "bottom",
        "x": 1,
        "xanchor": "right",
        "xref": "container",
    },
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


NOBODY = "#7f8c8d"  # where no winner is shown, and what belongs to no candidate


def band_figure(
    cells: Sequence[Cell],
    decisions: Sequence[Decision],
    crossing: Crossing | None,
    look: Look,
    links: Mapping[str, str],
) -> go.Figure | None:
    """One objective against context, with the winner's band behind it.

    Coloured between measured lengths of one winner, at one such length where its neighbours have another.
    Hollow markers may not win there.
    ``crossing``: its stated length, with the interval. ``links``: the element that tells of a run directory's
    point, for the page to open.
    """
    objective = decisions[0].objective
    figure = against_context(cells, objective, look)
    if figure is None:
        return None
    anchors = {
        (cell.backend, cell.context_tokens): links[cell.starts[0].path]
        for cell in cells
        if cell.starts
    }
    unable = {
        (each.label, decision.scenario.context_tokens)
        for decision in decisions
        for each in decision.out
    }

    def change(trace: Any) -> None:
        at = [(trace.name, context) for context in trace.x]
        filled = look[trace.name].marker
        symbols = [f"{filled}-open" if key in unable else filled for key in at]
        trace.update(meta=[anchors.get(key) for key in at], marker={"symbol": symbols})
        if at and all(key in unable for key in at):
            trace.update(name=f"{trace.name} (may not win)")

    figure.for_each_trace(change)
    contexts = [decision.scenario.context_tokens for decision in decisions]
    for i, decision in enumerate(decisions):
        won = decision.winner
        if won is None:
            continue
        joined = i + 1 < len(decisions) and decisions[i + 1].winner == won
        alone = not joined and not (i and decisions[i - 1].winner == won)
        if joined or alone:
            low, high = contexts[i], contexts[i + 1] if joined else contexts[i]
            figure.add_vrect(
                x0=low / (BESIDE if alone else 1),
                x1=high * (BESIDE if alone else 1),
                fillcolor=look[won].colour,
                opacity=0.16,
                line_width=0,
            )
    if crossing is not None and crossing.found.context is not None:
        _mark_crossing(figure, crossing)
    figure.update_layout(height=320)
    return figure


BESIDE = 1.06  # how far the band of a single length reaches to both sides


def _mark_crossing(figure: go.Figure, crossing: Crossing) -> None:
    found = crossing.found
    if found.low is not None and found.high is not None:
        figure.add_vrect(x0=found.low, x1=found.high, fillcolor=NOBODY, opacity=0.15, line_width=0)
    figure.add_vline(x=found.context, line={"dash": "dash", "width": 1, "color": NOBODY})


@dataclass(frozen=True)
class Spot:
    """A cell's figure with its interval, and what stands behind it."""

    value: float
    low: float | None
    high: float | None
    behind: str


def against_context(cells: Sequence[Cell], objective: Objective, look: Look) -> go.Figure | None:
    """One line a candidate: the pooled median for latencies, else the mean over starts.

    A line breaks at a length at which others have a value and its candidate has none.
    """
    unit = objective.unit
    figure = _figure(objective.title, "context, tokens", unit)
    by_backend: dict[str, dict[int, Spot]] = {}
    for cell in cells:
        spot = _spot(cell, objective)
        if spot is not None:
            by_backend.setdefault(cell.backend, {})[cell.context_tokens] = spot
    contexts = sorted({context for spots in by_backend.values() for context in spots})
    if not contexts:
        return None
    for backend, spots in sorted(by_backend.items()):
        own = [c for c in contexts if min(spots) <= c <= max(spots)]
        found = [spots.get(context) for context in own]
        figure.add_trace(
            go.Scatter(
                x=own,
                y=[spot and spot.value for spot in found],
                name=backend,
                mode="lines+markers",
                line={"color": look[backend].colour},
                marker={"symbol": look[backend].marker, "size": 9},
                error_y=_error_bars(found),
                customdata=[spot and spot.behind for spot in found],
                hovertemplate=f"%{{y:.4g}} {unit} (%{{customdata}})<extra>{backend}</extra>",
            )
        )
    figure.update_xaxes(**context_axis(contexts))
    return figure


def _spot(cell: Cell, objective: Objective) -> Spot | None:
    if objective.latency is not None and cell.starts:
        found = cell.latency.of(objective.latency)
        if found.p50 is None:
            return None
        return Spot(found.p50, found.p50_low, found.p50_high, f"n {found.n:,}")
    mean, values = cell.mean(objective), cell.values(objective)
    if mean is None:
        return None
    starts = counted(len(values), "start")
    low, high = (min(values), max(values)) if len(values) > 1 else (None, None)
    return Spot(mean, low, high, starts)


def _error_bars(spots: Sequence[Spot | None]) -> dict[str, Any] | None:
    """Up and down from each spot; none where no spot has an interval."""
    ends = [(s.value, s.low or s.value, s.high or s.value) if s else (0.0, 0.0, 0.0) for s in spots]
    if all(spot is None or spot.low is None for spot in spots):
        return None
    return {
        "type": "data",
        "symmetric": False,
        "array": [high - value for value, _, high in ends],
        "arrayminus": [value - low for value, low, _ in ends],
        "thickness": 1,
    }


def crossover_figure(crossing: Crossing, look: Look) -> go.Figure:
    """Measured costs, fitted curves with their bands, and the break-even with its interval."""
    cost, found = crossing.objective, crossing.found
    figure = _figure(
        f"{cost.title}: {crossing.a} and {crossing.b}", "context, tokens", cost.unit, 340
    )
    for name in (crossing.a, crossing.b):
        colour = look[name].colour
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
                marker={"color": colour, "symbol": look[name].marker, "size": 9},
            )
        )
    if found.context is not None:
        _mark_crossing(figure, crossing)
    figure.update_xaxes(tickvals=crossing.contexts, ticktext=[f"{c:,}" for c in crossing.contexts])
    return figure


def roofline_figure(
    uses: Sequence[tuple[str, str, PhaseUse]], ceiling: Ceiling, look: Look
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
            line={"color": NOBODY, "width": 2},
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
                            "color": look[backend].colour,
                            "symbol": look[backend].marker + filled,
                            "size": 10,
                        },
                        hovertemplate="%{text}<br>%{y:.3g} FLOP/s at %{x:.3g} FLOP/B<extra></extra>",
                    )
                )
    figure.update_xaxes(type="log")
    figure.update_yaxes(type="log", rangemode="normal")
    figure.update_layout(hovermode="closest")
    return figure


@dataclass(frozen=True)
class ParetoSpot:
    """A cell at (x, y). ``able``: it may win at its length."""

    cell: Cell
    x: float
    y: float
    able: bool

    @property
    def words(self) -> str:
        note = "" if self.able else ", may not win"
        return f"{self.cell.context_tokens:,} tokens, {self.cell.load}{note}"

    @property
    def ranking(self) -> tuple[int, str | None, DeviceKind]:
        """Work at two lengths is not the same work, so spots of different lengths do not beat each other."""
        scenario = self.cell.scenario
        return scenario.context_tokens, scenario.execution, scenario.device


def pareto_figure(
    cells: Sequence[Cell],
    x: Objective,
    y: Objective,
    look: Look,
    unable: Set[tuple[Scenario, Candidate]],
) -> go.Figure | None:
    """Points of (x lower is better, y higher is better), one front a context length, execution and device.

    A candidate that may not win (``unable``) is drawn hollow and stands on no front.
    """
    spots = _pareto_spots(cells, x, y, unable)
    if len(spots) < 2:
        return None
    figure = _figure(
        f"{y.title} against {x.title}", f"{x.title}, {x.unit}", f"{y.title}, {y.unit}", 360
    )
    for backend in sorted({spot.cell.backend for spot in spots}):
        own = [spot for spot in spots if spot.cell.backend == backend]
        figure.add_trace(_pareto_trace(backend, own, look[backend]))
    for ranking in dict.fromkeys(spot.ranking for spot in spots):
        here = [spot for spot in spots if spot.ranking == ranking and spot.able]
        figure.add_trace(_front_trace(pareto_front([(spot.x, spot.y) for spot in here])))
    figure.update_layout(hovermode="closest")
    return figure


def _pareto_spots(
    cells: Sequence[Cell], x: Objective, y: Objective, unable: Set[tuple[Scenario, Candidate]]
) -> list[ParetoSpot]:
    spots: list[ParetoSpot] = []
    for cell in cells:
        across, up = _spot(cell, x), _spot(cell, y)
        if across is not None and up is not None:
            able = (cell.scenario, cell.candidate) not in unable
            spots.append(ParetoSpot(cell, across.value, up.value, able))
    return spots


def _pareto_trace(backend: str, spots: Sequence[ParetoSpot], style: Style) -> go.Scatter:
    return go.Scatter(
        x=[spot.x for spot in spots],
        y=[spot.y for spot in spots],
        name=backend,
        mode="markers+text",
        text=[f"{spot.cell.context_tokens:,}" for spot in spots],
        textposition="top center",
        textfont={"size": 10, "color": style.colour},
        customdata=[spot.words for spot in spots],
        marker={
            "color": style.colour,
            "symbol": [style.marker if spot.able else f"{style.marker}-open" for spot in spots],
            "size": 10,
        },
        hovertemplate=f"%{{customdata}}<br>%{{x:.3g}}, %{{y:.4g}}<extra>{backend}</extra>",
    )


def _front_trace(front: Sequence[tuple[float, float]]) -> go.Scatter:
    return go.Scatter(
        x=[a for a, _ in front],
        y=[b for _, b in front],
        name="front at one length",
        showlegend=False,  # the text above says what the dotted lines are
        mode="lines",
        line={"color": NOBODY, "dash": "dot", "shape": "hv"},
        hoverinfo="skip",
    )


def pareto_front(spots: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those that no other beats in both: ascending x (lower is better), ascending y (higher is better)."""
    front: list[tuple[float, float]] = []
    for a, b in sorted(spots, key=lambda spot: (spot[0], -spot[1])):
        if not front or b > front[-1][1]:
            front.append((a, b))
    return front


def drift_figure(gates: Sequence[Gate], look: Look) -> go.Figure:
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
                    "color": look[gate.backend].colour,
                    "dash": DASHES[contexts.index(gate.context_tokens) % len(DASHES)],
                },
                marker={"symbol": look[gate.backend].marker},
            )
        )
    return figure

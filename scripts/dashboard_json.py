"""A dashboard of panels, and the JSON that Grafana reads."""

import json
from dataclasses import dataclass
from typing import Any, Final

COLUMNS: Final = 24
SOURCE: Final = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True, slots=True)
class Query:
    expr: str
    legend: str = ""


@dataclass(frozen=True, slots=True)
class Panel:
    """``unit``: Grafana's id of it. ``width``: of 24 columns. ``most``: upper end of the axis."""

    title: str
    unit: str
    queries: tuple[Query, ...]
    says: str = ""
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Text:
    """Words on a dashboard."""

    words: str
    height: int = 3


@dataclass(frozen=True, slots=True)
class Variable:
    """A choice at the top: all values of a label. ``query`` empty: a box to type in, with ``start`` in it."""

    name: str
    label: str
    query: str = ""
    start: str = ""


@dataclass(frozen=True, slots=True)
class Dashboard:
    name: str
    title: str
    says: str
    variables: tuple[Variable, ...]
    panels: tuple[Panel | Text, ...]


def variable_json(variable: Variable) -> dict[str, Any]:
    if not variable.query:
        return {
            "type": "textbox",
            "name": variable.name,
            "label": variable.label,
            "query": variable.start,
            "current": {"text": variable.start, "value": variable.start},
        }
    return {
        "type": "query",
        "name": variable.name,
        "label": variable.label,
        "datasource": SOURCE,
        "query": {"query": variable.query, "refId": "variable"},
        "refresh": 2,  # with the time range
        "multi": True,
        "includeAll": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
    }


def fields_json(panel: Panel) -> dict[str, Any]:
    ends = {"min": 0} | ({} if panel.most is None else {"max": panel.most})
    return {"defaults": {"unit": panel.unit, **ends}, "overrides": []}


def options_json(panel: Panel) -> dict[str, Any]:
    match panel.kind:
        case "timeseries":
            return {
                "legend": {
                    "displayMode": "list",
                    "placement": "bottom",
                    "showLegend": True,
                    "calcs": [],
                },
                "tooltip": {"mode": "multi", "sort": "desc"},
            }
        case "stat":
            return {
                "reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False},
                "textMode": "value_and_name",
            }
        case _:
            return {}


def panel_json(panel: Panel | Text, number: int, place: dict[str, int]) -> dict[str, Any]:
    if isinstance(panel, Text):
        options = {"mode": "markdown", "content": panel.words}
        return {"id": number, "type": "text", "title": "", "gridPos": place, "options": options}
    shape = "heatmap" if panel.kind == "heatmap" else "time_series"
    targets = [
        {
            "refId": chr(ord("A") + at),
            "datasource": SOURCE,
            "expr": query.expr,
            "legendFormat": query.legend,
            "format": shape,
        }
        for at, query in enumerate(panel.queries)
    ]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.says,
        "datasource": SOURCE,
        "gridPos": place,
        "targets": targets,
        "fieldConfig": fields_json(panel),
        "options": options_json(panel),
    }


def laid_out(panels: tuple[Panel | Text, ...]) -> list[dict[str, Any]]:
    """From left to right; what does not fit begins a new row below the highest of the last."""
    placed: list[dict[str, Any]] = []
    x = y = tallest = 0
    for number, panel in enumerate(panels, start=1):
        width = COLUMNS if isinstance(panel, Text) else panel.width
        if x + width > COLUMNS:
            x, y, tallest = 0, y + tallest, 0
        place = {"x": x, "y": y, "w": width, "h": panel.height}
        placed.append(panel_json(panel, number, place))
        x, tallest = x + width, max(tallest, panel.height)
    return placed


def dashboard_json(dashboard: Dashboard) -> dict[str, Any]:
    source = {
        "type": "datasource",
        "name": "datasource",
        "label": "Prometheus",
        "query": "prometheus",
    }
    return {
        "uid": f"greenbench-{dashboard.name}",
        "title": f"GreenAttentionBench: {dashboard.title}",
        "description": dashboard.says,
        "tags": ["greenbench"],
        "schemaVersion": 39,
        "editable": True,
        "timezone": "browser",
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "graphTooltip": 1,  # one crosshair on all panels
        "templating": {"list": [source, *map(variable_json, dashboard.variables)]},
        "panels": laid_out(dashboard.panels),
    }


def text_of(dashboard: Dashboard) -> str:
    return json.dumps(dashboard_json(dashboard), indent=1, ensure_ascii=False) + "\n"

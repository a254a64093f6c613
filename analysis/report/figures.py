"""The figures of the page, by element id."""

import json
from typing import Any

import plotly.graph_objects as go
from markupsafe import Markup


class Figures:
    """Collects figures while the page is laid out; their JSON goes into script elements."""

    def __init__(self) -> None:
        self._figures: dict[str, go.Figure] = {}

    def add(self, figure: go.Figure) -> str:
        name = f"figure-{len(self._figures)}"
        self._figures[name] = figure
        return name

    @property
    def json(self) -> list[tuple[str, Markup]]:
        return [(name, _inert(str(figure.to_json()))) for name, figure in self._figures.items()]


def json_for_page(value: Any) -> Markup:
    return _inert(json.dumps(value, allow_nan=False))


def _inert(text: str) -> Markup:
    """For a script element: ``</script>`` would end it, and ``<!--`` with ``<script`` swallow its end."""
    return Markup(text.replace("<", "\\u003c"))

"""The figures of the page, by element id."""

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
        # "</" would end the script element that holds the JSON
        return [
            (name, Markup(str(figure.to_json()).replace("</", "<\\/")))
            for name, figure in self._figures.items()
        ]

"""Queries of the dashboards as Grafana would ask them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.installation import ROOT

DASHBOARDS = sorted((ROOT / "deploy" / "grafana" / "dashboards").glob("*.json"))
BUILT_IN = {"__rate_interval": "10m", "__range": "10m"}  # longer than pages take to be scraped


@dataclass(frozen=True, slots=True)
class Asked:
    """One query of one panel."""

    dashboard: str
    panel: str
    number: int
    expr: str

    def __str__(self) -> str:
        return f"{self.dashboard}: {self.panel} {self.number}"

    def filled(self, variables: Mapping[str, str]) -> str:
        """With values for variables; one that has none is a KeyError, as it would be no query in Grafana."""
        values = {**BUILT_IN, **variables}
        return re.sub(r"\$(\w+)", lambda found: values[found[1]], self.expr)


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text())


def panels() -> Iterator[tuple[str, dict[str, Any]]]:
    for path in DASHBOARDS:
        for panel in read(path)["panels"]:
            yield path.stem, panel


def asked() -> list[Asked]:
    return [
        Asked(name, panel["title"], number, target["expr"])
        for name, panel in panels()
        for number, target in enumerate(panel.get("targets", ()))
    ]


def variables() -> list[tuple[str, str, str]]:
    """Metric and label of each choice at the top: name, metric, label."""
    return [
        (variable["name"], found[1], found[2])
        for path in DASHBOARDS
        for variable in read(path)["templating"]["list"]
        if variable["type"] == "query"
        and (found := re.fullmatch(r"label_values\(([\w:]+), (\w+)\)", variable["query"]["query"]))
    ]

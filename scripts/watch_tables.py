"""deploy/dashboards.md: every panel and alert in a table, from the files that Grafana and Prometheus read.

python -m scripts.watch_tables    writes it; a test holds it to the files
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import yaml

DEPLOY: Final = Path(__file__).resolve().parents[1] / "deploy"
PAGE: Final = DEPLOY / "dashboards.md"
HEAD: Final = """\
# Panels and alerts

Written by `python -m scripts.watch_tables` from `grafana/dashboards/` and `prometheus/alerts.yaml`. Units
as Grafana names them.
Where the label `candidate` or `node` comes from: [README.md](README.md#dashboards-and-alerts).
"""


def text() -> str:
    return "\n".join([HEAD, *_dashboards(), *_alerts()])


def _dashboards() -> Iterator[str]:
    for path in sorted((DEPLOY / "grafana" / "dashboards").glob("*.json")):
        board: dict[str, Any] = json.loads(path.read_text())
        yield f"## {board['title'].partition(': ')[2]}\n\n{board['description']}\n"
        for each in board["templating"]["list"]:
            if each["type"] == "textbox":
                yield f"Typed at the top: {each['label']}, {each['query']} unless changed.\n"
        yield from _table(
            ("panel", "unit", "queries", "says"),
            (
                (panel["title"], panel["fieldConfig"]["defaults"]["unit"],
                 str(len(panel["targets"])), panel.get("description", ""))
                for panel in board["panels"]
                if panel["type"] != "text"
            ),
        )  # fmt: skip


def _alerts() -> Iterator[str]:
    groups = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yaml").read_text())["groups"]
    yield "## Alerts\n"
    yield from _table(
        ("alert", "group", "severity", "fires when, for so long", "what to do"),
        (
            (rule["alert"], group["name"], rule["labels"]["severity"],
             f"`{' '.join(rule['expr'].split())}`, {rule['for']}", rule["annotations"]["action"])
            for group in groups
            for rule in group["rules"]
        ),
    )  # fmt: skip


def _table(names: tuple[str, ...], rows: Iterator[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(names)} |\n|{'---|' * len(names)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
    yield ""


if __name__ == "__main__":
    PAGE.write_text(text())

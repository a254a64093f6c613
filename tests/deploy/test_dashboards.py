"""The dashboards' files, and figures that promtool works out from series whose answer is plain arithmetic."""

import math
import re
import shutil
import subprocess
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from greenbench.contract.installation import ROOT
from scripts import watch_tables
from scripts.dashboard_json import text_of
from scripts.make_dashboards import DASHBOARDS, FOLDER
from tests.fakes.dashboards import asked, panels, read

KWH_J = 3.6e6


@pytest.mark.parametrize("dashboard", DASHBOARDS, ids=lambda each: each.name)
def test_the_files_are_what_the_script_writes(dashboard: Any) -> None:
    assert (FOLDER / f"{dashboard.name}.json").read_text() == text_of(dashboard)


def test_no_other_dashboard_lies_there() -> None:
    names = {path.name for path in FOLDER.glob("*.json")}
    assert names == {f"{dashboard.name}.json" for dashboard in DASHBOARDS}
    assert (
        set(
            yaml.safe_load((FOLDER / "kustomization.yaml").read_text())["configMapGenerator"][0][
                "files"
            ]
        )
        == names
    )


def test_the_tables_name_every_panel_and_every_alert_with_its_expression() -> None:
    page = watch_tables.PAGE.read_text()
    assert page == watch_tables.text()
    rows = [line.replace(r"\|", "|") for line in page.splitlines() if line.startswith("| ")]
    alerts = yaml.safe_load((ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text())
    rules = [rule for group in alerts["groups"] for rule in group["rules"]]
    titles = [panel["title"] for _, panel in panels() if panel["type"] != "text"]
    for title in titles:
        assert any(row.startswith(f"| {title} | ") for row in rows), title
    for rule in rules:
        (row,) = (row for row in rows if row.startswith(f"| {rule['alert']} | "))
        assert " ".join(rule["expr"].split()) in row
    assert len(rows) == len(titles) + len(rules) + len(DASHBOARDS) + 1  # and the heads


def test_the_intensity_that_is_set_at_first_has_its_source_on_the_panel() -> None:
    (box,) = (each for each in read(FOLDER / "energy.json")["templating"]["list"]
              if each["name"] == "intensity")  # fmt: skip
    (panel,) = (p for name, p in panels() if name == "energy" and p["title"].startswith("CO₂e in"))
    assert (
        f"The {box['query']} g there at first is the world's mean of 2024 (Ember"
        in panel["description"]
    )


@pytest.mark.parametrize("path", sorted(FOLDER.glob("*.json")), ids=lambda path: path.stem)
def test_no_panel_lies_on_another(path: Path) -> None:
    places = [panel["gridPos"] for panel in read(path)["panels"]]
    for a, b in combinations(places, 2):
        apart_x = a["x"] + a["w"] <= b["x"] or b["x"] + b["w"] <= a["x"]
        apart_y = a["y"] + a["h"] <= b["y"] or b["y"] + b["h"] <= a["y"]
        assert apart_x or apart_y
    assert all(place["x"] + place["w"] <= 24 for place in places)


def test_each_panel_has_a_unit_and_its_queries_a_legend() -> None:
    seen = 0
    for name, panel in panels():
        if panel["type"] != "text":
            assert panel["fieldConfig"]["defaults"]["unit"], (name, panel["title"])
            assert panel["targets"] and all(target["legendFormat"] for target in panel["targets"])
            seen += 1
    assert seen == len({(each.dashboard, each.panel) for each in asked()}) > 50


@pytest.mark.skipif(not (ROOT / "gateway").is_dir(), reason="this checkout has no gateway")
def test_the_gateway_has_the_names_that_are_asked_for() -> None:
    """The page of the other tests was recorded; this one sees a name that was changed since."""
    source = (ROOT / "gateway" / "metrics.py").read_text()
    alerts = (ROOT / "deploy" / "prometheus" / "alerts.yaml").read_text()
    text = "\n".join([alerts, *(each.expr for each in asked())])
    names = set(re.findall(r"greenbench_gateway_(\w+?)(?:_total|_bucket)?\b", text))
    assert len(names) > 15
    assert {name for name in names if name not in source} == set()


# ---------------------------------------------------------------- what the figures mean

# A card at 300 W; a server that makes 600 output and 5,400 prompt tokens and 2 requests a second.
WATTS, OUTPUT, PROMPT, REQUESTS = 300, 600, 5400, 2


def series(node: str, candidates: tuple[str, ...], exporter: bool = True) -> list[dict[str, str]]:
    """By the minute."""
    made = [(f'greenbench_gpu_energy_joules_total{{node="{node}",uuid="{node}"}}', WATTS)][
        :exporter
    ]
    for name in candidates:
        labels = f'{{node="{node}",candidate="{name}"}}'
        made += [
            (f"vllm:generation_tokens_total{labels}", OUTPUT / len(candidates)),
            (f"vllm:prompt_tokens_total{labels}", PROMPT / len(candidates)),
            (f"vllm:request_success_total{labels}", REQUESTS / len(candidates)),
            (f"vllm:num_requests_running{labels}", 0),
        ]
    return [{"series": name, "values": f"0+{60 * slope:g}x30"} for name, slope in made]


def expression(dashboard: str, panel: str, **variables: str) -> str:
    (query,) = (each for each in asked() if (each.dashboard, each.panel) == (dashboard, panel))
    chosen = {"node": ".*", "candidate": ".*", "intensity": "473", "__rate_interval": "10m"}
    return query.filled({**chosen, "__range": "10m", **variables})


def answers(
    tmp_path: Path, expr: str, expected: dict[str, float], *nodes: list[dict[str, str]]
) -> None:
    """promtool finds exactly these series, each within the rounding of a float."""
    samples = [{"labels": f"{{{labels}}}", "value": value} for labels, value in expected.items()]
    asked = {"expr": f"round({expr}, 1e-6)", "eval_time": "20m", "exp_samples": samples}
    case = {"interval": "1m", "input_series": [*chain(*nodes)], "promql_expr_test": [asked]}
    file = tmp_path / "case.yaml"
    file.write_text(yaml.safe_dump({"evaluation_interval": "1m", "tests": [case]}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(file)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


needs_promtool = [
    pytest.mark.e2e,
    pytest.mark.skipif(
        shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)"
    ),
]
FIGURES = [
    ("Joules per output token", WATTS / OUTPUT),
    ("Joules per token in or out", WATTS / (OUTPUT + PROMPT)),
    ("Joules per request", WATTS / REQUESTS),
    ("Power now", WATTS),
    ("Energy in this time range", WATTS * 600 / KWH_J),
    ("CO₂e in this time range", WATTS * 600 / KWH_J * 473),
    ("CO₂e per million output tokens", WATTS / OUTPUT * 1e6 / KWH_J * 473),
]


class TestFigures:
    pytestmark = needs_promtool

    @pytest.mark.parametrize(("panel", "figure"), FIGURES, ids=[name for name, _ in FIGURES])
    def test_energy(self, panel: str, figure: float, tmp_path: Path) -> None:
        rounded = math.floor(figure * 1e6 + 0.5) / 1e6
        answers(tmp_path, expression("energy", panel), {'node="a"': rounded}, series("a", ("x",)))

    @pytest.mark.parametrize(
        ("panel", "figure"),
        [("Joules per output token", WATTS / OUTPUT), ("Joules per request", WATTS / REQUESTS)],
    )
    def test_joules_have_a_candidate_only_where_the_node_serves_one(
        self, panel: str, figure: float, tmp_path: Path
    ) -> None:
        """Nodes a and b serve x alone, c serves x and y: nobody knows whose joules those of c are.
        Node d serves x and has no exporter: its tokens must not make those of a and b look cheaper."""
        alone = [series("a", ("x",)), series("b", ("x",))]
        shared = series("c", ("x", "y"))
        asked = expression("comparison", panel)
        answers(tmp_path, asked, {'candidate="x"': figure}, *alone)
        unseen = series("d", ("x",), exporter=False)
        answers(tmp_path, asked, {'candidate="x"': figure}, *alone, shared, unseen)
        answers(tmp_path, asked, {}, shared)

"""Every query of every panel, and every alert, asked of a real Prometheus that scraped real pages.

Guards against "No data": a metric that a release renamed, a counter asked for without its ``_total``, a label
that the scrape does not add, a join that matches nothing.
"""

import math
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from greenbench.contract.installation import ROOT
from tests.fakes.dashboards import Asked, asked, variables
from tests.fakes.prometheus import PROMETHEUS, Prometheus, exporter_pages, prometheus, recorded
from tests.fakes.recorded import unpack

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed"),
]
VERSIONS = ("0.32.0", "0.33.0")
ALERTS = [
    rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]


def chosen(version: str) -> dict[str, str]:
    """One server and its node, as somebody chose them at the top of a dashboard."""
    return {
        "candidate": f"of-{version}",
        "node": f"node-{version}",
        "pool": ".*",
        "intensity": "473",
    }


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    place = tmp_path_factory.mktemp("prometheus")
    run = next(path for path in unpack("h100/serving.txz", place).iterdir() if path.is_dir())
    pages = {version: recorded(f"vllm-{version}") for version in VERSIONS}
    scraped = {
        "vllm": [
            (pages[v], {"candidate": chosen(v)["candidate"], "node": chosen(v)["node"]})
            for v in VERSIONS
        ],
        "exporter": [(exporter_pages(run, 4), {"node": chosen(v)["node"]}) for v in VERSIONS],
        "gateway": [(recorded("gateway"), {"node": "node-0.32.0"})],
    }
    with prometheus(place, scraped) as running:
        yield running


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("query", asked(), ids=str)
def test_a_panels_query_returns_data(running: Prometheus, query: Asked, version: str) -> None:
    found = running.query(query.filled(chosen(version)))
    assert any(math.isfinite(value) for _, value in found), found


def test_each_choice_at_the_top_has_its_values(running: Prometheus) -> None:
    seen: dict[str, set[str]] = {}
    for name, metric, label in variables():
        seen.setdefault(name, set()).update(
            running.get(f"label/{label}/values", **{"match[]": metric})
        )
    assert seen == {
        "candidate": {chosen(v)["candidate"] for v in VERSIONS},
        "node": {chosen(v)["node"] for v in VERSIONS},
        "pool": {"exact", "window", "flaky"},
    }


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_without_its_thresholds_returns_data(
    running: Prometheus, rule: dict[str, str]
) -> None:
    """A comparison filters; with ``bool`` it says 0 or 1 for all that it looked at."""
    asked, thresholds = re.subn(r"\s(==|>|<)\s", r" \1 bool ", rule["expr"])
    assert thresholds
    assert running.query(asked)


def test_prometheus_evaluates_every_alert(running: Prometheus) -> None:
    rules = [rule for group in running.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in rules} == {rule["alert"] for rule in ALERTS}
    assert {rule["health"] for rule in rules} <= {"ok", "unknown"}  # unknown: not yet evaluated
    assert not [rule["lastError"] for rule in rules if rule.get("lastError")]


def test_a_query_for_a_counter_without_its_total_is_caught(running: Prometheus) -> None:
    """The test above would see it: this name is on no page."""
    wrong = Asked("serving", "Preemptions", 0, "rate(vllm:num_preemptions[$__rate_interval])")
    assert running.query(wrong.filled({})) == []


def test_the_configuration_is_the_one_that_is_shipped(running: Prometheus) -> None:
    jobs = {target["labels"]["job"] for target in running.get("targets")["activeTargets"]}
    text = (ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text()
    assert jobs == {job["job_name"] for job in yaml.safe_load(text)["scrape_configs"]}
    assert Path(PROMETHEUS / "alerts.yaml").is_file()

"""Alerts as promtool judges them: each fires in one case and stays silent in another."""

import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.fakes.prometheus import PROMETHEUS

CASES: list[dict[str, Any]] = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
ALERTS: dict[str, dict[str, Any]] = {
    rule["alert"]: rule
    for group in yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
}
promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is not installed (package prometheus)"
)


def cases_of(alert: str, fires: bool) -> Iterator[dict[str, Any]]:
    for case in CASES:
        tests = [test for test in case["alert_rule_test"] if test["alertname"] == alert]
        if tests and all(bool(test.get("exp_alerts")) is fires for test in tests):
            yield case


def names(expression: str) -> set[str]:
    return set(re.findall(r"\b(?:vllm:\w+|greenbench_\w+|up)\b", expression))


@promtool
@pytest.mark.e2e
def test_promtool_says_that_every_case_holds() -> None:
    done = subprocess.run(
        ["promtool", "test", "rules", str(PROMETHEUS / "alerts_test.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert "SUCCESS" in done.stdout + done.stderr


@promtool
@pytest.mark.e2e
@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_promtool_would_see_an_alert_that_never_fires(alert: str, tmp_path: Path) -> None:
    """Its own cases over rules of which this one asks for more than there can be."""
    text = (PROMETHEUS / "alerts.yaml").read_text()
    never = yaml.safe_load(text)
    for group in never["groups"]:
        for rule in group["rules"]:
            if rule["alert"] == alert:
                rule["expr"] = f"({rule['expr']}) and on () vector(1) > 1"
    (tmp_path / "alerts.yaml").write_text(yaml.safe_dump(never))
    cases = [*cases_of(alert, fires=True)]
    whole = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())
    (tmp_path / "alerts_test.yaml").write_text(yaml.safe_dump(whole | {"tests": cases}))
    done = subprocess.run(
        ["promtool", "test", "rules", str(tmp_path / "alerts_test.yaml")],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode != 0 and f"alertname: {alert}" in done.stdout + done.stderr


@pytest.mark.parametrize("alert", sorted(ALERTS))
def test_each_alert_has_a_case_that_fires_and_one_that_is_silent(alert: str) -> None:
    """The silent one has all the series that the alert asks for: it is silent because of their values."""
    assert list(cases_of(alert, fires=True))
    silent = list(cases_of(alert, fires=False))
    assert silent
    for case in silent:
        series = {each["series"].partition("{")[0] for each in case["input_series"]}
        assert series >= names(ALERTS[alert]["expr"])


def test_an_alert_says_what_is_wrong_and_what_to_do() -> None:
    for name, rule in ALERTS.items():
        assert set(rule["annotations"]) == {"summary", "action"}, name
        assert rule["labels"]["severity"] in ("page", "ticket"), name
        assert rule["for"], name

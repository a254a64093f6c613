"""The examples of docs/extend.md do what the page says."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from analysis import objectives
from analysis.importers import convert
from analysis.study import study
from greenbench.contract.installation import ROOT
from tests.fakes.rundirs import FakeRun, write_run

METRIC, FUNCTION, IMPORTER = re.findall(
    r"```python\n(.*?)```", (ROOT / "docs" / "extend.md").read_text(), flags=re.DOTALL
)


def run(text: str, names: dict[str, Any]) -> dict[str, Any]:
    exec(compile(text, "docs/extend.md", "exec"), names)
    return names


def test_the_metrics(tmp_path: Path) -> None:
    write_run(tmp_path, FakeRun(measure_s=60, itl_s=0.01))
    (point,) = study(tmp_path).points
    made = run(METRIC + FUNCTION, vars(objectives).copy())
    tail = made["E2E_P99"].measure(point)
    assert (tail.value is None) == (tail.reason is not None) and tail.n
    if tail.value is not None:
        assert tail.value >= objectives.E2E.value(point)
    output, total = (objectives.BY_NAME[name].value(point) for name in ("output", "total"))
    assert made["prompt_share"](point).value == pytest.approx(1 - output / total)


def test_the_importer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests = [
        {"sent": 1.79e9 + n, "ttft": 0.25, "end": 0.75, "input": 100, "output": 11}
        for n in range(40)
    ]
    file = tmp_path / "result.json"
    file.write_text(
        json.dumps({"mytool_version": "1.0", "model": "m", "users": 1, "requests": requests})
    )
    monkeypatch.setattr(convert, "READERS", (*convert.READERS, run(IMPORTER, {})["READER"]))
    (read,) = convert.read_result(file)
    assert (read.tool, read.model, len(read.requests)) == ("mytool", "m", 40)
    del requests[3]["ttft"]
    file.write_text(
        json.dumps({"mytool_version": "1.0", "model": "m", "users": 1, "requests": requests})
    )
    with pytest.raises(Exception, match=r"requests\[3\]"):
        convert.read_result(file)

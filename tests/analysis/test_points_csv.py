"""The CSV of a report: one row a point, its figures as summary.json has them, and no formulas."""

import csv
import json
from pathlib import Path

import pytest

from analysis.__main__ import main
from tests.fakes.rundirs import FakeRun, write_run


def test_each_point_is_a_row_with_the_figures_of_the_summary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path, FakeRun(measure_s=15, ttft_s=0.5))
    write_run(tmp_path, FakeRun(backend="beta", status="failed", failure="=HYPERLINK(evil)"))
    write_run(tmp_path, FakeRun(backend="gamma", model="=2+3", measure_s=15))
    target = tmp_path / "sheets" / "points.csv"
    argv = ["analysis", "report", str(tmp_path), "--csv", str(target)]
    monkeypatch.setattr("sys.argv", argv)
    assert main() == 0
    with target.open(newline="") as file:
        rows = {row["backend"]: row for row in csv.DictReader(file)}
    points = json.loads((tmp_path / "summary.json").read_text())["points"]
    assert len(rows) == len(points) == 3
    assert float(rows["alpha"]["ttft (s)"]) == pytest.approx(0.5)  # the pretended server's
    for point in points:
        row = rows[point["backend"]]
        assert (row["run_id"], row["status"]) == (point["run_id"], point["status"])
        for name, figure in point["figures"].items():
            cell = row[f"{name} ({figure['unit']})"]
            assert cell == ("" if figure["value"] is None else str(figure["value"]))
    assert rows["beta"]["ttft (s)"] == ""
    assert rows["gamma"]["model"] == "'=2+3"
    assert "=HYPERLINK(evil)" in rows["beta"]["reasons"]
    assert not any(cell.startswith("=") for row in rows.values() for cell in row.values())

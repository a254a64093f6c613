"""The library that a page carries: the release that plotly's figures are for, with the traces they have."""

import json
import re
from pathlib import Path

from plotly.offline import get_plotlyjs_version

from analysis.report.document import plotly
from analysis.report.page import render
from analysis.study import study
from scripts.generated_sweep import write_sweep

FIGURE = re.compile(r'<script type="application/json" data-figure="[^"]+">(.*?)</script>', re.S)


def test_it_is_the_release_that_the_python_package_is_for() -> None:
    wanted = get_plotlyjs_version()
    assert plotly().startswith(f"/**\n* plotly.js (basic - minified) v{wanted}\n"), (
        f"put plotly-basic.min.js of npm's plotly.js-basic-dist-min {wanted} into analysis/report/library/"
    )


def test_it_draws_every_trace_of_a_report(tmp_path: Path) -> None:
    page = render(study(write_sweep(tmp_path / "runs", 2)))
    figures = [json.loads(text) for text in FIGURE.findall(page)]
    drawn = {trace.get("type", "scatter") for figure in figures for trace in figure["data"]}
    known = {*re.findall(r'moduleType:"trace",name:"(\w+)"', plotly())}
    assert len(figures) > 5 and drawn <= known and known == {"scatter", "bar", "pie"}

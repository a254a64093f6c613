"""The benchmark's arithmetic: ratios turn by turn, and what the tables show of a failed backend."""

import json
import sys

import pytest

from servers.plugins import bench, bench_layer
from servers.plugins.bench import Point, ratio, table
from servers.plugins.bench_layer import LayerPoint, layer_table


def test_the_ratio_is_taken_turn_by_turn():
    """Guards against dividing medians: a slow minute of the machine is in both halves of one turn."""
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.0, 3.0)


def test_the_step_table_shows_least_time_and_ratio_with_range():
    seconds = {"cpu_attn": [0.010, 0.020], "sdpa": [0.015, 0.050]}
    lines = table({Point("decode", 2048, 8): seconds}, ["cpu_attn", "sdpa"]).splitlines()
    assert lines[0] == "| whole step | cpu_attn ms | sdpa × |"
    assert lines[2] == "| decode 2,048 × 8 | 10.0 | 2.00 (1.50–2.50) |"


def test_a_failed_backend_leaves_a_gap_and_no_number():
    point, later = LayerPoint("decode", 2048, 1), LayerPoint("prefill", 2048, 1)
    results = {
        "flash_attn3": {point.label: {"median_us": 100.0, "graph_us": 40.0}},
        "sdpa": {point.label: {"median_us": 130.0, "graph_us": None}, "error": "took longer"},
    }
    lines = layer_table(results, [point, later], "median_us", "one layer").splitlines()
    assert lines[0] == "| one layer | flash_attn3 µs | sdpa × |"
    assert lines[2] == "| decode 2,048 × 1 | 100 | 1.30 |"
    assert lines[3] == "| prefill 2,048 × 1 | – | – |"
    captured = layer_table(results, [point], "graph_us", "captured").splitlines()
    assert captured[2] == "| decode 2,048 × 1 | 40 | – |"


def test_what_was_measured_is_kept_when_a_later_backend_is_cut_off(monkeypatch, tmp_path):
    """Guards against six backends' minutes lost because a seventh was still compiling at the limit."""

    def measured(arm, shape, device, points, limit_s):
        if arm.path.endswith("SdpaBackend"):
            raise KeyboardInterrupt
        return {points[0].label: {"median_us": 100.0}}

    monkeypatch.setattr(bench_layer, "measure_arm", measured)
    out = tmp_path / "layers.json"
    words = ["--layer", "--backends", "cpu_attn,sdpa", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["bench", *words])
    with pytest.raises(KeyboardInterrupt):
        bench.main()
    assert json.loads(out.read_text())["results"] == {
        "cpu_attn": {"decode 128 × 1": {"median_us": 100.0}}
    }


def test_no_backend_gets_more_time_than_all_have_left(monkeypatch):
    given = []
    clock = iter([0.0, 10.0, 45.0, 65.0])  # all may take 60 s: 50 are left, then 15, then none
    monkeypatch.setattr(bench_layer.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(bench_layer, "measure_arm", lambda *args: given.append(args[-1]) or {})
    names = ["cpu_attn", "sdpa", "sink_window"]
    bench_layer.bench_layers("cpu", names, limit_s=40.0, within_s=60.0, keep=lambda _: None)
    assert given == [40.0, 15.0, 0.0]

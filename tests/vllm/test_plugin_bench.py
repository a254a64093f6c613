"""The benchmark's arithmetic: ratios turn by turn, and what the tables show of a failed backend."""

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

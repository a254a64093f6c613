"""The benches' arithmetic: ratios turn by turn, and what the tables show of a failed backend."""

import json
import sys

import pytest

from greenbench.contract.errors import UserError
from servers.backends.registry import BACKENDS
from servers.bench import layers
from servers.bench.arms import Point, arms_on
from servers.bench.layers import layer_table
from servers.bench.steps import ratio, table


def test_the_ratio_is_taken_turn_by_turn():
    """Guards against dividing medians: a slow minute of the machine is in both halves of one turn."""
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == (2.0, 1.0, 3.0)


def test_the_step_table_shows_least_time_and_ratio_with_range():
    seconds = {"cpu_attn": [0.010, 0.020], "sdpa": [0.015, 0.050]}
    lines = table({Point("decode", 2048, 8): seconds}).splitlines()
    assert lines[0] == "| whole step | cpu_attn ms | sdpa × |"
    assert lines[2] == "| decode 2,048 × 8 | 10.0 | 2.00 (1.50–2.50) |"


def test_a_failed_backend_leaves_a_gap_and_no_number():
    point, later = Point("decode", 2048, 1), Point("prefill", 2048, 1)
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

    def measured(arm, device, limit_s):
        if arm.name == "sdpa":
            raise KeyboardInterrupt
        return {"decode 128 × 1": {"median_us": 100.0}}

    monkeypatch.setattr(layers, "measure_arm", measured)
    out = tmp_path / "layers.json"
    words = ["--backends", "cpu_attn,sdpa", "--out", str(out)]
    monkeypatch.setattr(sys, "argv", ["layers", *words])
    with pytest.raises(KeyboardInterrupt):
        layers.main()
    assert json.loads(out.read_text())["results"] == {
        "cpu_attn": {"decode 128 × 1": {"median_us": 100.0}}
    }


def test_no_backend_gets_more_time_than_all_have_left(monkeypatch):
    given = []
    clock = iter([0.0, 10.0, 45.0, 65.0])  # all may take 60 s: 50 are left, then 15, then none
    monkeypatch.setattr(layers.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(layers, "measure_arm", lambda *args: given.append(args[-1]) or {})
    arms = arms_on("cpu", "cpu_attn,sdpa,sink_window")
    layers.bench_layers("cpu", arms, limit_s=40.0, within_s=60.0, keep=lambda _: None)
    assert given == [40.0, 15.0, 0.0]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_all_backends_of_the_device_are_compared_with_one_of_vllms_own(device):
    names = [arm.name for arm in arms_on(device, None)]
    assert sorted(names) == sorted(row.name for row in BACKENDS.values() if device in row.devices)
    assert not BACKENDS[names[0]].is_ours


def test_an_arm_is_the_row_with_its_options():
    """Guards against pages of the default's size under an option that wants larger ones."""
    default, flash = arms_on("cuda", "xformers,xformers(decode=flash)")
    assert [arm.backend.block_sizes["cuda"] for arm in (default, flash)] == [64, 256]
    assert json.loads(flash.env["GREENBENCH_ATTENTION_OPTIONS"])["decode"] == "flash"
    assert arms_on("cuda", "triton")[0].env == {}


def test_a_backend_of_the_other_device_is_refused():
    with pytest.raises(UserError, match="cpu_attn does not run on cuda"):
        arms_on("cuda", "sdpa,cpu_attn")

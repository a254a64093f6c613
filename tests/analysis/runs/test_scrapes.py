"""Scraped series of one server with several engines: counts are summed, shares averaged by pool size."""

import json
from pathlib import Path

import numpy as np
import pytest

from analysis.point.point import choose_window
from analysis.point.resources import kv_share_per_sequence, memory
from analysis.runs.run import Run, load_run
from analysis.runs.scrapes import kv_usage_series, metric_series
from tests.fakes.rundirs import NS, FakeRun, write_run

NEW, OLD = "vllm:kv_cache_usage_perc", "vllm:gpu_cache_usage_perc"


def scraped(
    tmp_path: Path,
    usages: list[float],
    pools: list[int | str | None],
    name: str = NEW,
    tokens: int = 0,
) -> Run:
    """A run whose server has an engine for each usage, 3 requests in each; ``tokens`` of its pools."""
    run = write_run(tmp_path, FakeRun(kv_cache_tokens=tokens))
    path = run.telemetry_dir / "server.jsonl"
    stamps = sorted({(row["unix_ns"], row["mono_ns"]) for row in map(json.loads, path.open())})
    rows = [
        {"metric": "vllm:cache_config_info", "value": 1.0, "at": stamps[0]}
        | {"labels": {"engine": str(i), "kv_cache_size_tokens": str(size)}}
        for i, size in enumerate(pools)
        if size is not None
    ]
    for at in stamps:
        for i, usage in enumerate(usages):
            shared = {"labels": {"engine": str(i), "model_name": "m"}, "at": at}
            rows.append({"metric": name, "value": usage, **shared})
            rows.append({"metric": "vllm:num_requests_running", "value": 3.0, **shared})
    with path.open("w") as file:
        for row in rows:
            unix_ns, mono_ns = row.pop("at")  # type: ignore[misc]
            file.write(json.dumps({"unix_ns": unix_ns, "mono_ns": mono_ns, **row}) + "\n")
    return load_run(run.path)


@pytest.mark.parametrize(
    ("usages", "pools", "share"),
    [
        ([0.6, 0.6], [100_000, 100_000], 0.6),
        # 0.9 · 300,000 + 0.1 · 100,000 of 400,000 tokens
        ([0.9, 0.1], [300_000, 100_000], 0.7),
        ([0.6], [100_000], 0.6),
        ([0.8, 0.4], [None, None], 0.6),
        ([0.8, 0.4], ["None", "None"], 0.6),  # as a server that does not know it says
        ([0.8, 0.4], [100_000, None], 0.6),  # one size alone says nothing of the other
    ],
)
def test_usage_of_the_whole_pool_is_the_mean_by_size(
    usages: list[float], pools: list[int | str | None], share: float, tmp_path: Path
) -> None:
    run = scraped(tmp_path, usages, pools)
    found = kv_usage_series(run)
    assert found is not None and found.values == pytest.approx(np.full(len(found.values), share))
    running = metric_series(run, "vllm:num_requests_running")
    assert running is not None and set(running.values) == {3.0 * len(usages)}


def test_tokens_at_the_peak_are_those_of_all_engines(tmp_path: Path) -> None:
    run = scraped(tmp_path, [0.6, 0.6], [100_000, 100_000], tokens=200_000)
    window = choose_window(run)
    assert window is not None
    found = memory(run, window)
    assert (found.kv_usage_peak, found.kv_tokens_peak) == (pytest.approx(0.6), 120_000)
    # 6 requests hold 0.6 of it
    assert kv_share_per_sequence(run, window) == pytest.approx(0.1)


def test_the_name_that_older_vllm_gives_is_read_too(tmp_path: Path) -> None:
    run = scraped(tmp_path, [0.6], [100_000], name=OLD, tokens=100_000)
    window = choose_window(run)
    assert window is not None
    assert memory(run, window).kv_tokens_peak == 60_000
    assert window.end_unix_ns - window.start_unix_ns > NS


def test_what_was_not_scraped_is_none(tmp_path: Path) -> None:
    run = load_run(write_run(tmp_path, FakeRun(kv_usage=None)).path)
    assert kv_usage_series(run) is None

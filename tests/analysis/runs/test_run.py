"""What a run directory reads as: order, types, labels, and chunks whether they are kept or streamed."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from analysis.runs import parquet
from analysis.runs import run as run_module
from analysis.runs.run import ChunkBatch, load_run
from analysis.runs.scrapes import counter_gain, label_sets, metric_series
from greenbench.contract.run_dir import RunDir
from tests.fakes.rows import Rows, edit, read_rows, write_rows
from tests.fakes.rundirs import FakeRun, write_run

SERVER = "telemetry/server.jsonl"
REQUESTS = "requests/w0.jsonl"


def scrape(at: int, metric: str, value: float, **labels: str) -> dict[str, object]:
    return {"unix_ns": at, "mono_ns": at, "metric": metric, "labels": labels, "value": value}


@pytest.fixture
def scraped(tmp_path: Path) -> RunDir:
    """Three scrapes of a metric of two series, of one without labels and of one with a label of its own."""
    run = write_run(tmp_path, FakeRun(measure_s=8.0))
    rows = [
        row
        for at, ok, failed in ((1, 5.0, 1.0), (2, 9.0, 1.0), (3, 7.0, 4.0))
        for row in (
            scrape(at, "up", 1.0),
            scrape(at, "done_total", ok, engine="0", reason="ok"),
            scrape(at, "done_total", failed, engine="0", reason="failed"),
            scrape(at, "info", 1.0, engine="0", block_size="16", window="None"),
        )
    ]
    write_rows(run.path / SERVER, rows)
    return run


def test_the_series_of_a_metric_are_told_apart_by_their_labels(scraped: RunDir) -> None:
    run = load_run(scraped.path)
    assert run.unreadable == []
    assert [values.tolist() for values in label_sets(run, "done_total")] == [
        [5.0, 9.0, 7.0],
        [1.0, 1.0, 4.0],
    ]
    assert counter_gain(run, "done_total") == (7 - 5) + (4 - 1)
    assert counter_gain(run, "up") == 0.0 and counter_gain(run, "no_such") is None


def test_a_metric_is_summed_over_its_series(scraped: RunDir) -> None:
    run = load_run(scraped.path)
    both, alone = metric_series(run, "done_total"), metric_series(run, "up")
    assert both is not None and alone is not None and metric_series(run, "no_such") is None
    assert both.unix_ns.tolist() == alone.unix_ns.tolist() == [1, 2, 3]
    assert both.values.tolist() == [6.0, 10.0, 11.0]
    assert alone.values.tolist() == [1.0, 1.0, 1.0]


def test_a_file_reads_the_same_in_one_piece_and_in_many(
    scraped: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which labels there are is seen in its first block, here the first scrape."""
    whole = load_run(scraped.path).server
    first_scrape = (scraped.path / SERVER).read_bytes().splitlines(keepends=True)[:4]
    monkeypatch.setattr(parquet, "CACHE_FORMAT", "of many slices")
    monkeypatch.setattr(parquet, "HEAD_BYTES", sum(map(len, first_scrape)))
    monkeypatch.setattr(parquet, "SLICE_BYTES", 300)
    pd.testing.assert_frame_equal(load_run(scraped.path).server, whole)


def test_rows_come_in_order_of_sending_and_know_their_place_in_the_file(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun(jitter=0.2))
    rng = np.random.default_rng(3)

    def shuffled(rows: Rows) -> None:
        rows[:] = [rows[i] for i in rng.permutation(len(rows))]

    edit(run, REQUESTS, shuffled)
    as_filed = [row["request_id"] for row in read_rows(run.path / REQUESTS)]
    read = load_run(run.path)
    sent = read.requests["sent_unix_ns"].tolist()
    assert sent == sorted(sent) and read.requests.index.tolist() == list(range(len(sent)))
    assert [as_filed[place] for place in read.file_order] == read.requests["request_id"].tolist()
    batch_rows = pd.concat([batch.rows for batch in read.chunk_batches()])
    assert batch_rows["request_id"].tolist() == as_filed


def test_times_that_are_missing_leave_the_others_exact(tmp_path: Path) -> None:
    """A float holds a wall time to 256 ns only; other columns with holes are floats."""
    run = write_run(tmp_path, FakeRun())
    exact = 1_795_000_000_123_456_789

    def change(rows: Rows) -> None:
        rows[0].update(sent_unix_ns=exact, connect_ns=5)
        rows[1].update(sent_unix_ns=None, error_type="not_sent")

    edit(run, REQUESTS, change)
    requests = load_run(run.path).requests
    assert exact in requests["sent_unix_ns"].dropna().tolist()
    assert requests["sent_unix_ns"].isna().sum() == 1
    assert requests["connect_ns"].dtype == float and requests["end_ns"].dtype == np.int64


def same(a: ChunkBatch, b: ChunkBatch) -> bool:
    flat = zip((a.offsets, a.ns, a.tokens), (b.offsets, b.ns, b.tokens), strict=True)
    return a.rows.equals(b.rows) and all(np.array_equal(x, y) for x, y in flat)


def test_chunks_of_a_small_run_are_read_once_and_equal_those_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = write_run(tmp_path, FakeRun())
    kept = load_run(run.path)
    (batch,) = kept.chunk_batches()
    assert next(kept.chunk_batches()) is batch
    monkeypatch.setattr(run_module, "FEW_BYTES", 0)
    streamed = load_run(run.path)
    (other,) = streamed.chunk_batches()
    assert next(streamed.chunk_batches()) is not other
    assert same(batch, other)

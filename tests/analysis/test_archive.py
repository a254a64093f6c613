"""An archive says what the raw runs say: reports of both are the same but for the rounding that is stated."""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.__main__ import main
from analysis.archive import UNIT_NS, archive
from analysis.report.page import write_report
from analysis.runs import archived
from analysis.runs.archived import archived_lines, read_archived, write_archived
from analysis.runs.parquet import arrow_schema
from analysis.runs.run import load_run
from analysis.runs.validity import faults
from analysis.study import study
from analysis.summary import summary
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import MANIFEST
from greenbench.contract.schema import RequestRecord
from scripts.generated_sweep import write_sweep
from tests.fakes.rows import edit_manifest, read_rows
from tests.fakes.rundirs import FakeRun, write_run

ON_A_GPU = FakeRun(
    measure_s=70,
    gpu_power_w=300.0,
    jitter=0.02,
    itl_s=0.0123456,
    failed_every=17,
    prompts=4,
    weights="trained",
)
SCORED = FakeRun(task="perplexity", streaming=False, nll_per_token=2.0, measure_s=20)


def pretended(root: Path) -> Path:
    """Runs of every kind of file: cards, failures, log-probabilities, an engine log, an open loop."""
    for number, backend in enumerate(("alpha", "beta")):
        for fake in (ON_A_GPU, SCORED):
            own = replace(fake, backend=backend, repeat=number, logprob_shift=0.1 * number)
            write_run(root, own)
    write_run(root, replace(ON_A_GPU, users=None, rate_per_s=3.0))
    return root


def reported(root: Path) -> dict[str, Any]:
    told = json.loads(json.dumps(summary(study(root)), allow_nan=False))
    return told | {"made_unix_ns": 0}


def figures(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """(keys down to it, value) of everything that a summary holds."""
    if isinstance(value, dict):
        for key, below in value.items():
            yield from figures(below, (*path, str(key)))
    elif isinstance(value, list):
        for number, below in enumerate(value):
            yield from figures(below, (*path, str(number)))
    else:
        yield path, value


def same(raw: dict[str, Any], kept: dict[str, Any]) -> None:
    """All is equal but quantiles of ITL, by a unit at most, and shares of ceilings, by rounding of 1 µs."""
    one, other = list(figures(raw)), list(figures(kept))
    assert [path for path, _ in one] == [path for path, _ in other]
    for (path, expected), (_, found) in zip(one, other, strict=True):
        if "itl_s" in path and isinstance(expected, float):
            # the report draws quantiles from 32-bit floats
            assert found == pytest.approx(expected, abs=UNIT_NS / 1e9 * 1.001, rel=0), path
        elif "bottlenecks" in path and isinstance(expected, float):
            assert found == pytest.approx(expected, rel=1e-5), path
        else:
            assert found == expected, path


def test_the_report_of_an_archive_is_that_of_the_runs(tmp_path: Path) -> None:
    raw = pretended(tmp_path / "raw")
    kept = archive(raw, tmp_path / "kept")
    assert len(kept.runs) == 5 and kept.unreadable == []
    assert kept.bytes < kept.raw_bytes / 3
    same(reported(raw), reported(tmp_path / "kept"))


def test_engine_steps_and_scores_of_an_archive(tmp_path: Path) -> None:
    raw = write_sweep(tmp_path / "raw", 2)
    archive(raw, tmp_path / "kept")
    for path in sorted(raw.glob("*/manifest.json")):
        steps = load_run(path.parent).steps
        again = load_run(tmp_path / "kept" / path.parent.name).steps
        assert len(steps) and again.equals(steps) and list(again.dtypes) == list(steps.dtypes)
    same(reported(raw), reported(tmp_path / "kept"))


NS = st.integers(0, 10**12)
CHUNKS = st.lists(NS, max_size=5).map(sorted)


@settings(deadline=None)  # the first writes a Parquet file with cold caches
@given(st.lists(st.tuples(CHUNKS, st.booleans(), st.integers(0, 2**62)), max_size=5))
def test_times_between_first_and_last_move_by_half_a_unit_and_no_other(
    tmp_path_factory: pytest.TempPathFactory, drawn: list[tuple[list[int], bool, int]]
) -> None:
    rows = [
        {
            "sent_unix_ns": sent,
            "sent_mono_ns": None if sent % 2 else sent // 3,
            "first_token_ns": chunks[0] if chunks else None,
            "last_token_ns": chunks[-1] if chunks else None,
            "chunk_ns": chunks if chunks or kept else None,
            "chunk_tokens": list(range(1, len(chunks) + 1)) if kept else None,
            "server_metrics": {"queue_time_ms": (sent % 10**6) / 1000} if kept else None,
        }
        for chunks, kept, sent in drawn
    ]
    path = tmp_path_factory.mktemp("kept") / "rows.parquet"
    table = pa.Table.from_pylist(rows, schema=arrow_schema(RequestRecord))
    write_archived(table, path, UNIT_NS)
    found = read_archived(path)
    assert found.drop(["chunk_ns"]).equals(table.drop(["chunk_ns"]))
    for row, again in zip(rows, found.column("chunk_ns").to_pylist(), strict=True):
        chunks = row["chunk_ns"]
        assert (again is None) == (chunks is None)
        if chunks:
            assert (again[0], again[-1]) == (chunks[0], chunks[-1])
            assert again == sorted(again)
            assert all(abs(a - b) <= UNIT_NS / 2 for a, b in zip(again, chunks, strict=True))


def test_chunks_are_kept_in_the_order_in_which_they_came(tmp_path: Path) -> None:
    """Two requests sent 2 units apart, whose chunks come at 5, 7 | 6, 9 units of one clock."""
    told = [(0, [5, 7]), (2, [4, 7])]
    table = pa.Table.from_pylist(
        [
            {"sent_mono_ns": sent * UNIT_NS, "chunk_ns": [unit * UNIT_NS for unit in own]}
            for sent, own in told
        ],
        schema=arrow_schema(RequestRecord),
    )
    write_archived(table, tmp_path / "rows.parquet", UNIT_NS)
    kept = pq.read_table(tmp_path / "rows.parquet")
    assert kept.column("chunk_ns").to_pylist() == [[5, 1], [1, 2]]  # at 5, 6, 7, 9
    assert kept.column("chunk_places").to_pylist() == [[0, 2], [1, 2]]  # 0 and 2, 1 and 3
    assert read_archived(tmp_path / "rows.parquet").equals(table)


def test_an_archived_row_is_the_line_that_it_was(tmp_path: Path) -> None:
    run = write_run(tmp_path / "raw", ON_A_GPU)
    archive(tmp_path / "raw", tmp_path / "kept")
    (path,) = (tmp_path / "kept").rglob("outputs/*.parquet")
    lines = [json.loads(line) for line in archived_lines(path)]
    (raw,) = run.outputs_dir.glob("*.jsonl")
    assert lines == [{**dict.fromkeys(lines[0]), **row} for row in read_rows(raw)]


def rows_of(folder: Path) -> dict[str, dict[str, Any]]:
    """request id → row, of the outputs of all runs below an archive."""
    lines = [line for path in folder.rglob("outputs/*.parquet") for line in archived_lines(path)]
    return {row["request_id"]: row for row in map(json.loads, lines)}


def random_pair(root: Path) -> Path:
    """Two candidates of random weights, of which one answers 40 prompts as expected and the other 16."""
    fast = FakeRun(backend="beta", measure_s=20, prompts=40, correct_share=0.4)
    write_run(root, replace(fast, backend="alpha", correct_share=1.0))
    write_run(root, fast)
    return root


def test_texts_of_random_weights_leave_their_hash_and_length(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raw, kept = random_pair(tmp_path / "raw"), tmp_path / "kept"
    monkeypatch.setattr("sys.argv", ["analysis", "archive", str(raw), "--out", str(kept)])
    assert main() == 0
    said = {row["request_id"]: row for path in raw.rglob("outputs/*") for row in read_rows(path)}
    found = rows_of(kept)
    assert found.keys() == said.keys() and len({row["text"] for row in said.values()}) == 2
    for name, row in said.items():
        sha = hashlib.sha256(row["text"].encode()).hexdigest()
        gone = {"text": None, "text_sha256": sha, "text_chars": len(row["text"])}
        assert found[name] == row | gone
    told = [json.loads(path.read_text())["texts_left_out"] for path in kept.rglob("archive.json")]
    assert sum(told) == len(said) and min(told) > 0
    assert f"the texts of {len(said):,} answers were left out" in capsys.readouterr().out
    for options in ([], ["--schema"]):
        monkeypatch.setattr("sys.argv", ["analysis", "check", *options, str(kept)])
        assert main() == 0


def test_a_report_says_that_a_text_is_not_kept(tmp_path: Path) -> None:
    raw = random_pair(tmp_path / "raw")
    archive(raw, tmp_path / "kept")
    pages = {}
    for root in (raw, tmp_path / "kept"):
        write_report(study(root), tmp_path / "page.html")
        pages[root.name] = (tmp_path / "page.html").read_text()
    assert "“wrong” <span" in pages["raw"] and "not kept" not in pages["raw"]
    assert "not kept <span" in pages["kept"] and "“wrong” <span" not in pages["kept"]
    assert "“”" not in pages["kept"]
    told = reported(raw)
    for gate in told["gates"]:
        gone = {"reference_text": None, "backend_text": None}
        gate["examples"] = [example | gone for example in gate["examples"]]
    same(told, reported(tmp_path / "kept"))


def weights_said(root: Path, weights: str) -> None:
    for path in root.rglob("manifest.json"):
        edit_manifest(
            load_run(path.parent).dir, lambda told: told["server"].update(weights=weights)
        )


def test_an_archive_of_an_archive_is_that_archive(tmp_path: Path) -> None:
    """One that holds texts of random weights, as older ones do, comes out as if it had been made today."""
    raw = random_pair(tmp_path / "raw")
    for run in raw.rglob("manifest.json"):
        name = json.loads(run.read_text())["server"]["server_id"]
        server = run.parent.parent / "servers" / name
        shutil.copytree(run.parent / "telemetry", server / "idle_before" / "telemetry")
        (server / "server.log").write_text("a line\n")
        (server / "server_info.json").write_text("{}\n")
    archive(raw, tmp_path / "new")
    weights_said(raw, "trained")
    archive(raw, tmp_path / "old")
    weights_said(tmp_path / "old", "random")
    assert {row["text"] for row in rows_of(tmp_path / "old").values()} == {"right", "wrong"}
    kept = archive(tmp_path / "old", tmp_path / "again")
    assert len(kept.runs) == 2 and kept.texts_left_out == len(rows_of(tmp_path / "new"))
    contents = [
        {name: told for name, told in files_of(folder).items() if not name.endswith(MANIFEST)}
        for folder in (tmp_path / "new", tmp_path / "again")
    ]
    assert len(contents[0]) > 20 and contents[0] == contents[1]
    once_more = archive(tmp_path / "again", tmp_path / "thrice")
    assert once_more.texts_left_out == kept.texts_left_out
    assert rows_of(tmp_path / "thrice") == rows_of(tmp_path / "again")


def files_of(folder: Path) -> dict[str, bytes]:
    """Of an archive, without caches of its reading."""
    paths = [path for path in folder.rglob("*") if path.is_file() and "derived" not in path.parts]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}


def test_tables_of_an_archive_are_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Larger ones, as an older version wrote them, come out as small as those of the raw runs."""
    raw = write_sweep(tmp_path / "raw", 2)
    archive(raw, tmp_path / "new")
    with monkeypatch.context() as patched:
        patched.setattr(archived, "LEVEL", 1)
        archive(raw, tmp_path / "old")
    new, old = files_of(tmp_path / "new"), files_of(tmp_path / "old")
    changed = {Path(name).name for name in new if new[name] != old[name]}
    assert {"steps.parquet", "server.parquet", "archive.json"} <= changed
    kept = archive(tmp_path / "old", tmp_path / "again")
    assert kept.bytes < kept.raw_bytes
    assert files_of(tmp_path / "again") == new


def one(tmp_path: Path) -> tuple[Path, Path]:
    """A run, and its archive."""
    run = write_run(tmp_path / "raw", FakeRun(measure_s=15))
    archive(tmp_path / "raw", tmp_path / "kept")
    return run.path, tmp_path / "kept" / run.path.relative_to(tmp_path / "raw")


def test_both_forms_pass_the_checks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, kept = one(tmp_path)
    for options in ([], ["--schema"]):
        monkeypatch.setattr("sys.argv", ["analysis", "check", *options, str(kept)])
        assert main() == 0


def test_what_changed_before_or_after_archiving_is_a_fault(tmp_path: Path) -> None:
    raw, kept = one(tmp_path)
    requests = next(kept.glob("requests/*.parquet"))
    write_archived(read_archived(requests).slice(0, 1), requests, UNIT_NS)
    assert {fault.code for fault in faults(load_run(kept))} >= {
        "file_changed",
        "record_count_mismatch",
    }
    name = next(raw.glob("requests/*")).relative_to(raw).as_posix()
    edit_manifest(load_run(raw).dir, lambda told: told["files"][name].update(sha256="0" * 64))
    archive(raw.parent, tmp_path / "again")
    (fault,) = faults(load_run(tmp_path / "again" / raw.name))
    assert (fault.code, fault.sentence) == (
        "file_changed",
        f"{name} had changed before it was archived",
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda path: write_archived(read_archived(path).slice(1), path, UNIT_NS),
            "is not the file that was archived",
        ),
        (lambda path: path.unlink(), "is listed and not there"),
        (lambda path: shutil.copy(path, path.with_name("x.parquet")), "is there and not listed"),
    ],
)
def test_an_archive_that_changed_is_not_archived_again(
    tmp_path: Path, change: Callable[[Path], Any], said: str
) -> None:
    _, kept = one(tmp_path)
    change(next(kept.glob("outputs/*.parquet")))
    with pytest.raises(UserError, match=said):
        archive(kept.parent, tmp_path / "again")
    assert not (tmp_path / "again").exists()


def test_an_archive_does_not_lie_among_its_runs(tmp_path: Path) -> None:
    """It did: reports of the folder then read each run twice, as one that was measured again."""
    write_run(tmp_path / "runs", FakeRun())
    before = files_of(tmp_path)
    with pytest.raises(UserError, match="name a folder outside as --out"):
        archive(tmp_path / "runs", tmp_path / "runs" / "kept")
    assert files_of(tmp_path) == before


def test_an_archive_is_not_written_over(tmp_path: Path) -> None:
    raw, kept = one(tmp_path)
    before = sorted(path.stat().st_mtime_ns for path in kept.rglob("*"))
    with pytest.raises(UserError, match="is there already"):
        archive(raw.parent, tmp_path / "kept")
    assert sorted(path.stat().st_mtime_ns for path in kept.rglob("*")) == before


def test_a_run_that_cannot_be_read_costs_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "raw", FakeRun(measure_s=15))
    bad = write_run(tmp_path / "raw", FakeRun(measure_s=15, backend="beta"))
    next(bad.requests_dir.glob("*.jsonl")).write_text("no row\n")
    out = tmp_path / "kept"
    monkeypatch.setattr(
        "sys.argv", ["analysis", "archive", str(tmp_path / "raw"), "--out", str(out)]
    )
    assert main() == 1
    said = capsys.readouterr().out
    assert f"{bad.path.name}: left out: requests/" in said and ": 1 run, " in said
    assert [path.parent.name != bad.path.name for path in out.rglob("manifest.json")] == [True]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["kept", "raw"]

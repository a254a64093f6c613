"""What nobody foresaw in one run costs that run: check, verdict and report say it and go on."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from analysis.point import point as points
from analysis.point.verdict import verdict
from analysis.report.page import write_report
from analysis.runs import validity
from analysis.runs.boundary import LONGEST, of_one_run, read, sentence, words
from analysis.runs.fault import Fault
from analysis.runs.parquet import read_table
from analysis.runs.run import Run, load_run, read_runs
from analysis.study import study
from analysis.summary import write_summary
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import RunDir
from tests.fakes.rows import edit, edit_manifest, rehash
from tests.fakes.rundirs import FakeRun, write_run

FAKE = FakeRun(gpu_power_w=300.0)
VERIFIED = {
    "model": "tiny", "label": "alpha", "reference": "beta", "verdict": "pass", "reasons": [], "steps": 64,
    "same_choice": 63, "typical_gap_nats": 0.01, "worst_gap_nats": 0.2, "doubts": [],
}  # fmt: skip


def two_runs(root: Path) -> tuple[RunDir, RunDir]:
    return write_run(root, FAKE), write_run(
        root, FakeRun(started_s=100, repeat=1, gpu_power_w=300.0)
    )


def test_a_rule_that_breaks_on_what_a_run_holds_is_that_runs_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = two_runs(tmp_path)

    def breaks(run: Run) -> list[Fault]:
        if run.path == bad.path:
            raise KeyError("what nobody\nthought of")
        return []

    monkeypatch.setattr(validity, "ASKED", (breaks,))
    found = verdict(load_run(bad.path))
    assert [fault.code for fault in found] == ["unreadable"]
    assert "KeyError" in found[0].sentence and "\n" not in found[0].sentence
    assert verdict(load_run(good.path)) == []


def test_a_figure_that_breaks_on_what_a_run_holds_costs_that_point(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad = two_runs(tmp_path)
    sound = points.energy

    def breaks(run: Run, *others: object) -> object:
        if run.path == bad.path:
            raise OverflowError("int too large to convert")
        return sound(run, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(points, "energy", breaks)
    whole = study(tmp_path)
    by_path = {point.path: point for point in whole.points}
    assert by_path[str(good.path)].usable and by_path[str(good.path)].energy is not None
    broken = by_path[str(bad.path)]
    assert broken.status == "invalid" and broken.faults == ["unreadable"]
    assert "OverflowError: int too large to convert" in broken.reasons[0]


def test_ctrl_c_and_a_full_memory_are_no_runs_fault(tmp_path: Path) -> None:
    for error in (KeyboardInterrupt, MemoryError):

        def raises(error: type[BaseException] = error) -> str:
            raise error

        with pytest.raises(error):
            of_one_run(tmp_path, raises, lambda why: why)
        with pytest.raises(error):
            read(tmp_path, raises, str)


def test_a_sentence_is_one_line_that_can_be_printed(tmp_path: Path) -> None:
    assert words("a\n  b\x1b[2J\x00c") == "a b [2J c"
    assert len(words("x" * 10_000)) == LONGEST + 1
    assert sentence(UserError(f"{tmp_path}/a.json: broken"), tmp_path) == "a.json: broken"
    assert "no words" in sentence(ValueError(), tmp_path)


ODD_NUMBERS = [
    ("manifest.json", {"created_unix_ns": 2**70}, "manifest.json: created_unix_ns: larger than"),
    (
        "manifest.json",
        {"phases": {"measure": [0, 2**70]}},
        "manifest.json: phases.measure.1: larger",
    ),
    (
        "manifest.json",
        {"client_audit": {"w0": {"x": float("inf")}}},
        "manifest.json: client_audit.w0.x: a",
    ),
    ("manifest.json", {"counts": {"rows": 2**62}}, "manifest.json: counts.rows: larger than"),
]


@pytest.mark.parametrize(
    ("name", "change", "why"), ODD_NUMBERS, ids=[why for *_, why in ODD_NUMBERS]
)
def test_a_number_that_no_measurement_gives_is_named(
    tmp_path: Path, name: str, change: dict[str, object], why: str
) -> None:
    good, bad = two_runs(tmp_path)
    edit_manifest(bad, lambda raw: raw.update(change))
    runs, unreadable = read_runs(tmp_path)
    assert [run.path for run in runs] == [good.path]
    assert unreadable[0].why.startswith(why)


ODD_ROWS = [
    ("requests/w0.jsonl", "end_ns", 2**63 - 1, "requests/*.jsonl: end_ns: larger than"),
    ("requests/w0.jsonl", "prompt_tokens", 2**60, "requests/*.jsonl: prompt_tokens: larger than"),
    ("requests/w0.jsonl", "end_ns", 2**70, "requests/w0.jsonl"),
    ("telemetry/gpu.jsonl", "power_w", 1e300, "telemetry/gpu.jsonl: power_w: larger than"),
    ("telemetry/host.jsonl", "cpu_busy_share", float("inf"), "telemetry/host.jsonl"),
    ("telemetry/server.jsonl", "value", float("nan"), "telemetry/server.jsonl"),
    ("events.jsonl", "unix_ns", 2**70, "events.jsonl:1: unix_ns: larger than"),
]


@pytest.mark.parametrize(
    ("name", "key", "value", "why"), ODD_ROWS, ids=[why for *_, why in ODD_ROWS]
)
def test_a_row_with_such_a_number_costs_its_point(
    tmp_path: Path, name: str, key: str, value: object, why: str
) -> None:
    run = write_run(tmp_path, FAKE)
    edit(run, name, lambda rows: rows[0].update({key: value}))
    found = verdict(load_run(run.path))
    assert [fault.code for fault in found] == ["unreadable"], found
    assert found[0].sentence.startswith(why)


def test_broken_ceilings_and_verifications_cost_only_themselves(tmp_path: Path) -> None:
    good, _ = two_runs(tmp_path)
    sweep = good.path.parent
    (sweep / "ceilings.json").write_text('{"cores": "many"}')
    for name, text in (("a", "[]"), ("b", "\x00"), ("c", '{"steps": Infinity}')):
        (sweep / "verify" / name).mkdir(parents=True)
        (sweep / "verify" / name / "verify.json").write_text(text)
    (sweep / "verify" / "d").mkdir()
    (sweep / "verify" / "d" / "verify.json").write_text(json.dumps(VERIFIED))
    whole = study(sweep)
    assert all(point.usable for point in whole.points)
    assert [each.backend for each in whole.verifications] == ["alpha"]
    named = {left.label for left in whole.unmeasured}
    assert named == {"ceilings.json", "a/verify.json", "b/verify.json", "c/verify.json"}
    write_summary(whole, tmp_path / "summary.json")
    json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail)
    write_report(whole, tmp_path / "report.html")
    assert "a/verify.json" in (tmp_path / "report.html").read_text()


def test_a_point_of_which_nothing_can_be_drawn_is_in_the_report(tmp_path: Path) -> None:
    good, bad = two_runs(tmp_path)
    for path in [*bad.requests_dir.iterdir(), *bad.telemetry_dir.iterdir()]:
        path.write_bytes(b"\x00\n")
    whole = study(tmp_path)
    write_report(whole, tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert bad.path.name in page and good.path.name in page


@pytest.mark.parametrize("how", ["link", "file"])
def test_a_derived_folder_that_is_none_is_not_written_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """A link may lead anywhere; the tables go to the person's cache, and the figures are the same."""
    monkeypatch.setenv("GREENBENCH_CACHE", str(tmp_path / "cache"))
    run = write_run(tmp_path / "runs", FAKE)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    if how == "link":
        run.derived_dir.symlink_to(elsewhere)
    else:
        run.derived_dir.write_text("")
    assert verdict(load_run(run.path)) == []
    assert list(elsewhere.iterdir()) == []
    kept = sorted(path.name for path in (tmp_path / "cache" / "derived").rglob("*.parquet"))
    assert "requests.parquet" in kept
    assert not list((tmp_path / "cache").rglob("*.tmp"))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_archive_that_cannot_be_written_is_analysed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GREENBENCH_CACHE", str(tmp_path / "cache"))
    run = write_run(tmp_path / "runs", FAKE)
    run.path.chmod(0o555)
    try:
        assert verdict(load_run(run.path)) == []
    finally:
        run.path.chmod(0o755)


def test_a_cache_whose_middle_is_damaged_is_built_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, FAKE)
    rehash(run)
    assert verdict(load_run(run.path)) == []
    path = run.derived_dir / "requests.parquet"
    body = bytearray(path.read_bytes())
    body[4:600] = bytes(596)  # what the footer speaks of, with the footer whole
    path.write_bytes(bytes(body))
    assert verdict(load_run(run.path)) == []


@pytest.mark.parametrize("table", ["gpu", "requests"])
def test_a_cache_with_a_byte_that_fell_over_gives_what_the_rows_say(
    table: str, tmp_path: Path
) -> None:
    """Guards against figures of a damaged disk that nobody sees, and against a run lost to its cache."""
    run = write_run(tmp_path, FakeRun(measure_s=6, gpu_power_w=300.0))
    whole = read_table(run.path, table)
    path = run.derived_dir / f"{table}.parquet"
    body = path.read_bytes()
    columns = pq.ParquetFile(path).metadata.row_group(0)
    chunks = [columns.column(index) for index in range(columns.num_columns)]
    ends = [c.data_page_offset + c.total_compressed_size - 1 for c in chunks]  # of a page's values
    footer = range(ends[-1] + 1, len(body), 29)  # names and offsets
    for place in [*ends, *footer]:
        path.write_bytes(body[:place] + bytes([body[place] ^ 0x55]) + body[place + 1 :])
        found = read_table(run.path, table)
        assert {*found.column_names} >= {*whole.column_names}, place
        assert place in footer or found.equals(whole), place


def test_a_report_that_finds_no_place_says_which_file_and_what_to_do(tmp_path: Path) -> None:
    write_run(tmp_path / "runs", FAKE)
    (tmp_path / "page.summary.json").mkdir()  # in the way, as a full disk or a read-only one is
    command = [sys.executable, "-m", "analysis", "report", "runs", "--out", "page.html"]
    env = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(
        command, cwd=tmp_path, env=env, capture_output=True, text=True, check=False
    )
    said = "page.summary.json: Is a directory; --out (and --csv) name another place for the report"
    assert (done.returncode, done.stderr.strip()) == (2, f"error: {said}")
    assert {path.name for path in tmp_path.iterdir()} == {"runs", "page.summary.json"}

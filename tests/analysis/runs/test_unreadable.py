"""A row or file that cannot be read costs its point, and says which line; never the report."""

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis.energy.result import EnergyResult
from analysis.point.point import analyse
from analysis.runs.engine_steps import parse_steps
from analysis.runs.gpu_rows import read_gpu_rows
from analysis.runs.run import load_run, read_runs
from analysis.runs.validity import faults
from greenbench.contract.run_dir import RunDir
from tests.fakes.rows import read_rows, rehash, write_rows
from tests.fakes.rundirs import FakeRun, write_run

FAKE = FakeRun(gpu_power_w=300.0)
Damage = Callable[[bytes], bytes]


def line(number: int, text: bytes) -> Damage:
    """The file with another line ``number`` (from 1)."""

    def damaged(whole: bytes) -> bytes:
        lines = whole.splitlines(keepends=True)
        lines[number - 1] = text + b"\n"
        return b"".join(lines)

    return damaged


def replaced(number: int, old: bytes, new: bytes) -> Damage:
    def damaged(whole: bytes) -> bytes:
        lines = whole.splitlines(keepends=True)
        assert old in lines[number - 1]
        lines[number - 1] = lines[number - 1].replace(old, new, 1)
        return b"".join(lines)

    return damaged


ROWS = "requests/w0.jsonl"
DAMAGES: list[tuple[str, Damage, str]] = [
    (ROWS, line(3, b'{"run_id": "x", "cl'), "requests/w0.jsonl:3: not a JSON line ("),
    (ROWS, line(3, b"hello"), "requests/w0.jsonl:3: not a JSON line ("),
    (ROWS, line(3, b"[1, 2]"), "requests/w0.jsonl:3: (top): "),
    (ROWS, line(3, b"null"), "requests/w0.jsonl:3: (top): "),
    # a first null ended the whole report with SIGSEGV
    (ROWS, line(1, b"null"), "requests/w0.jsonl:1: (top): "),
    (ROWS, lambda _: b"\xef\xbb\xbf \r\n null\n", "requests/w0.jsonl:1: not a JSON line ("),
    ("outputs/w0.jsonl", lambda _: b"null\n", "outputs/w0.jsonl:1: (top): "),
    ("telemetry/gpu.jsonl", lambda _: b"null\n", "telemetry/gpu.jsonl:1: (top): "),
    ("telemetry/host.jsonl", lambda _: b"\n\nnull\n", "telemetry/host.jsonl:1: "),
    ("telemetry/server.jsonl", lambda _: b"null\n", "telemetry/server.jsonl:1: (top): "),
    (ROWS, replaced(4, b'"task":"', b'"task":"\xd2'), "requests/w0.jsonl:4: not a JSON line ("),
    (
        "telemetry/server.jsonl",
        replaced(2, b'"metric":"', b'"metric":"\xd2'),
        "telemetry/server.jsonl:2: not a JSON line (",
    ),
    (ROWS, line(3, b'"\xff\xfe"'), "requests/w0.jsonl:3: not a JSON line ("),
    (
        ROWS,
        replaced(5, b'"end_ns":1000000000', b'"end_ns":"soon"'),
        "requests/w0.jsonl:5: end_ns: ",
    ),
    (
        ROWS,
        replaced(5, b'"end_ns":1000000000', b'"end_ns":1.5'),
        "requests/w0.jsonl:5: end_ns: ",
    ),
    (
        ROWS,
        replaced(5, b'"phase":"warmup"', b'"phase":null'),
        "requests/w0.jsonl:5: phase: ",
    ),
    (ROWS, replaced(7, b'"request_id"', b'"id"'), "requests/w0.jsonl:7: 'request_id' is missing"),
    (
        ROWS,
        replaced(2, b'"chunk_ns":[500000000', b'"chunk_ns":["a"'),
        "requests/w0.jsonl:2: chunk_ns.0: ",
    ),
    (ROWS, lambda _: b"\x00\x01\x02\n", "requests/w0.jsonl:1: not a JSON line ("),
    ("events.jsonl", line(2, b"{}"), "events.jsonl:2: 'unix_ns' is missing"),
    ("outputs/w0.jsonl", line(2, b"nothing"), "outputs/w0.jsonl:2: not a JSON line ("),
    (
        "outputs/w0.jsonl",
        replaced(2, b'"correct":false', b'"correct":"no"'),
        "outputs/w0.jsonl:2: correct: ",
    ),
    (
        "telemetry/gpu.jsonl",
        replaced(9, b'"energy_mj":', b'"energy_mj":"much","was":'),
        "telemetry/gpu.jsonl:9: energy_mj: ",
    ),
    ("telemetry/host.jsonl", line(4, b"\xff"), "telemetry/host.jsonl:4: not a JSON line ("),
    (
        "telemetry/server.jsonl",
        line(1, b'{"metric": "vllm:x", "labels": {}, "value": 1}'),
        "telemetry/server.jsonl:1: 'unix_ns' is missing",
    ),
    ("telemetry/sources.json", lambda _: b"[]", "telemetry/sources.json: (top): "),
    ("telemetry/sources.json", lambda _: b"{", "telemetry/sources.json: not JSON ("),
    (
        "telemetry/sources.json",
        lambda _: b'{"facts": {"gpus": null}}',
        "telemetry/sources.json: facts.gpus: ",
    ),
]


def damage(run: RunDir, name: str, change: Damage) -> None:
    path = run.path / name
    path.write_bytes(change(path.read_bytes() if path.is_file() else b""))


@pytest.mark.parametrize(("name", "change", "sentence"), DAMAGES, ids=[s for *_, s in DAMAGES])
def test_what_cannot_be_read_is_named_by_file_and_line(
    tmp_path: Path, name: str, change: Damage, sentence: str
) -> None:
    run = write_run(tmp_path, FAKE)
    damage(run, name, change)
    found = faults(load_run(run.path))
    assert [fault.code for fault in found] == ["unreadable"]
    assert found[0].sentence.startswith(sentence)


BROKEN_RUNS: list[tuple[str, Damage, str]] = [
    ("manifest.json", lambda whole: whole[:200], "manifest.json: cannot be read as JSON"),
    ("manifest.json", lambda _: b"[]", "manifest.json: holds no JSON object"),
    ("manifest.json", lambda _: b"\xff\xfe", "manifest.json: cannot be read as JSON"),
    (
        "manifest.json",
        lambda whole: re.sub(rb'"schema_version": "[0-9.]+"', b'"schema_version": "2.0"', whole),
        "manifest.json: schema version 2.0, this program reads 1.",
    ),
    (
        "manifest.json",
        lambda whole: whole.replace(b'"seed": 7', b'"seed": "x"'),
        "manifest.json: seed: ",
    ),
    (
        "config.yaml",
        lambda whole: whole.replace(b"users: 4", b"users: [4"),
        "config.yaml: not valid",
    ),
    (
        "config.yaml",
        lambda whole: whole.replace(b"context_tokens:", b"contxt_tokens:"),
        "config.yaml: unknown key 'point.contxt_tokens'; did you mean 'context_tokens'?",
    ),
    ("config.yaml", lambda _: b"\xff\xfe\x00", "config.yaml: not UTF-16 text ("),
]


@pytest.mark.parametrize(("name", "change", "sentence"), BROKEN_RUNS)
def test_a_run_without_manifest_or_config_is_listed_beside_the_good_ones(
    tmp_path: Path, name: str, change: Damage, sentence: str
) -> None:
    good = write_run(tmp_path, FAKE)
    bad = write_run(tmp_path, FakeRun(started_s=100, repeat=1))
    damage(bad, name, change)
    runs, unreadable = read_runs(tmp_path)
    assert [run.path for run in runs] == [good.path]
    assert [found.path for found in unreadable] == [bad.path]
    assert unreadable[0].why.startswith(sentence) and str(tmp_path) not in unreadable[0].why


def test_labels_that_are_all_empty_are_read(tmp_path: Path) -> None:
    """Arrow: "Cannot write struct type 'labels' with no child field"."""
    run = write_run(tmp_path, FAKE)
    path = run.telemetry_dir / "server.jsonl"
    write_rows(path, [{**row, "labels": {}} for row in read_rows(path)])
    rehash(run)
    read = load_run(run.path)
    assert faults(read) == []
    assert len(read.server) == len(read_rows(path))


def test_columns_that_may_be_null_may_be_left_out(tmp_path: Path) -> None:
    run = write_run(tmp_path, FAKE)
    path = run.requests_dir / "w0.jsonl"
    write_rows(path, [{k: v for k, v in row.items() if v is not None} for row in read_rows(path)])
    rehash(run)
    assert faults(load_run(run.path)) == []


def test_a_report_of_a_sweep_in_which_all_but_one_run_is_broken(tmp_path: Path) -> None:
    good = write_run(tmp_path, FAKE)
    broken = [
        (write_run(tmp_path, FakeRun(started_s=100.0 * n, repeat=n, gpu_power_w=300.0)), *how)
        for n, how in enumerate([*DAMAGES, *BROKEN_RUNS], start=1)
    ]
    for run, name, change, _ in broken:
        damage(run, name, change)
    (good.path.parent / "servers" / "s-r0a0-x").mkdir(parents=True)
    (good.path.parent / "servers" / "s-r0a0-x" / "server.json").write_bytes(b"\xff{")
    (good.path.parent / "refused.json").write_text("[")
    (good.path.parent / "sweep.yaml").write_text("name: [")
    command = [sys.executable, "-m", "analysis"]
    made = subprocess.run(
        [*command, "report", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert made.returncode == 0, made.stderr
    summary = json.loads((tmp_path / "summary.json").read_text())
    by_id = {point["run_id"]: point for point in summary["points"]}
    assert by_id[good.path.name]["status"] == "ok"
    assert {point["status"] for name, point in by_id.items() if name != good.path.name} == {
        "invalid"
    }
    left_out = {entry["label"]: entry["why"] for entry in summary["left_out"]}
    for run, _, _, sentence in broken:
        why = left_out.get(run.path.name) or "; ".join(by_id[run.path.name]["reasons"])
        assert sentence in why
    assert "refused.json" in " ".join(left_out)
    checked = subprocess.run(
        [*command, "check", str(tmp_path)], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 1
    for run, _, _, sentence in broken:
        assert f"{run.path.name}: unreadable: {sentence}" in checked.stdout


def test_where_no_run_can_be_read_the_report_says_why(tmp_path: Path) -> None:
    run = write_run(tmp_path, FAKE)
    damage(run, "manifest.json", lambda _: b"{}")
    command = [sys.executable, "-m", "analysis", "report", str(tmp_path)]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert (
        found.stderr.startswith("error: ")
        and "none of 1 run directories can be read" in found.stderr
    )
    assert "schema version none" in found.stderr


def energy_of(run: RunDir) -> EnergyResult:
    point = analyse(load_run(run.path))
    assert point.energy is not None, point.reasons
    return point.energy.result


def test_a_broken_idle_recording_costs_the_energy_above_idle(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun(gpu_power_w=300.0, measure_s=80.0))
    idle = run.path.parent / "servers" / "tiny-alpha-r0" / "idle_before" / "telemetry"
    idle.mkdir(parents=True)
    rows = [
        {**row, "power_avg_w": 100.0, "energy_mj": round(25e3 * n)}
        for n, row in enumerate(read_rows(run.telemetry_dir / "gpu.jsonl"))
    ]
    write_rows(idle / "gpu.jsonl", rows)
    sound = energy_of(run)
    assert sound.idle_w == pytest.approx(100.0, rel=1e-6)
    with (idle / "gpu.jsonl").open("ab") as file:
        file.write(b'{"torn')
    assert energy_of(run).idle_w == sound.idle_w
    (idle / "gpu.jsonl").write_text('{"mono_ns": "x"}\n')
    read = load_run(run.path)
    assert faults(read) == []
    fault = read.idle("idle_before").fault
    assert fault is not None and "gpu.jsonl:1: " in fault
    found = energy_of(run)
    assert found.status == "measured" and found.idle_w is None
    assert found.gross == sound.gross


def test_gpu_rows_of_another_type_name_their_line(tmp_path: Path) -> None:
    (tmp_path / "telemetry").mkdir()
    assert read_gpu_rows(tmp_path).empty
    (tmp_path / "telemetry" / "gpu.jsonl").write_text('{"mono_ns": 1}\n{"mono_ns": [1]}\n')
    with pytest.raises(Exception, match=r"gpu\.jsonl:1: 'unix_ns' is missing"):
        read_gpu_rows(tmp_path)


def test_a_line_of_the_log_with_absurd_numbers_is_passed_over() -> None:
    text = (
        "1795612061.779155 INFO Engine 000: Iteration(35): 1 context requests, 8191 context tokens, "
        "1 generation requests, 1 generation tokens, iteration elapsed time: 20.62 ms, "
        "GPU KV cache usage: 3.1%"
    )
    assert len(parse_steps([text])) == 1
    assert len(parse_steps([text, text.replace("8191", "9" * 40)])) == 1
    assert len(parse_steps([text.replace("20.62", "1.2.3"), text.replace("3.1%", "....%")])) == 0

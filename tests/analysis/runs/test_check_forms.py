"""The published form of run directories: schemas current, the example read, faults named by their place."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from analysis.__main__ import report_path, summary_path
from analysis.runs.check_forms import hash_of_point, read_forms
from analysis.runs.run import load_runs
from analysis.runs.validity import faults
from greenbench.contract.config import PointConfig
from greenbench.contract.forms import FORMS, json_schemas
from greenbench.contract.manifest import Manifest, Server
from greenbench.contract.new_run import point_hash
from greenbench.contract.schema import ERROR_TYPES, Row
from tests.fakes.rundirs import FakeRun, point_config

ROOT = Path(__file__).resolve().parents[3]
EXAMPLE = ROOT / "docs" / "example"
CONTRACT = (ROOT / "docs" / "contract.md").read_text()


def make_example(out: Path, seconds: int) -> None:
    command = [sys.executable, str(EXAMPLE / "make.py"), str(out), str(seconds)]
    subprocess.run(command, check=True)


def analysis(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "analysis", *words]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.fixture
def example(tmp_path: Path) -> Path:
    """A copy of the example, to be altered."""
    return shutil.copytree(EXAMPLE, tmp_path / "example")


def run_of(root: Path) -> Path:
    return next(root.glob("*/manifest.json")).parent


# Schemas and words


def test_schemas_are_those_of_the_code() -> None:
    """Else: python -m greenbench.contract docs/schema"""
    stored = {path.name: path.read_text() for path in (ROOT / "docs" / "schema").glob("*")}
    assert stored == dict(json_schemas())


def test_a_schema_says_types_and_what_is_required() -> None:
    request = json.loads((ROOT / "docs" / "schema" / "request.json").read_text())
    assert request["properties"]["request_id"]["type"] == "string"
    assert "request_id" in request["required"] and "end_ns" not in request["required"]
    assert {"type": "null"} in request["properties"]["end_ns"]["anyOf"]
    manifest = json.loads((ROOT / "docs" / "schema" / "manifest.json").read_text())
    assert manifest["additionalProperties"] is False


def section(title: str) -> str:
    after = CONTRACT.partition(f"\n### {title}\n")[2]
    assert after, title
    return after.partition("\n### ")[0]


@pytest.mark.parametrize(
    ("title", "form"),
    [
        ("events.jsonl", "event"),
        ("`requests/<client>.jsonl`", "request"),
        ("`outputs/<client>.jsonl`", "output"),
        ("telemetry/gpu.jsonl", "gpu"),
        ("telemetry/host.jsonl", "host"),
        ("telemetry/server.jsonl", "server_metric"),
    ],
)
def test_the_contract_names_every_column(title: str, form: str) -> None:
    row = FORMS[form]
    assert issubclass(row, Row)
    table = [line for line in section(title).splitlines() if line.startswith("| `")]
    named = {name for line in table for name in line.split("|")[1].replace("`", "").split(", ")}
    assert {name.strip() for name in named} == {column.name for column in fields(row)}  # type: ignore[arg-type]


def test_the_contract_names_every_key_and_error_type() -> None:
    manifest, config = section("manifest.json"), section("config.yaml")
    assert [
        k for k in (*Manifest.model_fields, *Server.model_fields) if f"`{k}`" not in manifest
    ] == []
    assert [k for k in PointConfig.model_fields if f"`{k}`" not in config] == []
    rows = section("`requests/<client>.jsonl`")
    assert [word for word in ERROR_TYPES if f"`{word}`" not in rows] == []


# The example


def test_the_example_is_what_its_writer_writes(tmp_path: Path) -> None:
    make_example(tmp_path, 6)
    made = {p.relative_to(tmp_path): p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    stored = {p.relative_to(EXAMPLE): p.read_bytes() for p in EXAMPLE.rglob("*") if p.is_file()}
    assert stored.pop(Path("make.py"))
    assert made == stored


def test_the_example_passes_both_checks_and_gives_a_report(example: Path) -> None:
    forms = analysis("check", "--schema", str(example))
    assert (forms.returncode, forms.stdout) == (0, "15 files read, 0 faults\n"), forms.stderr
    checked = analysis("check", str(example))
    assert (checked.returncode, checked.stdout) == (
        0,
        "1 run, 0 of them measured again, 0 faults\n",
    )
    out = example / "a.html"
    for name in ("a.html", "b.html"):
        made = analysis("report", str(example), "--out", str(example / name))
        assert (made.returncode, made.stdout) == (0, f"{example / name}\n"), made.stderr
    assert (example / "b.summary.json").is_file() and not (example / "summary.json").exists()
    point = json.loads((example / "a.summary.json").read_text())["points"][0]
    assert out.is_file() and point["status"] == "ok"
    # two users, a second a request, four tokens each
    assert point["throughput"]["output_tokens_per_s"] == pytest.approx(2 * 4 / 1.0)
    assert point["latency"]["ttft_s"]["p50"] == pytest.approx(0.5)
    assert point["answers"]["correct_share"] == pytest.approx(0.5)
    assert point["energy"]["status"] == "invalid"  # six seconds


def test_the_example_at_length_has_joules(tmp_path: Path) -> None:
    make_example(tmp_path, 66)
    assert read_forms(tmp_path).faults == []
    assert [fault for run in load_runs(tmp_path) for fault in faults(run)] == []
    assert analysis("report", str(tmp_path)).returncode == 0
    energy = json.loads((tmp_path / "summary.json").read_text())["points"][0]["energy"]
    assert (energy["status"], energy["flags"]) == ("measured", [])
    assert energy["power_w"] == pytest.approx(400)
    assert energy["gross"]["j_per_output_token"] == pytest.approx(400 / 8)
    assert energy["above_idle"]["j_per_request"] == pytest.approx((400 - 100) / 2)


def test_config_hash_of_the_file_is_that_of_the_sweep() -> None:
    point = point_config(FakeRun())
    assert hash_of_point(point.model_dump(mode="json")) == point_hash(point)


def test_a_summary_lies_beside_its_report_under_its_name(tmp_path: Path) -> None:
    assert report_path(tmp_path, None) == tmp_path / "report.html"
    assert summary_path(tmp_path / "report.html") == tmp_path / "summary.json"
    (tmp_path / "out").mkdir()
    assert report_path(tmp_path, tmp_path / "out") == tmp_path / "out" / "report.html"
    assert report_path(tmp_path, tmp_path / "x" / "a.html") == tmp_path / "x" / "a.html"
    assert summary_path(tmp_path / "x" / "a.html") == tmp_path / "x" / "a.summary.json"


# Faults of form


def line_of(path: Path, text: str) -> int:
    return next(n for n, line in enumerate(path.read_text().splitlines(), 1) if text in line)


def alter(old: str, new: str) -> Callable[[Path], None]:
    def altered(path: Path) -> None:
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))

    return altered


@pytest.mark.parametrize(
    ("name", "old", "new", "clause"),
    [
        ("manifest.json", '"seed": 7', '"seed": "7"', "seed: input should be a valid integer"),
        ("manifest.json", '"weights": "random"', '"weights": "some"', "server.weights: "),
        ("manifest.json", '"cores": 8', '"coers": 8', "'host.cores' is missing"),
        ("manifest.json", '"failed": 0', '"faild": 0', "unknown key 'counts.faild'"),
        ("config.yaml", '"users": 2', '"users": 0', "point.load.users: "),
        ("config.yaml", '"block_size"', '"blocksize"', "unknown key 'point.server.blocksize'"),
        ("events.jsonl", '"name":"warmup_start"', '"nam":"x"', "'name' is missing"),
        (
            "requests/client.jsonl",
            '"send_ns"',
            '"send_ms"',
            "unknown key 'send_ms'; did you mean 'send_ns'?",
        ),
        ("telemetry/gpu.jsonl", '"energy_mj":', '"energy_mj":1.5,"w":', "energy_mj: "),
        (
            "telemetry/sources.json",
            '"own_pids": [',
            '"own_pids": [null, ',
            "facts.gpus.0.own_pids.0: ",
        ),
    ],
)
def test_a_fault_of_form_names_file_line_and_key(
    example: Path, name: str, old: str, new: str, clause: str
) -> None:
    path = run_of(example) / name
    if name == "requests/client.jsonl":  # a column that the example leaves out
        alter('"first_token_ns"', '"send_ns":1,"first_token_ns"')(path)
    wanted = line_of(path, old)
    alter(old, new)(path)
    found = read_forms(example).faults
    mine = [fault for fault in found if fault.startswith(f"{path}:")]
    assert any(clause in fault for fault in mine), found
    line = int(mine[0].removeprefix(f"{path}:").partition(":")[0])
    # what is missing is named where it should stand: at the part that lacks it
    assert line == wanted or ("is missing" in clause and line < wanted)


def edit_manifest(run: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((run / "manifest.json").read_text())
    change(raw)
    (run / "manifest.json").write_text(json.dumps(raw, indent=1))


def test_what_belongs_together_is_held_together(example: Path) -> None:
    run = run_of(example)
    edit_manifest(run, lambda raw: raw["phases"].pop("measure"))
    edit_manifest(run, lambda raw: raw["files"].pop("requests/client.jsonl"))
    edit_manifest(run, lambda raw: raw.update(config_hash="0" * 64, run_id="other"))
    alter('"measure_end"', '"measured"')(run / "events.jsonl")
    (run / "request").mkdir()
    shutil.rmtree(run / "outputs")
    prompts = next((example / "prompts").iterdir())
    alter('"output_tokens":4,"answer"', '"output_tokens":5,"answer"')(prompts)
    said = "\n".join(read_forms(example).faults)
    for clause in (
        "phases: lacks 'measure'",
        "files: lacks requests/client.jsonl",
        "config_hash: is not that of config.yaml's point",
        "run_id: other, and config.yaml has ",
        "events.jsonl: has no event 'measure_end'",
        "no name of a run directory; did you mean 'requests'?",
        "sha256: is not that of the lines after it",
    ):
        assert clause in said


def test_files_that_are_no_json_at_all(example: Path) -> None:
    run = run_of(example)
    (run / "manifest.json").write_text('{"a":\n nothing}')
    (run / "config.yaml").write_bytes(b"a: [\n")
    (run / "telemetry" / "sources.json").write_bytes(b"\xff")
    (run / "requests" / "client.jsonl").unlink()
    found = analysis("check", "--schema", str(example))
    assert found.returncode == 1 and found.stderr == ""
    for start in (
        "manifest.json:2: not JSON",
        "config.yaml:2: not YAML",
        "sources.json: cannot be read",
    ):
        assert start in found.stdout
    assert "requests/*.jsonl: is missing, and a run needs it" in found.stdout
    (run / "config.yaml").write_bytes(b"[" * 100_000)
    deep = analysis("check", "--schema", str(example))
    assert deep.returncode == 1 and deep.stderr == ""
    assert "config.yaml:1: not YAML (nested deeper than 64 levels)" in deep.stdout
    none = analysis("check", "--schema", str(example / "prompts"))
    assert none.returncode == 2 and "docs/contract.md" in none.stderr

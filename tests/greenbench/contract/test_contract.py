"""The contract package: clocks, rows, run directories, config sentences."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from greenbench.contract import run_dir
from greenbench.contract.clock import Anchor
from greenbench.contract.config import PointConfig, SweepConfig, load_sweep, load_yaml, parse
from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.forms import VerifyFile
from greenbench.contract.run_dir import JsonlWriter, RunDir, list_runs, read_jsonl, runs_to_read
from greenbench.contract.schema import Event, RequestRecord
from tests.fakes.manifests import manifest

ROOT = Path(__file__).resolve().parents[3]
SWEEP = {
    "name": "s",
    "models": ["m"],
    "backends": ["a"],
    "contexts": [512],
    "tasks": ["retrieve"],
    "loads": [{"kind": "closed", "users": 2}],
}


def test_an_anchor_converts_both_ways_by_plain_arithmetic() -> None:
    anchor = Anchor(unix_ns=1_000_000, mono_ns=400)
    assert anchor.to_unix_ns(650) == 1_000_250
    assert anchor.to_mono_ns(999_900) == 300


def test_a_row_survives_its_json_line_and_a_newer_minor_versions_column() -> None:
    row = Event(unix_ns=1, mono_ns=2, name="measure_start", detail={"users": 3})
    raw = json.loads(row.to_json())
    assert Event.from_dict({**raw, "column_of_1_7": True}) == row


def test_nan_never_reaches_a_file() -> None:
    with pytest.raises(ValueError):
        Event(unix_ns=1, mono_ns=2, name="x", detail={"v": float("nan")}).to_json()


def test_a_row_torn_by_kill_is_dropped_and_a_broken_one_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    with JsonlWriter(path) as out:
        out.write(Event(unix_ns=1, mono_ns=2, name="a"))
        out.write(Event(unix_ns=3, mono_ns=4, name="b"))
    whole = path.read_text()
    path.write_text(whole[:-9])
    assert [row["name"] for row in read_jsonl(path)] == ["a"]
    path.write_text('{"broken\n' + whole)
    with pytest.raises(UserError, match=r"events\.jsonl:1: not a JSON line"):
        list(read_jsonl(path))


def test_a_writer_appends_and_never_truncates(tmp_path: Path) -> None:
    path = tmp_path / "requests" / "a.jsonl"
    for name in ("first", "second"):
        with JsonlWriter(path) as out:
            out.write(Event(unix_ns=1, mono_ns=2, name=name))
    assert [row["name"] for row in read_jsonl(path)] == ["first", "second"]


def test_an_atomic_write_leaves_no_scratch_file(tmp_path: Path) -> None:
    target = tmp_path / "x.json"
    run_dir.write_atomic(target, "old")
    run_dir.write_atomic(target, "new")
    assert target.read_text() == "new"
    assert list(tmp_path.iterdir()) == [target]


def test_run_id_is_utc_and_names_what_ran() -> None:
    # 1763884092 s = 2025-11-23T07:48:12Z (date -u -d @1763884092)
    name = run_dir.run_id(
        1_763_884_092 * 10**9, "sink_window(sink=4)", "retrieve-512-closed2", "3f9a1c2e77"
    )
    assert name == "20251123T074812Z-sink_window-sink-4-retrieve-512-closed2-3f9a1c2e"


@given(st.dictionaries(st.text(max_size=5), st.integers(), max_size=5))
def test_a_config_hash_does_not_depend_on_key_order(config: dict[str, int]) -> None:
    backwards = dict(reversed(config.items()))
    assert run_dir.config_hash(config) == run_dir.config_hash(backwards)


def test_a_run_directory_is_never_reused(tmp_path: Path) -> None:
    RunDir.create(tmp_path / "r0", manifest(), "a: 1\n")
    with pytest.raises(FileExistsError):
        RunDir.create(tmp_path / "r0", manifest(), "a: 2\n")
    assert (tmp_path / "r0" / "config.yaml").read_text() == "a: 1\n"
    assert [run.manifest().run_id for run in list_runs(tmp_path)] == ["r0"]


def test_runs_that_lie_deeper_than_a_folder_of_sweeps_are_not_left_out_in_silence(
    tmp_path: Path,
) -> None:
    """They were: a report of such a folder spoke of the others alone."""
    for place in ("alone/r0", "cards/card0/r1", "cards/card1/r2"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        RunDir.create(tmp_path / place, manifest(), "")
    with pytest.raises(
        UserError, match=r"it holds folders of sweeps \(cards\); give one, as .*/cards$"
    ):
        runs_to_read(tmp_path)
    assert [run.path.name for run in runs_to_read(tmp_path / "cards")] == ["r1", "r2"]
    assert [run.path.name for run in list_runs(tmp_path, levels=3)] == ["r0", "r1", "r2"]


def test_a_folder_is_read_by_its_name_alone_as_by_its_whole_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`greenbench report my` beside it ended in an IndexError: a relative path has few parents."""
    for place in ("my/r0", "cards/card0/r1", "all/cards/card0/r2"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        RunDir.create(tmp_path / place, manifest(), "")
    monkeypatch.chdir(tmp_path)
    assert [run.path for run in runs_to_read(Path("my"))] == [Path("my/r0")]
    assert [run.path for run in runs_to_read(Path("my/r0"))] == [Path("my/r0")]
    assert [run.path for run in runs_to_read(Path("cards"))] == [Path("cards/card0/r1")]
    with pytest.raises(UserError, match=r"give one, as all/cards$"):
        runs_to_read(Path("all"))
    monkeypatch.chdir(tmp_path / "my" / "r0")
    assert [run.path for run in runs_to_read(Path())] == [Path()]


def test_another_major_schema_version_is_refused_and_a_minor_one_read(tmp_path: Path) -> None:
    run = RunDir.create(tmp_path / "r0", manifest(), "")
    run.write_manifest(manifest(schema_version="1.9"))
    assert run.manifest().schema_version == "1.9"
    run.write_manifest(manifest(schema_version="2.0"))
    with pytest.raises(UserError, match=r"schema version 2\.0, this program reads 1\."):
        run.manifest()


def test_request_rows_start_with_everything_unknown_as_null() -> None:
    record = RequestRecord(
        run_id="r", client_id="c", request_id="q", phase="measure", task="t", prompt_index=0,
        prompt_sha256="s", context_tokens_target=8, max_output_tokens=4, in_flight_at_send=0,
    )  # fmt: skip
    raw = json.loads(record.to_json())
    assert all(
        raw[key] is None for key in ("prompt_tokens", "first_token_ns", "chunk_ns", "end_ns")
    )


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"contxts": [1]}, "unknown key 'contxts'; did you mean 'contexts'?"),
        ({"phases": {"warmup": 1}}, "unknown key 'phases.warmup'; did you mean 'warmup_s'?"),
        ({"loads": [{"kind": "closed"}]}, "a closed load needs 'users'"),
        ({"loads": [{"kind": "open"}]}, "an open load needs either 'rate_per_s' or 'trace'"),
        ({"loads": [{"kind": "open", "users": 2}]}, "an open load has no 'users'"),
        (
            {"tasks": [{"name": "x", "output": 1}]},
            "unknown key 'tasks.0.output'; did you mean 'output_tokens'?",
        ),
        ({"contexts": []}, "contexts: at least 1 is wanted, found []"),
        ({"contexts": 512}, "contexts: a list is wanted, as [a, b], found 512"),
        ({"repeats": 0}, "repeats: it should be greater than or equal to 1, found 0"),
        (
            {"name": "Has Space"},
            "name: a text that matches ^[a-z0-9][a-z0-9_.-]*$ is wanted, found 'Has Space'",
        ),
        ({"name": "n" * 101}, "name: a text of at most 100 characters is wanted, found 'nnn"),
        (
            {"backends": None, "candidates": [{"backend": "x", "name": ""}]},
            "candidates.0.name: a text of at least 1 character is wanted, found ''",
        ),
    ],
)
def test_a_wrong_key_or_value_is_one_sentence_with_file_key_and_nearest(
    tmp_path: Path, change: dict[str, object], sentence: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(json.dumps({**SWEEP, **change}))  # JSON is YAML
    with pytest.raises(UserError) as raised:
        load_sweep(path)
    assert str(raised.value).startswith(f"{path}: ")
    assert sentence in str(raised.value)
    assert "\n" not in str(raised.value)


def test_broken_yaml_and_a_missing_file_say_where(tmp_path: Path) -> None:
    path = tmp_path / "broken.yaml"
    path.write_text("name: demo\nmodels: [a\n")
    with pytest.raises(UserError, match="not valid YAML at line"):
        load_yaml(path)
    with pytest.raises(UserError, match="cannot be read"):
        load_yaml(tmp_path / "none.yaml")


def test_a_user_error_is_exit_code_2_on_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        raise UserError("wanted a, found b, do c")

    assert exit_on_user_error(command) == 2
    assert capsys.readouterr().err == "error: wanted a, found b, do c\n"


def test_a_backend_listed_twice_gives_two_equal_candidates() -> None:
    sweep = parse(
        SweepConfig, {**SWEEP, "backends": ["a", "b", "a", {"name": "a", "options": {"w": 1}}]}, "x"
    )
    assert [(who.label, who.arm) for who in sweep.contenders] == [
        ("a", 0), ("b", 0), ("a", 1), ("a(w=1)", 0),
    ]  # fmt: skip


def test_port_and_boot_limit_do_not_make_another_measurement() -> None:
    base = {
        "sweep": "s", "seed": 1, "repeat": 0, "model": {"name": "m", "path": "/m", "max_model_len": 8},
        "backend": {"name": "a"}, "server": {}, "task": {"name": "t"}, "context_tokens": 4,
        "load": {"users": 1}, "phases": {}, "slo": {}, "telemetry": {}, "prompts_per_point": 1,
    }  # fmt: skip
    one = parse(PointConfig, base, "x")
    same = parse(PointConfig, {**base, "server": {"port": 9, "boot_timeout_s": 5}}, "x")
    other = parse(PointConfig, {**base, "server": {"block_size": 16}}, "x")
    assert one.identity() == same.identity() != other.identity()


def test_the_verdicts_of_a_gpu_are_of_the_form_of_verify_json() -> None:
    """Written by 1.0 and kept without the gaps of each step; the counts are worked out from its rows."""
    told = json.loads((ROOT / "results" / "h100" / "verify.json").read_text())["verdicts"]
    files = [parse(VerifyFile, each, "verify.json") for each in told]
    assert len(files) == 10
    for raw, file in zip(told, files, strict=True):
        assert not file.model_extra and set(raw) == file.model_fields_set
        assert file.requests == (file.compared or 0) + (file.not_comparable or 0)
        assert len(file.per_request) == file.compared
        assert file.same_choice == sum(row["same_choice"] for row in raw["per_request"])
        assert file.worst_gap_nats == max(row["worst_nats"] for row in raw["per_request"])

"""Another major version is refused; of a newer minor one, what is known here is read."""

import json
from pathlib import Path

import pytest
import yaml

from analysis.runs.check_forms import read_forms
from analysis.runs.run import load_run
from analysis.runs.validity import faults
from greenbench import SCHEMA_VERSION
from greenbench.contract.config import LivePoint
from greenbench.contract.errors import UserError
from greenbench.contract.newer import is_newer, known_part, unknown_keys
from greenbench.contract.run_dir import RunDir
from tests.fakes.rows import edit_manifest
from tests.fakes.rundirs import FakeRun, write_run

MAJOR, MINOR = (int(part) for part in SCHEMA_VERSION.split("."))
NEWER = f"{MAJOR}.{MINOR + 1}"


@pytest.mark.parametrize(
    ("version", "newer"),
    [
        (SCHEMA_VERSION, False),
        (f"{MAJOR}.0", False),
        (NEWER, True),
        (f"{MAJOR}.{MINOR + 9}", True),
        (f"{MAJOR}", False),
        (f"{MAJOR}.x", False),
        (f"{MAJOR}.²", False),
    ],
)
def test_which_version_is_newer(version: str, newer: bool) -> None:
    assert is_newer(version) is newer


def extend(run: RunDir, version: str) -> None:
    """A key more in the manifest, in two of its parts and in two places of the config."""

    def change(raw: dict[str, object]) -> None:
        raw["schema_version"] = version
        raw["weather"] = {"sun": True}
        for part in ("server", "host"):
            raw[part]["colour"] = "red"  # type: ignore[index]

    edit_manifest(run, change)
    config = yaml.safe_load(run.config_path.read_text())
    config["point"]["tone"] = 1
    config["point"]["load"]["mood"] = [1]
    run.config_path.write_text(yaml.safe_dump(config))


def test_a_run_of_a_newer_minor_version_is_read_and_the_keys_are_named(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    before = load_run(run.path)
    extend(run, NEWER)
    read = load_run(run.path)
    assert read.live == before.live and faults(read) == []
    assert sorted(read.passed_over()) == [
        "config.yaml: point.load.mood",
        "config.yaml: point.tone",
        "manifest.json: host.colour",
        "manifest.json: server.colour",
        "manifest.json: weather",
    ]
    assert read_forms(tmp_path).faults == []


def test_the_same_keys_are_errors_in_a_file_of_this_version(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    extend(run, SCHEMA_VERSION)
    with pytest.raises(UserError, match=r"manifest\.json: (server\.colour|host\.colour|weather)"):
        load_run(run.path)
    assert len(read_forms(tmp_path).faults) == 5


def test_another_major_version_is_one_sentence(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    extend(run, f"{MAJOR + 1}.0")
    with pytest.raises(UserError, match=f"schema version {MAJOR + 1}.0, this program reads"):
        load_run(run.path)


def test_what_is_wrong_stays_wrong_in_a_newer_file(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun())
    extend(run, NEWER)
    edit_manifest(run, lambda raw: raw.update(seed="x"))
    with pytest.raises(UserError, match="seed"):
        load_run(run.path)


def test_the_known_part_leaves_the_given_data_as_it_was(tmp_path: Path) -> None:
    data = yaml.safe_load(write_run(tmp_path, FakeRun()).config_path.read_text())
    data["point"]["task"]["extra"] = 1
    text = json.dumps(data)
    assert unknown_keys(LivePoint, data) == [("point", "task", "extra")]
    assert "extra" not in known_part(LivePoint, data)["point"]["task"]
    assert json.dumps(data) == text

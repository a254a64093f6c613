"""What is the same on two hosts is the same measurement, wherever each host keeps it."""

from pathlib import Path

import pytest

from analysis.archive import archive
from analysis.point.point import analyse_all
from analysis.runs.identity import Identity
from analysis.runs.run import load_runs
from tests.fakes.rundirs import FakeRun, write_run

LINES = "c" * 64


def on_host(root: Path, cache: str, repeat: int = 0, lines: str | None = LINES, **changes) -> Path:
    """A run whose host keeps its models, and names its prompt file, in its own way."""
    run = write_run(root, FakeRun(repeat=repeat, started_s=100 * repeat, **changes)).path
    for name, old, new in (
        ("manifest.json", "models/none", cache),
        ("config.yaml", "0" * 64, str(repeat) * 64),
        ("config.yaml", "prompt_lines_sha256: null", f"prompt_lines_sha256: {lines or 'null'}"),
    ):
        text = (run / name).read_text()
        assert old in text
        (run / name).write_text(text.replace(old, new))
    return run


def identities(root: Path) -> list[Identity]:
    return [run.identity for run in load_runs(root)]


def test_one_built_model_and_equal_prompts_of_two_hosts_are_one_cell(tmp_path: Path) -> None:
    on_host(tmp_path, "/opt/cache/models/tiny-0123456789")
    on_host(tmp_path, "/home/me/repo/.cache/models/tiny-0123456789", repeat=1)
    one, other = identities(tmp_path)
    assert one.candidate == other.candidate and hash(one.candidate) == hash(other.candidate)
    assert one.workload == other.workload
    assert len({point.scenario for point in analyse_all(load_runs(tmp_path))}) == 1


@pytest.mark.parametrize(
    ("second", "lines"),
    [("/a/models/tiny-9999999999", LINES), ("/a/models/tiny-0123456789", "d" * 64)],
    ids=["another build", "other prompts"],
)
def test_another_build_or_other_prompts_are_not_pooled(
    tmp_path: Path, second: str, lines: str
) -> None:
    on_host(tmp_path, "/a/models/tiny-0123456789")
    on_host(tmp_path, second, repeat=1, lines=lines)
    one, other = identities(tmp_path)
    assert (one.candidate, one.workload) != (other.candidate, other.workload)


def test_a_run_of_before_goes_by_the_hash_of_the_prompt_file(tmp_path: Path) -> None:
    on_host(tmp_path, "/a/models/tiny-0123456789", lines=None)
    on_host(tmp_path, "/b/models/tiny-0123456789", repeat=1, lines=None)
    assert [each.workload.prompts for each in identities(tmp_path)] == ["0" * 64, "1" * 64]


def test_an_archive_keeps_the_hash_that_an_older_run_has_in_its_prompt_file(tmp_path: Path) -> None:
    run = on_host(tmp_path / "runs", "/a/models/tiny-0123456789", lines=None)
    prompts = run.parent / "prompts"
    prompts.mkdir()
    (prompts / "tiny.jsonl").write_text(f'{{"request":{{}},"sha256":"{LINES}"}}\n{{}}\n')
    archive(tmp_path / "runs", tmp_path / "kept")
    assert [each.workload.prompts for each in identities(tmp_path / "kept")] == [LINES]

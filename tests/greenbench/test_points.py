"""`greenbench runs`: what is listed is what is there, and what is deleted is one point and nothing else."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from greenbench import points
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import RunDir
from greenbench.points import delete, kept_sentence, list_lines, redo, show_lines
from greenbench.sweep.claims import Claim
from greenbench.sweep.report_rules import usable_hashes
from tests.fakes.manifests import manifest
from tests.fakes.rundirs import FakeRun, write_run
from tests.fakes.waiting import HUNG_S

LONG_WHY = "the server's own words go on and on: " + "something was wrong with it, " * 6


def point(out: Path, run_id: str, **changes: object) -> RunDir:
    return RunDir.create(out / run_id, manifest(run_id=run_id, **changes), "")


def command(*argv: str, answer: str = "") -> subprocess.CompletedProcess[str]:
    code = "from greenbench.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "runs", *argv],
        input=answer,
        capture_output=True,
        text=True,
        timeout=HUNG_S,
        check=False,
        env=dict(os.environ),
    )


def test_a_list_names_each_point_with_its_status_and_reason_within_80_columns(
    tmp_path: Path,
) -> None:
    point(tmp_path / "a", "20261123T000000Z-x", status="complete")
    point(tmp_path / "a", "20261123T000001Z-x", status="failed", failure=LONG_WHY)
    point(tmp_path / "b", "20261123T000002Z-y", status="invalid", invalid_reasons=["disk_full"])
    (point(tmp_path / "b", "20261123T000003Z-y").manifest_path).write_text("{")
    lines = list(list_lines(tmp_path))
    text = "\n".join(lines)
    assert lines[0] == str(tmp_path / "a")
    assert lines[1].split() == ["complete", "20261123T000000Z-x"]
    assert "disk was full" in text and "cannot be read as JSON" in text
    assert lines[-1] == "4 points: 1 complete, 1 failed, 1 invalid, 1 unreadable"
    said = " ".join(line.strip() for line in lines)
    assert LONG_WHY.strip() in said
    assert all(len(line) <= 80 for line in lines if str(tmp_path) not in line)


@pytest.mark.parametrize(("own_ms", "counted"), [(1.2, True), (100.0, False)])
def test_a_list_says_of_a_late_answer_that_it_was_not_the_client_s(
    tmp_path: Path, own_ms: float, counted: bool
) -> None:
    """It said "invalid" alone of points that stand in results/h200's tables."""
    audit = {
        "over_budget": True,
        "reasons": ["TTFT over the server's own p50 is 144 ms, at most 96.4 ms was allowed"],
        "figures": {"loop_lag": {"p99_ms": own_ms}, "kernel_to_user_delay": {"p99_ms": 1.2}},
    }
    late = {"status": "invalid", "invalid_reasons": ["client_bound"], "client_audit": {"c": audit}}
    point(tmp_path, "20261123T000000Z-x", **late)
    said = " ".join(line.strip() for line in list_lines(tmp_path))
    assert (
        "the client was not late, so a report does not hold it against the point" in said
    ) == counted


def test_points_below_a_folder_of_cards_are_listed_too(tmp_path: Path) -> None:
    point(tmp_path / "demo", "20261123T000000Z-x", status="complete")
    point(tmp_path / "my" / "card0", "20261123T000001Z-x", status="complete")
    assert list(list_lines(tmp_path))[-1] == "2 points: 2 complete"


def test_an_empty_folder_has_no_points(tmp_path: Path) -> None:
    for root in (tmp_path, tmp_path / "absent"):
        with pytest.raises(UserError, match="holds no points"):
            list(list_lines(root))


def test_show_says_what_ran_and_what_it_left(tmp_path: Path) -> None:
    run = write_run(tmp_path, FakeRun(backend="alpha", context_tokens=2048))
    shown = {line.split()[0]: line.split()[1:] for line in show_lines(run.path) if line[0] != " "}
    assert shown["point"] == [run.path.name]
    assert shown["task"] == ["retrieve,", "2048", "tokens"]
    counts = run.manifest().counts
    assert shown["requests"] == [str(counts.ok), "good,", str(counts.failed), "failed"]
    assert any(name.startswith("requests/") for name in shown["files"])


def test_a_point_that_is_marked_is_measured_again_though_it_was_measured_twice(
    tmp_path: Path,
) -> None:
    first = write_run(tmp_path, FakeRun(started_s=0))
    second = write_run(tmp_path, FakeRun(started_s=100))
    other = write_run(tmp_path, FakeRun(backend="beta"))
    hashes = {run.manifest().config_hash for run in (first, second, other)}
    assert len(hashes) == 2
    assert usable_hashes(tmp_path, hashes)[0] == hashes
    sentence = redo(first.path)
    assert first.path.name in sentence and second.path.name in sentence
    assert other.path.name not in sentence
    assert usable_hashes(tmp_path, hashes)[0] == {other.manifest().config_hash}
    assert second.manifest().invalid_reasons == ["redo_asked"]
    assert "measured again anyway" in redo(first.path)


def test_one_point_is_deleted_and_nothing_that_it_links_to(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / "thesis.tex").write_text("years of work")
    gone, stays = point(tmp_path / "s", "gone"), point(tmp_path / "s", "stays")
    (gone.path / "derived").symlink_to(elsewhere)
    (gone.path / "outputs" / "file").symlink_to(elsewhere / "thesis.tex")
    assert delete(gone.path) == "deleted gone"
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == ["stays"]
    assert stays.manifest().run_id == "stays"
    assert (elsewhere / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("action", [redo, delete])
def test_a_point_of_a_read_only_archive_is_left_as_it_is(
    action: Callable[[Path], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = point(tmp_path, "kept", status="complete")
    monkeypatch.setattr(points.os, "access", lambda path, mode: False)
    with pytest.raises(UserError, match="nothing can be changed there") as error:
        action(run.path)
    assert "--out" not in str(error.value)
    assert run.manifest().status == "complete" and not (tmp_path / "runners").exists()


def test_what_is_no_point_is_not_deleted(tmp_path: Path) -> None:
    run = point(tmp_path / "s", "r")
    (tmp_path / "link").symlink_to(run.path)
    (run.path / "data").mkdir()
    renamed = point(tmp_path / "s", "other")
    renamed.path.rename(tmp_path / "home")
    for wrong, why in (
        (tmp_path / "s", "is no point"),
        (run.path / "data", "is no point"),
        (run.path / "data" / "..", ""),  # the point itself, by another name
        (tmp_path / "link", "is a link"),
        (tmp_path / "home", "its manifest is of other"),
        (Path("/"), "is no point"),
    ):
        if why:
            with pytest.raises(UserError, match=why):
                delete(wrong)
    assert (run.manifest_path).is_file() and (tmp_path / "home" / "manifest.json").is_file()
    assert delete(run.path / "data" / "..") == "deleted r"


def test_a_folder_in_which_a_sweep_is_at_work_is_left_alone(tmp_path: Path) -> None:
    run = point(tmp_path, "r", status="complete")
    code = (
        "import sys; from pathlib import Path; from greenbench.sweep.claims import Claim\n"
        "with Claim(Path(sys.argv[1])): print('claimed', flush=True); sys.stdin.read()"
    )
    argv = [sys.executable, "-c", code, str(tmp_path)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as sweep:
        assert sweep.stdout is not None and sweep.stdout.readline() == b"claimed\n"
        for action in (redo, delete):
            with pytest.raises(UserError, match="still at work here"):
                action(run.path)
    assert run.manifest().status == "complete"
    with Claim(tmp_path):  # it left; ours is taken without a word
        pass


def test_deleting_asks_first(tmp_path: Path) -> None:
    run = point(tmp_path, "r")
    no = command("delete", str(run.path), answer="n\n")
    assert no.returncode == 1 and "delete r (running)" in no.stdout and run.path.is_dir()
    nobody = command("delete", str(run.path))
    assert nobody.returncode == 1 and run.path.is_dir()
    yes = command("delete", str(run.path), "--yes")
    assert (yes.returncode, yes.stdout) == (0, "deleted r\n")
    assert not run.path.exists()
    again = command("delete", str(run.path), "--yes")
    assert again.returncode == 2 and again.stderr.startswith(f"error: {run.path} is no point")


def test_what_an_interrupted_sweep_kept_is_counted(tmp_path: Path) -> None:
    point(tmp_path, "b", status="failed")
    assert kept_sentence(tmp_path) == (
        "interrupted: no point is complete yet; run the same command again to go on"
    )
    point(tmp_path, "a", status="complete")
    assert kept_sentence(tmp_path).startswith(f"interrupted: 1 complete point kept in {tmp_path}; ")

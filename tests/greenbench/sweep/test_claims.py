"""Two runs on one folder: the second leaves the first alone, and takes over from a dead one."""

import errno
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import write_atomic
from greenbench.sweep import claims
from greenbench.sweep.claims import RUNNERS_DIR, Claim, ClaimLost, Runner
from greenbench.sweep.orphans import RUNNER_FILE, stop_orphans
from tests.fakes.manifests import manifest
from tests.fakes.waiting import HUNG_S, wait_until

HOLD = (
    "import sys, time; from pathlib import Path; from greenbench.sweep.claims import Claim;"
    "blocks = frozenset(map(int, sys.argv[2].split(','))) if sys.argv[2] else None;"
    "claim = Claim(Path(sys.argv[1]), blocks); claim.__enter__(); print('held', flush=True); time.sleep(600)"
)


@pytest.fixture
def hold() -> Iterator[Callable[[Path, str], subprocess.Popen[str]]]:
    """Starts a process that claims a folder and keeps it."""
    started: list[subprocess.Popen[str]] = []

    def begin(out: Path, blocks: str = "") -> subprocess.Popen[str]:
        argv = [sys.executable, "-c", HOLD, str(out), blocks]
        process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True)
        started.append(process)
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        return process

    yield begin
    for process in started:
        process.kill()
        process.wait(HUNG_S)


def contents(out: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_second_run_says_one_sentence_and_touches_nothing(
    tmp_path: Path, hold: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    first = hold(tmp_path / "out", "")
    before = contents(tmp_path)
    with (
        pytest.raises(
            UserError, match=f"the sweep with process id {first.pid} is still at work here; "
        ),
        Claim(tmp_path / "out"),
    ):
        pass
    assert contents(tmp_path) == before
    assert first.poll() is None


def test_a_folder_that_a_refused_sweep_made_is_taken_away_and_no_other(tmp_path: Path) -> None:
    for out, left in ((tmp_path / "runs" / "new", []), (tmp_path / "mine", ["mine"])):
        if left:
            out.mkdir()
        with pytest.raises(UserError), Claim(out):
            raise UserError("about 8 min are needed")
        assert [path.name for path in tmp_path.iterdir()] == left


def test_a_folder_with_a_result_stays(tmp_path: Path) -> None:
    out = tmp_path / "runs" / "new"
    with pytest.raises(UserError), Claim(out):
        (out / "sweep.yaml").touch()
        raise UserError("refused later")
    assert [path.name for path in out.iterdir()] == ["sweep.yaml"]


def test_a_killed_runs_claim_is_taken_over_and_said(
    tmp_path: Path, hold: Callable[[Path, str], subprocess.Popen[str]]
) -> None:
    first = hold(tmp_path, "")
    first.kill()
    first.wait(HUNG_S)
    with Claim(tmp_path) as claim:
        assert claim.notes == [
            f"the sweep with process id {first.pid} was killed here; this one takes over"
        ]
        assert len(list((tmp_path / RUNNERS_DIR).glob("*.json"))) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_claim_keeps_room_for_the_last_words_of_a_point(tmp_path: Path) -> None:
    with Claim(tmp_path) as claim:
        (room,) = (tmp_path / RUNNERS_DIR).glob("*.room")
        assert room.stat().st_blocks * 512 >= claims.ROOM_BYTES
        claim.give_up_room()
        assert not room.exists()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("theirs", "ours", "shared"),
    [("0,2", {1}, True), ("0,2", {1, 2}, False), ("0,2", None, False), ("", {1}, False)],
)
def test_runners_share_a_folder_where_no_repeat_is_common(
    tmp_path: Path,
    hold: Callable[[Path, str], subprocess.Popen[str]],
    theirs: str,
    ours: set[int] | None,
    shared: bool,
) -> None:
    hold(tmp_path, theirs)
    try:
        with Claim(tmp_path, None if ours is None else frozenset(ours)):
            entered = True
    except UserError:
        entered = False
    assert entered is shared


def other(**changes: object) -> Runner:
    return Runner.this().model_copy(update={"pid": os.getppid(), **changes})


def claimed_by(out: Path, runner: Runner) -> Path:
    path = out / RUNNERS_DIR / "other.json"
    path.parent.mkdir(parents=True)
    write_atomic(path, runner.model_dump_json())
    return path


def test_a_process_id_that_is_used_anew_is_no_living_sweep(tmp_path: Path) -> None:
    claimed_by(tmp_path, other(started="1"))
    with Claim(tmp_path) as claim:
        assert len(claim.notes) == 1


@pytest.mark.parametrize("moves", [True, False])
def test_a_sweep_of_another_machine_lives_while_its_file_moves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moves: bool
) -> None:
    """Its process id says nothing here: here it is that of a living process, of another program."""
    monkeypatch.setattr(claims, "SILENCE_S", 1.0)
    path = claimed_by(tmp_path, other(machine="another boot", host="node7"))
    over = threading.Event()

    def renew() -> None:
        while moves and not over.wait(0.05):
            os.utime(path)

    thread = threading.Thread(target=renew)
    thread.start()
    try:
        with Claim(tmp_path) as claim:
            assert not moves
            assert claim.notes[0].startswith(
                f"the sweep with process id {os.getppid()} on node7 was"
            )
    except UserError as error:
        assert moves and "on node7 is still at work here" in str(error)
    finally:
        over.set()
        thread.join()


def test_the_claim_of_a_living_sweep_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    with Claim(tmp_path):
        (path,) = (tmp_path / RUNNERS_DIR).glob("*.json")
        first = path.stat().st_mtime_ns
        wait_until(lambda: path.stat().st_mtime_ns > first, "a claim that is renewed")


def test_a_sweep_that_was_taken_for_dead_measures_nothing_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claims, "RENEW_S", 0.05)
    with Claim(tmp_path) as claim:
        claim.check()
        (path,) = (tmp_path / RUNNERS_DIR).glob("*.json")
        path.unlink()

        def lost() -> bool:
            try:
                claim.check()
            except ClaimLost as error:
                return "another took it for dead" in str(error)
            return False

        wait_until(lost, "a claim that is known to be lost")


@pytest.mark.parametrize("lives", [True, False])
def test_an_orphan_is_a_server_whose_sweep_is_dead(tmp_path: Path, lives: bool) -> None:
    """The grave one: a second run called the server of a living sweep an orphan and killed it."""
    sleeper = [sys.executable, "-c", "import time; time.sleep(600)"]
    server = subprocess.Popen(sleeper, start_new_session=True)
    sweep = subprocess.Popen(sleeper)
    try:
        started = claims.process_start(sweep.pid)
        folder = tmp_path / "servers" / "s0"
        folder.mkdir(parents=True)
        runner = other(pid=sweep.pid, started=started, since_unix_ns=time.time_ns())
        (folder / RUNNER_FILE).write_text(runner.model_dump_json())
        created_s = psutil.Process(server.pid).create_time()
        facts = manifest().server.model_copy(update={"pid": server.pid, "pid_created_s": created_s})
        state = f'{{"state": "ready", "error": null, "server": {facts.model_dump_json()}}}'
        (folder / "server.json").write_text(state)
        if not lives:
            sweep.kill()
            sweep.wait(HUNG_S)
        said = list(stop_orphans(tmp_path))
        assert said == ([] if lives else [f"stopped orphan server process {server.pid} of s0"])
        assert (server.poll() is None) is lives
    finally:
        for process in (server, sweep):
            process.kill()
            process.wait(HUNG_S)


def test_a_zombie_is_dead() -> None:
    child = subprocess.Popen(["true"])
    wait_until(
        lambda: psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE, "a child that ended"
    )
    assert claims.process_start(child.pid) is None
    child.wait(HUNG_S)


def test_a_folder_that_cannot_hold_a_claim_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(UserError, match="results cannot be written there"),
        Claim(tmp_path / "file"),
    ):
        pass


def its_file(out: Path) -> Path:
    (path,) = (out / RUNNERS_DIR).glob("*.json")
    return path


def test_after_a_silence_a_claim_is_looked_at_again_when_another_has_had_its_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one saw its last look at a still file, and takes it away only after we went on."""
    monkeypatch.setattr(claims, "SILENCE_S", 0.2)
    with Claim(tmp_path) as claim:
        time.sleep(0.3)
        path = its_file(tmp_path)
        slept: list[float] = []

        def taken_away(seconds: float) -> None:
            slept.append(seconds)
            path.unlink()

        with monkeypatch.context() as patched:
            patched.setattr(claims.time, "sleep", taken_away)
            with pytest.raises(ClaimLost, match="another took it for dead"):
                claim.look()
    assert slept == [claims.SETTLE_S]
    assert claims.SETTLE_S > claims.LOOK_S


def test_a_look_asks_the_disk_only_after_a_silence(tmp_path: Path) -> None:
    with Claim(tmp_path) as claim:
        its_file(tmp_path).unlink()
        claim.look()
        with pytest.raises(ClaimLost):
            claim.check()


def test_a_disk_that_cannot_be_read_for_a_moment_is_no_lost_claim(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(path: Path) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with Claim(tmp_path) as claim:
        with monkeypatch.context() as patched:
            patched.setattr(Path, "read_bytes", fails)
            with pytest.raises(ClaimLost, match="cannot read whether the folder is still its own"):
                claim.check()
        claim.check()


def test_two_machines_with_one_name_and_one_process_id_have_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pods in their node's network have its name, and process ids of their own."""
    with Claim(tmp_path, frozenset({0})) as first:
        with monkeypatch.context() as patched:
            patched.setattr(claims, "this_machine", lambda: "another pod")
            with Claim(tmp_path, frozenset({1})):
                assert len(list((tmp_path / RUNNERS_DIR).glob("*.json"))) == 2
        first.check()

"""Work in processes of its own: what it gives, what it raises, and that none outlives the command."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from greenbench.contract.errors import UserError
from planning.side_by_side import side_by_side
from tests.fakes.waiting import wait_until

ROOT = Path(__file__).resolve().parents[2]
WAITS = """
import os, sys, time
from pathlib import Path
from greenbench.contract.errors import exit_on_user_error
from planning.side_by_side import side_by_side

def waits(seconds):
    Path(sys.argv[1], str(os.getpid())).touch()
    time.sleep(seconds)

if __name__ == "__main__":
    raise SystemExit(exit_on_user_error(lambda: side_by_side(waits, [600, 601, 602])))
"""


def pid_after(seconds: float) -> int:
    time.sleep(seconds)
    return os.getpid()


def refused(name: str) -> None:
    if name == "waits":
        time.sleep(600)
    raise UserError(f"{name}: refused")


def native_threads(numbers: list[float]) -> int:
    """Those of this process that are none of Python's, once it did linear algebra."""
    np.linalg.qr(np.array([numbers, numbers]))
    return len([*Path("/proc/self/task").iterdir()]) - threading.active_count()


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})


def test_each_in_a_process_of_its_own_and_in_order(two_cores: None) -> None:
    """Both sleep at once; -3 is done long before."""
    assert side_by_side(abs, [-1, 2, -3]) == [1, 2, 3]
    first, second = side_by_side(pid_after, [2, 2.1])
    assert len({first, second, os.getpid()}) == 3


def test_nothing_is_started_for_one(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    assert side_by_side(pid_after, [0]) == [os.getpid()]
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3})
    assert side_by_side(pid_after, [0, 0]) == [os.getpid()] * 2


def test_a_process_has_no_thread_for_linear_algebra_beside_its_own(
    two_cores: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of as many as there are cores; what a person set for other programs stays."""
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "2")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert side_by_side(native_threads, [[1.0], [2.0]]) == [0, 0]
    assert os.environ["OPENBLAS_NUM_THREADS"] == "2" and "OMP_NUM_THREADS" not in os.environ


def test_what_one_raises_ends_the_others(two_cores: None) -> None:
    started = time.monotonic()
    with pytest.raises(UserError, match=r"^first: refused$"):
        side_by_side(refused, ["first", "waits", "waits"])
    assert time.monotonic() - started < 60


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -9)])
def test_none_outlives_the_command(tmp_path: Path, how: signal.Signals, code: int) -> None:
    """Ctrl-C goes to all of them, as from a terminal, and is answered without a word.

    It comes when each is at work: one whose parent is killed while it begins cannot read what to do, and
    says so.
    """
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one core: no process is started")
    script = tmp_path / "waits.py"
    script.write_text(WAITS)
    at_work = tmp_path / "at-work"
    at_work.mkdir()
    command = subprocess.Popen(
        [sys.executable, str(script), str(at_work)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        started = workers(at_work)
        if how is signal.SIGINT:
            os.killpg(command.pid, how)
        else:
            command.kill()
        _, said = command.communicate(timeout=60)  # the last of them to end closes stderr
        assert command.returncode == code and "Traceback" not in said
        assert not psutil.wait_procs(started, timeout=60)[1]
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)


def workers(at_work: Path) -> list[psutil.Process]:
    """All of them, once each has begun with one of the three things: its id is then a file's name."""
    expected = min(3, len(os.sched_getaffinity(0)))

    def begun() -> list[int]:
        found = [int(path.name) for path in at_work.iterdir()]
        return found if len(found) == expected else []

    return [psutil.Process(pid) for pid in wait_until(begun, "the workers begin")]

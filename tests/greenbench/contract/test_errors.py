"""One boundary for every command: what a person or the system did wrong is one line, and no traceback."""

import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from greenbench.contract.errors import (
    exit_on_user_error,
    how_it_ended,
    sentence_of,
    signal_name,
    system_sentence,
)
from greenbench.contract.run_dir import write_atomic


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "runs/a"), 2, "runs/a: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), 2, "No space left on device"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), 2, "/x: Read-only file system"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), 2, "/x: Permission denied"),
        (RecursionError("maximum depth"), 2, "the input is nested too deeply to be read"),
    ],
)  # fmt: skip
def test_what_the_system_refuses_is_one_line(
    raised: Exception, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    def command() -> None:
        raise raised

    assert exit_on_user_error(command) == code
    assert capsys.readouterr().err == f"error: {said}\n"


def test_a_fault_of_ours_is_not_hidden() -> None:
    def command() -> None:
        raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        exit_on_user_error(command)


def test_a_reader_that_went_away_ends_a_command_without_a_word() -> None:
    """As with ``| head -1``."""
    code = (
        "import sys; from greenbench.contract.errors import exit_on_user_error\n"
        "def command():\n"
        "    while True: print('line ' * 1000, flush=True)\n"
        "sys.exit(exit_on_user_error(command))"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None and process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(60) == 128 + signal.SIGPIPE
    assert process.stderr.read() == b""


def test_the_sentence_of_a_stage_is_its_last_word_for_people() -> None:
    assert sentence_of("noise\nerror: first\nerror: second\nmore noise\n") == "second"
    assert sentence_of("failed: nobody listens") == "nobody listens"
    assert sentence_of("  error: indented\n") == "indented"
    assert sentence_of("an error: in the middle\n") is None
    assert sentence_of("") is None


def test_signals_have_their_names_and_unknown_ones_their_numbers() -> None:
    assert signal_name(9) == "SIGKILL"
    assert signal_name(63) == "signal 63"
    assert how_it_ended(-4).startswith("it died of SIGILL (")


def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "manifest.json"
    write_atomic(path, "old")

    def full(self: Path, *_: object, **__: object) -> None:
        with self.open("w") as file:
            file.write("ne")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space left") as told:
        write_atomic(path, "new")
    assert system_sentence(told.value) == f"{path}: No space left on device"
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]

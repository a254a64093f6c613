"""A terminal sees what others wrote as text, and obeys none of it."""

import io
import re

import pytest
from rich.console import Console

from greenbench.contract.errors import UserError, exit_on_user_error
from greenbench.contract.terminal import visible
from greenbench.sweep.progress import SweepProgress

ESC = "\x1b"


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("a plain sentence, in µs and 中文.", "a plain sentence, in µs and 中文."),
        (f"{ESC}[2J{ESC}[31mred", r"\x1b[2J\x1b[31mred"),
        ("all is well\rerror", r"all is well\rerror"),
        ("one\ntwo\tthree", r"one\ntwo\tthree"),
        ("\x9b1A", r"\x9b1A"),  # the same as ESC [ in one character
        ("abc\u202edcba", r"abc\u202edcba"),  # turns the rest of the line round
        ("\ud800", r"\ud800"),
    ],
)
def test_what_moves_a_cursor_is_shown_as_an_escape(text: str, seen: str) -> None:
    assert visible(text) == seen
    assert visible(seen) == seen  # a sentence that passed two commands


def test_an_error_that_holds_a_servers_words_is_one_line_without_control_characters(
    capsys: pytest.CaptureFixture[str],
) -> None:
    def command() -> None:
        raise UserError(f"the server says: {ESC}]0;owned\x07\nerror: all is well")

    assert exit_on_user_error(command) == 2
    assert capsys.readouterr().err == (
        "error: the server says: \\x1b]0;owned\\x07\\nerror: all is well\n"
    )


def test_a_sweeps_progress_escapes_sentences_and_leaves_brackets_as_they_are(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with SweepProgress(Console(soft_wrap=True)) as view:
        view.note(f"a server says {ESC}[2J[bold]")
    assert capsys.readouterr().out == "note: a server says \\x1b[2J[bold]\n"


def test_a_sweeps_progress_fits_80_columns() -> None:
    """Words wrap, and the bar leaves room for a long name and both times."""
    output = io.StringIO()
    console = Console(file=output, force_terminal=True, width=80, color_system=None)
    with SweepProgress(console) as view:
        view.start(16, 0)
        view.note("a long sentence of a server " * 8)
        view.progress.update(
            view.progress.task_ids[0], description="sink_window retrieve-8192-closed8"
        )
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", output.getvalue()).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= 80
    assert any(
        "retrieve-8192-closed8" in line and "0/16" in line and "left" in line for line in lines
    )

"""Flags of `python -m telemetry`: a value that cannot be meant ends with 2 before anything is sampled."""

import os

import pytest

from telemetry.__main__ import main, running


@pytest.mark.parametrize(
    ("command", "flag", "value", "wanted"),
    [
        (
            "serve",
            "--port",
            "80000",
            "a port from 0 to 65535",
        ),  # ended in a traceback of the socket
        ("serve", "--port", "x", "a port from 0 to 65535"),
        ("serve", "--port", "²", "a port from 0 to 65535"),  # a digit to Python, and no number
        ("serve", "--period-s", "0", "a number above 0"),  # these sampled without a pause
        ("serve", "--period-s", "-1", "a number above 0"),
        ("serve", "--period-s", "nan", "a number above 0"),
        # these served a page without the process, and said nothing
        ("serve", "--pid", str(2**22 + 1), "the ID of a running process"),  # above Linux's highest
        ("serve", "--pid", "0", "the ID of a running process"),
        ("serve", "--pid", "-1", "the ID of a running process"),
        ("serve", "--pid", str(2**40), "the ID of a running process"),
        ("serve", "--pid", "x", "the ID of a running process"),
        ("record --run-dir .", "--period-s", "0", "a number above 0"),
        ("record --run-dir .", "--scrape-s", "nan", "a number above 0"),
    ],
)
def test_a_value_that_cannot_be_meant_is_one_sentence(
    command: str, flag: str, value: str, wanted: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), flag, value])
    assert ended.value.code == 2
    assert f"argument {flag}: {wanted} is wanted, found '{value}'" in capsys.readouterr().err


def test_a_process_that_runs_is_taken() -> None:
    assert running(str(os.getpid())) == os.getpid()

"""The command: what its subcommands call themselves, and sentences about what was typed."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from greenbench import cli
from greenbench.contract.command_name import TYPED_AS, typed_as
from greenbench.contract.errors import UserError


@pytest.mark.parametrize(
    "typed", ["report", "check", "backends", "verify", "import", "ceilings", "energy-selftest"]
)
def test_a_stage_is_told_what_was_typed(typed: str, monkeypatch: pytest.MonkeyPatch) -> None:
    heard: list[str] = []

    def child(argv: list[str]) -> int:
        heard.append(typed_as("python -m something"))
        return 0

    monkeypatch.setattr(cli, "passthrough", child)
    monkeypatch.setenv(TYPED_AS, "")
    ended = CliRunner().invoke(cli.app, [typed, "--help"], prog_name="greenbench")
    assert (ended.exit_code, heard) == (0, [f"greenbench {typed}"])


@pytest.mark.parametrize(
    ("typed", "usage"),
    [({TYPED_AS: "greenbench report"}, "greenbench report"), ({}, "python -m analysis report")],
)
def test_help_names_the_command_that_was_typed(typed: dict[str, str], usage: str) -> None:
    command = [sys.executable, "-m", "analysis", "report", "--help"]
    environ = {name: value for name, value in os.environ.items() if name != TYPED_AS} | typed
    said = subprocess.run(command, env=environ, capture_output=True, text=True, check=True).stdout
    assert said.startswith(f"usage: {usage} [-h]")


def test_an_unknown_sweep_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UserError) as far:
        cli.find_sweep(tmp_path / "nosuch")
    assert "; known: " in str(far.value) and "demo" in str(far.value)
    with pytest.raises(UserError, match=r"did you mean 'demo'\? Known: "):
        cli.find_sweep(tmp_path / "demmo")
    with pytest.raises(UserError, match="a sweep's YAML file is wanted, found a folder"):
        cli.find_sweep(tmp_path)


@pytest.mark.parametrize("typed", [["run", "demo"], ["choose", "retriever"]])
@pytest.mark.parametrize("out", ["", " "])
def test_a_folder_without_a_name_is_not_the_one_where_one_stands(
    typed: list[str], out: str, tmp_path: Path
) -> None:
    """Guards against `--out "$UNSET"`, which strewed points about the current folder."""
    argv = [Path(sys.executable).with_name("greenbench"), *typed, "--out", out]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    said = "error: --out names no folder; give one, or leave --out away for runs/ here"
    assert (done.returncode, done.stderr.strip()) == (2, said)
    assert list(tmp_path.iterdir()) == []

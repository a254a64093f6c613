"""Flags and the file of pools: what is wrong is one sentence."""

import signal
from pathlib import Path
from typing import Any

import pytest
import uvicorn

from gateway.__main__ import main
from gateway.options import PoolAddress, read_options
from tests.fakes.gateways import policy, write_policy


@pytest.fixture
def path(tmp_path: Path) -> Path:
    content = policy(["a", "b"])
    content["pools"]["a"]["url"] = "http://of-the-policy:1"
    write_policy(tmp_path / "policy.yaml", content)
    return tmp_path / "policy.yaml"


def test_flags_go_before_the_file_and_the_file_before_the_policy(path: Path) -> None:
    assert read_options([f"--policy={path}"]).pools == {
        "a": PoolAddress(url="http://of-the-policy:1")
    }
    pools = path.with_name("pools.yaml")
    pools.write_text("a: http://of-the-file:2/v1/\nb: {url: 'http://x:3', restart: make b}\n")
    options = read_options(
        [f"--policy={path}", f"--pools={pools}", "--pool=b=http://of-the-flag:4"]
    )
    assert options.pools == {
        "a": PoolAddress(url="http://of-the-file:2"),
        "b": PoolAddress(url="http://of-the-flag:4", restart="make b"),
    }


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--pool", "a"], "NAME=URL is wanted, found 'a'"),
        (["--pool", "a=localhost:8000"], "does not start with http://"),
        (["--pool", "a=http://u:p@h"], "holds a user or password"),
        (["--pool", "c=http://h:1"], "pool 'c' is not in"),
        (["--pools", "missing.yaml"], "cannot be read"),
        (["--api-key-env", "no-such name"], "--api-key-env"),
        (["--api-key-env", "GREENBENCH_NOT_SET"], "is not set"),
        (["--tokenizer", "nowhere"], "no tokenizer can be read"),
    ],
)
def test_what_is_wrong_is_said_and_ends_with_2(
    path: Path, flags: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([f"--policy={path}", *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert "\n" not in error


def test_a_default_pool_without_an_address_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_policy(tmp_path / "p.yaml", policy(["a", "b"]))
    assert main([f"--policy={tmp_path / 'p.yaml'}", "--pool=b=http://h:1"]) == 2
    assert "default pool 'a' has no address" in capsys.readouterr().err


def test_a_port_that_is_taken_is_said(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from gateway.__main__ import listen

    with listen("127.0.0.1", 0) as taken:
        port = taken.getsockname()[1]
        assert main([f"--policy={path}", f"--port={port}"]) == 2
    assert "in use" in capsys.readouterr().err


def test_an_end_that_comes_before_the_server_runs_ends_it(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its port is open by then. Such a signal was lost, and the process lived until it was killed."""
    found: list[bool] = []

    def run(server: uvicorn.Server, **_: Any) -> None:
        signal.raise_signal(signal.SIGTERM)
        found.append(server.should_exit)

    monkeypatch.setattr(uvicorn.Server, "run", run)
    before = signal.getsignal(signal.SIGTERM)
    try:
        pools = [f"--pool={name}=http://127.0.0.1:9" for name in ("a", "b")]
        assert main([f"--policy={path}", "--port=0", *pools]) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert found == [True]

"""The client's benchmark goes on without a client that cannot run on this CPU, and says so."""

import importlib
import json
import shutil
import signal
import sys
from pathlib import Path
from types import ModuleType

import pytest

from greenbench.contract.config import ROOT

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="no C compiler on this host")
PEER = "vllm bench serve"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("bench_client")


def client(bench: ModuleType, code: str):
    """A client that runs ``code`` for a program, pinned and watched as all are."""
    rig = importlib.import_module("bench_rig")

    def run(url: str, scenario: object, folder: Path, finish: object):
        rig.run_pinned([sys.executable, "-c", code], folder / "log")
        result = rig.Result(requests=7, seconds=1.0)
        finish()  # type: ignore[operator]
        return result

    return run


@pytest.mark.parametrize(
    ("number", "tries", "said"),
    [
        (
            signal.SIGILL,
            1,
            "vllm bench serve is left out: it died of SIGILL (Illegal instruction): it was built for "
            "instructions that ",
        ),
        (signal.SIGSEGV, 4, "| vllm bench serve | failed: "),  # may be chance: tried each time
    ],
)
def test_an_illegal_instruction_is_said_once_and_costs_nobody_else(
    bench: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    number: signal.Signals,
    tries: int,
    said: str,
) -> None:
    dying = f"import os; os.kill(os.getpid(), {int(number)})"
    monkeypatch.setattr(
        bench, "CLIENTS", {PEER: client(bench, dying), "ours": client(bench, "pass")}
    )
    monkeypatch.setattr(bench, "SCENARIOS", [s for s in bench.SCENARIOS if s.peers][:2])
    results, page = tmp_path / "results.jsonl", tmp_path / "page.md"
    argv = ["bench_client", "--runs", "2", "--results", str(results), "--out", str(page)]
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    lines = [json.loads(line) for line in results.read_text().splitlines()]
    assert [line["client"] for line in lines] == ["ours"] * 4
    told = capsys.readouterr().out
    assert told.count(said) == tries + (number == signal.SIGILL)  # and below the table
    assert page.read_text().count("is left out") == (number == signal.SIGILL)


def test_when_none_can_run_there_is_a_page_without_a_table(
    bench: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(
        bench, "CLIENTS", {PEER: client(bench, "import os; os.kill(os.getpid(), 4)")}
    )
    monkeypatch.setattr(bench, "SCENARIOS", [s for s in bench.SCENARIOS if s.peers][:1])
    page = tmp_path / "page.md"
    argv = ["x", "--runs", "1", "--results", str(tmp_path / "none.jsonl"), "--out", str(page)]
    monkeypatch.setattr(sys, "argv", argv)
    bench.main()
    assert "vllm bench serve is left out" in page.read_text()

"""Host samples: the server's tree, CPU shares, and RAPL that is there, hidden or refused."""

import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from greenbench.contract.clock import Anchor
from telemetry.sensors import rapl
from telemetry.sensors.host import HostReader, ProcessTree, Usage
from tests.fakes.waiting import wait_until

PARENT = """
import subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "x = bytearray(50_000_000); input()"], stdin=subprocess.PIPE)
print(child.pid, flush=True)
input()
child.communicate(b"\\n")
"""


def zone(root: Path, name: str, label: str, energy: str, span: str = "262143328850") -> None:
    (root / name).mkdir(parents=True)
    (root / name / "name").write_text(label + "\n")
    (root / name / "energy_uj").write_text(energy + "\n")
    (root / name / "max_energy_range_uj").write_text(span + "\n")


def test_tree_counts_children_and_is_none_when_the_server_is_gone() -> None:
    """Guards against watching only the launcher: vLLM's engine is a child of it."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout
        child = psutil.Process(int(parent.stdout.readline()))
        wait_until(lambda: child.memory_info().rss >= 50_000_000, "a child of 50 MB")
        tree = ProcessTree(parent.pid)
        usage = tree.usage(0)
        assert usage is not None and usage.processes == 2
        alone = psutil.Process(parent.pid).memory_info().rss
        assert usage.rss_bytes == pytest.approx(alone + child.memory_info().rss, rel=0.05)
        parent.communicate("\n")
    assert tree.usage(1) is None  # gone is None, not 0 bytes


def test_cpu_time_of_a_child_that_ended_stays_in_the_sum() -> None:
    """Guards a cumulative counter that falls when a worker exits."""
    burn = (
        "import time; t = time.process_time() + 0.1\n"
        "while time.process_time() < t: pass\n"
        "print(1, flush=True); input()"
    )
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}]);"
        "print(2, flush=True); input()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout and parent.stdin
        assert parent.stdout.readline() == "1\n"
        tree = ProcessTree(parent.pid)
        with_child = tree.usage(0)
        parent.stdin.write("\n")
        parent.stdin.flush()
        assert parent.stdout.readline() == "2\n"
        after = tree.usage(2_000_000_000)
        parent.communicate("\n")
    assert with_child and after
    assert (with_child.processes, after.processes) == (2, 1)
    assert after.cpu_s >= with_child.cpu_s >= 0.1


def test_first_sample_has_no_cpu_share_and_later_ones_lie_between_0_and_1() -> None:
    reader = HostReader(None, [], Anchor.now())
    assert reader.sample().cpu_busy_share is None
    time.sleep(0.05)
    share = reader.sample().cpu_busy_share
    assert share is not None and 0 <= share <= 1


def test_a_server_that_is_gone_is_null_with_a_word() -> None:
    class Gone:
        def usage(self, mono_ns: int) -> Usage | None:
            return None

    sample = HostReader(Gone(), [], Anchor.now()).sample()
    assert (sample.server_rss_bytes, sample.server_cpu_s) == (None, None)
    assert sample.error == "process:gone"


def test_rapl_zones_are_read_raw_with_their_wrap(tmp_path: Path) -> None:
    zone(tmp_path, "intel-rapl:0", "package-0", "1234")
    zone(tmp_path, "intel-rapl:0:0", "dram", "77", "65712999613")
    zones, capability = rapl.probe(tmp_path)
    assert capability.ok
    assert capability.detail["zones"] == {
        "intel-rapl:0 package-0": 262143328850,
        "intel-rapl:0:0 dram": 65712999613,
    }
    assert rapl.read(zones) == {"intel-rapl:0 package-0": 1234, "intel-rapl:0:0 dram": 77}
    (tmp_path / "intel-rapl:0" / "energy_uj").write_text("gone")
    assert rapl.read(zones) == {"intel-rapl:0:0 dram": 77}  # the failed zone is left out, not 0


def test_rapl_says_why_there_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards zeus's silent None: no tree, an empty tree and a refused read are three reasons."""
    assert "hides it" in str(rapl.probe(tmp_path / "none")[1].reason)
    assert "no intel-rapl zone" in str(rapl.probe(tmp_path)[1].reason)
    zone(tmp_path, "intel-rapl:0", "package-0", "1")
    read_text = Path.read_text

    def refuse(path: Path) -> str:  # root may read a mode-000 file, so the refusal is played
        if path.name == "energy_uj":
            raise PermissionError
        return read_text(path)

    monkeypatch.setattr(Path, "read_text", refuse)
    zones, capability = rapl.probe(tmp_path)
    assert not zones and "root only" in str(capability.reason)

"""What listens does so on this machine alone; a flag opens it, with a warning. (Locust: tests/loadgen.)"""

import ast
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

from greenbench.contract.address import opened_warning
from greenbench.contract.installation import ROOT
from tests.fakes.gateways import policy, write_policy
from tests.fakes.waiting import HUNG_S, wait_until

PACKAGES = (
    "analysis",
    "gateway",
    "greenbench",
    "loadgen",
    "planning",
    "servers",
    "telemetry",
    "scripts",
)
LISTENS = {
    "bind",
    "listen",
    "create_server",
    "start_server",
    "start_http_server",
    "serve_forever",
    "run_simple",
}
# file → what listens there. Two only look for a port; the server is vLLM's, on 127.0.0.1 (test_command.py)
KNOWN = {
    "gateway/__main__.py": "the gateway",
    "telemetry/exporter/exporter.py": "the exporter",
    "greenbench/doctor.py": "whether a port is free",
    "servers/launch/process.py": "whether a port is free",
    "scripts/bench_gateway.py": "whether a port is free",
    "scripts/bench_rig.py": "whether a port is free",
    "scripts/soak/rig.py": "whether a port is free",
    "scripts/soak/proxy.py": "the soak's network, on the loopback alone",
}


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_the_loopback_needs_no_word(host: str) -> None:
    assert opened_warning(host, "the exporter") is None


@pytest.mark.parametrize(
    "host", ["0.0.0.0", "::", "*", "", "10.0.0.5", "node-7", "127.evil.example"]
)
def test_beyond_it_somebody_is_warned(host: str) -> None:
    said = opened_warning(host, "the exporter")
    assert said and said.startswith("the exporter listens on")


def test_nothing_else_listens() -> None:
    found = {
        str(path.relative_to(ROOT))
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Call) and _name(node.func) in LISTENS
    }
    assert found - set(KNOWN) == set()


def _name(called: ast.expr) -> str:
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


@contextmanager
def started(folder: Path, module: str, flags: list[str]) -> Iterator[tuple[psutil.Process, Path]]:
    words, said = [sys.executable, "-m", module], folder / "said"
    if module == "gateway":
        write_policy(folder / "policy.yaml", policy(["a", "b"]))
        words += ["--policy", str(folder / "policy.yaml"), "--pool", "a=http://127.0.0.1:9"]
        words += ["--pool", "b=http://127.0.0.1:9", *flags]
    else:
        words += ["serve", *flags]
    with said.open("w") as out:
        process = subprocess.Popen(words, cwd=ROOT, stdout=out, stderr=out)
    try:
        yield psutil.Process(process.pid), said
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(HUNG_S)


@pytest.mark.parametrize("module", ["telemetry", "gateway"])
@pytest.mark.parametrize("opened", [False, True])
def test_each_listens_where_it_is_told(module: str, opened: bool, tmp_path: Path) -> None:
    flags = ["--port", "0", *(["--host", "0.0.0.0"] if opened else [])]
    with started(tmp_path, module, flags) as (process, said):

        def addresses() -> set[str]:
            assert process.is_running(), said.read_text()
            return {
                c.laddr.ip
                for c in process.net_connections("inet")
                if c.status == psutil.CONN_LISTEN
            }

        assert wait_until(addresses, f"{module} listens") == {"0.0.0.0" if opened else "127.0.0.1"}
        warned = (
            "listens on 0.0.0.0: everyone who reaches this machine can use it" in said.read_text()
        )
    assert warned is opened

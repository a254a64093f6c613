"""What ran where: code version, packages, host. Reads the machine, changes nothing."""

import os
import platform
import shutil
import socket
import subprocess
from importlib import metadata

from greenbench import __version__
from greenbench.contract.cpu import this_cpu
from greenbench.contract.installation import CHECKOUT
from greenbench.contract.manifest import Code, Gpu, Host

PACKAGES = (
    "httpx",
    "locust",
    "gevent",
    "tokenizers",
    "nvidia-ml-py",
    "prometheus-client",
    "pandas",
    "psutil",
    "pydantic",
)
# instruction sets that decide which CPU kernels run
CPU_FLAGS = (
    "avx2",
    "avx512f",
    "avx512_bf16",
    "avx512_vnni",
    "amx_tile",
    "amx_bf16",
    "asimd",
    "sve",
    "bf16",
)
GPU_QUERY = "index,uuid,name,memory.total,power.limit,compute_cap,mig.mode.current"


def code() -> Code:
    sha = _git("rev-parse", "HEAD")
    changes = _git("status", "--porcelain")
    return Code(
        git_sha=sha.strip() if sha else None,
        dirty=None if changes is None or not sha else bool(changes.strip()),
        greenbench=__version__,
        python=platform.python_version(),
        packages={name: package_version(name) for name in PACKAGES},
    )


def _git(*words: str) -> str | None:
    """Of the checkout; None after ``pip install``, where a repository around it would be another's."""
    return None if CHECKOUT is None else _run(["git", "-C", str(CHECKOUT), *words])


def package_version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def host() -> Host:
    cpu = this_cpu()
    return Host(
        cpu=cpu.name,
        cores=len(os.sched_getaffinity(0)),
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        cpu_flags=[flag for flag in CPU_FLAGS if flag in (cpu.flags or ())],
        driver=_smi_line("driver_version"),
        gpus=parse_gpus(_smi(GPU_QUERY) or ""),
    )


def hostname() -> str:
    return socket.gethostname()


def parse_gpus(csv: str) -> list[Gpu]:
    """Rows of ``nvidia-smi --query-gpu=GPU_QUERY --format=csv,noheader,nounits`` (MiB, W)."""
    return [_gpu([cell.strip() for cell in row.split(",")]) for row in csv.splitlines() if row]


def _gpu(cells: list[str]) -> Gpu:
    index, uuid, name, memory_mib, power_w, capability, mig = cells
    return Gpu(
        index=int(index),
        uuid=uuid,
        name=name,
        memory_bytes=int(memory_mib) * 2**20,
        power_limit_w=_number(power_w),
        compute_capability=capability,
        mig={"Enabled": True, "Disabled": False}.get(mig),
    )


def _number(cell: str) -> float | None:
    try:
        return float(cell)
    except ValueError:  # "[N/A]"
        return None


def _smi(query: str) -> str | None:
    if shutil.which("nvidia-smi") is None:
        return None
    return _run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader,nounits"])


def _smi_line(query: str) -> str | None:
    out = _smi(query)
    return out.splitlines()[0].strip() if out else None


def _run(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

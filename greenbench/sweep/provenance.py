"""What ran where: code version, packages, host. Reads the machine, changes nothing."""

import os
import platform
import socket
import subprocess
from importlib import metadata

from greenbench import __version__
from greenbench.contract import nvidia_smi
from greenbench.contract.cpu import this_cpu, usable_cores
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


def host(told: nvidia_smi.SmiAnswer | None = None) -> Host:
    """This machine. A card that cannot be read is left out; what one does not say is null."""
    cpu = this_cpu()
    cards = (told or nvidia_smi.ask()).cards
    return Host(
        cpu=cpu.name,
        cores=usable_cores(),
        ram_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        kernel=platform.release(),
        cpu_flags=[flag for flag in CPU_FLAGS if flag in (cpu.flags or ())],
        driver=next((card.driver for card in cards if card.driver), None),
        gpus=[_gpu(card) for card in cards],
    )


def hostname() -> str:
    return socket.gethostname()


def _gpu(card: nvidia_smi.SmiCard) -> Gpu:
    said = card.capability
    return Gpu(
        index=card.index,
        uuid=card.uuid,
        name=card.name,
        memory_bytes=card.memory_bytes,
        power_limit_w=card.power_limit_w,
        compute_capability=None if said is None else ".".join(map(str, said)),
        mig=card.mig,
    )


def _run(argv: list[str]) -> str | None:
    try:
        done = subprocess.run(argv, capture_output=True, text=True, timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None

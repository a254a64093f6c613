"""What a device can do at most: from configs/gpus.yaml with its source, or measured on the machine.

``python -m analysis ceilings --out runs/ceilings.json`` measures; the report looks for that file in the
folder of the runs or one above, and uses it where host and cores are those of the run.
"""

import json
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from analysis.load import Run
from greenbench.config import CONFIGS, ROOT, StrictModel, load_yaml, parse
from greenbench.errors import UserError
from greenbench.rundir import write_atomic

FILE = "ceilings.json"
TIMEOUT_S = 600


@dataclass(frozen=True)
class Ceiling:
    """FLOP/s in the run's dtype and bytes/s of its memory. ``kind``: spec sheet or measured."""

    kind: str
    flops_per_s: float
    bytes_per_s: float
    source: str

    @property
    def ridge(self) -> float:
        """FLOPs a byte at which compute and memory bound alike."""
        return self.flops_per_s / self.bytes_per_s


class MeasuredPeak(StrictModel):
    bf16_flops: float
    copy_bytes_per_s: float
    source: str


class GpuPeak(StrictModel):
    match: str
    bf16_flops: float
    fp8_flops: float | None = None
    hbm_bytes_per_s: float
    source: str
    measured: MeasuredPeak | None = None


class GpuTable(StrictModel):
    gpus: list[GpuPeak]


class HostCeilings(StrictModel):
    """ceilings.json."""

    host_cpu: str
    cores: int
    device: str
    threads: int
    torch: str
    bf16_flops: float
    fp32_flops: float
    copy_bytes_per_s: float
    read_bytes_per_s: float


@cache
def gpu_table() -> tuple[GpuPeak, ...]:
    path = CONFIGS / "gpus.yaml"
    return tuple(parse(GpuTable, load_yaml(path), str(path)).gpus)


def gpu_ceilings(name: str) -> list[Ceiling]:
    """By the longest ``match`` in the GPU's name; empty for a GPU that the table does not know."""
    known = [peak for peak in gpu_table() if peak.match in name]
    if not known:
        return []
    peak = max(known, key=lambda p: len(p.match))
    found = [Ceiling("spec", peak.bf16_flops, peak.hbm_bytes_per_s, peak.source)]
    if peak.measured:
        own = peak.measured
        found.append(Ceiling("measured", own.bf16_flops, own.copy_bytes_per_s, own.source))
    return found


def find_host_ceilings(root: Path) -> HostCeilings | None:
    for folder in (root, *root.resolve().parents[:2]):
        path = folder / FILE
        if path.is_file():
            return parse(HostCeilings, json.loads(path.read_text()), str(path))
    return None


def run_ceilings(run: Run, host: HostCeilings | None) -> list[Ceiling]:
    """Ceilings of the device a run used; the first is the one verdicts go by (measured before spec)."""
    server, machine = run.manifest.server, run.manifest.host
    cards = max(1, server.tensor_parallel)
    if machine.gpus:
        found = gpu_ceilings(machine.gpus[0].name)
        found = [
            Ceiling(c.kind, c.flops_per_s * cards, c.bytes_per_s * cards, c.source) for c in found
        ]
        return sorted(found, key=lambda c: c.kind != "measured")
    if host is None or (host.host_cpu.strip(), host.cores) != (machine.cpu.strip(), machine.cores):
        return []
    flops = host.fp32_flops if server.dtype == "float32" else host.bf16_flops
    stream = max(host.copy_bytes_per_s, host.read_bytes_per_s)
    return [Ceiling("measured", flops, stream, f"torch {host.torch}, {host.threads} threads")]


def measure_host(out: Path) -> HostCeilings:
    """Time matmul and streams in the server's environment and store the result."""
    python = os.environ.get("VLLM_PYTHON") or str(ROOT / ".venv-vllm" / "bin" / "python")
    try:
        done = subprocess.run(
            [python, "-m", "analysis.ceilings_torch"],
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=True,
            cwd=ROOT,
        )
    except FileNotFoundError as error:
        raise UserError(f"{python}: not there; run `make setup` or set VLLM_PYTHON") from error
    except subprocess.CalledProcessError as error:
        last = (error.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"ceilings could not be measured with {python}: {last}") from error
    found = HostCeilings(
        host_cpu=cpu_name(), cores=os.cpu_count() or 1, **json.loads(done.stdout.splitlines()[-1])
    )
    write_atomic(out, found.model_dump_json(indent=1) + "\n")
    return found


def cpu_name() -> str:
    """As the manifests name it: the model name of /proc/cpuinfo."""
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.is_file() else []
    named = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor()

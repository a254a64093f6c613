"""What a device can do at most: from configs/gpus.yaml with its source, or measured on the machine.

``python -m analysis ceilings --out runs/ceilings.json`` measures; the report looks for that file in the
folder of the runs or one above, and uses it where host and cores are those of the run.
"""

import json
import os
import subprocess
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from analysis.runs.gpus import certain_gpus, untold_gpus
from analysis.runs.run import Run
from greenbench.contract.config import StrictModel, load_yaml, parse
from greenbench.contract.counted import counted
from greenbench.contract.cpu import this_cpu, usable_cores
from greenbench.contract.cuda_devices import model_of
from greenbench.contract.errors import UserError, how_it_ended
from greenbench.contract.installation import INSTALL_VLLM, config_file, plugin_folder
from greenbench.contract.run_dir import read_json, write_atomic
from greenbench.vllm_python import vllm_python

FILE = "ceilings.json"
TIMEOUT_S = 120.0  # it ends by itself in 20 s; more is a machine that does not get on


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
    name: str  # as NVML says it, without its maker
    bf16_flops: float
    hbm_bytes_per_s: float
    source: str
    measured: MeasuredPeak | None = None


class GpuTable(StrictModel):
    gpus: list[GpuPeak]


class HostCeilings(StrictModel):
    """ceilings.json. ``flops_per_s``: of linear layers as the server calls them, by the dtype served."""

    host_cpu: str
    cores: int
    device: str
    threads: int
    torch: str
    flops_per_s: dict[str, float]
    copy_bytes_per_s: float
    read_bytes_per_s: float

    def ceiling(self, dtype: str) -> Ceiling | None:
        """Of a server in ``dtype``; None where that was not measured.

        Never below float32's: on a CPU without instructions for a short dtype its linear layers are
        slower than float32's, while attention in it computes in float32.
        """
        if dtype not in self.flops_per_s:
            return None
        flops = max(self.flops_per_s[dtype], self.flops_per_s.get("float32", 0.0))
        stream = max(self.copy_bytes_per_s, self.read_bytes_per_s)
        source = f"vLLM's linear layers, torch {self.torch}, {counted(self.threads, 'thread')}"
        return Ceiling("measured", flops, stream, source)


@cache
def gpu_table() -> tuple[GpuPeak, ...]:
    path = config_file("gpus.yaml")
    return tuple(parse(GpuTable, load_yaml(path), str(path)).gpus)


def gpu_ceilings(name: str) -> list[Ceiling]:
    """Of the card with this very name; empty for one that the table does not know.

    A part of a name would not do: a GB200 is no B200, and an H200 NVL is slower than an H200.
    """
    peak = next((peak for peak in gpu_table() if peak.name == model_of(name)), None)
    if peak is None:
        return []
    found = [Ceiling("spec", peak.bf16_flops, peak.hbm_bytes_per_s, peak.source)]
    if peak.measured:
        own = peak.measured
        found.append(Ceiling("measured", own.bf16_flops, own.copy_bytes_per_s, own.source))
    return found


def find_host_ceilings(root: Path) -> HostCeilings | None:
    """Of the nearest folder that has them. A file of the older form, by another product, counts as none."""
    for folder in (root, *root.resolve().parents[:2]):
        path = folder / FILE
        if path.is_file():
            body = read_json(path)
            if "bf16_flops" not in body:
                return parse(HostCeilings, body, str(path))
    return None


def run_ceilings(run: Run, host: HostCeilings | None) -> list[Ceiling]:
    """Ceilings of the device a run used; the first is the one verdicts go by (measured before spec).

    None where it is not known which device that is.
    """
    server, machine = run.manifest.server, run.manifest.host
    if machine.gpus and not (run.steps["device"] == "CPU").any():
        names = _names_of_cards(run)
        found = _slowest([gpu_ceilings(name) for name in dict.fromkeys(names)])
        found = [
            Ceiling(c.kind, c.flops_per_s * len(names), c.bytes_per_s * len(names), c.source)
            for c in found
        ]
        return sorted(found, key=lambda c: c.kind != "measured")
    if untold_gpus(run.sources, None):
        return []
    if host is None or (host.host_cpu.strip(), host.cores) != (machine.cpu.strip(), machine.cores):
        return []
    found = host.ceiling(server.dtype)
    return [found] if found else []


def _names_of_cards(run: Run) -> list[str]:
    """Names of the cards that served, one each; empty where they are not known or are parts of cards."""
    cards, count = run.manifest.host.gpus, max(1, run.manifest.server.cards)
    sources = run.sources
    parted = {gpu.uuid for gpu in sources.facts.gpus if gpu.mig}
    used = certain_gpus(run.gpu, sources, count)
    if parted or any(card.mig for card in cards):
        return []
    known = {card.uuid: card.name for card in cards}
    if used and all(uuid in known for uuid in used):
        return [known[uuid] for uuid in used]
    names = {card.name for card in cards}
    return [*names] * count if len(names) == 1 else []


def _slowest(by_card: list[list[Ceiling]]) -> list[Ceiling]:
    """Of unequal cards that serve together the least of each figure: a step waits for the slowest."""
    if len(by_card) < 2 or not all(by_card):
        return by_card[0] if len(by_card) == 1 else []
    specs = [next(c for c in card if c.kind == "spec") for card in by_card]
    flops, stream = min(c.flops_per_s for c in specs), min(c.bytes_per_s for c in specs)
    return [Ceiling("spec", flops, stream, "; ".join(c.source for c in specs))]


def measure_host(out: Path, say: Callable[[str], None]) -> HostCeilings:
    """Time linear layers and streams in the server's environment, telling each, and store the result."""
    python = str(vllm_python())
    argv = [python, "-m", "analysis.bottleneck.peaks_torch"]
    say(f"ceilings of this machine, about 20 s, with {python}")
    found = HostCeilings(
        host_cpu=this_cpu().name,
        cores=usable_cores(),
        **_told(argv, say, TIMEOUT_S),
    )
    write_atomic(out, found.model_dump_json(indent=1) + "\n")
    return found


def _told(argv: list[str], say: Callable[[str], None], limit_s: float) -> dict[str, Any]:
    """The ``found`` of a child that writes lines of JSON; what it ``says`` is passed on as it comes."""
    env = os.environ | {"VLLM_PLUGINS": "none", "VLLM_LOGGING_LEVEL": "ERROR"}
    found: dict[str, Any] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        try:
            child = subprocess.Popen(
                argv, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=plugin_folder(), env=env
            )
        except OSError as error:
            raise UserError(
                f"{argv[0]}: cannot be started ({error.strerror}); {INSTALL_VLLM}"
            ) from error
        late = threading.Event()
        limit = threading.Timer(limit_s, lambda: (late.set(), child.kill()))
        limit.start()
        try:
            assert child.stdout is not None
            for line in child.stdout:
                told = _line(line)
                found = told.get("found", found)
                if "says" in told:
                    say(str(told["says"]))
            code = child.wait()
        finally:
            limit.cancel()
            child.kill()
            child.wait()
        if late.is_set():
            raise UserError(
                f"ceilings were not measured: {argv[0]} took longer than {limit_s:.0f} s; "
                "try again on a quiet machine"
            )
        if found is None:
            errors.seek(0)
            last = (errors.read().strip().splitlines() or [how_it_ended(code)])[-1]
            raise UserError(f"ceilings could not be measured with {argv[0]}: {last}")
        return found


def _line(text: str) -> dict[str, Any]:
    """A line of the child's; words of a library between them are passed over."""
    try:
        told = json.loads(text)
    except json.JSONDecodeError:
        return {}
    return told if isinstance(told, dict) else {}

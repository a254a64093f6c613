"""Which attention implementation was really built, from the server's own model inspection.

A flag or a log line says what was asked for. vLLM on a CPU, for one, logs that it cannot use a backend and
goes on with another. The inspected model tree shows the object that will be called, so that is the proof.
"""

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from greenbench.contract.manifest import ProofVerdict
from servers.backends.registry import FLASH_ATTENTION_IMPLS, FLASHINFER_IMPLS, MLA, Backend
from servers.launch.boot_log import Kernels

_LINE = re.compile(r"^(?P<indent> *)\([^)]*\): (?:(?P<times>\d+) x )?(?P<module>\w+)")
_IMPL = re.compile(r"\bbackend=(\w+)")
# Layers that mix tokens without attention; their kernels follow from the model, not from the backend.
_MIXER = re.compile(
    r"Mamba\w*Mixer\w*|MambaMixer\w*|\w*GatedDeltaNet\w*|ShortConv|\w*LinearAttention\w*"
)
# Of latent attention vLLM's inspection shows the layer and not what computes it.
_LATENT = "MLAAttention"


@dataclass(frozen=True, slots=True)
class Observed:
    """Layers counted by class name."""

    attention: Counter[str] = field(default_factory=Counter[str])
    mixers: Counter[str] = field(default_factory=Counter[str])
    latent: Counter[str] = field(default_factory=Counter[str])


@dataclass(frozen=True, slots=True)
class Proof:
    verdict: ProofVerdict
    observed_backend: str | None
    detail: dict[str, Any]

    @property
    def sentence(self) -> str:
        return str(self.detail["says"])


def count_layers(tree: str) -> Observed:
    """Count attention implementations and other mixers in an inspected model tree.

    vLLM collapses equal layers to a line such as ``(0-3): 4 x LlamaDecoderLayer()(``; everything
    indented below it stands for that many.
    """
    observed = Observed()
    multipliers: list[tuple[int, int]] = []  # (indent, times) of the enclosing lines
    for line in tree.splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        indent = len(match["indent"])
        while multipliers and multipliers[-1][0] >= indent:
            multipliers.pop()
        multipliers.append((indent, int(match["times"] or 1)))
        count = math.prod(times for _, times in multipliers)
        if implementation := _IMPL.search(line):
            observed.attention[implementation[1]] += count
        elif match["module"] == _LATENT:
            observed.latent[_LATENT] += count
        elif _MIXER.fullmatch(match["module"]):
            observed.mixers[match["module"]] += count
    return observed


def judge(backend: Backend, trees: list[str] | None, said: Kernels) -> Proof:
    """Compare the model trees (one a worker), and what the log ``said``, with the row that was asked for."""
    if not trees:
        return _proof("unproven", None, None, said, "the server gives no model inspection")
    workers = [count_layers(tree) for tree in trees]
    observed = workers[0]
    built = {name for worker in workers for name in worker.attention}
    if not built and backend.needs >= MLA:
        return _latent(backend, observed, said)
    if not built:
        return _without_attention(observed, said)
    label = _counted(observed.attention)
    if said.flash_attention is not None and built & FLASH_ATTENTION_IMPLS:
        label += f" (FlashAttention {said.flash_attention})"
    if said.flashinfer_decode is not None and built & FLASHINFER_IMPLS:
        label += f" (decode: {said.flashinfer_decode})"
    strangers = built - {*backend.impls, *backend.beside}
    if strangers or not built & set(backend.impls):
        wanted = " or ".join(backend.impls)
        says = f"{backend.name} builds {wanted}, and the server built {', '.join(sorted(built))}"
        return _proof("mismatch", label, observed, said, says)
    for what, wanted, found in (
        ("FlashAttention", backend.flash_attn_version, said.flash_attention),
        ("FlashInfer's decode kernel", backend.decode_kernel, said.flashinfer_decode),
    ):
        if wanted is not None and found != wanted:
            says = f"{backend.name} wants {what} {wanted}, the log names {found or 'none'}"
            verdict = "unproven" if found is None else "mismatch"
            return _proof(verdict, label, observed, said, says)
    says = f"the model was built with {label}"
    if observed.mixers:
        says += f", beside {_counted(observed.mixers)}, which the model brings"
    return _proof("proven", label, observed, said, says)


def _latent(backend: Backend, observed: Observed, said: Kernels) -> Proof:
    """By the log: vLLM writes the name that it returns, after its own checks of it."""
    if not observed.latent:
        says = f"{backend.name} computes latent attention, and the inspected model shows none"
        return _proof("mismatch", None, observed, said, says)
    chosen = ", ".join(said.chosen) or None
    label = f"{chosen} x{observed.latent.total()}" if chosen else None
    says = f"the model has {_counted(observed.latent)}, and the log names {chosen or 'no backend'}"
    if chosen == backend.vllm_name:
        return _proof("proven", label, observed, said, says)
    return _proof("mismatch" if chosen else "unproven", label, observed, said, says)


def _without_attention(observed: Observed, said: Kernels) -> Proof:
    if not observed.mixers:
        says = "the inspected model shows neither attention nor a mixer that is known here"
        return _proof("unproven", None, observed, said, says)
    label = _counted(observed.mixers)
    says = (
        f"the model has no attention layer; its mixers are {label}; the backend has no part in it"
    )
    return _proof("proven", label, observed, said, says)


def _counted(layers: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(layers.items()))


def _proof(
    verdict: ProofVerdict,
    label: str | None,
    observed: Observed | None,
    said: Kernels,
    says: str,
) -> Proof:
    detail: dict[str, Any] = {
        "says": says,
        "attention_layers": dict(observed.attention + observed.latent) if observed else None,
        "mixer_layers": dict(observed.mixers) if observed else None,
        "flash_attn_version": said.flash_attention,
        "decode_kernel": said.flashinfer_decode,
    }
    return Proof(verdict, label, detail)

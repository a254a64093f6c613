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
from servers.backends.registry import FLASH_ATTENTION_IMPLS, Backend

_LINE = re.compile(r"^(?P<indent> *)\([^)]*\): (?:(?P<times>\d+) x )?(?P<module>\w+)")
_IMPL = re.compile(r"\bbackend=(\w+)")
# Layers that mix tokens without attention; their kernels follow from the model, not from the backend.
_MIXER = re.compile(
    r"Mamba\w*Mixer\w*|MambaMixer\w*|\w*GatedDeltaNet\w*|ShortConv|\w*LinearAttention\w*"
)


@dataclass(frozen=True, slots=True)
class Observed:
    """Layers counted by class name."""

    attention: Counter[str] = field(default_factory=Counter[str])
    mixers: Counter[str] = field(default_factory=Counter[str])


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
        elif _MIXER.fullmatch(match["module"]):
            observed.mixers[match["module"]] += count
    return observed


def judge(backend: Backend, trees: list[str] | None, flash_attn_version: int | None) -> Proof:
    """Compare the model trees (one a worker) with the row that was asked for.

    ``flash_attn_version`` is what the log named, None when it named none.
    """
    if not trees:
        return _proof("unproven", None, None, None, "the server gives no model inspection")
    workers = [count_layers(tree) for tree in trees]
    observed = workers[0]
    built = {name for worker in workers for name in worker.attention}
    if not built:
        return _without_attention(observed)
    label = _counted(observed.attention)
    if flash_attn_version is not None and built & FLASH_ATTENTION_IMPLS:
        label += f" (FlashAttention {flash_attn_version})"
    strangers = built - set(backend.impls)
    if strangers:
        wanted = " or ".join(backend.impls)
        says = f"{backend.name} builds {wanted}, and the server built {', '.join(sorted(built))}"
        return _proof("mismatch", label, observed, flash_attn_version, says)
    if backend.flash_attn_version is not None and flash_attn_version != backend.flash_attn_version:
        named = flash_attn_version or "no version"
        says = f"{backend.name} wants FlashAttention {backend.flash_attn_version}, the log names {named}"
        verdict = "unproven" if flash_attn_version is None else "mismatch"
        return _proof(verdict, label, observed, flash_attn_version, says)
    says = f"the model was built with {label}"
    if observed.mixers:
        says += f", beside {_counted(observed.mixers)}, which the model brings"
    return _proof("proven", label, observed, flash_attn_version, says)


def _without_attention(observed: Observed) -> Proof:
    if not observed.mixers:
        says = "the inspected model shows neither attention nor a mixer that is known here"
        return _proof("unproven", None, observed, None, says)
    label = _counted(observed.mixers)
    says = (
        f"the model has no attention layer; its mixers are {label}; the backend has no part in it"
    )
    return _proof("proven", label, observed, None, says)


def _counted(layers: Counter[str]) -> str:
    return ", ".join(f"{name} x{count}" for name, count in sorted(layers.items()))


def _proof(
    verdict: ProofVerdict,
    label: str | None,
    observed: Observed | None,
    flash_attn_version: int | None,
    says: str,
) -> Proof:
    detail: dict[str, Any] = {
        "says": says,
        "attention_layers": dict(observed.attention) if observed else None,
        "mixer_layers": dict(observed.mixers) if observed else None,
        "flash_attn_version": flash_attn_version,
    }
    return Proof(verdict, label, detail)

"""What else vLLM's registry lists, and why no row of the table is for it.

With the rows these are all of vLLM's names, in each supported release: ``tests/vllm/test_vllm_backends.py``.
"""

from dataclasses import dataclass
from typing import Literal

from greenbench.contract.cuda_devices import Capability
from greenbench.contract.vllm_versions import OLDEST, Release, Series

Kind = Literal[
    "not for this card",
    "for this card, no row yet",
    "chosen by the model",
    "not a backend of text models",
]
ANOTHER_CARD: Kind = "not for this card"
NO_ROW: Kind = "for this card, no row yet"
BY_MODEL: Kind = "chosen by the model"
NO_BACKEND: Kind = "not a backend of text models"


@dataclass(frozen=True, slots=True)
class Other:
    name: str  # vLLM's
    kind: Kind
    why: str
    since: Series = OLDEST.series
    major: int | None = None  # of the cards that it is for

    def on(self, capability: Capability | None) -> Kind:
        fits = capability is not None and capability[0] == self.major
        return NO_ROW if fits else self.kind


_SPARSE = "sparse latent attention with an indexer, as DeepSeek V3.2 has it"
_AMD = "AMD GPUs"
_PREFIX = "prompts with pictures that see each other in both directions"
_MINIMAX = "MiniMax M3's sparse attention"

OTHERS = (
    Other("AMX_MLA", ANOTHER_CARD, "CPUs with AMX, in bfloat16 alone; the row of CPUs runs on all"),
    Other("B12X", ANOTHER_CARD, "compute capability 12.0 and 12.1, with the package b12x", major=12),
    Other("CUTLASS_MLA", ANOTHER_CARD, "latent attention on compute capability 10.x", major=10),
    Other("TOKENSPEED_MLA", ANOTHER_CARD, "the same, with an fp8 KV cache", major=10),
    Other("HPC_ATTN", BY_MODEL, "Hy3 on compute capability 9.0, with the package hpc-ops"),
    Other("XPU_MLA_SPARSE", ANOTHER_CARD, f"Intel GPUs: {_SPARSE}"),
    *(
        Other(name, ANOTHER_CARD, _AMD, since)
        for name, since in (
            ("ROCM_ATTN", (0, 31)),
            ("ROCM_SEGMENTED_ATTN", (0, 32)),
            ("ROCM_OCTAVE", (0, 33)),
            ("ROCM_AITER_FA", (0, 31)),
            ("ROCM_AITER_MLA", (0, 31)),
            ("ROCM_AITER_MLA_SPARSE", (0, 31)),
            ("ROCM_AITER_TRITON_MLA", (0, 31)),
            ("ROCM_AITER_UNIFIED_ATTN", (0, 31)),
            ("ROCM_FLASHMLA_SPARSE_DSV4", (0, 31)),
            ("ROCM_FLASHMLA_SPARSE_DSV41", (0, 33)),
            ("ULTRAQUANT", (0, 32)),
        )
    ),
    *(
        Other(name, BY_MODEL, _SPARSE, since)
        for name, since in (
            ("FLASHMLA_SPARSE", (0, 31)),
            ("FLASHINFER_MLA_SPARSE", (0, 31)),
            ("FLASHINFER_MLA_SPARSE_SM90", (0, 31)),
            ("FLASHINFER_MLA_SPARSE_SM120", (0, 31)),
            ("FLASH_ATTN_MLA_SPARSE", (0, 31)),
            ("FLASH_ATTN_MLA_SPARSE_FA4", (0, 33)),
        )
    ),
    *(
        Other(name, BY_MODEL, "DeepSeek V4's sparse attention")
        for name in (
            "FLASHMLA_SPARSE_DSV4",
            "FLASHINFER_MLA_SPARSE_DSV4",
            "FLASHMLA_SPARSE_DSV41",
            "FLASHINFER_MLA_SPARSE_DSV41",
            "FLASHMLA_MEGA_ATTN_DSV41",
        )
    ),
    *(Other(name, BY_MODEL, _MINIMAX) for name in ("MINIMAX_M3_SPARSE", "CUTLASS_MSA", "TRITON_MSA")),
    Other("STEP5_DSA", BY_MODEL, "Step 5's sparse attention", (0, 33)),
    Other("FLASH_ATTN_DIFFKV", BY_MODEL, "keys and values of different sizes"),
    Other("TRITON_ATTN_DIFFKV", BY_MODEL, "keys and values of different sizes"),
    Other("TRITON_FLASH_ATTN", BY_MODEL, f"{_PREFIX}, on compute capability 9.x"),
    Other("TRITON_FLASHINFER", BY_MODEL, f"{_PREFIX}, on compute capability 10.x"),
    Other("TORCH_SDPA", NO_BACKEND, "a mark of vision encoders, without a class"),
    Other("NO_ATTENTION", NO_BACKEND, "names a module that vLLM does not bring"),
    Other("CUSTOM", NO_BACKEND, "the place of other people's backends; ours are rows of their own"),
)  # fmt: skip
# of layers that are no attention: their kernels follow from the model
MIXERS = tuple(
    Other(name, BY_MODEL, f"its layers that are no attention: {what}")
    for name, what in (
        ("MAMBA1", "Mamba"),
        ("MAMBA2", "Mamba 2"),
        ("SHORT_CONV", "short convolutions"),
        ("LINEAR", "linear attention"),
        ("GDN_ATTN", "gated delta networks"),
    )
)


def others(vllm: Release) -> list[Other]:
    """Of that vLLM."""
    return [each for each in (*OTHERS, *MIXERS) if each.since <= vllm.series]

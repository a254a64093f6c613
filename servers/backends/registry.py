"""The one table of attention backends. Everything else that names a backend reads it from here.

Adding a backend is one row; if it is ours, also one file in ``servers/plugins/``. What vLLM's own rows
say is that of its backend classes (``vllm/v1/attention/backends``), in every release of
``greenbench.contract.vllm_versions``; ``tests/vllm/test_vllm_backends.py`` holds them to it.

A row can also stand outside this checkout, in a person's own YAML file (``servers/backends/custom.py``).
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from greenbench.contract.vllm_versions import PLACEHOLDER, Release, Series
from servers.backends.host_facts import Capability, Device

HALF = ("bfloat16", "float16")
ALL_DTYPES = (*HALF, "float32")
MOST_EXACT_FIRST = ("float32", *HALF)
FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
NVFP4 = ("nvfp4", "nvfp4_4over6")
PER_TOKEN_HEAD = ("int4_per_token_head", "int8_per_token_head", "fp8_per_token_head")
TURBOQUANT = ("turboquant_k8v4", "turboquant_4bit_nc", "turboquant_k3v4_nc", "turboquant_3bit_nc")
GRAPHS = ("eager", "piecewise", "full")
OURS = ("eager", "piecewise")  # our metadata is Python of one step; a whole graph cannot replay it
_FA3_FEATURES = ("soft_cap", "sliding_window", "learned_sinks")
_FLASHINFER_FEATURES = ("soft_cap", "sliding_window")
_VARLEN_CASES = {"dtypes": HALF, "head_sizes": range(8, 257, 8), "capability_min": (8, 0)}
_VARLEN = {"devices": ("cuda",), "block_sizes": {"cuda": 256}, **_VARLEN_CASES}
_FA4_MODULES = {"cutlass": "nvidia-cutlass-dsl"}
_XFORMERS = {"xformers": "xformers"}
_FLASH_ATTN = {"flash_attn": "flash-attn"}  # the package of that name, not the copy within vLLM
ANY_HEAD_SIZE = range(1, 100_000)
BLOCK_SIZES: Mapping[Device, int] = {"cpu": 128, "cuda": 16}  # tokens in a page of the KV cache
SPLIT_K_HEAD_SIZES = (16, 32, 64, 128, 256, 512)
CPU_HEAD_SIZES = (32, 64, 80, 96, 112, 128, 160, 192, 224, 256, 512)
MLA_HEAD_SIZES = (320, 512, 576)
MLA = frozenset({"mla"})
# FlashInfer's decode kernels, as its metadata builder names them in the log
NATIVE, XQA, TRTLLM = "flashinfer-native", "xqa", "trtllm-gen"


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a backend of ours, passed to its class.

    ``values``: the words it may be, each with the fields of the row that differ when it is chosen.
    """

    default: int | float | str | bool
    describe: str
    minimum: int | None = None
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict[str, Mapping[str, Any]])


@dataclass(frozen=True, slots=True)
class Backend:
    name: str  # what a person types
    vllm_name: str  # --attention-backend; PLACEHOLDER of all that are not vLLM's own
    describe: str
    devices: tuple[Device, ...]
    impls: tuple[str, ...]  # implementation classes that prove it, as the inspection names them
    class_path: str | None = None  # ours or a person's own; None for vLLM's own
    class_folder: str | None = None  # a person's own: the folder outside from which it is imported
    capability_min: Capability | None = None
    capability_max: Capability | None = None
    capability_majors: tuple[int, ...] | None = (
        None  # where they are no range; None: as the range says
    )
    dtypes: tuple[str, ...] = HALF
    head_sizes: Collection[int] = ANY_HEAD_SIZE
    kv_dtypes: tuple[str, ...] = ("auto",)
    kv_majors: Mapping[str, tuple[int, ...]] = (
        field(  # KV dtypes that are not for all cards it runs on
            default_factory=dict[str, tuple[int, ...]]
        )
    )
    kv_since: Mapping[str, Series] = field(default_factory=dict[str, Series])  # where not always
    features: frozenset[str] = frozenset()  # of host_facts.FEATURES, those it can serve
    needs: frozenset[str] = frozenset()  # of them, those without which a model is not for it
    beside: tuple[str, ...] = ()  # classes that compute the layers which it leaves out by design
    modules: Mapping[str, str] = field(default_factory=dict[str, str])  # needed -> its package
    block_sizes: Mapping[Device, int] = field(default_factory=lambda: dict(BLOCK_SIZES))
    flash_attn_version: int | None = None  # pinned through attention-config
    decode_kernel: str | None = None  # of FlashInfer's, as its log names it: the proof reads it
    attention_config: Mapping[str, str] = field(
        default_factory=dict[str, str]
    )  # what else is pinned there
    executions: tuple[str, ...] = GRAPHS  # CUDA graph modes it can be captured in
    exact: bool = True  # False: by design not the model's own attention
    reference_rank: int = 1  # of exact backends that answered, the highest is the others' reference
    options: Mapping[str, Option] = field(default_factory=dict[str, Option])
    on_cuda: Mapping[str, Any] = field(default_factory=dict[str, Any])  # fields that differ there

    def on(self, device: Device) -> "Backend":
        """The row as it holds on that device."""
        return replace(self, **self.on_cuda) if device == "cuda" else self

    def with_options(self, chosen: Mapping[str, int | float | str | bool]) -> "Backend":
        """The row as it holds with these values of its options."""
        differ = (self.options[name].values.get(str(chosen[name]), {}) for name in chosen)
        return replace(self, **{key: value for fields in differ for key, value in fields.items()})

    def name_in(self, vllm: Release) -> str:
        """What ``--attention-backend`` calls it in that vLLM."""
        return vllm.backend_name(self.name) if self.is_ours else self.vllm_name

    def plugin_env(
        self, options: Mapping[str, int | float | str | bool], name: str = PLACEHOLDER
    ) -> dict[str, str]:
        """What ``servers.plugins`` reads in the server that asks for ``name``; nothing for vLLM's own."""
        if self.class_path is None:
            return {}
        folder = {"GREENBENCH_ATTENTION_FOLDER": self.class_folder} if self.class_folder else {}
        return {
            "GREENBENCH_ATTENTION_CLASS": self.class_path,
            "GREENBENCH_ATTENTION_NAME": name,
            "GREENBENCH_ATTENTION_OPTIONS": json.dumps(dict(options), sort_keys=True),
            **folder,
        }

    @property
    def defaults(self) -> dict[str, int | float | str | bool]:
        return {name: option.default for name, option in self.options.items()}

    @property
    def exactness(self) -> int:
        """What the manifest says: 0 approximate by design, else the rank as a reference."""
        return self.reference_rank if self.exact else 0

    @property
    def is_ours(self) -> bool:
        return self.class_path is not None


_ROWS = (
    Backend(
        "cpu_attn",
        vllm_name="CPU_ATTN",
        describe="vLLM's own kernel on the CPU",
        reference_rank=90,
        devices=("cpu",),
        impls=("CPUAttentionBackendImpl",),
        dtypes=ALL_DTYPES,
        head_sizes=CPU_HEAD_SIZES,
        kv_dtypes=("auto", *FP8),
        features=frozenset({"alibi", "soft_cap", "sliding_window", "learned_sinks"}),
        executions=("eager",),
    ),
    Backend(
        "flash_attn",
        vllm_name="FLASH_ATTN",
        describe="FlashAttention, the best version for the card",
        reference_rank=70,
        devices=("cuda",),
        impls=("FlashAttentionImpl",),
        capability_min=(8, 0),
        head_sizes=range(8, 257, 8),
        kv_dtypes=("auto", *HALF, "fp8", "fp8_e4m3"),
        kv_majors=dict.fromkeys(FP8[:2], (9, 10)),
        features=frozenset({"alibi", "soft_cap", "sliding_window", "learned_sinks"}),
    ),
    *(
        Backend(
            f"flash_attn{version}",
            vllm_name="FLASH_ATTN",
            describe=f"FlashAttention, pinned to version {version}",
            reference_rank=60 + 3 - version,  # the older, the longer in use
            devices=("cuda",),
            impls=("FlashAttentionImpl",),
            capability_min=least,
            capability_max=most,
            head_sizes=range(8, 257, 8),
            kv_dtypes=kv_dtypes,
            kv_majors=dict.fromkeys(FP8[:2], fp8_majors),
            features=frozenset(features),
            modules=modules,
            flash_attn_version=version,
        )
        for version, least, most, kv_dtypes, fp8_majors, features, modules in (
            (2, (8, 0), None, ("auto", *HALF), (), ("alibi", "soft_cap", "sliding_window"), {}),
            (3, (9, 0), (9, 0), ("auto", *HALF, *FP8[:2]), (9,), _FA3_FEATURES, {}),
            (4, (9, 0), (11, 0), ("auto", *HALF, *FP8[:2]), (10,), _FA3_FEATURES, _FA4_MODULES),
        )
    ),
    *(
        Backend(
            name,
            vllm_name="FLASHINFER",
            describe=f"FlashInfer's paged kernels, decode by {decode}",
            reference_rank=rank,
            devices=("cuda",),
            impls=("FlashInferImpl",),
            capability_min=(8, 0),
            capability_max=(12, 1),
            capability_majors=majors,
            head_sizes=head_sizes,
            kv_dtypes=("auto", *HALF, *FP8, *nvfp4),
            kv_majors=nvfp4,
            kv_since={} if kernel == TRTLLM else dict.fromkeys(nvfp4, (0, 32)),
            features=frozenset(features),
            modules={"flashinfer": "flashinfer-python"},
            decode_kernel=kernel,
            attention_config={"use_trtllm_attention": "false" if kernel == NATIVE else "true"},
        )
        for name, decode, kernel, rank, majors, head_sizes, nvfp4, features in (
            (
                *("flashinfer", "its own kernels", NATIVE, 40, None),
                *((64, 128, 256, 512), {"nvfp4": (8, 9, 12)}, _FLASHINFER_FEATURES),
            ),
            (
                *("flashinfer_xqa", "the XQA kernel", XQA, 39, (9, 12)),
                *((64, 128, 256), {"nvfp4": (12,)}, (*_FLASHINFER_FEATURES, "learned_sinks")),
            ),
            (
                *("flashinfer_trtllm", "TensorRT-LLM's kernel", TRTLLM, 38, (10,)),
                *((64, 128, 256, 512), {"nvfp4": (10,), "nvfp4_4over6": (10,)}),
                (*_FLASHINFER_FEATURES, "learned_sinks"),
            ),
        )
    ),
    Backend(
        "triton",
        vllm_name="TRITON_ATTN",
        describe="vLLM's unified attention kernel in Triton",
        reference_rank=50,
        devices=("cuda",),
        impls=("TritonAttentionImpl",),
        capability_min=(7, 0),
        dtypes=ALL_DTYPES,
        head_sizes=range(32, 1025),
        kv_dtypes=("auto", *HALF, *FP8, *PER_TOKEN_HEAD),
        features=frozenset({"alibi", "soft_cap", "sliding_window", "learned_sinks"}),
    ),
    Backend(
        "flex",
        vllm_name="FLEX_ATTENTION",
        describe="PyTorch's FlexAttention over the paged cache",
        reference_rank=30,
        devices=("cuda",),
        impls=("FlexAttentionImpl",),
        capability_min=(7, 0),
        dtypes=ALL_DTYPES,
        kv_dtypes=("auto", *HALF),
        features=frozenset({"soft_cap", "sliding_window"}),
    ),
    Backend(
        "turboquant",
        # vLLM keeps the first and last two layers of a dense model out of it: asked for by name it would
        # refuse them. Left to choose, it takes it for every layer whose cache is TurboQuant's.
        vllm_name="auto",
        describe="TurboQuant's kernels on a KV cache of 3 to 8 bits (kv_cache_dtype: turboquant_…)",
        reference_rank=6,
        devices=("cuda",),
        impls=("TurboQuantAttentionImpl",),
        beside=("FlashAttentionImpl",),
        capability_min=(8, 0),  # that of the layers beside
        kv_dtypes=TURBOQUANT,
        attention_config={"flash_attn_version": "2"},  # vLLM would set it, with a warning
    ),
    Backend(
        "cpu_mla",
        vllm_name="CPU_MLA",
        describe="vLLM's reference of multi-head latent attention on the CPU",
        reference_rank=7,
        devices=("cpu",),
        impls=("CPUMLAImpl",),
        dtypes=ALL_DTYPES,
        head_sizes=(576,),
        features=MLA,
        needs=MLA,
        block_sizes={"cpu": 16, "cuda": 16},
        executions=("eager",),
    ),
    *(
        Backend(
            name,
            vllm_name=name.upper(),
            describe=f"multi-head latent attention: {kernels}",
            reference_rank=rank,
            devices=("cuda",),
            impls=(impl,),
            capability_majors=majors,
            head_sizes=head_sizes,
            kv_dtypes=kv_dtypes,
            features=MLA,
            needs=MLA,
            modules=modules,
            block_sizes={"cpu": block, "cuda": block},
        )
        for name, kernels, rank, impl, majors, head_sizes, kv_dtypes, block, modules in (
            (
                *("triton_mla", "vLLM's decode kernel in Triton", 5, "TritonMLAImpl"),
                *(None, ANY_HEAD_SIZE, ("auto", *HALF, *FP8[:2]), 16, {}),
            ),
            (
                *("flash_attn_mla", "FlashAttention 3", 4, "FlashAttnMLAImpl"),
                *((9,), MLA_HEAD_SIZES, ("auto", *HALF), 16, {}),
            ),
            (
                *("flashmla", "DeepSeek's FlashMLA", 3, "FlashMLAImpl"),
                *((9, 10), MLA_HEAD_SIZES, ("auto", *HALF, *FP8[:2]), 64, {}),
            ),
            (
                *("flashinfer_mla", "TensorRT-LLM's, through FlashInfer", 2, "FlashInferMLAImpl"),
                *((10,), MLA_HEAD_SIZES, ("auto", *HALF, *FP8[:2]), 64),
                {"flashinfer": "flashinfer-python"},
            ),
        )
    ),
    Backend(
        "sdpa",
        vllm_name=PLACEHOLDER,
        describe="ours: PyTorch's scaled_dot_product_attention over the paged cache, no copies",
        reference_rank=20,
        devices=("cpu", "cuda"),
        impls=("SdpaImpl",),
        class_path="servers.plugins.sdpa.SdpaBackend",
        dtypes=ALL_DTYPES,
        kv_dtypes=("auto", *HALF),
        features=frozenset({"sliding_window"}),
        executions=OURS,
        # there PyTorch reads the pages itself, by a FlashAttention 2 that wants pages of 256 tokens
        block_sizes={"cpu": 128, "cuda": 256},
        on_cuda=_VARLEN_CASES,
    ),
    Backend(
        "sdpa_gather",
        vllm_name=PLACEHOLDER,
        describe="ours: the same over gathered pages, the portable reference",
        reference_rank=80,
        devices=("cpu", "cuda"),
        impls=("SdpaGatherImpl",),
        class_path="servers.plugins.sdpa_gather.SdpaGatherBackend",
        capability_min=(7, 0),
        dtypes=ALL_DTYPES,
        kv_dtypes=("auto", *HALF),
        features=frozenset({"sliding_window"}),
        executions=OURS,
    ),
    Backend(
        "xformers",
        vllm_name=PLACEHOLDER,
        describe="ours: xFormers, block-diagonal prefill and split-K decode over the paged cache",
        reference_rank=10,
        devices=("cuda",),
        impls=("XformersImpl",),
        class_path="servers.plugins.xformers_attn.XformersBackend",
        capability_min=(8, 0),
        head_sizes=SPLIT_K_HEAD_SIZES[:-1],
        kv_dtypes=("auto", *HALF),
        modules=_XFORMERS,
        block_sizes={"cuda": 64},  # split-K reads pages of a multiple of 64 tokens
        executions=OURS,
        options={
            "prefill": Option(
                "flash",
                "whose kernel computes prompts, PyTorch's FlashAttention 2 or its CUTLASS",
                values={"flash": {}, "cutlass": {"head_sizes": SPLIT_K_HEAD_SIZES}},
            ),
            "decode": Option(
                "split_k",
                "what reads the pages, Triton's split-K or the flash-attn package",
                values={
                    "split_k": {},
                    "flash": {"modules": _XFORMERS | _FLASH_ATTN, "block_sizes": {"cuda": 256}},
                },
            ),
        },
    ),
    Backend(
        "sink_window",
        vllm_name=PLACEHOLDER,
        describe="ours, approximate: sees the first sink and the last window tokens, reads no others",
        devices=("cpu", "cuda"),
        impls=("SinkWindowImpl",),
        class_path="servers.plugins.sink_window.SinkWindowBackend",
        capability_min=(7, 0),
        dtypes=ALL_DTYPES,
        kv_dtypes=("auto", *HALF),
        executions=OURS,
        exact=False,
        options={
            "sink": Option(4, "first tokens that stay visible", minimum=0),
            "window": Option(1024, "last tokens that are visible", minimum=1),
            "free_blocks": Option(False, "give KV blocks outside back, so that more requests fit"),
            "reads": Option(
                "gather",
                "on a GPU: copies of the seen pages, or the pages in place by PyTorch's varlen attention",
                values={"gather": {}, "varlen": _VARLEN},
            ),
        },
    ),
)

BACKENDS: dict[str, Backend] = {row.name: row for row in _ROWS}
MODULES = sorted({module for row in _ROWS for module in row.modules} | {*_FLASH_ATTN})
# classes that run whichever version of FlashAttention, or decode kernel, the log then names
FLASH_ATTENTION_IMPLS = frozenset(
    impl for row in _ROWS if row.flash_attn_version is not None for impl in row.impls
)
FLASHINFER_IMPLS = frozenset(
    impl for row in _ROWS if row.decode_kernel is not None for impl in row.impls
)


def _rows_on(device: Device) -> list[Backend]:
    return [row.on(device) for row in _ROWS if device in row.devices]


def default_backend(device: Device) -> Backend:
    """What is served unless told: vLLM's own, of highest rank as a reference."""
    return max((row for row in _rows_on(device) if not row.is_ours), key=lambda row: row.exactness)


def default_reference(device: Device) -> Backend:
    """What answers are compared with unless told: the exact backend of highest rank."""
    return max(_rows_on(device), key=lambda row: row.exactness)


def common_dtype(device: Device) -> str:
    """The most exact dtype that every backend of the device computes in."""
    rows = _rows_on(device)
    return next(dtype for dtype in MOST_EXACT_FIRST if all(dtype in row.dtypes for row in rows))

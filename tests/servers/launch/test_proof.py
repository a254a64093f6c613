"""The proof: layers counted from a model tree, and the verdicts that follow."""

import pytest

from servers.backends.registry import BACKENDS
from servers.launch import boot_log
from servers.launch.boot_log import Kernels
from servers.launch.proof import count_layers, judge
from tests.fakes.vllm_server import BOOT_DEATH_LOG, ROOT_CAUSE, TREE

HYBRID = """\
FalconH1ForCausalLM()(
  (model): FalconH1Model()(
    (layers): ModuleList()(
      (0, 2-3): 3 x FalconH1ParallelHybrid()(
        (self_attn): Outer()(
          (attn): Attention(head_size=64, num_heads=4, backend=SdpaImpl)
        )
        (mamba): FalconH1SSMDecoderLayer()(
          (mamba): MambaMixer2()(
            (norm): Mixer2RMSNormGated()
          )
        )
      )
      (1): FalconH1ParallelHybrid()(
        (attn): Attention(head_size=64, backend=CPUAttentionBackendImpl)
      )
    )
  )
)"""
STATE_SPACE = """\
Mamba2ForCausalLM()(
  (layers): ModuleList()(
    (0-5): 6 x Mamba2DecoderLayer()(
      (mixer): MambaMixer2()(
        (conv1d): ColumnParallelLinear(in_features=4)
      )
    )
  )
)"""


def tree(impl: str) -> str:
    return TREE.replace("IMPL", impl)


def test_collapsed_layers_count_as_many_as_they_stand_for():
    found = count_layers(HYBRID)
    assert found.attention == {"SdpaImpl": 3, "CPUAttentionBackendImpl": 1}
    assert found.mixers == {"MambaMixer2": 3}


def test_the_class_asked_for_is_proven():
    proof = judge(BACKENDS["sdpa"], [tree("SdpaImpl")], Kernels())
    assert (proof.verdict, proof.observed_backend) == ("proven", "SdpaImpl x4")
    assert proof.detail["attention_layers"] == {"SdpaImpl": 4}


@pytest.mark.parametrize("trees", [[HYBRID], [tree("SdpaImpl"), tree("CPUAttentionBackendImpl")]])
def test_one_wrong_layer_or_worker_is_a_mismatch(trees: list[str]):
    """A silent fallback in one layer would make the arm a mix."""
    assert judge(BACKENDS["sdpa"], trees, Kernels()).verdict == "mismatch"


def test_a_hybrid_names_its_other_mixers():
    hybrid = HYBRID.replace("CPUAttentionBackendImpl", "SdpaImpl")
    proof = judge(BACKENDS["sdpa"], [hybrid], Kernels())
    assert (proof.verdict, proof.observed_backend) == ("proven", "SdpaImpl x4")
    assert "beside MambaMixer2 x3" in proof.sentence


def test_no_inspection_is_unproven():
    assert judge(BACKENDS["sdpa"], None, Kernels()).verdict == "unproven"
    assert judge(BACKENDS["sdpa"], ["Model()(\n)"], Kernels()).verdict == "unproven"


def test_a_model_without_attention_says_what_it_has():
    proof = judge(BACKENDS["cpu_attn"], [STATE_SPACE], Kernels())
    assert (proof.verdict, proof.observed_backend) == ("proven", "MambaMixer2 x6")
    assert "no attention layer" in proof.sentence
    assert proof.detail["attention_layers"] == {}


def test_flash_attention_version_is_recorded():
    log = "INFO 11-23 [flash_attn.py:1118] Using FlashAttention version 3\n"
    proof = judge(BACKENDS["flash_attn"], [tree("FlashAttentionImpl")], boot_log.kernels(log))
    assert proof.observed_backend == "FlashAttentionImpl x4 (FlashAttention 3)"
    assert proof.detail["flash_attn_version"] == 3


@pytest.mark.parametrize(("named", "verdict"), [(2, "proven"), (3, "mismatch"), (None, "unproven")])
def test_a_pinned_version_must_be_the_one_in_the_log(named: int | None, verdict: str):
    """FlashAttention falls back to version 2 with a warning; the arm would carry the wrong name."""
    proof = judge(BACKENDS["flash_attn2"], [tree("FlashAttentionImpl")], Kernels(named))
    assert proof.verdict == verdict


DECODE = (
    "INFO 11-29 [flashinfer.py:1106] FlashInfer resolved query dtypes: prefill=torch.bfloat16, "
    "decode=torch.bfloat16, decode_backend=%s, kv_cache_dtype=auto, arch=sm90\n"
)


@pytest.mark.parametrize(
    ("name", "logged", "verdict"),
    [
        ("flashinfer", ["flashinfer-native"], "proven"),
        ("flashinfer", ["xqa"], "mismatch"),  # seen on Hopper, where vLLM prefers it where it can
        ("flashinfer_xqa", ["xqa", "xqa"], "proven"),
        ("flashinfer_xqa", ["xqa", "flashinfer-native"], "mismatch"),  # one KV group each
        ("flashinfer_trtllm", ["trtllm-gen"], "proven"),
        ("flashinfer_xqa", [], "unproven"),
    ],
)
def test_the_decode_kernel_is_part_of_the_proof(name: str, logged: list[str], verdict: str):
    """Guards against XQA measured as FlashInfer's own decode: the class is the same."""
    said = boot_log.kernels("".join(DECODE % kernel for kernel in logged))
    proof = judge(BACKENDS[name], [tree("FlashInferImpl")], said)
    assert proof.verdict == verdict
    assert proof.detail["decode_kernel"] == ("+".join(dict.fromkeys(logged)) or None)


_LINE = next(line.strip() for line in TREE.splitlines() if "IMPL" in line)
MLA_TREE = TREE.replace(_LINE, "(attn): MLAAttention()")


@pytest.mark.parametrize(
    ("line", "verdict"),
    [
        ("Using AttentionBackendEnum.FLASHMLA backend.", "proven"),
        ("Using FLASHMLA attention backend out of potential backends: [FLASHMLA]", "proven"),
        ("Using TRITON_MLA attention backend out of potential backends: [X]", "mismatch"),
        ("Using FLASH_ATTN MLA prefill backend.", "unproven"),
    ],
)
def test_latent_attention_is_proven_by_the_log(line: str, verdict: str):
    """vLLM's inspection shows the layer alone; its log names the class that it then makes."""
    assert "MLAAttention" in MLA_TREE
    proof = judge(BACKENDS["flashmla"], [MLA_TREE], boot_log.kernels(f"INFO [cuda.py:9] {line}\n"))
    assert proof.verdict == verdict
    assert proof.detail["attention_layers"] == {"MLAAttention": 4}


def test_turboquant_may_leave_layers_out_but_not_all():
    """It keeps the outer layers of a dense model; without one of its own it would be another backend."""
    row = BACKENDS["turboquant"]
    mixed = HYBRID.replace("SdpaImpl", "TurboQuantAttentionImpl")
    mixed = mixed.replace("CPUAttentionBackendImpl", "FlashAttentionImpl")
    assert judge(row, [mixed], Kernels(2)).verdict == "proven"
    assert judge(row, [tree("FlashAttentionImpl")], Kernels(2)).verdict == "mismatch"


def test_operators_are_named_once():
    line = "1.5 (Worker pid=9) INFO 11-23 18:58:56 [s.py:1] greenbench: SdpaImpl computes with flash on CPU\n"
    assert boot_log.operators(line * 2 + "other\n") == ["SdpaImpl: flash on CPU"]


def test_the_root_cause_is_found_below_its_echoes():
    assert boot_log.last_error(BOOT_DEATH_LOG) == ROOT_CAUSE


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        ("usage\napi_server.py: error: unrecognized: --x\n", "api_server.py: error: unrecognized: --x"),
        ("Killed\n\n", "Killed"),
        ("", None),
        (
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig\n"
            "  Value error, Unknown vLLM environment variable detected: VLLM_X [type=value_error]\n",
            "pydantic_core._pydantic_core.ValidationError: 1 validation error for VllmConfig: "
            "Unknown vLLM environment variable detected: VLLM_X [type=value_error]",
        ),
        (
            "1.5 (APIServer pid=7) ERROR 11-30 15:30:12 [v.py:54] vllm.v1.engine.exceptions.EngineDeadError: "
            "EngineCore encountered an issue.\n"
            "INFO:     Finished server process [7]\nnanobind: leaked 64 types!\n"
            ' - leaked type "triton._C.libtriton.ir.location"\n - ... skipped remainder\n'
            "nanobind: this is likely caused by a reference counting issue in the binding code.\n"
            "See https://nanobind.readthedocs.io/en/latest/refleaks.html\n",
            "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
        ),
        ("out of words\nnanobind: leaked 1 types!\n - leaked type \"x\"\n", "out of words"),
        (
            "\x1b[31m1795460205.123456 (EngineCore pid=1) ERROR 11-23 18:58:56 [c:9] KeyError: 'q'\x1b[0m\n",
            "KeyError: 'q'",
        ),
    ],
)  # fmt: skip
def test_causes(log: str, cause: str | None):
    assert boot_log.last_error(log) == cause


def test_memory_lines():
    gpu = "Available KV cache memory: 70.5 GiB\nModel loading took 2.25 GiB memory and 1.5 seconds"
    assert boot_log.kv_memory_bytes(gpu) == 141 * 2**29
    assert boot_log.weights_bytes(gpu) == 9 * 2**28
    assert boot_log.weights_bytes("") is None and boot_log.kv_memory_bytes("") is None


BOOT_LOG = """\
warnings before vLLM's logger is there
1700000022.300000 (APIServer pid=1) INFO 11-25 13:04:02 [api_utils.py:286] non-default args: {'model': 'm'}
1700000056.200000 (EngineCore pid=2) INFO 11-25 13:04:36 [core.py:133] Initializing a V1 LLM engine (v0.32.0)
1700000066.000000 (EngineCore pid=2) INFO 11-25 13:04:46 [default_loader.py:501] Loading weights took 0.46 s
1700000068.200000 (EngineCore pid=2) INFO 11-25 13:04:48 [model_runner.py:424] Model loading took 2.3 GiB
1700000089.500000 (EngineCore pid=2) INFO 11-25 13:05:10 [monitor.py:62] [backbone] torch.compile took 20 s
1700000228.000000 (EngineCore pid=2) INFO 11-25 13:07:28 [core.py:395] init engine (profile) took 160 s
"""


def test_a_boot_is_told_by_stages_that_add_up_to_it():
    """As an H100 wrote it: 138 of 231 s went into kernels that greedy requests never use."""
    stages = boot_log.boot_stages(BOOT_LOG, 1_700_000_000.0, 1_700_000_230.6)
    expected = {
        "imports": 22.3,
        "engine_start": 33.9,
        "load": 12.0,
        "compile": 21.3,
        "warm_up": 138.5,
    }
    assert stages == pytest.approx({**expected, "api": 2.6})
    eager = "".join(line for line in BOOT_LOG.splitlines(True) if "torch.compile" not in line)
    del expected["compile"]
    stages = boot_log.boot_stages(eager, 1_700_000_000.0, 1_700_000_230.6)
    assert stages == pytest.approx({**expected, "warm_up": 159.8, "api": 2.6})
    assert boot_log.boot_stages("", 5.0, 9.0) == {"api": 4.0}

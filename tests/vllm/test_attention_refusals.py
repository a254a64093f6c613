"""Whatever our kernels do not compute is refused with a sentence, never computed as something else."""

import pytest
import torch
from vllm.v1.attention.backend import AttentionType

from greenbench.contract.errors import UserError
from servers.plugins.sdpa import SdpaBackend, SdpaImpl
from servers.plugins.sdpa_gather import SdpaGatherBackend, SdpaGatherImpl

IMPLS = [SdpaImpl, SdpaGatherImpl]
BACKENDS = [SdpaBackend, SdpaGatherBackend]

ASKED = {
    "ALiBi position biases": {"alibi_slopes": [0.5] * 4},
    "a soft cap on attention logits": {"logits_soft_cap": 30.0},
    "attention of type 'encoder_only'": {"attn_type": AttentionType.ENCODER_ONLY},
    "KV sharing between layers": {"kv_sharing_target_layer_name": "model.layers.0.self_attn.attn"},
    "a quantised KV cache \\('fp8'\\)": {"kv_cache_dtype": "fp8"},
    "learned attention sinks": {"sinks": torch.zeros(4)},
    "the layer argument 'chunk_lookback'": {"chunk_lookback": 3},
}


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("what", ASKED)
def test_a_layer_that_asks_for_more_is_refused(impl, what):
    with pytest.raises(UserError, match=f"{impl.__name__} does not support {what}"):
        impl(4, 64, 0.125, 2, **ASKED[what])


CONFIGURATION = {
    "head_size": 64,
    "dtype": torch.bfloat16,
    "kv_cache_dtype": "auto",
    "block_size": 128,
    "use_mla": False,
    "has_sink": False,
    "use_sparse": False,
    "use_mm_prefix": False,
    "use_per_head_quant_scales": False,
    "device_capability": None,
    "attn_type": AttentionType.DECODER,
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"use_mla": True}, "MLA not supported"),
        ({"has_sink": True}, "attention sinks not supported"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype not supported"),
        (
            {"attn_type": AttentionType.ENCODER_ONLY},
            f"attention type {AttentionType.ENCODER_ONLY} not supported",
        ),
        ({"use_dcp": True}, "DCP not supported"),
        ({"use_non_causal": True}, "non-causal attention not supported"),
    ],
)
def test_vllm_is_told_before_a_layer_is_built(backend, change, reason):
    assert backend.validate_configuration(**CONFIGURATION) == []
    assert backend.validate_configuration(**CONFIGURATION | change) == [reason]


def test_the_cpu_platform_refuses_what_the_backend_does_not_serve(monkeypatch):
    """Guards the one place where a CPU server could fall back in silence."""
    from vllm.v1.attention.backends.registry import AttentionBackendEnum, register_backend
    from vllm.v1.attention.selector import AttentionSelectorConfig

    from servers.plugins.cpu import CustomCpuPlatform

    register_backend(AttentionBackendEnum.CUSTOM, "servers.plugins.sdpa.SdpaBackend")
    try:
        config = AttentionSelectorConfig(64, torch.bfloat16, "auto", 128)
        chosen = CustomCpuPlatform.get_attn_backend_cls(AttentionBackendEnum.CUSTOM, config)
        assert chosen == "servers.plugins.sdpa.SdpaBackend"
        with pytest.raises(
            UserError, match="SdpaBackend cannot serve this model: MLA not supported"
        ):
            CustomCpuPlatform.get_attn_backend_cls(
                AttentionBackendEnum.CUSTOM, config._replace(use_mla=True)
            )
        with pytest.raises(UserError, match="the backend asked for is FLASH_ATTN"):
            CustomCpuPlatform.get_attn_backend_cls(AttentionBackendEnum.FLASH_ATTN, config)
        with pytest.raises(UserError, match="the backend asked for is none"):
            CustomCpuPlatform.get_attn_backend_cls(None, config)
    finally:
        AttentionBackendEnum.CUSTOM.clear_override()

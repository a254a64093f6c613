"""FLOPs, bytes, MFU and MBU against published figures and sums by hand."""

import pytest

from analysis.bottleneck.classify import (
    Evidence,
    classify,
    classify_phase,
    classify_point,
    fixed_shares,
)
from analysis.bottleneck.peaks import gpu_ceilings, gpu_table
from analysis.bottleneck.roofline import PhaseUse
from analysis.model.work import (
    Attention,
    Experts,
    Mla,
    ModelWork,
    State,
    Work,
    causal_pairs,
    model_work,
)

LLAMA_8B = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
}
MAMBA2_1_3B = {
    "model_type": "mamba2",
    "hidden_size": 2048,
    "num_hidden_layers": 48,
    "num_heads": 64,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 1,
    "conv_kernel": 4,
    "chunk_size": 256,
    "vocab_size": 50288,
    "tie_word_embeddings": True,
}
QWEN35_2B = {
    "model_type": "qwen3_5_text",
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "num_hidden_layers": 24,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 256,
    "full_attention_interval": 4,
    "linear_conv_kernel_dim": 4,
    "linear_key_head_dim": 128,
    "linear_value_head_dim": 128,
    "linear_num_key_heads": 16,
    "linear_num_value_heads": 16,
    "vocab_size": 248320,
    "tie_word_embeddings": True,
    "attn_output_gate": True,
}
GRANITE_TINY = {
    "model_type": "granitemoehybrid",
    "hidden_size": 1536,
    "intermediate_size": 512,
    "shared_intermediate_size": 1024,
    "num_hidden_layers": 40,
    "layer_types": ["attention" if i in (5, 15, 25, 35) else "mamba" for i in range(40)],
    "num_attention_heads": 12,
    "num_key_value_heads": 4,
    "mamba_n_heads": 48,
    "mamba_d_head": 64,
    "mamba_d_state": 128,
    "mamba_n_groups": 1,
    "mamba_d_conv": 4,
    "mamba_chunk_size": 256,
    "num_local_experts": 64,
    "num_experts_per_tok": 6,
    "vocab_size": 100352,
    "tie_word_embeddings": True,
}


def known(config: dict[str, object], **items: int) -> ModelWork:
    model = model_work(config, **items)
    assert model is not None
    return model


def total_params(config: dict[str, object]) -> float:
    """All weights: those of the layers with every expert, and the embedding, twice where it is not tied."""
    model = known(config)
    tied = config.get("tie_word_embeddings", config.get("tie_embedding", False))
    layers = sum(layer.params for layer in model.layers)
    experts = sum(x.experts.count * x.experts.params for x in model.layers if x.experts)
    return layers + experts + model.hidden * model.vocab * (1 if tied else 2)


def kv_bytes_per_token(config: dict[str, object]) -> float:
    """What a token of context adds to the bytes that decode reads."""
    model = known(config)
    return model.decode_token(100_001).bytes - model.decode_token(100_000).bytes


def decode_step(model: ModelWork, contexts: list[int]) -> Work:
    """One decode step of sequences at these context lengths, weights included."""
    return sum(map(model.decode_token, contexts), model.step_weights(len(contexts)))


@pytest.mark.parametrize(
    ("config", "params"),
    [(LLAMA_8B, 8.030e9), (MAMBA2_1_3B, 1.344e9), (QWEN35_2B, 1.882e9), (GRANITE_TINY, 6.939e9)],
)
def test_parameters_match_the_published_counts(config: dict[str, object], params: float) -> None:
    assert total_params(config) == pytest.approx(params, rel=1e-3)


@pytest.mark.parametrize(
    ("new", "past", "window"), [(7, 0, None), (5, 9, None), (8, 3, 6), (4, 9, 6), (3, 0, 9)]
)
def test_causal_pairs_against_counting(new: int, past: int, window: int | None) -> None:
    # second method: count the keys of every query one by one
    counted = sum(min(past + i, window or past + i) for i in range(1, new + 1))
    assert causal_pairs(new, past, window) == counted


def test_chunks_do_the_attention_of_the_whole_prompt() -> None:
    model = known(LLAMA_8B)
    assert model.chunked_prefill(8192, 1000).flops == pytest.approx(model.prefill(8192).flops)
    # but each later chunk reads the cache again
    assert model.chunked_prefill(8192, 1000).bytes > model.prefill(8192).bytes


def test_llama_8b_by_the_textbook() -> None:
    model = known(LLAMA_8B)
    assert kv_bytes_per_token(LLAMA_8B) == 2 * 8 * 128 * 32 * 2 == 131_072
    # 15.0 GB a step, KV traffic equals it at 114k tokens, prefill attention the linear part at 53k
    assert model.step_weights(1).bytes == pytest.approx(15.0e9, rel=0.001)
    assert model.step_weights(1).bytes / kv_bytes_per_token(LLAMA_8B) == pytest.approx(
        114_500, rel=0.001
    )
    assert model.active_params / (32 * 32 * 128) == pytest.approx(53_248)
    # a step of 8 sequences at 128k reads 152 GB: at least 31.8 ms on 4.8 TB/s
    step = decode_step(model, [131_072] * 8)
    assert step.bytes / 4.8e12 == pytest.approx(31.8e-3, rel=0.003)
    # GQA decode attention does 2·g/b FLOPs a byte, 4 here, whatever the context
    for context in (1000, 100_000):
        assert Attention(32, 8, 128).decode(context, 2).intensity == pytest.approx(4)


def test_published_decode_is_called_bandwidth_bound() -> None:
    # vLLM blog 2026-04-22, Llama-3.1-8B bf16 on H100: 4.37e-5 ms a token of context, so at 125k tokens
    # 6.44 + 4.37e-5·125,000 = 11.9 ms a step of one sequence
    spec = gpu_ceilings("NVIDIA H100 80GB HBM3")[0]
    work, seconds = decode_step(known(LLAMA_8B), [125_000]), 11.9025e-3
    verdict = classify_phase(use(work.flops / seconds, work.bytes / seconds, spec))
    assert verdict.bound == "bandwidth"
    assert "MBU 0.79" in verdict.sentence


def test_aiconfigurators_h200_table() -> None:
    spec = gpu_ceilings("NVIDIA H200")[0]
    attention = Attention(32, 8, 128)
    # batch 8 × 64k decode: one layer of FA3 takes 0.497 ms
    read = attention.decode(65_536, 2).bytes * 8
    assert read / 0.497e-3 / spec.bytes_per_s == pytest.approx(0.90, abs=0.005)
    # 16k prefill: 3.37 ms, which without the causal half would be 1,305 TFLOP/s, 132 % of the peak
    flops = attention.prefill(16_384, 0, 2).flops
    assert flops / 3.37e-3 / spec.flops_per_s == pytest.approx(0.66, abs=0.005)
    assert 2 * flops / 3.37e-3 / spec.flops_per_s > 1.3


def use(flops: float, moved: float, ceiling: object = None, phase: str = "decode") -> PhaseUse:
    peak = ceiling or gpu_ceilings("NVIDIA H200")[0]
    return PhaseUse(
        phase=phase,  # type: ignore[arg-type]
        steps=10,
        seconds=1.0,
        time_share=1.0,
        prefill_tokens=0,
        decode_tokens=10,
        step_tokens_p50=1,
        flops_per_s=flops,
        bytes_per_s=moved,
        intensity=flops / moved,
        mfu=flops / peak.flops_per_s,  # type: ignore[attr-defined]
        mbu=moved / peak.bytes_per_s,  # type: ignore[attr-defined]
        ceiling="spec",
    )


def test_sliding_window_stops_growing() -> None:
    near, far = (Attention(8, 2, 64, 1024).decode(c, 2) for c in (1024, 50_000))
    assert near == far
    assert Attention(8, 2, 64, 1024).decode(512, 2).flops == near.flops / 2


def test_sink_window_bounds_every_layer() -> None:
    model = known(LLAMA_8B, seen=1028)
    assert model.decode_token(100_000) == model.decode_token(1028)
    assert known(LLAMA_8B).decode_token(100_000).bytes > 50 * model.decode_token(100_000).bytes


def test_mla_stands_at_the_ridge() -> None:
    # 2·128·(2·512 + 64) / ((512 + 64)·2) = 241.8 FLOP/B; H200's ridge is 206
    assert Mla(128, 512, 64, 128, 128).decode(4096, 2).intensity == pytest.approx(241.8, abs=0.1)
    assert gpu_ceilings("NVIDIA H200")[0].ridge == pytest.approx(206, abs=0.1)


def test_state_layers_do_not_grow_with_context() -> None:
    for config in (MAMBA2_1_3B, QWEN35_2B):
        model = known(config)
        states = [m for layer in model.layers for m in layer.mixers if isinstance(m, State)]
        assert states and all(m.decode(10, 2) == m.decode(100_000, 2) for m in states)
    assert kv_bytes_per_token(MAMBA2_1_3B) == 0
    # Qwen3.5: 6 of 24 layers keep 2 heads of 256 in K and V at 2 bytes
    assert kv_bytes_per_token(QWEN35_2B) == 6 * 2 * 2 * 256 * 2


def test_experts_touched_by_hand() -> None:
    experts = Experts(count=64, chosen=6, params=1.0)
    assert experts.touched(1) == pytest.approx(6)
    # two tokens: 64·(1 − (58/64)²) = 11.4375
    assert experts.touched(2) == pytest.approx(11.4375)
    assert experts.touched(1e6) == pytest.approx(64)
    model = known(GRANITE_TINY)
    assert model.active_params < 0.2 * total_params(GRANITE_TINY)


def test_an_unknown_architecture_has_no_roofline() -> None:
    assert model_work({"model_type": "zamba2", "num_hidden_layers": 2}) is None
    # nor has one whose config.json leaves a size to its class
    assert model_work({k: v for k, v in LLAMA_8B.items() if k != "vocab_size"}) is None


def test_every_peak_has_a_source() -> None:
    assert all(peak.source.startswith("https://") for peak in gpu_table())
    assert gpu_ceilings("GeForce 256") == []
    kinds = [ceiling.kind for ceiling in gpu_ceilings("NVIDIA H200")]
    assert kinds == ["spec", "measured"]


@pytest.mark.parametrize(
    ("flops_share", "bytes_share", "fixed", "bound"),
    [
        (0.7, 0.2, None, "compute"),
        (0.1, 0.8, None, "bandwidth"),
        (0.55, 0.6, None, "mixed"),
        (0.05, 0.1, 0.9, "host"),
        (0.05, 0.1, 0.1, "inefficient-kernel"),
        (0.05, 0.1, None, "undetermined"),
        (0.45, 0.1, None, "undetermined"),
    ],
)
def test_phase_classes(
    flops_share: float, bytes_share: float, fixed: float | None, bound: str
) -> None:
    peak = gpu_ceilings("NVIDIA H200")[0]
    found = use(flops_share * peak.flops_per_s, bytes_share * peak.bytes_per_s)
    assert classify_phase(found, fixed).bound == bound


@pytest.mark.parametrize(
    ("changes", "bound", "words"),
    [
        ({}, "engine", "running 4 of 64"),
        (
            {
                "running": 61,
                "waiting": 9,
                "kv_p50": 0.97,
                "preemptions": 14,
                "max_num_seqs": 256,
            },
            "kv-capacity",
            "KV usage 0.97, 14 preemptions, running 61 of 256, waiting 9",
        ),
        # two sequences of 0.45 fill a pool that is never above 0.9
        (
            {"waiting": 3, "kv_p50": 0.88, "kv_share_per_sequence": 0.44},
            "kv-capacity",
            "KV usage 0.88",
        ),
        # the pool is full while a third sequence is in its prefill, and has room between
        (
            {"waiting": 5.5, "kv_p50": 0.6, "kv_p90": 1.0, "step_tokens_p50": 2048.0},
            "kv-capacity",
            "KV usage 0.60, a tenth of the time 1.00",
        ),
        (
            {"running": 1, "waiting": 3, "max_num_seqs": 1},
            "scheduler-limit",
            "limited by max_num_seqs",
        ),
        # as many users as max_num_seqs: none waits for it, but for its turn to be prefilled
        (
            {"running": 62.9, "waiting": 0.7, "users": 64, "engine_share": 0.34},
            "host",
            "requests waited, yet the engine computed 34% of the time, running 62.9 of 64",
        ),
        # NVML's share is of kernels; that its steps were full is said, not blamed
        (
            {
                "running": 62.9,
                "waiting": 0.7,
                "users": 64,
                "engine_share": 0.34,
                "kernels": True,
                "step_tokens_p50": 2048.0,
            },
            "host",
            "yet a kernel ran 34% of the time, prefill steps of 2048 tokens were full, running",
        ),
        # of two engines of 32 one may hold more than half of the users
        (
            {"running": 62.9, "waiting": 0.7, "users": 64, "engines": 2, "engine_share": 0.34},
            "scheduler-limit",
            "limited by max_num_seqs",
        ),
        # bursts queue, and between them there is nothing to compute: 0.55 of 0.6 is no idle engine
        (
            {"waiting": 0.7, "open_loop": True, "engine_share": 0.55, "open_share": 0.6},
            "undetermined",
            "no figure shows why",
        ),
        (
            {"running": 62.9, "waiting": 0.7, "users": 64, "step_tokens_p50": 2048.0},
            "scheduler-limit",
            "steps of 2048 tokens",
        ),
        (
            {"running": 63, "waiting": 0.7, "users": 65, "engine_share": 0.34},
            "scheduler-limit",
            "limited by max_num_seqs",
        ),
        ({"waiting": 2, "step_tokens_p50": 2048.0}, "scheduler-limit", "steps of 2048 tokens"),
        (
            {"waiting": 2, "step_tokens_p50": 300.0},
            "undetermined",
            "no figure shows why",
        ),
        (
            {"engine_share": 0.2, "open_loop": True, "served_per_s": 1.5},
            "load",
            "all of 1.5 requests/s served, the engine computed 20% of the time",
        ),
        # the server is never empty and nothing waits: what is offered is served
        ({"engine_share": 0.97, "open_share": 1.0, "open_loop": True}, "load", "running 4 of 64"),
        (
            {"engine_share": 0.2, "open_share": 0.25},
            "load",
            "a request was open 25% of the time",
        ),
        (
            {"engine_share": 0.4, "open_share": 1.0},
            "host",
            "requests were open all the time, yet the engine computed 40% of the time",
        ),
        (
            {"engine_share": 0.4, "open_share": 0.8, "kernels": True},
            "host",
            "a request was open 80% of the time, yet a kernel ran 40% of the time",
        ),
        # it computed 0.58 of the 0.65 in which it could
        ({"engine_share": 0.58, "open_share": 0.65}, "engine", "every request was being served"),
        ({"client_reasons": ["loop lag p99 is 300 ms"]}, "client", "loop lag p99 is 300 ms"),
        ({"running": None}, "undetermined", "not scraped"),
    ],
)
def test_point_classes(changes: dict[str, object], bound: str, words: str) -> None:
    usual = {
        "running": 4.0,
        "waiting": 0.0,
        "kv_p50": 0.3,
        "max_num_seqs": 64,
        "max_num_batched_tokens": 2048,
        "engine_share": 0.95,
    }
    found, sentence = classify_point(Evidence(**(usual | changes)))  # type: ignore[arg-type]
    assert found == bound
    assert words in sentence


@pytest.mark.parametrize(
    ("mfu", "bound", "words"),
    [
        (0.7, "engine", "prefill steps that are full (8192 tokens) and compute-bound"),
        (0.2, "scheduler-limit", "limited by max_num_batched_tokens"),
    ],
)
def test_full_prefill_steps_are_a_limit_only_where_larger_ones_would_serve_more(
    mfu: float, bound: str, words: str
) -> None:
    peak = gpu_ceilings("NVIDIA H200")[0]
    full = Evidence(
        running=12,
        waiting=2.5,
        max_num_seqs=32,
        max_num_batched_tokens=8192,
        step_tokens_p50=8192.0,
    )
    found = classify(full, [use(mfu * peak.flops_per_s, 1e9, phase="prefill")])
    assert found.bound == bound
    assert words in found.sentence


def test_fixed_share_of_a_fit() -> None:
    # 4 ms + 1 µs a token: at 1,000 tokens 4 of 5 ms are fixed
    assert fixed_shares((4e-3, 1e-6), 1000) == pytest.approx(0.8)
    assert fixed_shares((4e-3, 1e-6, 1e-9), 1000) is None


def test_phases_and_point_are_said_together() -> None:
    peak = gpu_ceilings("NVIDIA H200")[0]
    found = classify(
        Evidence(running=4, waiting=0, max_num_seqs=64, engine_share=1.0),
        [use(0.7 * peak.flops_per_s, 1e9, phase="prefill"), use(1e9, 0.9 * peak.bytes_per_s)],
    )
    assert [phase.bound for phase in found.phases] == ["compute", "bandwidth"]

"""Step table from vLLM's log lines, cache bytes of model shapes, and what fits a pool."""

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from analysis.model.cache import CacheShape, cache_shape, layer_kinds
from analysis.point.memory import graph_bytes, page_tokens, sequences_that_fit
from analysis.runs.activity import Activity
from analysis.runs.engine_steps import between_lines, in_engine, overlapped, parse_steps
from greenbench.contract.model_shape import ModelShape

# lines as vLLM 0.32 writes them, with the launcher's epoch in front
LOG = """\
1795461709.113879 (APIServer pid=7) INFO 11-23 19:21:49 [loggers.py:335] Engine 000: Avg prompt throughput
1795461709.471600 (APIServer pid=7) INFO 11-23 19:21:49 [loggers.py:199] Engine 000: Iteration(2387): \
1 context requests, 512 context tokens, 0 generation requests, 0 generation tokens, \
iteration elapsed time: 50.62 ms, CPU KV cache usage: 0.1%
1795461709.518420 (APIServer pid=7) INFO 11-23 19:21:49 [loggers.py:199] Engine 000: Iteration(2388): \
2 context requests, 700 context tokens, 3 generation requests, 4 generation tokens, \
iteration elapsed time: 46.21 ms, GPU KV cache usage: 12.5%, encoder inputs: 1, encoder output embeddings: 2
1795461709.600000 (APIServer pid=7) INFO 11-23 19:21:49 [loggers.py:199] Engine 001: Iteration(9): \
0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, \
iteration elapsed time: 1.00 ms (dummy), GPU KV cache usage: 0.0%
(APIServer pid=7) INFO 11-23 19:21:50 [loggers.py:199] Engine 000: Iteration(2389): \
0 context requests, 0 context tokens, 1 generation requests, 1 generation tokens, \
iteration elapsed time: 7.81 ms, CPU KV cache usage: 0.2%
"""


def test_each_step_line_is_a_row_with_an_exact_stamp() -> None:
    steps = parse_steps(LOG.splitlines())
    assert len(steps) == 3  # the throughput line and the dummy step are none
    assert steps["unix_ns"].tolist()[:2] == [1795461709471600000, 1795461709518420000]
    assert pd.isna(steps["unix_ns"][2])  # without an epoch the second is not good enough for a join
    assert steps["elapsed_s"].tolist() == pytest.approx([0.05062, 0.04621, 0.00781])
    assert steps["prefill_tokens"].tolist() == [512, 700, 0]
    assert steps["prefill_requests"].tolist() == [1, 2, 0]
    assert steps["decode_requests"].tolist() == [0, 3, 1]
    assert steps["decode_tokens"].tolist() == [0, 4, 1]
    assert steps["kv_usage"].tolist() == pytest.approx([0.001, 0.125, 0.002])


def test_a_log_without_steps_is_an_empty_table_with_its_columns() -> None:
    assert "prefill_tokens" in parse_steps(["nothing here"]).columns


@pytest.mark.parametrize(
    ("line", "gib"),
    [
        (
            "2.3 GiB for weight, 0.7 GiB for peak activation, and 0.61 GiB for CUDAGraph memory.",
            0.61,
        ),
        ("[model_runner.py:1127] Graph capturing finished in 2 secs, took 0.08 GiB", 0.08),
        ("Enforce eager set, disabling torch.compile", None),
    ],
)
def test_graphs_take_what_the_log_says(line: str, gib: float | None) -> None:
    assert graph_bytes(line) == (None if gib is None else round(gib * 2**30))


LAUNCHED = (
    "{0:.3f} INFO Engine {1:03d}: Iteration({2}): 0 context requests, 0 context tokens, 4 generation "
    "requests, 4 generation tokens, iteration elapsed time: 0.03 ms, GPU KV cache usage: 1.0%"
)


def test_steps_of_an_engine_that_plans_ahead_last_from_line_to_line() -> None:
    """Guards against the log's time of a launch, 0.03 ms for 10, and against idle time taken for work."""
    start = 1_700_000_000
    ends = [*(0.01 * i for i in range(1, 101)), *(3 + 0.01 * i for i in range(1, 101))]
    lines = [LAUNCHED.format(start + at, 0, i) for i, at in enumerate(ends)]
    lines += [LAUNCHED.format(start + at, 1, i) for i, at in enumerate((0.5, 1.0, 4.0))]
    steps = parse_steps(lines)
    opened, closed = np.array([0.0, 0.2, 3.0]), np.array([0.6, 1.0, 4.0])  # nothing from 1 s to 3 s
    load = Activity(*(np.array((start + at) * 1e9, dtype=np.int64) for at in (opened, closed)))
    took = between_lines(steps, load)
    first, second = (took[steps["engine"] == engine] for engine in (0, 1))
    assert first.to_numpy() == pytest.approx(np.full(200, 0.01), abs=1e-5)
    assert second.tolist() == pytest.approx([0.5, 0.5, 1.0], abs=1e-5)
    assert between_lines(parse_steps([lines[0].partition(" ")[2]]), load).isna().all()


def test_a_step_starts_no_earlier_than_the_engine_had_its_request() -> None:
    """Guards against 40 ms of a front end that count as the 60 ms prefill after it."""
    start_ns = 1_700_000_000 * 10**9
    rows: dict[str, list[Any]] = {
        "sent_unix_ns": [start_ns, start_ns + 10**9],
        "first_token_ns": [100e6, np.nan],
        "end_ns": [100e6, 50e6],
        "server_metrics.queue_time_ms": [20.0, np.nan],
        "server_metrics.time_to_first_token_ms": [40.0, np.nan],
    }
    requests = pd.DataFrame(rows)
    load = in_engine(requests)
    assert ((load.start_ns - start_ns) / 1e6).tolist() == pytest.approx([40, 1000])
    assert ((load.end_ns - start_ns) / 1e6).tolist() == pytest.approx([100, 1050])
    [took] = between_lines(parse_steps([LAUNCHED.format(1_700_000_000.1, 0, 1)]), load)
    assert took == pytest.approx(0.06, abs=1e-4)
    silent = requests[["sent_unix_ns", "first_token_ns", "end_ns"]]
    assert ((in_engine(silent).start_ns - start_ns) / 1e6).tolist() == pytest.approx([0, 1000])


@pytest.mark.parametrize(
    ("says", "device", "expected"),
    [(None, "GPU", True), (None, "CPU", False), (False, "GPU", False), (True, "CPU", True)],
)
def test_the_server_says_whether_its_times_are_those_of_launches(
    says: bool | None, device: str, expected: bool
) -> None:
    steps = parse_steps([LAUNCHED.format(1.7e9, 0, 1).replace("GPU", device)])
    assert overlapped(steps, says) == expected
    assert not overlapped(parse_steps([]), None)


LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "torch_dtype": "bfloat16",
}
MAMBA2 = {
    "model_type": "mamba2",
    "num_hidden_layers": 48,
    "num_heads": 64,
    "head_dim": 64,
    "state_size": 128,
    "n_groups": 1,
    "conv_kernel": 4,
}


def test_an_8b_llama_keeps_131072_bytes_a_token() -> None:
    """The design note's figure for 32 layers, 8 KV heads of 128 in bf16."""
    shape = cache_shape(LLAMA, "auto", "bfloat16")
    assert (shape.kv_bytes_per_token, shape.state_bytes_per_sequence) == (131_072, 0)
    assert cache_shape(LLAMA, "fp8_e4m3", "bfloat16").kv_bytes_per_token == 65_536
    assert cache_shape(LLAMA, "auto", "float32").kv_bytes_per_token == 262_144


def test_mamba2_keeps_a_state_and_no_token() -> None:
    """A layer: convolution (64·64 + 2·128)·3 and state 64·64·128, two bytes each."""
    shape = cache_shape(MAMBA2, "auto", "bfloat16")
    assert shape.kv_bytes_per_token == 0
    assert shape.state_bytes_per_sequence == 48 * ((4096 + 256) * 3 + 4096 * 128) * 2
    assert shape.sequence_bytes(100) == shape.sequence_bytes(100_000)


def test_hybrids_count_each_layer_by_its_kind() -> None:
    mixed = {
        **LLAMA,
        "layer_types": ["full_attention", "sliding_attention"] * 16,
        "sliding_window": 1024,
    }
    shape = cache_shape(mixed, "auto", "bfloat16")
    assert (shape.full_bytes_per_token, shape.window_bytes) == (65_536, {1024: 65_536})
    assert shape.sequence_bytes(8192) == 65_536 * 8192 + 65_536 * 1024
    every_fourth = {"num_hidden_layers": 8, "full_attention_interval": 4}
    assert layer_kinds(every_fourth) == ["linear"] * 3 + ["attention"] + ["linear"] * 3 + [
        "attention"
    ]
    both = {**MAMBA2, "model_type": "falcon_h1", "num_attention_heads": 8, "num_key_value_heads": 2}
    found = cache_shape({**both, "head_dim": 64}, "auto", "bfloat16")
    assert found.kv_bytes_per_token == 48 * 2 * 2 * 64 * 2 and found.state_bytes_per_sequence


def test_nemotron_calls_its_mamba_layers_linear_attention() -> None:
    config = {
        "layers_block_type": ["linear_attention", "mlp", "full_attention"],
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "head_dim": 64,
        "mamba_num_heads": 64,
        "mamba_head_dim": 64,
        "ssm_state_size": 128,
        "n_groups": 8,
        "conv_kernel": 4,
    }
    shape = cache_shape(config, "auto", "bfloat16")
    assert shape.kv_bytes_per_token == 2 * 8 * 64 * 2
    assert shape.state_bytes_per_sequence == ((4096 + 2 * 8 * 128) * 3 + 4096 * 128) * 2


def test_a_state_that_is_not_known_is_no_zero() -> None:
    odd = {**LLAMA, "layer_types": ["full_attention", "linear_attention"] * 16}
    shape = cache_shape(odd, "auto", "bfloat16")
    assert shape.state_bytes_per_sequence is None and shape.notes
    assert shape.sequence_bytes(1000) is None
    mixed = CacheShape(64, 64, None, {128: 64})
    assert sequences_that_fit(mixed, 10**9, 10**6, [1000]) == {}


def test_what_fits_is_by_tokens_for_plain_models_and_by_bytes_for_others() -> None:
    plain = cache_shape(LLAMA, "auto", "bfloat16")
    assert sequences_that_fit(plain, None, 815_000, [131_072, 8192]) == {131_072: 6, 8192: 99}
    states = CacheShape(0, 0, 1_000_000)
    assert sequences_that_fit(states, 10_000_000, 1, [2048, 131_072]) == {2048: 10, 131_072: 10}
    assert sequences_that_fit(plain, 10**9, None, [2048]) == {}


def test_a_hybrid_s_sequences_are_counted_in_the_pages_that_vllm_made() -> None:
    """Expected: vLLM's own "Maximum concurrency for 33,024 tokens per request: 139.48x" of results/h200's
    Falcon-H1, which bytes alone made 145. At 2,048: 2 pages of tokens and one of the state, each
    24 × 1568 × 1024 bytes.
    """
    falcon = json.loads(FALCON.read_text())["server"]
    shape = cache_shape(
        falcon["shape"]["config"], "auto", "bfloat16", ModelShape(**falcon["shape"])
    )
    log = gzip.decompress(FALCON.with_name("server.log.gz").read_bytes()).decode()
    assert "Maximum concurrency for 33,024 tokens per request: 139.48x" in log
    pool = falcon["kv_cache_bytes"]
    found = sequences_that_fit(shape, pool, 1, [2048, 33_024], page_tokens(log))
    assert found == {2048: pool // (3 * 24 * 1568 * 1024), 33_024: 139}


ROOT = Path(__file__).resolve().parents[3]
(FALCON,) = ROOT.glob("results/h200/falcon-h1-1.5b/alternatives-1/servers/*/server.json")
MODELS = ROOT / "configs/models"


def test_every_model_that_the_project_builds_has_a_known_shape() -> None:
    """Guards a recipe of a new family that would silently have no memory figures."""
    import yaml

    for path in sorted(MODELS.glob("*.yaml")):
        model = yaml.safe_load(path.read_text())
        if "build" not in model:
            continue
        config = json.loads(json.dumps(model["build"]["config"]))
        assert not cache_shape(config, "auto", model.get("dtype", "auto")).notes, path.name

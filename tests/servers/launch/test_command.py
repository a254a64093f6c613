"""argv and env of every backend: all that could differ between backends is pinned, and only that differs."""

import json
from dataclasses import replace

import pytest

from greenbench.contract.config import ModelConfig, ServerConfig, ServerRequest, parse
from greenbench.contract.errors import UserError
from servers.backends.choice import parse_choice
from servers.backends.host_facts import HostFacts, ModelFacts
from servers.backends.registry import BACKENDS
from servers.launch.command import (
    Command,
    Plan,
    child_env,
    command,
    left_out,
    plan,
    recorded_env,
    unset,
)

CPU = HostFacts(vllm_build="cpu", vllm_version="0.32.0", modules=frozenset())
H200 = HostFacts(gpu_name="H200", capability=(9, 0), vllm_build="cuda")
B200 = HostFacts(gpu_name="B200", capability=(10, 0), vllm_build="cuda")
MODEL = ModelConfig(name="m", path="/models/m", max_model_len=8192, dtype="bfloat16")
FACTS = ModelFacts("m", head_size=64, window_tokens=8192)

PINNED = (
    "--attention-backend",
    "--dtype",
    "--kv-cache-dtype",
    "--block-size",
    "--no-enable-prefix-caching",
    "--enable-chunked-prefill",
    "--max-num-batched-tokens",
    "--max-num-seqs",
    "--max-model-len",
    "--seed",
    "--enforce-eager",
    "--fail-on-environ-validation",
    "--enable-logging-iteration-details",
    "--enable-per-request-metrics",
    "--enable-force-include-usage",
    "--enable-prompt-tokens-details",
    "--generation-config",
    "--tensor-parallel-size",
    "--served-model-name",
)


def planned(
    name: str,
    host: HostFacts = CPU,
    model: ModelConfig = MODEL,
    facts: ModelFacts = FACTS,
    **server: object,
) -> Plan:
    request = ServerRequest(model=model, backend=parse_choice(name), server=ServerConfig(**server))
    return plan(request, host, facts)


def written(name: str, host: HostFacts = CPU, **server: object) -> Command:
    """The server's command, for a model that is in /models/m."""
    return command(planned(name, host, **server), "/models/m", 8000, "python3")


def flags(argv: list[str]) -> dict[str, str | None]:
    """Flag -> its value (None for a switch)."""
    pairs = zip(argv, [*argv[1:], ""], strict=True)
    return {
        a: (None if b.startswith("--") or b == "" else b) for a, b in pairs if a.startswith("--")
    }


def home(name: str) -> HostFacts:
    """A host where that backend can run."""
    backend = BACKENDS[name]
    if "cpu" in backend.devices:
        return CPU
    return H200 if 9 in (backend.capability_majors or (9,)) else B200


@pytest.mark.parametrize("name", BACKENDS)
def test_every_backend_has_every_pinned_flag(name: str):
    """A flag left to vLLM's default may differ by backend and be measured as the backend."""
    found = flags(written(name, home(name)).argv)
    for flag in PINNED:
        assert flag in found, flag
    assert found["--host"] == "127.0.0.1"
    row = BACKENDS[name]
    assert found["--attention-backend"] == (
        f"GREENBENCH_{name.upper()}" if row.is_ours else row.vllm_name
    )


@pytest.mark.parametrize("host", [CPU, H200], ids=["cpu", "cuda"])
def test_backends_of_one_host_differ_only_where_the_table_says(host: HostFacts):
    def rest(name: str) -> dict[str, str | None]:
        found = flags(written(name, host).argv)
        for allowed in (
            "--attention-backend",
            "--block-size",
            "--attention-config.flash_attn_version",
            "--attention-config.use_trtllm_attention",
        ):
            found.pop(allowed, None)
        return found

    names = [name for name, row in BACKENDS.items() if host.device in row.devices]
    assert len(names) >= 2
    assert all(rest(name) == rest(names[0]) for name in names)


@pytest.mark.parametrize("name", BACKENDS)
def test_plugins_are_always_named(name: str):
    """Unset, VLLM_PLUGINS loads whatever is installed; stock backends must load none of ours."""
    env = written(name, home(name)).env
    if BACKENDS[name].is_ours:
        assert env["VLLM_PLUGINS"] == "greenbench,greenbench_cpu"
        assert env["GREENBENCH_ATTENTION_CLASS"] == BACKENDS[name].class_path
        options = {key: option.default for key, option in BACKENDS[name].options.items()}
        assert json.loads(env["GREENBENCH_ATTENTION_OPTIONS"]) == options
    else:
        assert env["VLLM_PLUGINS"] == "none"
        assert not any(key.startswith("GREENBENCH") for key in env)
    assert env["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("version", "entry_point", "name"),
    [
        ("0.30.1", "vllm.entrypoints.openai.api_server", "CUSTOM"),
        ("0.31.0", "vllm.entrypoints.launchers.api_server.entry", "CUSTOM"),
        ("0.32.0", "vllm.entrypoints.launchers.api_server.entry", "GREENBENCH_SDPA"),
        ("0.33.1.dev7+g1", "vllm.entrypoints.launchers.api_server.entry", "GREENBENCH_SDPA"),
        ("0.40.0", "vllm.entrypoints.launchers.api_server.entry", "GREENBENCH_SDPA"),
    ],
)
def test_a_backend_of_ours_has_its_own_name_where_vllm_takes_one(
    version: str, entry_point: str, name: str
):
    made = written("sdpa", replace(CPU, vllm_version=version))
    assert made.argv[1:3] == ["-m", entry_point]
    assert flags(made.argv)["--attention-backend"] == name
    assert made.env["GREENBENCH_ATTENTION_NAME"] == name


def test_executions_become_a_fixed_graph_mode():
    eager = written("flash_attn", H200).argv
    assert "--enforce-eager" in eager and "--compilation-config" not in eager
    for execution, mode in (("piecewise", "PIECEWISE"), ("full", "FULL_AND_PIECEWISE")):
        argv = written("flash_attn", H200, execution=execution).argv
        assert "--enforce-eager" not in argv
        assert json.loads(argv[argv.index("--compilation-config") + 1]) == {"cudagraph_mode": mode}


def test_kv_pool_on_cpu_is_bytes_and_on_gpu_a_share():
    cpu = flags(written("sdpa", kv_cache_gib=0.5).argv)
    assert cpu["--kv-cache-memory-bytes"] == str(512 * 1024 * 1024)
    assert "--gpu-memory-utilization" not in cpu
    assert flags(written("sdpa").argv)["--kv-cache-memory-bytes"] == str(2**30)
    given = flags(written("sdpa", H200, kv_cache_gib=2).argv)
    assert given["--kv-cache-memory-bytes"] == str(2**31)
    gpu = flags(written("sdpa", H200, num_gpu_blocks=77).argv)
    assert gpu["--num-gpu-blocks-override"] == "77" and gpu["--gpu-memory-utilization"] == "0.85"
    assert "--kv-cache-memory-bytes" not in gpu


def test_block_size_is_the_tables_unless_given():
    assert flags(written("sdpa").argv)["--block-size"] == "128"
    assert flags(written("sdpa", H200).argv)["--block-size"] == "256"
    assert flags(written("triton", H200).argv)["--block-size"] == "16"
    assert flags(written("sdpa", block_size=64).argv)["--block-size"] == "64"


def test_a_chosen_value_changes_its_fields_of_the_row():
    """The flash-attn package reads pages of 256 tokens, split-K of 64; CUTLASS has larger heads."""
    wide = ModelFacts("m", head_size=512, window_tokens=8192)
    there = replace(H200, modules=frozenset({"xformers"}))
    assert flags(written("xformers", there).argv)["--block-size"] == "64"
    paged = planned("xformers(decode=flash)", there)
    assert flags(written("xformers(decode=flash)", there).argv)["--block-size"] == "256"
    [reason] = paged.refusals
    assert "needs the module flash_attn (package flash-attn)" in reason
    [reason] = planned("xformers", there, facts=wide).refusals
    assert reason.startswith("xformers has head sizes 16, 32, 64, 128 or 256; m has 512")
    assert planned("xformers(prefill=cutlass)", there, facts=wide).refusals == []
    with pytest.raises(UserError, match="option 'prefill' is not 'cutlas'; did you mean 'cutlass'"):
        planned("xformers(prefill=cutlas)", there)


def test_a_window_that_is_too_long_is_refused_before_anything_starts():
    [reason] = planned("cpu_attn", max_model_len=8193).refusals
    assert reason == (
        "max_model_len 8193 is longer than the window of m, 8192 tokens; ask for that at most"
    )
    assert planned("cpu_attn", max_model_len=8192).refusals == []


def test_the_window_is_what_the_person_says_else_the_models_own_else_vllms():
    own = MODEL.model_copy(update={"max_model_len": None})
    longer = ModelFacts("m", head_size=64, window_tokens=16_384)
    for made, tokens in (
        (planned("cpu_attn", model=own, facts=longer), 16_384),
        (planned("cpu_attn", facts=longer), 8192),
        (planned("cpu_attn", max_model_len=2048), 2048),
        (planned("cpu_attn", max_model_len=2048, extra_args=["--max-model-len", "4k"]), 4000),
    ):
        assert (made.max_model_len, made.refusals) == (tokens, [])
    nobody_knows = planned("cpu_attn", model=own, facts=ModelFacts("m", unknown="no such class"))
    assert (nobody_knows.max_model_len, nobody_knows.refusals) == (None, [])
    argv = command(nobody_knows, "/models/m", 8000, "python3").argv
    assert "--max-model-len" not in argv and "None" not in argv


def test_a_server_that_runs_already_is_not_judged_by_a_config_here():
    """It may have been started with another window; it says it when it is asked."""
    running = planned("cpu_attn", base_url="http://h:1", max_model_len=16_384)
    assert running.refusals == []


def test_flags_of_ones_own_are_judged_as_vllm_will_follow_them():
    [reason] = planned("sdpa", H200, extra_args=["--kv-cache-dtype", "fp8"]).refusals
    assert reason.endswith("not of fp8")
    with pytest.raises(UserError, match="--hf-overrides wants a JSON mapping"):
        planned("cpu_attn", extra_args=["--hf-overrides", "{"])


@pytest.mark.parametrize(
    ("extra_args", "says"),
    [
        (
            ["--attention-backend", "CPU_ATTN"],
            "--attention-backend has a place of its own: `backends`",
        ),
        (
            ["--attention_backend=CPU_ATTN"],
            "--attention-backend has a place of its own: `backends`",
        ),
        (["--attention-config.backend=X"], "--attention-config.backend has a place of its own"),
        (["--dtype", "float16"], "--dtype has a place of its own: `server.dtype`"),
        (["--no-enforce-eager"], "--enforce-eager has a place of its own: `server.execution`"),
        (["--no-enable-prefix-caching"], "has a place of its own: `server.prefix_caching`"),
        (["--max_num_seqs", "4"], "has a place of its own: `server.max_num_seqs`"),
        (["--api-key", "sk-x"], "--api-key would shut the bench out of the server that it starts"),
        (["--api_key=sk-x"], "--api-key would shut the bench out"),
        (["--host=0.0.0.0"], "--host would shut the bench out"),
        (["--ssl-keyfile", "k.pem"], "--ssl-keyfile would shut the bench out"),
    ],
)
def test_a_flag_that_has_another_place_or_shuts_the_bench_out_is_refused_before_a_start(
    extra_args: list[str], says: str
) -> None:
    """Guards against a boot that ends in HTTP 401, and a run that stores what it did not serve."""
    [reason] = planned("cpu_attn", extra_args=extra_args).refusals
    assert says in reason and "sk-x" not in reason
    # nothing is started at an address
    assert planned("cpu_attn", base_url="http://h:1", extra_args=extra_args).refusals == []


def test_a_key_shuts_out_wherever_it_is_said_and_other_flags_pass() -> None:
    own = MODEL.model_copy(update={"server_args": ["--api-key", "k"]})
    for made in (planned("cpu_attn", env=["VLLM_API_KEY"]), planned("cpu_attn", model=own)):
        [reason] = made.refusals
        assert "shut the bench out" in reason
    passed = [
        "--no-async-scheduling",
        "--enable-flashinfer-autotune",
        "--root-path",
        "/x",
        "-tp",
        "1",
    ]
    assert planned("cpu_attn", extra_args=passed).refusals == []


def test_a_model_that_cannot_cache_prefixes_refuses_prefix_caching():
    hybrid = MODEL.model_copy(update={"server_args": ["--no-enable-prefix-caching"]})
    assert planned("cpu_attn", model=hybrid).refusals == []
    [reason] = planned("cpu_attn", model=hybrid, prefix_caching=True).refusals
    assert "set prefix_caching: false" in reason


def test_the_servers_environment_is_an_allow_list():
    """A stray VLLM_ATTENTION_BACKEND or a secret must not reach the server, or the run directory."""
    base = {
        "PATH": "/bin",
        "VLLM_ATTENTION_BACKEND": "X",
        "HF_TOKEN": "secret",
        "OMP_NUM_THREADS": "2",
    }
    env = child_env(base, {"VLLM_PLUGINS": "none"})
    assert env == {
        "PATH": "/bin", "HF_TOKEN": "secret", "OMP_NUM_THREADS": "2", "VLLM_PLUGINS": "none"
    }  # fmt: skip
    recorded = recorded_env(base, {"VLLM_PLUGINS": "none"})
    assert recorded == {"OMP_NUM_THREADS": "2", "VLLM_PLUGINS": "none"}


def test_the_order_of_the_cards_reaches_the_server_with_their_choice():
    """Without it 1 would mean another card in the server than for who set it."""
    base = {"CUDA_DEVICE_ORDER": "PCI_BUS_ID", "CUDA_VISIBLE_DEVICES": "1"}
    assert child_env(base, {}) == recorded_env(base, {}) == base


def test_what_vllm_would_listen_to_and_does_not_get_is_said():
    base = {
        "NCCL_SOCKET_IFNAME": "eth0", "VLLM_LOGGING_LEVEL": "DEBUG", "VLLM_PLUGINS": "mine",
        "OMP_NUM_THREADS": "2", "SHELL": "sh", "EDITOR": "vi", "VLLM_PYTHON": "/opt/python",
    }  # fmt: skip
    pinned = {"VLLM_PLUGINS": "none"}
    assert left_out(base, pinned) == ["NCCL_SOCKET_IFNAME", "VLLM_LOGGING_LEVEL", "VLLM_PLUGINS"]
    named = ["NCCL_SOCKET_IFNAME", "MY_TOKEN"]
    assert left_out(base, pinned, named) == ["VLLM_LOGGING_LEVEL", "VLLM_PLUGINS"]
    mine = base | {"MY_TOKEN": "secret"}
    env = child_env(mine, pinned, named)
    assert (env["NCCL_SOCKET_IFNAME"], env["MY_TOKEN"]) == ("eth0", "secret")
    recorded = recorded_env(mine, pinned, named)
    assert recorded["NCCL_SOCKET_IFNAME"] == "eth0" and "MY_TOKEN" not in recorded


def test_a_sweep_sets_and_passes_on_variables():
    asked = ServerConfig.model_validate(
        {"env": {"NCCL_DEBUG": "INFO", "MAX_JOBS": 4, "MY_X": None}}
    )
    assert asked.env == {"NCCL_DEBUG": "INFO", "MAX_JOBS": "4", "MY_X": None}
    assert ServerConfig.model_validate({"env": ["MY_X"]}).env == {"MY_X": None}
    request = ServerRequest(model=MODEL, backend=parse_choice("sdpa"), server=asked)
    made = command(plan(request, CPU, ModelFacts("m")), "/m", 1, "python")
    assert (made.env["NCCL_DEBUG"], made.env["MAX_JOBS"]) == ("INFO", "4")
    assert "MY_X" not in made.env  # its value is that of the person's environment
    assert unset({"MY_X": "1"}, request) == []
    assert unset({}, request) == [
        "server.env passes on MY_X, which is not set here; set it, or give its value in the sweep"
    ]


@pytest.mark.parametrize(
    ("env", "said"),
    [
        ({"VLLM_PLUGINS": "x"}, "VLLM_PLUGINS: greenbench sets it itself"),
        ({"GREENBENCH_X": "x"}, "greenbench sets it itself"),
        ({"CUDA_VISIBLE_DEVICES": "1"}, "set it where you start greenbench"),
        ({"A B": "x"}, "A B: no name of a variable"),
        ([1], "1: no name of a variable"),
        ({"X": True}, "should be a valid string"),
        ({"HF_TOKEN": "hush"}, "give the name alone"),
    ],
)
def test_a_variable_that_cannot_be_set_so_is_one_sentence(env: object, said: str):
    with pytest.raises(UserError) as error:
        parse(ServerConfig, {"env": env}, "sweep.yaml")
    assert said in str(error.value) and "hush" not in str(error.value)
    with pytest.raises(UserError, match="'base_url' runs already"):
        parse(ServerConfig, {"env": ["X"], "base_url": "http://h:1"}, "sweep.yaml")


def test_unknown_backend_names_the_nearest():
    with pytest.raises(UserError, match="Unknown backend 'sdpaa'; did you mean 'sdpa'"):
        planned("sdpaa")

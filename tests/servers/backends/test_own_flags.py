"""The person's own vLLM flags, read as vLLM reads them."""

import pytest

from greenbench.contract.errors import UserError
from servers.backends.own_flags import OwnFlags, own_flags


@pytest.mark.parametrize(
    ("args", "tokens"),
    [
        (["--max-model-len", "4096"], 4096),
        (["--max-model-len=4096"], 4096),
        (["--max_model_len", "4096"], 4096),
        (["--max-model-len", "4096", "--max-model-len", "2048"], 2048),  # the last one counts
        (["--max-model-len", "25.6k"], 25_600),
        (["--max-model-len", "32K"], 32 * 1024),
        (["--max-model-len", "1m"], 1_000_000),
        (["--max-model-len", "-1"], None),  # as long as fits
        (["--max-model-len", "auto"], None),
        (["--swap-space", "4096"], None),
    ],
)
def test_a_window(args: list[str], tokens: int | None) -> None:
    assert own_flags(args).max_model_len == tokens


def test_settings_that_change_what_a_server_is() -> None:
    args = ["--trust-remote-code", "-tp", "8", "--kv-cache-dtype=fp8", "--config-format", "hf"]
    assert own_flags(args) == OwnFlags(
        kv_cache_dtype="fp8", tensor_parallel=8, trust_remote_code=True, config_format="hf"
    )
    assert own_flags([]) == OwnFlags()


@pytest.mark.parametrize(
    "args",
    [
        ["--hf-overrides", '{"rope_parameters": {"factor": 2.0}, "max_position_embeddings": 9}'],
        ['--hf_overrides={"rope_parameters": {"factor": 2.0}, "max_position_embeddings": 9}'],
        [
            "--hf-overrides.rope_parameters.factor", "2.0",
            "--hf-overrides.max_position_embeddings=9",
        ],
    ],
    ids=["json", "assigned", "dotted"],
)  # fmt: skip
def test_overrides_of_the_config(args: list[str]) -> None:
    wanted = {"rope_parameters": {"factor": 2.0}, "max_position_embeddings": 9}
    assert own_flags(args).hf_overrides == wanted


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--max-model-len", "long"], "--max-model-len wants a whole number .* found 'long'"),
        (["--max-model-len", "0"], "--max-model-len wants a whole number"),
        (["--max-model-len", "1.5"], "--max-model-len wants a whole number"),
        (["--hf-overrides", "{max: 1}"], "--hf-overrides wants a JSON mapping, found '{max: 1}'"),
        (["--hf-overrides", "[1]"], r"--hf-overrides wants a JSON mapping, found '\[1\]'"),
        (["--hf-overrides", "[" * 100_000], "--hf-overrides wants a JSON mapping, found"),
        (["--hf-overrides"], "--hf-overrides wants a JSON mapping, found ''"),
    ],
)
def test_a_value_that_vllm_could_not_read_is_one_sentence(args: list[str], words: str) -> None:
    with pytest.raises(UserError, match=words) as error:
        own_flags(args)
    assert "\n" not in str(error.value)

"""The model files: each carries the flags its family needs; and where a model's folder is."""

import pytest

from greenbench.contract.config import (
    CONFIGS,
    ModelConfig,
    load_model,
)
from servers.models.store import build_hash, missing, model_path

NAMES = sorted(file.stem for file in (CONFIGS / "models").glob("*.yaml"))
BUILT = [name for name in NAMES if load_model(name).build is not None]
# mixers whose prefix caching ends vLLM's CPU engine under concurrency (seen on 0.32)
NO_PREFIX_CACHING = ("falcon_h1", "granitemoehybrid", "nemotron_h", "zamba2")


def test_all_families_are_there():
    shapes = {(load_model(name).build or fail(name)).config["model_type"] for name in BUILT}
    assert shapes >= {
        "llama", "qwen2", "qwen3", "mamba2", "falcon_h1", "granitemoehybrid", "qwen3_next", "lfm2",
        "zamba2", "nemotron_h",
    }  # fmt: skip
    tiny = {name for name in BUILT if name.startswith("tiny-")}
    assert tiny >= {"tiny-llama", "tiny-mamba2", "tiny-falcon-h1", "tiny-qwen3-next"}


def fail(name: str):
    raise AssertionError(name)


@pytest.mark.parametrize("name", BUILT)
def test_a_built_model_says_that_its_weights_are_random(name: str):
    model = load_model(name)
    assert model.name == name and model.weights == "random"


@pytest.mark.parametrize("name", BUILT)
def test_families_that_cannot_cache_prefixes_say_so(name: str):
    model = load_model(name)
    kind = (model.build or fail(name)).config["model_type"]
    assert ("--no-enable-prefix-caching" in model.server_args) == (kind in NO_PREFIX_CACHING)


def test_the_folder_follows_from_all_that_decides_the_bytes(tmp_path):
    model = load_model("tiny-llama")
    assert model.build is not None
    assert model_path(model, tmp_path) == f"{tmp_path}/models/tiny-llama-{build_hash(model.build)}"
    other_seed = model.build.model_copy(update={"seed": 2})
    other_shape = model.build.model_copy(
        update={"config": {**model.build.config, "hidden_size": 512}}
    )
    hashes = {build_hash(build) for build in (model.build, other_seed, other_shape)}
    assert len(hashes) == 3


def test_a_missing_folder_is_named_and_a_hub_id_is_not_looked_for(tmp_path):
    gone = ModelConfig(name="m", path=str(tmp_path / "gone"), max_model_len=10)
    assert missing(gone) == f"Model 'm': no folder {tmp_path}/gone; give a model folder"
    assert missing(ModelConfig(name="m", path="someone/model", max_model_len=10)) is None

"""Models named by hub id, out of a hub cache that a test lays out as the library does; nothing is fetched."""

import json
from pathlib import Path

import pytest
from huggingface_hub import constants

from greenbench.contract import hub
from greenbench.contract.config import ModelConfig, load_model
from greenbench.contract.errors import UserError
from servers.models.store import ensure_model, model_path

ID = "my-org/my-model"
CONFIG = {
    "text_config": {"max_position_embeddings": 65536, "num_attention_heads": 8, "head_dim": 96}
}


@pytest.fixture
def snapshot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of revision abc123 with config.json alone, in a cache that no network stands behind."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repo = tmp_path / "models--my-org--my-model"
    folder = repo / "snapshots" / "abc123"
    folder.mkdir(parents=True)
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("abc123")
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder


def fetched(model: ModelConfig, tmp_path: Path) -> str:
    return ensure_model(model, tmp_path / "cache", "no python is needed", {})


def test_a_hub_id_stands_for_its_snapshot_and_what_its_config_says(
    snapshot: Path, tmp_path: Path
) -> None:
    """Guards against a model of the hub that is measured without its shape: no MFU, no bytes a token."""
    model = load_model(ID)
    assert (model.name, model.path, model.max_model_len) == ("my-model", ID, None)
    assert hub.config_folder(ID) == snapshot
    assert model_path(model, tmp_path) == ID  # until its weights are there
    (snapshot / "model.safetensors").touch()
    assert fetched(model, tmp_path) == model_path(model, tmp_path) == str(snapshot)


def test_a_shard_that_is_missing_is_found_before_a_server_starts(
    snapshot: Path, tmp_path: Path
) -> None:
    names = ["model-1-of-2.safetensors", "model-2-of-2.safetensors"]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / names[0]).touch()
    assert hub.folder(ID) is None
    with pytest.raises(UserError, match="lacks weights; fetch them where the hub can be reached"):
        fetched(load_model(ID), tmp_path)
    (snapshot / names[1]).touch()
    assert fetched(load_model(ID), tmp_path) == str(snapshot)


def test_an_id_that_cannot_be_had_is_one_sentence(snapshot: Path) -> None:
    with pytest.raises(
        UserError, match=r"^Model 'my-org/other' is no folder .*hub does not give it"
    ):
        load_model("my-org/other")
    with pytest.raises(UserError, match="Unknown model 'tiny-lama'"):  # no owner: a name of ours
        load_model("tiny-lama")

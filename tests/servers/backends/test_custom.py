"""A person's own backend from outside the checkout: one YAML file is a row, and every fault of it is said."""

import json
from pathlib import Path

import pytest
import yaml

from greenbench.contract.config import BackendChoice, ModelConfig, ServerRequest
from greenbench.contract.errors import UserError
from servers.backends.choice import parse_choice, resolve
from servers.backends.host_facts import HostFacts, ModelFacts
from servers.backends.registry import BACKENDS
from servers.launch.command import command, plan

ROW = {
    "describe": "mine",
    "class_path": "their_attn.TheirBackend",
    "impls": ["TheirImpl"],
    "devices": ["cpu"],
    "dtypes": ["float32"],
    "options": {"tile": {"default": 128, "minimum": 16}},
}


def row_file(folder: Path, name: str = "their_attn.yaml", **changed: object) -> str:
    path = folder / name
    path.write_text(yaml.safe_dump({k: v for k, v in (ROW | changed).items() if v is not None}))
    return str(path)


def test_it_is_named_by_its_file_with_options(tmp_path: Path) -> None:
    choice = parse_choice(f"{row_file(tmp_path)}(tile=64)")
    assert choice.label == "their_attn(tile=64)"
    backend, options = resolve(choice)
    assert (backend.name, backend.vllm_name, backend.impls) == (
        "their_attn",
        "CUSTOM",
        ("TheirImpl",),
    )
    assert options == {"tile": 64}
    assert "their_attn" not in BACKENDS  # the product's table is not changed


def test_the_server_is_told_class_folder_and_options(tmp_path: Path) -> None:
    """Without the folder the class could not be imported; without the plugins vLLM serves its own."""
    model = ModelConfig(name="m", path="/models/m", max_model_len=8192, dtype="float32")
    request = ServerRequest(model=model, backend=BackendChoice(name=row_file(tmp_path)))
    host = HostFacts(vllm_build="cpu", vllm_version="0.32.0", modules=frozenset())
    planned = plan(request, host, ModelFacts("m", head_size=64, window_tokens=8192))
    assert planned.refusals == []
    env = command(planned, "/models/m", 1, "python3").env
    assert env["GREENBENCH_ATTENTION_CLASS"] == "their_attn.TheirBackend"
    assert env["GREENBENCH_ATTENTION_FOLDER"] == str(tmp_path.resolve())
    assert json.loads(env["GREENBENCH_ATTENTION_OPTIONS"]) == {"tile": 128}
    assert env["VLLM_PLUGINS"] == "greenbench,greenbench_cpu"


@pytest.mark.parametrize(
    ("name", "changed", "said"),
    [
        ("sdpa.yaml", {}, "not taken by"),
        ("My Attn.yaml", {}, "small letters, digits and _"),
        ("mine.yaml", {"clas_path": "a.B"}, "unknown key 'clas_path'; did you mean 'class_path'"),
        ("mine.yaml", {"class_path": "TheirBackend"}, "class_path"),
        ("mine.yaml", {"impls": None}, "impls"),
        ("mine.yaml", {"devices": ["tpu"]}, "devices"),
        ("mine.yaml", {"exact": False}, "'exact: false' wants an option 'window'"),
    ],
)
def test_a_wrong_row_is_refused(tmp_path: Path, name: str, changed: dict, said: str) -> None:
    with pytest.raises(UserError, match=said):
        resolve(BackendChoice(name=row_file(tmp_path, name, **changed)))


def test_an_unknown_option_or_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no option 'tiles'; did you mean 'tile'"):
        resolve(parse_choice(f"{row_file(tmp_path)}(tiles=64)"))
    with pytest.raises(UserError, match="cannot be read"):
        resolve(parse_choice("no/such/backend.yaml"))


def test_the_deliberately_broken_one_is_not_in_the_product() -> None:
    assert not any("drops" in name or "broken" in name for name in BACKENDS)
    assert not any("drops" in str(row.class_path) for row in BACKENDS.values())

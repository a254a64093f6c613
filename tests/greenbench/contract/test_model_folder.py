"""What people give as a model and is none: one sentence that says what it is and what to give."""

from collections.abc import Callable
from pathlib import Path

import pytest

from greenbench.contract.config import load_model
from greenbench.contract.errors import UserError
from greenbench.contract.model_folder import another_form, read_config


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"model_type": "llama",\n', "Expecting property name .* line 2, column 1"),
        (b"", "Expecting value at line 1, column 1"),
        (b"[1, 2]", "holds no mapping but a list"),
        (b"null", "holds no mapping but a NoneType"),
        (b'{"a": "\xff"}', "UnicodeDecodeError"),
        (b"[" * 100_000, "RecursionError|Expecting"),
        (b'{"a": "' + b"x" * (17 * 2**20) + b'"}', "has 17825801 bytes"),
    ],
    ids=["cut", "empty", "list", "null", "no utf-8", "deep", "huge"],
)
def test_a_broken_config_is_one_sentence_with_its_name(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "config.json"
    path.write_bytes(content)
    with pytest.raises(UserError, match=words) as error:
        load_model(str(tmp_path))
    said = str(error.value)
    assert said.startswith(f"{path}: ") and "\n" not in said
    assert said.endswith("give the config.json that the model was published with")


def test_a_byte_order_mark_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(b'\xef\xbb\xbf{"model_type": "llama"}')
    assert read_config(tmp_path / "config.json") == {"model_type": "llama"}


def lora(folder: Path) -> Path:
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    return folder


def mistral(folder: Path) -> Path:
    (folder / "params.json").write_text("{}")
    (folder / "consolidated.safetensors").touch()
    return folder


def gguf(folder: Path) -> Path:
    (folder / "m-Q4_K_M.gguf").touch()
    return folder


def gguf_file(folder: Path) -> Path:
    return gguf(folder) / "m-Q4_K_M.gguf"


def weights_file(folder: Path) -> Path:
    (folder / "model.safetensors").touch()
    return folder / "model.safetensors"


def folder_above(folder: Path) -> Path:
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    return folder


def diffusion(folder: Path) -> Path:
    (folder / "model_index.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lora, "holds a LoRA adapter, not a model; merge it into its base model org/base"),
        (mistral, r"Mistral's own format \(params\.json\); give the folder of the same model with"),
        (gguf, "holds GGUF files, which are not served here"),
        (gguf_file, "is a GGUF file, which is not served here"),
        (weights_file, "is one file of a model; give the folder that holds its config.json"),
        (folder_above, "has no config.json, and .*/model has; give that folder"),
        (diffusion, "holds a diffusion pipeline"),
        (lambda folder: folder, "is a folder without config.json"),
    ],
    ids=["lora", "mistral", "gguf", "gguf file", "one file", "above", "diffusion", "empty"],
)
def test_another_form_of_a_model_is_named(
    tmp_path: Path, make: Callable[[Path], Path], words: str
) -> None:
    with pytest.raises(UserError, match=words) as error:
        load_model(str(make(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_model_that_has_its_config_beside_other_forms_is_taken(tmp_path: Path) -> None:
    for make in (lora, mistral, gguf):
        make(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    assert another_form(tmp_path) is None
    model = load_model(str(tmp_path))
    assert (model.path, model.max_model_len) == (str(tmp_path), None)  # its window: vLLM says it

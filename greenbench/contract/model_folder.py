"""A model's folder: its config.json, and what a folder without one holds instead, said in one sentence."""

import json
from pathlib import Path
from typing import Any, cast

from greenbench.contract.errors import UserError

CONFIG = "config.json"
MOST_BYTES = 16 * 2**20  # the largest published ones have less than one


def read_config(path: Path) -> dict[str, Any]:
    """The mapping in a config.json. UserError where it cannot be read, is no JSON, or is no mapping."""
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise UserError(f"{path}: has {size} bytes, which no config of a model has; {_WANTED}")
        config: Any = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); {_WANTED}") from error
    except json.JSONDecodeError as error:
        where = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise UserError(f"{path}: not valid JSON ({where}); {_WANTED}") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({type(error).__name__}); {_WANTED}") from error
    if isinstance(config, dict):
        return cast(dict[str, Any], config)
    raise UserError(f"{path}: holds no mapping but a {type(config).__name__}; {_WANTED}")


_WANTED = "give the config.json that the model was published with"


def has_config(folder: Path) -> bool:
    return (folder / CONFIG).is_file()


def another_form(path: Path) -> str | None:
    """What a path without config.json is, and what to give in its place; None where nothing is known."""
    if path.suffix.lower() == ".gguf" and path.is_file():
        return (
            f"{path} is a GGUF file, which is not served here; give the folder of the model that it was "
            "made from (config.json, safetensors, tokenizer.json)"
        )
    if path.is_file() and path.suffix.lower() in (".safetensors", ".bin", ".pt", ".pth", ".json"):
        return f"{path} is one file of a model; give the folder that holds its config.json"
    if not path.is_dir() or has_config(path):
        return None
    if (path / "adapter_config.json").is_file():
        return (
            f"{path} holds a LoRA adapter, not a model; merge it into {_base_model(path)} and give that "
            "folder"
        )
    if (path / "params.json").is_file():
        return (
            f"{path} holds a model in Mistral's own format (params.json); give the folder of the same "
            "model with config.json and tokenizer.json"
        )
    if any(path.glob("*.gguf")):
        return (
            f"{path} holds GGUF files, which are not served here; give the folder of the model that "
            "they were made from (config.json, safetensors, tokenizer.json)"
        )
    if (path / "model_index.json").is_file():
        return f"{path} holds a diffusion pipeline, which vLLM does not serve as a language model"
    inside = sorted(each.parent for each in path.glob(f"*/{CONFIG}"))
    if inside:
        return f"{path} has no {CONFIG}, and {inside[0]} has; give that folder"
    return f"{path} is a folder without {CONFIG}; give the folder of a model"


def _base_model(adapter: Path) -> str:
    try:
        base = read_config(adapter / "adapter_config.json").get("base_model_name_or_path")
    except UserError:
        base = None
    return f"its base model {base}" if isinstance(base, str) and base else "its base model"

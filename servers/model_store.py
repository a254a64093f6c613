"""Where a model's folder is, and making it when the project builds it.

A built model lies in ``<cache>/models/<name>-<hash>/``; the hash covers everything that decides its bytes,
so the folder can be named before it exists and is never rebuilt. The building itself needs torch and runs
in the vLLM python (``servers.model_builder``); this module imports nothing heavy.
"""

import fcntl
import hashlib
import json
import subprocess
from collections.abc import Mapping
from pathlib import Path

from greenbench.config import ROOT, BuiltModel, ModelConfig
from greenbench.errors import UserError

BUILDER_VERSION = 2  # raise when model_builder makes other bytes from the same config and seed


def build_hash(build: BuiltModel) -> str:
    key = {"builder": BUILDER_VERSION, **build.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]


def model_path(model: ModelConfig, cache: Path) -> str:
    """The folder (or hub id) that vLLM is given; a built model's folder may not exist yet."""
    if model.build is None:
        assert model.path is not None
        return model.path
    return str(cache / "models" / f"{model.name}-{build_hash(model.build)}")


def is_hub_id(path: str) -> bool:
    return not Path(path).is_absolute() and not Path(path).exists()


def missing(model: ModelConfig) -> str | None:
    """A sentence when a given local folder is no model; None when it is, or is built or on the hub."""
    if model.path is None or not model.path.startswith(("/", ".")):
        return None
    if (Path(model.path) / "config.json").is_file():
        return None
    return f"Model '{model.name}': no config.json in {model.path}; give a model folder"


def ensure_model(model: ModelConfig, cache: Path, vllm_python: str, env: Mapping[str, str]) -> str:
    """Build the model unless it is there; returns its path. A missing given folder raises UserError."""
    path = model_path(model, cache)
    if reason := missing(model):
        raise UserError(reason)
    if model.build is None:
        return path
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two launchers may want the same model at once
        if not (folder / "config.json").is_file():
            _build(model.build, folder, vllm_python, env)
    return path


def _build(build: BuiltModel, folder: Path, vllm_python: str, env: Mapping[str, str]) -> None:
    order = json.dumps({**build.model_dump(mode="json"), "folder": str(folder)})
    done = subprocess.run(
        [vllm_python, "-m", "servers.model_builder"],
        input=order, text=True, capture_output=True, cwd=ROOT, env=dict(env), check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["(it printed nothing)"]
        raise UserError(f"The model could not be built in {folder}: {lines[-1]}")

"""Where a model's folder is, and making it when the project builds it.

A built model lies in ``<cache>/models/<name>-<hash>/``; the hash covers everything that decides its bytes,
so the folder can be named before it exists and is never rebuilt. The building itself needs torch and runs
in the vLLM python (``servers.models.builder``); this module imports nothing heavy.
"""

import fcntl
import hashlib
import json
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path

from greenbench.contract import hub
from greenbench.contract.config import BuiltModel, ModelConfig
from greenbench.contract.errors import UserError
from greenbench.contract.installation import plugin_folder
from greenbench.contract.model_folder import another_form, has_config

_DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_STORED_FLOAT_BYTES = {"F64": 8, "F32": 4, "BF16": 2, "F16": 2}
BUILDER_VERSION = 2  # raise when the builder makes other bytes from the same config and seed


def build_hash(build: BuiltModel) -> str:
    key = {"builder": BUILDER_VERSION, **build.model_dump(mode="json")}
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:10]


def model_path(model: ModelConfig, cache: Path) -> str:
    """The folder that vLLM is given: a built model's may not exist yet; the id of one not fetched yet."""
    if model.build is None:
        assert model.path is not None
        folder = hub.folder(model.path) if hub.is_id(model.path) else None
        return str(folder or model.path)
    return str(cache / "models" / f"{model.name}-{build_hash(model.build)}")


def missing(model: ModelConfig) -> str | None:
    """A sentence when a given local folder is no model; None when it is, or is built or on the hub."""
    if model.path is None or has_config(Path(model.path)):
        return None
    if other := another_form(Path(model.path)):
        return f"Model '{model.name}': {other}"
    if not model.path.startswith(("/", ".")):
        return None
    return f"Model '{model.name}': no folder {model.path}; give a model folder"


def ensure_model(model: ModelConfig, cache: Path, vllm_python: str, env: Mapping[str, str]) -> str:
    """Build or fetch the model unless it is there; returns its folder. One that cannot be had: UserError."""
    path = model_path(model, cache)
    if reason := missing(model):
        raise UserError(reason)
    if model.build is None:
        return str(hub.download(path)) if hub.is_id(path) else path
    folder = Path(path)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(folder.name + ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # two launchers may want the same model at once
        if not has_config(folder):
            _build(model.build, folder, vllm_python, env)
    return path


def _build(build: BuiltModel, folder: Path, vllm_python: str, env: Mapping[str, str]) -> None:
    order = json.dumps({**build.model_dump(mode="json"), "folder": str(folder)})
    done = subprocess.run(
        [vllm_python, "-m", "servers.models.builder"],
        input=order, text=True, capture_output=True, cwd=plugin_folder(), env=dict(env), check=False,
    )  # fmt: skip
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["(it printed nothing)"]
        raise UserError(f"The model could not be built in {folder}: {lines[-1]}")


def weights_bytes(folder: Path, dtype: str) -> int | None:
    """Parameters in the safetensors headers times the served dtype's size; None where unknown."""
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    if not files or dtype not in _DTYPE_BYTES:
        return None
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header = json.loads(stream.read(struct.unpack("<Q", stream.read(8))[0]))
        for name, tensor in header.items():
            if name == "__metadata__":
                continue
            begin, end = tensor["data_offsets"]
            stored = _STORED_FLOAT_BYTES.get(tensor["dtype"])
            size = end - begin
            total += size if stored is None else size // stored * _DTYPE_BYTES[dtype]
    return total

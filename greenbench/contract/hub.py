"""A model of the Hugging Face hub by its id: what of it is in the hub's cache here, and fetching the rest."""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from greenbench.contract.errors import UserError
from greenbench.contract.model_folder import CONFIG, read_config

HUB_ID = re.compile(r"([A-Za-z0-9][\w.-]*/)?[A-Za-z0-9][\w.-]*")  # a few old ones have no owner
INDEX = "model.safetensors.index.json"
# weights in other forms, which are large; these are asked for only where there are no safetensors
OTHER_FORMS = ["*.bin", "*.pt", "*.pth", "*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*"]


def is_id(path: str) -> bool:
    """Whether ``path`` can only be meant as an id: it has the form of one and is nothing on this disk."""
    return HUB_ID.fullmatch(path) is not None and not Path(path).exists()


def config_folder(hub_id: str) -> Path | None:
    """The snapshot in the hub's cache that has its config.json, whole or not; never asks the network."""
    path = _cached(hub_id)
    return None if path is None else path.parent


def config(hub_id: str) -> dict[str, Any]:
    """config.json of ``hub_id``, fetched where it must be. A model that cannot be had: UserError."""
    path = _cached(hub_id) or _asked(_library().hf_hub_download, hub_id, filename=CONFIG)
    return read_config(path)


def folder(hub_id: str) -> Path | None:
    """The snapshot in the hub's cache, where all of its weights are there; never asks the network."""
    path = _cached(hub_id)
    return path.parent if path is not None and _whole(path.parent) else None


def download(hub_id: str) -> Path:
    """Fetch what the snapshot lacks; its folder. UserError where it cannot be had whole."""
    snapshot = _asked(_library().snapshot_download, hub_id, ignore_patterns=OTHER_FORMS)
    if not _whole(snapshot):
        snapshot = _asked(_library().snapshot_download, hub_id, allow_patterns=["*.bin"])
    if not _whole(snapshot):
        raise UserError(
            f"Model '{hub_id}': {snapshot} lacks weights; fetch them where the hub can be reached"
        )
    return snapshot


def _cached(hub_id: str) -> Path | None:
    """config.json in the hub's cache."""
    path = _library().try_to_load_from_cache(hub_id, CONFIG)
    return Path(path) if isinstance(path, str) else None


def _library() -> Any:
    """huggingface_hub, loaded where an id is named."""
    return importlib.import_module("huggingface_hub")


def _whole(snapshot: Path) -> bool:
    """Whether weights are there: all safetensors that an index names, or else any, or any ``*.bin``."""
    if (snapshot / INDEX).is_file():
        named = set(json.loads((snapshot / INDEX).read_text())["weight_map"].values())
        return all((snapshot / name).is_file() for name in named)
    return any(snapshot.glob("*.safetensors")) or any(snapshot.glob("*.bin"))


def _asked(fetch: Callable[..., str], hub_id: str, **wanted: Any) -> Path:
    try:
        return Path(fetch(hub_id, **wanted))
    except (OSError, ValueError) as error:  # what the library raises, network and all
        said = str(error).strip().splitlines() or ["no more was said"]
        raise UserError(
            f"Model '{hub_id}' is no folder with a {CONFIG}, and the model hub does not give it "
            f"({type(error).__name__}: {said[0][:200]}); give a folder, a name in configs/models/, or a hub "
            "id that this machine can reach (HF_TOKEN for a gated one)"
        ) from error

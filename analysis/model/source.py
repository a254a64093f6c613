"""Where a run says what its model is: as vLLM resolved it at the sweep, else a bare config.json."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from greenbench.contract.config import BuiltModel
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.model_folder import CONFIG, read_config
from greenbench.contract.model_shape import ModelShape


@dataclass(frozen=True, slots=True)
class ModelSource:
    """``shape`` is None where ``config`` is a bare file; both are None where there is none, and ``why``."""

    config: dict[str, Any] | None
    shape: ModelShape | None = None
    why: str | None = None


def model_source(server: Server, built: BuiltModel | None) -> ModelSource:
    """The model of one run; never raises."""
    shape = server.shape
    if shape is not None and shape.config:
        return ModelSource(shape.config, shape)
    path = Path(server.model_path) / CONFIG
    if server.model_path and path.is_file():
        try:
            return ModelSource(read_config(path))
        except UserError as error:
            return ModelSource(None, why=str(error))
    if built is not None:
        return ModelSource({"vocab_size": built.vocab_size, **built.config})
    unknown = shape.unknown if shape is not None else None
    return ModelSource(None, why=unknown or f"no {CONFIG} of the model is here")

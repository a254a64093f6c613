"""Describe a server that somebody else runs: what it reports, and whether that is a proof."""

import json
from pathlib import Path

import httpx

from greenbench.contract import hub
from greenbench.contract.config import ModelConfig, ServerRequest
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.model_folder import has_config
from greenbench.contract.model_shape import ModelShape
from servers.backends.choice import resolve
from servers.launch import inspect, proof
from servers.launch.inspect import ServerSays
from servers.launch.process import ServerDied
from servers.launch.state_file import StateFile
from servers.models.shapes import Place, Wish, model_shapes


def probe(request: ServerRequest, out: Path, place: Place) -> Server:
    """server.json for a server that somebody else runs (``server.base_url``).

    Unproven unless it gives a model inspection. ``place``: where its model's config is resolved. Raises
    UserError on bad input, ServerDied when nothing answers there.
    """
    backend, options = resolve(request.backend)
    if request.server.base_url is None:
        raise UserError("probe wants server.base_url, the address of a running server")
    base_url = request.server.base_url.rstrip("/").removesuffix("/v1")
    try:
        says = inspect.ask(base_url)
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, json.JSONDecodeError) as error:
        raise ServerDied(
            f"No vLLM server answers at {base_url} ({type(error).__name__}: {error})"
        ) from error
    listed = {str(model["id"]): model for model in says.served_models}
    served = request.server.served_model or next(iter(listed), "")
    if served not in listed:
        raise UserError(f"{base_url} serves {', '.join(listed) or 'no model'}, not '{served}'")
    proven = proof.judge(backend, says.trees, None)
    root = str(listed[served].get("root") or "")
    server = Server(
        server_id=out.name,
        requested_backend=request.backend.name,
        backend_options=options,
        exactness=backend.exactness,
        observed_backend=proven.observed_backend,
        proof=proven.verdict,
        proof_detail=proven.detail,
        model=request.model.name,
        model_path=root or request.model.path or "",
        weights=request.model.weights,
        dtype=says.dtype or "auto",
        kv_cache_dtype=request.server.kv_cache_dtype,
        execution="unknown",
        tensor_parallel=request.server.tensor_parallel,
        kv_cache_tokens=says.kv_cache_tokens,
        base_url=base_url,
        served_model=served,
        vllm_version=says.version,
        shape=_shape(request.model, root, says, place),
        async_scheduling=says.async_scheduling,
    )
    server = server.model_copy(update=says.settings(server))
    state = StateFile(out, server)
    state.create()
    says.save(out)
    state.write("ready")
    return server


def _shape(model: ModelConfig, root: str, says: ServerSays, place: Place) -> ModelShape:
    """Of the model that the server names, where its config is on this machine; else of the one asked for."""
    if root and (has_config(Path(root)) or (hub.is_id(root) and hub.config_folder(root))):
        model = ModelConfig(name=model.name, path=root)
    try:
        return model_shapes([Wish(model, tuple(says.shape_args))], place)[0]
    except UserError as error:  # a broken config.json here says nothing of a server that runs
        return ModelShape.not_known(str(error))

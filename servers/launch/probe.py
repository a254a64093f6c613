"""Describe a server that somebody else runs: what it reports, and whether that is a proof."""

from pathlib import Path

from greenbench.contract import hub
from greenbench.contract.access import Access, access
from greenbench.contract.config import ModelConfig, ServerRequest
from greenbench.contract.errors import UserError
from greenbench.contract.manifest import Server
from greenbench.contract.model_folder import has_config
from greenbench.contract.model_shape import ModelShape
from greenbench.contract.served import NoModels, find_endpoint
from servers.backends.choice import resolve
from servers.launch import inspect, proof
from servers.launch.boot_log import Kernels
from servers.launch.inspect import ServerSays
from servers.launch.process import ServerDied
from servers.launch.state_file import StateFile
from servers.models.shapes import Place, Wish, model_shapes

LISTED = 10  # models of a server that are named


def probe(request: ServerRequest, out: Path, place: Place) -> Server:
    """server.json for a server that somebody else runs (``server.base_url``).

    Unproven unless it gives a model inspection. ``place``: where its model's config is resolved. Raises
    UserError on bad input, ServerDied when nothing answers there.
    """
    backend, options = resolve(request.backend)
    if request.server.base_url is None:
        raise UserError("probe wants server.base_url, the address of a running server")
    reached = access(request.server.base_url, request.server.connection)
    base_url = reached.base_url
    says, endpoint = _answers(request, reached)
    listed = {str(model["id"]): model for model in says.served_models}
    served = request.server.served_model or next(iter(listed), "")
    proven = proof.judge(backend, says.trees, Kernels())
    root = str(listed[served].get("root") or "")
    server = Server(
        server_id=out.name,
        requested_backend=request.backend.name,
        backend_options=options,
        exactness=backend.exactness,
        observed_backend=proven.observed_backend,
        proof=proven.verdict,
        proof_detail={
            **proven.detail,
            "prefix_caching": says.prefix_caching,
            "endpoint": endpoint,
            "lacks": _lacks(says),
        },
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


def _answers(request: ServerRequest, reached: Access) -> tuple[ServerSays, str]:
    """What the server reports, and the endpoint at which it has completed one token."""
    try:
        says = inspect.ask(reached)
        listed = [str(model["id"]) for model in says.served_models]
        served = request.server.served_model or next(iter(listed), "")
        if served not in listed:
            raise UserError(
                f"{reached.base_url} serves {_some(listed) or 'no model'}, not '{served}'"
            )
        wanted = request.server.endpoint
        endpoint = find_endpoint(reached, served, wanted)
    except NoModels as error:
        raise ServerDied(
            f"{reached.base_url} answers, but not as an OpenAI-compatible server ({error}); is a prefix of "
            "its address missing, or one too many?"
        ) from error
    except OSError as error:
        raise ServerDied(f"No vLLM server answers at {reached.base_url} ({error})") from error
    if wanted == "auto" and endpoint == "chat":  # prompts are made before, and for completions
        raise UserError(f"{reached.base_url} has no /v1/completions; write 'endpoint: chat'")
    return says, endpoint


def _some(listed: list[str]) -> str:
    """A page may list as many as it likes."""
    more = f" and {len(listed) - LISTED} more" if len(listed) > LISTED else ""
    return ", ".join(name[:100] for name in listed[:LISTED]) + more


def _lacks(says: ServerSays) -> list[str]:
    """What a report will not have, a sentence each: most servers that are not vLLM give less."""
    said: list[str] = []
    if says.version is None:
        said.append("no /version: it may not be vLLM")
    if not says.cache:
        said.append("no /metrics of vLLM's: no KV usage, no queue, and no server times")
    return said

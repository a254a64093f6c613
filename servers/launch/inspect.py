"""What a running vLLM server reports over HTTP. Missing endpoints are None, never a guess."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.access import Access, access
from greenbench.contract.fetch import FetchError, Limits, Reply, fetch
from greenbench.contract.served import served_models

PAGE_LIMITS = Limits(60.0, 64 * 2**20)  # of a model inspection, which large models make long
MODEL_INSPECTION = "model_inspection.txt"
SERVER_INFO = "server_info.json"
CACHE_INFO = "vllm:cache_config_info"  # a sample of /metrics whose labels are the settings


@dataclass(frozen=True, slots=True)
class ServerSays:
    trees: list[str] | None  # inspected model, one a worker
    info: dict[str, Any] | None  # /server_info
    version: str | None
    served_models: list[dict[str, Any]]
    cache: dict[str, str]  # labels of vllm:cache_config_info

    @property
    def dtype(self) -> str | None:
        """The dtype in use, e.g. ``bfloat16``, also where ``auto`` was asked for."""
        config = (self.info or {}).get("vllm_config", {}).get("model_config", {})
        return str(config["dtype"]).removeprefix("torch.") if config.get("dtype") else None

    @property
    def async_scheduling(self) -> bool | None:
        config = (self.info or {}).get("vllm_config", {}).get("scheduler_config", {})
        return config.get("async_scheduling")

    @property
    def kv_cache_tokens(self) -> int | None:
        tokens = self.cache.get("kv_cache_size_tokens", "")
        return int(tokens) if tokens.isdigit() else None

    def save(self, folder: Path) -> None:
        if self.trees is not None:
            (folder / MODEL_INSPECTION).write_text("\n\n".join(self.trees) + "\n")
        if self.info is not None:
            (folder / SERVER_INFO).write_text(json.dumps(self.info, indent=1) + "\n")


def ask(server: str | Access) -> ServerSays:
    """Ask everything once. Raises OSError where /v1/models is not answered, UserError where a key is wanted.

    ``server``: our own's address, all of whose answers count; or how another's is reached, of which what
    cannot be had is left out.
    """
    own = isinstance(server, str)
    reached = access(server) if own else server
    models = served_models(reached)
    inspection = _json(reached, "/collective_rpc", own, {"method": "get_model_inspection"})
    info = _json(reached, "/server_info?config_format=json", own)
    version = _json(reached, "/version", own)
    metrics = _page(reached, "/metrics", own)
    return ServerSays(
        trees=_trees(inspection),
        info=info,
        version=(version or {}).get("version"),
        served_models=models,
        cache=cache_settings(metrics.text) if metrics.is_success else {},
    )


def cache_settings(metrics: str) -> dict[str, str]:
    """Labels of CACHE_INFO on a page of /metrics; empty where it has none, or is no such page."""
    try:
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name == CACHE_INFO:
                    return dict(sample.labels)
    except ValueError:
        return {}
    return {}


def _trees(inspection: dict[str, Any] | None) -> list[str] | None:
    trees = (inspection or {}).get("results")
    return [str(tree) for tree in trees] if isinstance(trees, list) else None


def _page(server: Access, path: str, own: bool, body: object = None) -> Reply:
    try:
        return fetch(server, path, PAGE_LIMITS, body)
    except FetchError:
        if own:
            raise
        return Reply(0, {}, b"")


def _json(
    server: Access, path: str, own: bool, body: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """None where the endpoint is not there or gives no object."""
    reply = _page(server, path, own, body)
    found = reply.json() if reply.is_success else None
    return found if isinstance(found, dict) else None

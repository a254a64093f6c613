"""What a running vLLM server says of itself over HTTP. Missing endpoints are None, never a guess."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

RPC_TIMEOUT_S = 60.0
MODEL_INSPECTION = "model_inspection.txt"
SERVER_INFO = "server_info.json"
_CACHE_INFO = re.compile(r"^vllm:cache_config_info\{(.*)\} ", re.MULTILINE)
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


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
        found = self.cache.get("kv_cache_size_tokens", "")
        return int(found) if found.isdigit() else None

    def save(self, folder: Path) -> None:
        if self.trees is not None:
            (folder / MODEL_INSPECTION).write_text("\n\n".join(self.trees) + "\n")
        if self.info is not None:
            (folder / SERVER_INFO).write_text(json.dumps(self.info, indent=1) + "\n")


def ask(base_url: str) -> ServerSays:
    """Ask everything once. A server that does not answer /v1/models raises httpx.HTTPError."""
    with httpx.Client(base_url=base_url, timeout=RPC_TIMEOUT_S, trust_env=False) as client:
        models = client.get("/v1/models").raise_for_status().json()["data"]
        inspection = _json(client, "POST", "/collective_rpc", {"method": "get_model_inspection"})
        info = _json(client, "GET", "/server_info?config_format=json")
        version = _json(client, "GET", "/version")
        metrics = client.get("/metrics")
    labels = _CACHE_INFO.search(metrics.text) if metrics.is_success else None
    return ServerSays(
        trees=[str(tree) for tree in inspection["results"]] if inspection else None,
        info=info,
        version=(version or {}).get("version"),
        served_models=models,
        cache=dict(_LABEL.findall(labels[1])) if labels else {},
    )


def _json(
    client: httpx.Client, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """None where the endpoint is not there or fails; connection errors propagate."""
    response = client.request(method, path, json=body)
    if not response.is_success:
        return None
    try:
        found = response.json()
    except json.JSONDecodeError:
        return None
    return found if isinstance(found, dict) else None

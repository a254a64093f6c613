"""What a running vLLM server reports over HTTP. Missing endpoints are None, never a guess."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

RPC_TIMEOUT_S = 60.0
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


def ask(base_url: str) -> ServerSays:
    """Ask everything once. A server that does not answer /v1/models raises httpx.HTTPError."""
    with httpx.Client(base_url=base_url, timeout=RPC_TIMEOUT_S, trust_env=False) as client:
        models = client.get("/v1/models").raise_for_status().json()["data"]
        inspection = _json(client, "POST", "/collective_rpc", {"method": "get_model_inspection"})
        info = _json(client, "GET", "/server_info?config_format=json")
        version = _json(client, "GET", "/version")
        metrics = client.get("/metrics")
    return ServerSays(
        trees=[str(tree) for tree in inspection["results"]] if inspection else None,
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


def _json(
    client: httpx.Client, method: str, path: str, body: dict[str, str] | None = None
) -> dict[str, Any] | None:
    """None where the endpoint is not there or fails; connection errors propagate."""
    response = client.request(method, path, json=body)
    if not response.is_success:
        return None
    try:
        body = response.json()
    except json.JSONDecodeError:
        return None
    return body if isinstance(body, dict) else None

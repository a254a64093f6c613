"""What a running vLLM server reports over HTTP. Missing endpoints are None, never a guess."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.manifest import Server

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

    def window(self, served: str) -> int | None:
        """The longest sequence that the model of this name takes, tokens."""
        lengths = [each.get("max_model_len") for each in self.served_models if each["id"] == served]
        return next((length for length in lengths if isinstance(length, int)), None)

    @property
    def dtype(self) -> str | None:
        """The dtype in use, e.g. ``bfloat16``, also where ``auto`` was asked for."""
        dtype = self._said("model_config", "dtype")
        return str(dtype).removeprefix("torch.") if dtype else None

    @property
    def kv_cache_dtype(self) -> str | None:
        """As ``--kv-cache-dtype`` would name it; vLLM settles ``auto`` by the model's own settings."""
        return self.cache.get("cache_dtype") or self._said("cache_config", "cache_dtype")

    @property
    def kv_pool_bytes(self) -> int | None:
        """What the KV pool of a card was told to take; None where vLLM measured what is left."""
        return self._said("cache_config", "kv_cache_memory_bytes")

    @property
    def fixed_blocks(self) -> int | None:
        """The number of blocks that the KV pool was told to have."""
        return self._said("cache_config", "num_gpu_blocks_override")

    @property
    def tensor_parallel(self) -> int | None:
        return self._said("parallel_config", "tensor_parallel_size")

    @property
    def pipeline_parallel(self) -> int | None:
        return self._said("parallel_config", "pipeline_parallel_size")

    @property
    def data_parallel(self) -> int | None:
        """Engines."""
        return self._said("parallel_config", "data_parallel_size")

    def _said(self, part: str, key: str) -> Any:
        """A setting of /server_info; None where the server does not give it."""
        config = (self.info or {}).get("vllm_config")
        config = config.get(part) if isinstance(config, dict) else None
        return config.get(key) if isinstance(config, dict) else None

    @property
    def async_scheduling(self) -> bool | None:
        return self._said("scheduler_config", "async_scheduling")

    @property
    def kv_cache_tokens(self) -> int | None:
        tokens = self.cache.get("kv_cache_size_tokens", "")
        return int(tokens) if tokens.isdigit() else None

    @property
    def shape_args(self) -> list[str]:
        """The flags of the server that change its model's config, as it was given them."""
        overrides = self._said("model_config", "hf_overrides")
        trusted = ["--trust-remote-code"] if self._said("model_config", "trust_remote_code") else []
        if isinstance(overrides, dict) and overrides:
            return [*trusted, "--hf-overrides", json.dumps(overrides)]
        return trusted

    def settings(self, server: Server) -> dict[str, Any]:
        """What the server runs, in place of what it was asked for (``server``); that, where it is silent."""
        return {
            "max_model_len": self.window(server.served_model) or server.max_model_len,
            "kv_cache_dtype": self.kv_cache_dtype or server.kv_cache_dtype,
            "tensor_parallel": self.tensor_parallel or server.tensor_parallel,
            "pipeline_parallel": self.pipeline_parallel,
            "data_parallel": self.data_parallel,
        }

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


def served_window(base_url: str, served: str, timeout_s: float) -> int | None:
    """The longest sequence that the server takes for the model of this name, tokens."""
    models = httpx.get(f"{base_url}/v1/models", timeout=timeout_s, trust_env=False)
    says = ServerSays(None, None, None, models.raise_for_status().json()["data"], {})
    return says.window(served)


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

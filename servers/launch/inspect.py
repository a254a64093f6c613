"""What a running vLLM server reports over HTTP. Missing endpoints are None, never a guess."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.access import Access, access
from greenbench.contract.fetch import FetchError, Limits, Reply, fetch
from greenbench.contract.manifest import Server
from greenbench.contract.served import served_models

PAGE_LIMITS = Limits(60.0, 64 * 2**20)  # of a model inspection, which large models make long
ANOTHERS_PAGE_LIMITS = Limits(
    10.0, 16 * 2**20
)  # of what a server may lack, and a sweep does without
MODEL_INSPECTION = "model_inspection.txt"
SERVER_INFO = "server_info.json"
CACHE_INFO = "vllm:cache_config_info"  # a sample of /metrics whose labels are the settings


@dataclass(frozen=True, slots=True)
class ServerSays:
    trees: list[str] | None  # inspected model, one a worker
    info: dict[str, Any] | None  # /server_info
    version: str | None
    served_models: list[dict[str, Any]]
    engines: tuple[dict[str, str], ...]  # labels of vllm:cache_config_info, of each engine

    @property
    def cache(self) -> dict[str, str]:
        """Of the first engine; all are set alike."""
        return next(iter(self.engines), {})

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
    def kv_pool_bytes_a_card(self) -> int | None:
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
        """Engines: by the settings, or by the pools that /metrics lists."""
        listed = len(self.engines) if len(self.engines) > 1 else None
        return self._said("parallel_config", "data_parallel_size") or listed

    def _said(self, part: str, key: str) -> Any:
        """A setting of /server_info; None where the server does not give it."""
        config = (self.info or {}).get("vllm_config")
        config = config.get(part) if isinstance(config, dict) else None
        return config.get(key) if isinstance(config, dict) else None

    @property
    def async_scheduling(self) -> bool | None:
        return self._said("scheduler_config", "async_scheduling")

    @property
    def prefix_caching(self) -> bool | None:
        word = self.cache.get("enable_prefix_caching")
        return None if word is None else word == "True"

    @property
    def kv_cache_tokens(self) -> int | None:
        """Of the pools of all engines; each line says its own engine's."""
        sizes = [labels.get("kv_cache_size_tokens", "") for labels in self.engines]
        if not sizes or not all(size.isdigit() for size in sizes):
            return None
        return sum(int(size) for size in sizes)

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
        engines=engine_caches(metrics.text) if metrics.is_success else (),
    )


def served_window(base_url: str, served: str) -> int | None:
    """The longest sequence that the server takes for the model of this name, tokens."""
    return ServerSays(None, None, None, served_models(access(base_url)), ()).window(served)


def engine_caches(metrics: str) -> tuple[dict[str, str], ...]:
    """Labels of CACHE_INFO of each engine (data parallel has several) on a page of /metrics.

    Empty where it has none, or is no such page. Without a label ``engine`` there is one.
    """
    found: dict[str, dict[str, str]] = {}
    try:
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name == CACHE_INFO:
                    found.setdefault(sample.labels.get("engine", ""), dict(sample.labels))
    except ValueError:
        return ()
    return tuple(found.values())


def _trees(inspection: dict[str, Any] | None) -> list[str] | None:
    trees = (inspection or {}).get("results")
    return [str(tree) for tree in trees] if isinstance(trees, list) else None


def _page(server: Access, path: str, own: bool, body: object = None) -> Reply:
    short = not own and body is None
    try:
        return fetch(server, path, ANOTHERS_PAGE_LIMITS if short else PAGE_LIMITS, body)
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

"""vLLM's /metrics, by an allow-list. Histograms keep their sums and counts; buckets are too coarse to use."""

import http.client
from collections.abc import Iterable
from urllib.parse import urlsplit

from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.schema import ServerMetric

GAUGES = (
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:num_requests_waiting_by_reason",
    "vllm:kv_cache_usage_perc",
    "vllm:gpu_cache_usage_perc",  # the same before vLLM 0.10
)
COUNTERS = (
    "vllm:prompt_tokens",
    "vllm:prompt_tokens_cached",
    "vllm:prompt_tokens_by_source",
    "vllm:generation_tokens",
    "vllm:num_preemptions",
    "vllm:request_success",
    "vllm:prefix_cache_queries",
    "vllm:prefix_cache_hits",
    "vllm:admission_rejections",
    "vllm:estimated_flops_per_gpu",
    "vllm:estimated_read_bytes_per_gpu",
    "vllm:estimated_write_bytes_per_gpu",
    "process_cpu_seconds",
)
HISTOGRAMS = (
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:request_time_per_output_token_seconds",
    "vllm:e2e_request_latency_seconds",
    "vllm:request_queue_time_seconds",
    "vllm:request_prefill_time_seconds",
    "vllm:request_decode_time_seconds",
    "vllm:request_inference_time_seconds",
    "vllm:request_prompt_tokens",
    "vllm:request_generation_tokens",
    "vllm:request_prefill_kv_computed_tokens",
    "vllm:request_num_preemptions",
    "vllm:iteration_tokens_total",
)
INFO = "vllm:cache_config_info"  # labels say block_size and num_gpu_blocks; they never change
UP = "up"  # 1 or 0, one row a scrape, so that a hole in the others is known to be a failed scrape

ALLOWED = frozenset(
    [
        *GAUGES,
        INFO,
        *(f"{name}_total" for name in COUNTERS),
        *(f"{name}{end}" for name in HISTOGRAMS for end in ("_sum", "_count")),
    ]
)
TIMEOUT_S = 5.0


def allowed_lines(text: str) -> Iterable[str]:
    """Lines of allow-listed samples, for the parser.

    Most of a page is histogram buckets: of 900 lines, parsing these took 0.6 ms of a core, and all 8.7 ms,
    which twice a second would be 2 % of a core of the machine that is measured.
    """
    for line in text.splitlines():
        if line and line[0] != "#" and line.partition("{")[0].partition(" ")[0] in ALLOWED:
            yield line


def parse(text: str, unix_ns: int, mono_ns: int) -> list[ServerMetric]:
    """Samples of one page as rows. Raises ValueError when the page is not Prometheus text."""
    rows: list[ServerMetric] = []
    for family in text_string_to_metric_families("\n".join(allowed_lines(text)) + "\n"):
        for sample in family.samples:
            if sample.value == sample.value:  # NaN: the server has no value yet
                labels = dict(sample.labels)
                rows.append(ServerMetric(unix_ns, mono_ns, sample.name, labels, sample.value))
    return rows


def is_vllms(row: ServerMetric) -> bool:
    """Whether it is vLLM that serves the page; a router or another server has names of its own."""
    return row.metric.startswith("vllm:")


def fetch(base_url: str, path: str = "/metrics", timeout_s: float = TIMEOUT_S) -> str:
    """GET one page on a fresh connection, past any proxy. Raises OSError or HTTPException."""
    parts = urlsplit(base_url)
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout_s)
    try:
        connection.request("GET", parts.path.rstrip("/") + path)
        response = connection.getresponse()
        body = response.read()
        if response.status != 200:
            raise http.client.HTTPException(f"HTTP {response.status}")
        return body.decode()
    finally:
        connection.close()

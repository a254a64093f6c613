"""vLLM's /metrics, by an allow-list. Histograms keep their sums and counts; buckets are too coarse to use."""

from collections.abc import Iterable
from itertools import islice

from prometheus_client.parser import text_string_to_metric_families

from greenbench.contract.access import Access, access
from greenbench.contract.fetch import FetchError, Limits
from greenbench.contract.fetch import fetch as fetch_page
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
MOST_BYTES = 16 * 2**20  # a page of vLLM's has 100 kB, of 64 engines 6 MB
MOST_SAMPLES = 20_000  # allow-listed, of one page; an engine has 45


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
    lines = list(islice(allowed_lines(text), MOST_SAMPLES + 1))
    if len(lines) > MOST_SAMPLES:
        raise ValueError(f"a page with over {MOST_SAMPLES} samples of vLLM's")
    for family in text_string_to_metric_families("\n".join(lines) + "\n"):
        for sample in family.samples:
            if sample.value == sample.value:  # NaN: the server has no value yet
                labels = dict(sample.labels)
                rows.append(ServerMetric(unix_ns, mono_ns, sample.name, labels, sample.value))
    return rows


def is_vllms(row: ServerMetric) -> bool:
    """Whether it is vLLM that serves the page; a router or another server has names of its own."""
    return row.metric.startswith("vllm:")


def fetch(
    server: str | Access,
    path: str = "/metrics",
    timeout_s: float = TIMEOUT_S,
    most: int = MOST_BYTES,
) -> str:
    """GET one page on a fresh connection, past any proxy. Raises OSError with the reason.

    ``timeout_s`` bounds the whole exchange, ``most`` the bytes: what drips or never ends is given up.
    """
    reached = access(server) if isinstance(server, str) else server
    reply = fetch_page(reached, path, Limits(timeout_s, most))
    if reply.status != 200:
        raise FetchError(f"HTTP {reply.status}: {reply.words}".rstrip(": "))
    return reply.body.decode("utf-8", "replace")

"""GPU memory: reserved and used. vLLM takes its KV pool up front, so the device's peak is what was reserved.

Beside that peak stand the weights, the activation peak, the pool in bytes and tokens, what a token and a
sequence keep in it, and how many sequences of each length it holds.
"""

import re
from dataclasses import dataclass, field
from typing import Literal

import pandas as pd

from analysis.model.cache import CacheShape, cache_shape
from analysis.model.source import model_source
from analysis.runs.gpus import certain_gpus
from analysis.runs.run import Run
from analysis.runs.scrapes import kv_usage
from greenbench.contract.run_dir import SERVERS_DIR
from greenbench.contract.unpack import gunzip
from greenbench.contract.vllm_log import total_bytes

GIB = 2**30
CONTEXTS = (2048, 8192, 32_768, 131_072)


@dataclass(frozen=True, slots=True)
class MemoryResult:
    """Bytes and tokens; None where nothing said it, with the reason."""

    peak_bytes: int | None
    peak_source: Literal["device", "process RSS"] | None
    weights_bytes: int | None
    activation_peak_bytes: int | None  # vLLM's own profiling run, GPU only
    graph_bytes: int | None  # CUDA graphs, GPU only
    kv_pool_bytes: int | None
    kv_pool_tokens: int | None
    kv_bytes_per_token: int | None  # by the model's shape, all attention layers
    kv_bytes_per_token_paid: (
        float | None
    )  # pool bytes over pool tokens: what vLLM's pages really cost
    state_bytes_per_sequence: int | None
    kv_usage_peak: float | None  # 0..1 of the pool, highest scrape in the window
    kv_tokens_peak: int | None
    sequences_that_fit: dict[int, int] = field(default_factory=dict[int, int])
    reasons: list[str] = field(default_factory=list[str])


def point_memory(run: Run, start_mono_ns: int, end_mono_ns: int) -> MemoryResult:
    """Memory of one point; peaks are those between the two monotonic moments."""
    server = run.manifest.server
    reasons: list[str] = []
    shape = _shape(run, reasons)
    log = _server_log(run)
    pool_bytes, pool_tokens = server.kv_cache_bytes, server.kv_cache_tokens
    usage = _peak(_within(kv_usage(run.server), start_mono_ns, end_mono_ns), "value")
    if usage is None:
        reasons.append("KV usage was not scraped in the window")
    peak_bytes, peak_source = _device_or_process(run, start_mono_ns, end_mono_ns)
    if peak_bytes is None:
        reasons.append("neither the device's memory nor the process tree was read in the window")
    longest = server.max_model_len or max(CONTEXTS)
    asked = {*CONTEXTS, run.live.point.context_tokens, longest}
    contexts = sorted(context for context in asked if context <= longest)
    return MemoryResult(
        peak_bytes=peak_bytes,
        peak_source=peak_source,
        weights_bytes=server.weights_bytes,
        activation_peak_bytes=total_bytes(log, r"([\d.]+) GiB for peak activation"),
        graph_bytes=graph_bytes(log),
        kv_pool_bytes=pool_bytes,
        kv_pool_tokens=pool_tokens,
        kv_bytes_per_token=shape.kv_bytes_per_token if shape else None,
        kv_bytes_per_token_paid=pool_bytes / pool_tokens if pool_bytes and pool_tokens else None,
        state_bytes_per_sequence=shape.state_bytes_per_sequence if shape else None,
        kv_usage_peak=usage,
        kv_tokens_peak=round(usage * pool_tokens) if usage is not None and pool_tokens else None,
        sequences_that_fit=sequences_that_fit(
            shape, pool_bytes, pool_tokens, contexts, page_tokens(log)
        ),
        reasons=reasons,
    )


def sequences_that_fit(
    shape: CacheShape | None,
    pool_bytes: int | None,
    pool_tokens: int | None,
    contexts: list[int],
    page_tokens: int | None = None,
) -> dict[int, int]:
    """context length → sequences of that length that the pool holds at once.

    By pool tokens where every layer keeps every token; by bytes where windows or states make a sequence
    cost less than its length, in the pages that vLLM said it made of attention and states (``page_tokens``).
    Where it did not say, and where groups of layers are padded to one size, that is an upper bound.
    """
    if shape is not None and shape.full_bytes_per_token is None:
        return {}
    plain = shape is None or (not shape.window_bytes and not shape.state_bytes_per_sequence)
    if plain:
        return {c: pool_tokens // c for c in contexts} if pool_tokens else {}
    fits: dict[int, int] = {}
    for context in contexts:
        paged = shape.paged_bytes(context, page_tokens) if shape and page_tokens else None
        sequence = paged or (shape.sequence_bytes(context) if shape else None)
        if sequence and pool_bytes:
            fits[context] = pool_bytes // sequence
    return fits


def _shape(run: Run, reasons: list[str]) -> CacheShape | None:
    """The model's cache shape, as vLLM resolved it or from its config.json."""
    server = run.manifest.server
    source = model_source(server, run.live.point.model.build)
    if source.config is None:
        reasons.append(f"bytes a token are not known, because {source.why}")
        return None
    shape = cache_shape(
        source.config, server.kv_cache_dtype, server.dtype, source.shape, server.tensor_parallel
    )
    reasons.extend(shape.notes)
    if shape.scale_bytes_per_token:
        reasons.append(
            f"{shape.scale_bytes_per_token} bytes a token of scales come on top where the pool holds them"
        )
    return shape


def _server_log(run: Run) -> str:
    """Its boot is what is read; an archive keeps it packed."""
    path = run.dir.path.parent / SERVERS_DIR / run.manifest.server.server_id / "server.log"
    if path.is_file():
        return path.read_text(errors="replace")
    packed = path.with_name(f"{path.name}.gz")
    return gunzip(packed).decode(errors="replace") if packed.is_file() else ""


def page_tokens(log: str) -> int | None:
    """Tokens of a page of attention beside states, which vLLM makes as large as a state; None without any."""
    said = re.search(r"Setting attention block size to (\d+) tokens", log)
    return int(said[1]) if said else None


def graph_bytes(log: str) -> int | None:
    """Of CUDA graphs: vLLM sums them up only where it sized the KV pool itself, and says each capture's."""
    summed = total_bytes(log, r"([\d.]+)\s+GiB for CUDAGraph memory")
    if summed is not None:
        return summed
    return total_bytes(log, r"Graph capturing finished in .* took ([\d.]+) GiB")


def _within(frame: pd.DataFrame, start_ns: int, end_ns: int) -> pd.DataFrame:
    return frame if frame.empty else frame[frame["mono_ns"].between(start_ns, end_ns)]


def _peak(frame: pd.DataFrame, column: str) -> float | None:
    values = pd.to_numeric(frame[column]).dropna() if column in frame else pd.Series(dtype=float)
    return float(values.max()) if len(values) else None


def _device_or_process(
    run: Run, start_ns: int, end_ns: int
) -> tuple[int | None, Literal["device", "process RSS"] | None]:
    gpu = _within(run.gpu, start_ns, end_ns)
    if not gpu.empty:
        certain = certain_gpus(gpu, run.sources, run.manifest.server.cards)
        used = gpu[gpu["gpu_uuid"].isin(certain or [])]
        # the cards' peaks need not fall together; a server's cards fill alike, so their sum is taken
        peaks = [_peak(rows, "mem_used_bytes") for _, rows in used.groupby("gpu_uuid")]
        if peaks and all(peak is not None for peak in peaks):
            return round(sum(peak or 0 for peak in peaks)), "device"
    rss = _peak(_within(run.host, start_ns, end_ns), "server_rss_bytes")
    return (None, None) if rss is None else (round(rss), "process RSS")

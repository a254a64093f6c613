"""What a page of vLLM's /metrics says of load and KV cache. What it does not say is None, never 0.

Three names of some nine hundred lines are looked for by pattern: parsing the page takes 50 times as long
(tests hold this against prometheus_client's parser).
"""

import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Final

LABELS: Final = rb"(\{[^\n]*\})? ([^ \n]*)"


def _samples_of(name: bytes) -> Callable[[bytes], Iterator[tuple[bytes, float]]]:
    pattern = re.compile(rb"\n" + name + LABELS)

    def samples(page: bytes) -> Iterator[tuple[bytes, float]]:
        """Labels as they stand there, and the value; NaN for what is no number."""
        for found in pattern.finditer(page):
            try:
                yield found[1] or b"", float(found[2])
            except ValueError:
                yield b"", math.nan

    return samples


RUNNING: Final = _samples_of(b"vllm:num_requests_running")
WAITING: Final = _samples_of(b"vllm:num_requests_waiting")
USAGE: Final = _samples_of(b"vllm:(?:kv|gpu)_cache_usage_perc")  # gpu: until 0.10
INFO: Final = _samples_of(b"vllm:cache_config_info")
TRUTH: Final = {b"True": True, b"False": False}
LABEL: Final = re.compile(rb'(?:^\{|,)([a-z_]+)="([^"\n]*)"')


@dataclass(frozen=True, slots=True)
class Scrape:
    """Of all engines of a server together. ``prefix_caching``: None where it is not told."""

    running: int | None = None
    waiting: int | None = None
    total_kv_tokens: int | None = None
    free_kv_tokens: int | None = None
    prefix_caching: bool | None = None


def read_metrics(page: bytes) -> Scrape:
    page = b"\n" + page
    infos = [dict(LABEL.findall(labels)) for labels, _ in INFO(page)]
    total = _sum([_cache_tokens(info) for info in infos])
    usage = [value for _, value in USAGE(page)]
    free = None
    if total is not None and usage and all(0 <= value <= 1 for value in usage):
        free = round(total * (1 - sum(usage) / len(usage)))
    caching = {info.get(b"enable_prefix_caching", b"") for info in infos}
    return Scrape(
        running=_sum([_count(value) for _, value in RUNNING(page)]),
        waiting=_sum([_count(value) for _, value in WAITING(page)]),
        total_kv_tokens=total,
        free_kv_tokens=free,
        prefix_caching=TRUTH.get(b"|".join(caching)),
    )


def _sum(values: list[int | None]) -> int | None:
    """None where there is none, and where one of them is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if values and len(known) == len(values) else None


def _count(value: float) -> int | None:
    return int(value) if 0 <= value < 2**53 else None


def _cache_tokens(info: dict[bytes, bytes]) -> int | None:
    """``kv_cache_size_tokens`` of newer servers; else blocks times tokens a block."""
    said = info.get(b"kv_cache_size_tokens", b"")
    if (told := _whole(said)) is not None:
        return told
    blocks, size = _whole(info.get(b"num_gpu_blocks", b"")), _whole(info.get(b"block_size", b""))
    return blocks * size if blocks is not None and size is not None else None


def _whole(digits: bytes) -> int | None:
    """Python itself reads no number of thousands of digits."""
    return int(digits) if digits.isdigit() and len(digits) <= 15 else None

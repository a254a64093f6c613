"""Rows of the run directory's JSONL files, one dataclass a file, with units in the names.

Raw facts only: TTFT, TPOT, joules and the like are worked out in ``analysis`` from these.
Missing is ``None``, never 0 and never -1. ``docs/contract.md`` says what each column means.
"""

import json
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self

Phase = Literal["warmup", "measure", "drain"]
TimeSource = Literal["user", "kernel"]


_ENCODER = json.JSONEncoder(separators=(",", ":"), allow_nan=False)


class Row:
    """JSON line in, JSON line out. Unknown columns of a newer minor version are left aside."""

    __slots__ = ()

    def to_json(self) -> str:
        # not asdict, which copies deeply: a sampler writes eighty rows a second
        return _ENCODER.encode({name: getattr(self, name) for name in self.__slots__})

    @classmethod
    def from_dict(cls, row: dict[str, Any]) -> Self:
        known = {f.name for f in fields(cls)}  # type: ignore[arg-type]
        return cls(**{key: value for key, value in row.items() if key in known})


@dataclass(slots=True)  # not frozen: one is made between two sends, in 1 µs instead of 4
class RequestRecord(Row):
    """requests/<client>.jsonl: what one request did. Offsets ``*_ns`` count from ``sent_unix_ns``."""

    run_id: str
    client_id: str
    request_id: str  # sent as X-Request-Id, joins the server's log
    phase: Phase  # by the moment a user took it up (scheduled moment in open loop)
    task: str
    prompt_index: int
    prompt_sha256: str
    context_tokens_target: int
    max_output_tokens: int
    in_flight_at_send: int  # this client's other open requests
    time_source: TimeSource = "user"  # who stamped the chunks: this program, or the kernel
    prompt_tokens: int | None = None  # server-reported usage, never re-tokenised
    cached_tokens: int | None = None
    output_tokens: int | None = None
    scheduled_unix_ns: int | None = None  # open loop only
    sent_unix_ns: int | None = None  # first byte of the request handed to the kernel
    sent_mono_ns: int | None = None  # the same moment on CLOCK_MONOTONIC, joins telemetry
    connect_ns: int | None = None  # time taken to connect, when this request opened the connection
    send_ns: int | None = None  # from the first to the last byte of the request written
    headers_ns: int | None = None
    first_token_ns: int | None = None
    last_token_ns: int | None = None
    end_ns: int | None = None
    chunk_ns: list[int] | None = None  # arrival of each chunk with text
    chunk_tokens: list[int] | None = None  # cumulative completion tokens at that chunk
    http_status: int | None = None
    finish_reason: str | None = None
    server_metrics: dict[str, float] | None = (
        None  # vLLM's own per-request times, when it sends them
    )
    error_type: str | None = None  # None = success
    error_message: str | None = None  # cut short; holds no prompt text
    conversation: int | None = None  # of several turns; each turn is a longer prefix of one prompt
    turn: int | None = None  # from 0
    user: int | None = None  # closed loop: who sent it; numbered over all processes of the run


@dataclass(frozen=True, slots=True)
class OutputRecord(Row):
    """outputs/<client>.jsonl: the graded answer of one request, joined by ``request_id``."""

    request_id: str
    task: str
    prompt_index: int
    text: str | None = None
    correct: bool | None = None  # None: the task has no right answer (perplexity)
    score: float | None = None  # 0..1, e.g. share of facts found
    grade: dict[str, Any] = field(
        default_factory=dict[str, Any]
    )  # what was expected, found, invented
    nll_sum: float | None = None  # perplexity: sum of -log p (nats) over nll_tokens scored tokens
    nll_tokens: int | None = None
    nll_buckets: list[dict[str, float]] | None = (
        None  # {"start", "end", "nll_sum", "tokens"} by position
    )
    text_sha256: str | None = None  # of a text that an archive left out, in UTF-8
    text_chars: int | None = None  # its length in characters


@dataclass(frozen=True, slots=True)
class GpuSample(Row):
    """telemetry/gpu.jsonl: one GPU at one tick. A failed read is a row with nulls and ``error``."""

    unix_ns: int
    mono_ns: int  # start of the read
    read_ns: int  # how long the read of this GPU took
    host: str
    gpu_index: int
    gpu_uuid: str
    power_w: float | None = None  # instant; for transients only, never for energy
    power_avg_w: float | None = None  # 1 s average on most cards
    power_mem_w: float | None = None  # memory scope, average
    energy_mj: int | None = None  # total-energy counter, millijoules since driver load
    sm_clock_mhz: int | None = None
    mem_clock_mhz: int | None = None
    temp_c: int | None = None
    mem_used_bytes: int | None = None
    util_pct: int | None = None
    throttle_reasons: int | None = None  # NVML clocks-event bit mask
    error: str | None = None


@dataclass(frozen=True, slots=True)
class HostSample(Row):
    """telemetry/host.jsonl: the host and the server's process tree at one tick."""

    unix_ns: int
    mono_ns: int
    read_ns: int
    host: str
    cpu_busy_share: float | None = None  # 0..1 over all cores since the last tick
    mem_used_bytes: int | None = None
    server_rss_bytes: int | None = None  # sum over the server's process tree
    server_cpu_s: float | None = None  # cumulative user + system seconds of the tree
    server_processes: int | None = None
    cpu_energy_uj: dict[str, int] | None = (
        None  # RAPL zone -> raw counter (wraps); None = unavailable
    )
    error: str | None = None


@dataclass(frozen=True, slots=True)
class ServerMetric(Row):
    """telemetry/server.jsonl: one sample of vLLM's /metrics, long form, allow-listed families."""

    unix_ns: int
    mono_ns: int
    metric: str
    labels: dict[str, str]
    value: float


@dataclass(frozen=True, slots=True)
class Event(Row):
    """events.jsonl: a mark in time, by name: a phase, the recorder, the server, a clock anchor."""

    unix_ns: int
    mono_ns: int
    name: str
    detail: dict[str, Any] = field(default_factory=dict[str, Any])


ERROR_TYPES = (
    "connect",
    "http_4xx",
    "http_5xx",
    "http_other",
    "cut_in_stream",
    "bad_sse",
    "server_error_event",
    "no_usage",
    "length_mismatch",  # prompt or output length is not what was asked
    "timeout",
    "stalled",
    "not_sent",
    "cut_at_drain",
    "bad_http",
    "imported",  # another tool's failure
)

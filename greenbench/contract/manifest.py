"""manifest.json: what ran, where, and whether it may be believed. Written first, replaced at the end."""

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

from greenbench import SCHEMA_VERSION
from greenbench.contract.model_shape import ModelShape

Status = Literal["running", "complete", "failed", "invalid"]
ProofVerdict = Literal["proven", "mismatch", "unproven"]

# Why a point may not be used. Analysis may add its own to summary.json; these stand in manifests.
INVALID_REASONS: dict[str, str] = {
    "server_died": "the server's process ended during the point",
    "server_stalled": "the load generator passed its time limit",
    "backend_mismatch": "another attention backend ran than the one asked for",
    "no_good_requests": "no request of the measured phase succeeded",
    "prompt_length_mismatch": "the server counted another prompt length than was asked for",
    "record_count_mismatch": "request rows on disk and rows counted differ",
    "prefix_cache_hits": "prompts were partly served from the prefix cache",
    "load_failed": "the load generator ended with an error",
    "recorder_failed": "the telemetry recorder ended with an error",
    "interrupted": "stopped by the person before it was complete",
    "client_bound": "the load generator exceeded its own error budget",
    "clock_stepped": "the wall clock jumped during the run",
    "disk_full": "the disk was full when the point ended",
    "server_gone": "to the end of the measured phase nothing was answered any more",
    "mostly_failed": "most requests of the measured phase failed",
    "no_steady_state": "the measured phase has no steady stretch",
    "redo_asked": "marked to be measured again",
}


class Part(BaseModel):
    """Every part is frozen and knows its keys; a typo in a file is an error, not a default."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Open(BaseModel):
    """A part that may hold more than is named; what a newer version adds is kept and not read."""

    model_config = ConfigDict(extra="allow", frozen=True)


GAP_OVER_SERVER = "TTFT over the server's own p50"  # how such a reason of a client's audit begins
GAP_FLOOR_MS = 50.0  # which is always allowed


class Delays(Open):
    """Of one kind of delay, what is looked at again."""

    p99_ms: float | None = None


class AuditFigures(Open):
    """Of a client's self-check, the figures that the report shows, or judges by."""

    shared_time_p90_ms: float | None = None
    shared_time_p99_ms: float | None = None
    user_timed_requests: int | None = None
    loop_lag: Delays = Delays()
    kernel_to_user_delay: Delays = Delays()

    @property
    def own_delay_ms(self) -> float | None:
        """How late the client can have been, by its own clocks (p99); None where they do not tell."""
        lag, delay = self.loop_lag.p99_ms, self.kernel_to_user_delay.p99_ms
        return None if lag is None or delay is None or self.user_timed_requests else lag + delay


class ClientAudit(Open):
    """client_audit/<client>.json: what a load generator says of itself. ``invalid``: codes it causes."""

    over_budget: bool = False
    reasons: list[str] = Field(default_factory=list[str])
    warnings: list[str] = Field(default_factory=list[str])
    event_loop_late: list[str] = Field(default_factory=list[str])
    clock_stepped: bool = False
    itl_tail_in_doubt: bool = False
    itl_in_doubt: bool = False
    figures: AuditFigures = AuditFigures()
    invalid: list[str] = Field(default_factory=list[str])

    @property
    def faults(self) -> list[str]:
        """Reasons, without a gap over the server's own TTFT that the client cannot have made: earlier audits
        called such a point ``client_bound``, though its time passed in the network or the server's front end.
        """
        if not self.over_budget:
            return []
        own_ms = self.figures.own_delay_ms
        acquitted = own_ms is not None and own_ms <= GAP_FLOOR_MS
        return [why for why in self.reasons if not (acquitted and why.startswith(GAP_OVER_SERVER))]


class ProofDetail(Open):
    """What stands behind ``proof``, and what a server or another tool's result cannot tell."""

    says: str | None = None
    prefix_caching: bool | None = None  # of a server that was found running
    endpoint: str | None = None  # where it completed a token
    lacks: list[str] = Field(default_factory=list[str])  # a sentence for each page it does not give
    log_offset_ready: int | None = None  # byte of server.log at which it was ready
    imported_from: str | None = None  # the other tool
    cannot_tell: list[str] = Field(default_factory=list[str])  # a sentence each


class Clock(Part):
    unix_ns: int
    mono_ns: int
    host: str


class Code(Part):
    git_sha: str | None
    dirty: bool | None
    greenbench: str
    python: str
    packages: dict[str, str | None]


class Gpu(Part):
    index: int
    uuid: str
    name: str
    memory_bytes: int | None = (
        None  # None: not said; a card with the host's memory has none of its own
    )
    power_limit_w: float | None = None
    compute_capability: str | None = None
    mig: bool | None = None


class Host(Part):
    cpu: str
    cores: int
    ram_bytes: int
    kernel: str
    cpu_flags: list[str] = Field(
        default_factory=list[str]
    )  # avx512f, amx_tile, … : what decides kernels
    driver: str | None = None
    cuda: str | None = None
    gpus: list[Gpu] = Field(default_factory=list[Gpu])


class Server(Part):
    """What was started. ``servers`` writes it as server.json; the sweep copies it into each manifest.

    ``exactness``: 0 approximate by design; of exact backends the one with the most is the reference of
    answers; None where the writer does not know.
    """

    server_id: str
    requested_backend: str
    backend_options: dict[str, Any] = Field(default_factory=dict[str, Any])
    exactness: int | None = Field(default=None, ge=0)
    observed_backend: str | None = None  # implementation class(es) really built, or None
    proof: ProofVerdict = "unproven"
    proof_detail: dict[str, Any] = Field(default_factory=dict[str, Any])
    model: str
    model_path: str
    weights: Literal["random", "trained", "real", "unknown"]
    dtype: str
    dtype_why: str | None = None  # why `dtype: auto` chose it, or what speaks against it
    kv_cache_dtype: str
    execution: str
    tensor_parallel: int = 1
    pipeline_parallel: int | None = None  # None: the server does not say
    data_parallel: int | None = None  # engines; None: the server does not say
    max_model_len: int | None = None
    kv_cache_tokens: int | None = None  # size of the KV pool, tokens; of all engines
    kv_cache_bytes: int | None = None  # on all cards
    weights_bytes: int | None = None  # on all cards, each engine's copy counted
    base_url: str
    served_model: str  # the name to send in requests
    pid: int | None = None  # leader of the server's process group
    pid_created_s: float | None = None  # psutil create_time: tells a reused pid from ours
    argv: list[str] = Field(default_factory=list[str])
    env: dict[str, str] = Field(default_factory=dict[str, str])  # allow-listed
    env_left_out: list[str] = Field(default_factory=list[str])  # names that vLLM listens to
    vllm_version: str | None = None
    shape: ModelShape | None = None  # None: written before shapes were resolved
    async_scheduling: bool | None = None  # a step is planned while the one before still computes
    ready_s: float | None = None
    boot_stages_s: dict[str, float] = Field(default_factory=dict[str, float])

    @field_validator("proof_detail")
    @classmethod
    def _is_proof_detail(cls, raw: dict[str, Any]) -> dict[str, Any]:
        ProofDetail.model_validate(raw)
        return raw

    @property
    def shown(self) -> ProofDetail:
        """``proof_detail`` by its keys."""
        return ProofDetail.model_validate(self.proof_detail)

    @property
    def cards(self) -> int:
        """Cards of all its engines; what is not known counts as 1."""
        return self.tensor_parallel * (self.pipeline_parallel or 1) * (self.data_parallel or 1)


class Counts(Part):
    scheduled: int = 0
    sent: int = 0
    ok: int = 0
    failed: int = 0
    rows: int = 0


class FileEntry(Part):
    rows: int | None
    sha256: str


class Manifest(Part):
    schema_version: str = SCHEMA_VERSION
    run_id: str
    sweep: str
    status: Status = "running"
    invalid_reasons: list[str] = Field(default_factory=list[str])
    failure: str | None = None  # one sentence, when status is failed; what was found, when invalid
    config_hash: str
    seed: int
    created_unix_ns: int
    sweep_pid: int | None = None
    clock: Clock
    code: Code
    host: Host
    server: Server
    load: dict[str, Any]
    point: dict[str, Any]
    phases: dict[str, tuple[int, int]] = Field(
        default_factory=dict[str, tuple[int, int]]
    )  # unix ns
    counts: Counts = Counts()
    client_audit: dict[str, Any] = Field(default_factory=dict[str, Any])
    files: dict[str, FileEntry] = Field(default_factory=dict[str, FileEntry])

    @field_validator("client_audit")
    @classmethod
    def _are_audits(cls, raw: dict[str, Any]) -> dict[str, Any]:
        audits_of(raw)
        return raw

    @property
    def audits(self) -> dict[str, ClientAudit]:
        """``client_audit`` by its keys."""
        return audits_of(self.client_audit)

    @property
    def acquitted(self) -> bool:
        """Every audit that exceeded its budget names nothing but what its client cannot have done."""
        over = [audit for audit in self.audits.values() if audit.over_budget]
        return bool(over) and all(audit.reasons and not audit.faults for audit in over)

    @property
    def only_acquitted(self) -> bool:
        """Invalid for ``client_bound`` alone, of which its client is acquitted: such a point counts."""
        return self.invalid_reasons == ["client_bound"] and self.acquitted


def audits_of(raw: dict[str, Any]) -> dict[str, ClientAudit]:
    return {client: ClientAudit.model_validate(said) for client, said in raw.items()}

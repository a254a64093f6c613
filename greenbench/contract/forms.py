"""JSON Schemas of the files of a run directory, made of the models and row classes; and a line held to one.

    python -m greenbench.contract docs/schema        # writes them anew

docs/contract.md says in words what the columns mean.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, TypeAdapter, ValidationError

from greenbench.contract.archive import Archive
from greenbench.contract.config import LivePoint, PromptRequest, SweepConfig
from greenbench.contract.errors import nearest
from greenbench.contract.manifest import ClientAudit, Manifest, Open, ProofVerdict, Server
from greenbench.contract.policy import Policy
from greenbench.contract.run_dir import write_atomic
from greenbench.contract.schema import (
    Event,
    GpuSample,
    HostSample,
    OutputRecord,
    RequestRecord,
    Row,
    ServerMetric,
)

SHOWN_CHARS = 60  # of a wrong value
SourceName = Literal[
    "counter", "average", "instant", "memory_scope", "gpm", "rapl", "process", "metrics"
]


class SourceStatus(Open):
    """Whether one source of readings answered. ``refresh_s``: uuid -> seconds between its changes.

    ``zones``, of ``rapl``: its name -> µJ at which the zone's counter starts again; None: not known.
    """

    status: Literal["available", "unavailable"]
    reason: str | None = None
    refresh_s: dict[str, float | None] = Field(default_factory=dict[str, float | None])
    zones: dict[str, int | None] = Field(default_factory=dict[str, int | None])

    @property
    def available(self) -> bool:
        return self.status == "available"

    @property
    def refreshes_s(self) -> list[float]:
        """Seconds between changes, of the cards where that is known."""
        return [seconds for seconds in self.refresh_s.values() if seconds]


class GpuFacts(Open):
    """One card of the host, as the recorder found it."""

    uuid: str
    name: str | None = None
    scope: str = "gpu"
    visible: bool | None = True  # to the server; None: it may be
    mig: bool | None = None
    virtual: bool | None = None
    own_pids: list[int] = Field(default_factory=list[int])
    foreign_pids: list[int] = Field(default_factory=list[int])
    unknown_pids: list[int] = Field(default_factory=list[int])


class CpuFacts(Open):
    name: str | None = None
    threads: int | None = None
    cores: int | None = None
    ram_bytes: int | None = None


class SourceFacts(Open):
    cpu: CpuFacts = CpuFacts()
    gpus: list[GpuFacts] = Field(default_factory=list[GpuFacts])
    sampler: dict[str, Any] | None = None
    which_gpus: str | None = None  # why it is not known which cards serve, or why none does
    unread: list[str] = Field(default_factory=list[str])  # what could not be read, a clause each

    @property
    def own_cards(self) -> list[str]:
        """UUIDs of the cards that the server's processes were seen on."""
        return [card.uuid for card in self.gpus if card.own_pids]

    @property
    def possible_cards(self) -> list[str] | None:
        """UUIDs of the cards that the server was or may have been shown; None where none were recorded."""
        return [card.uuid for card in self.gpus if card.visible is not False] if self.gpus else None


class Sources(Open):
    """telemetry/sources.json: every other key is a source."""

    __pydantic_extra__: dict[str, SourceStatus] = Field(init=False)  # type: ignore[misc]
    facts: SourceFacts = SourceFacts()

    def source(self, name: SourceName) -> SourceStatus | None:
        """None where the recording does not say."""
        return self.__pydantic_extra__.get(name)


VerifyVerdict = Literal["pass", "fail", "not_comparable"]


@dataclass(frozen=True)
class StepsOff:
    """Steps whose log-probabilities are further off than a typical gap may be."""

    first: int  # first tokens, which a prompt's last chunk computes
    decode: int


@dataclass(frozen=True)
class RoundingFloor:
    """What rounding alone did to the reference: the largest gaps of any request, nats."""

    typical_nats: float
    worst_nats: float
    off: StepsOff


@dataclass(frozen=True)
class Tolerance:
    """How far a backend may be off, nats. ``off`` None: every step is bounded as a typical one is."""

    typical_nats: float
    worst_nats: float
    off: StepsOff | None = None


@dataclass(frozen=True)
class ComparedRequest:
    """How far apart each step's log-probabilities are, nats, and where the furthest is."""

    name: str
    prompt_tokens: int
    worst_nats: float  # of any candidate
    worst_step: int
    same_choice: int  # steps at which both have the same candidate as the likeliest
    typical_nats: float  # median of the gaps
    gaps_nats: tuple[float, ...] = ()  # of each step, the root mean square over the candidates


class VerifySubject(Open):
    """Who was compared, and with whom. What is None an older file does not say."""

    schema_version: str | None = None
    backend: str | None = None
    label: str
    model: str
    weights: str | None = None
    dtype: str | None = None
    execution: str | None = None
    observed_backend: str | None = None
    proof: ProofVerdict = "unproven"
    reference: str
    reference_model: str | None = None
    reference_dtype: str | None = None


class Judgement(Open):
    """What the comparison found. Figures are None where no request could be compared.

    ``requests`` = ``compared`` + ``not_comparable``. ``doubts``: of the reference itself.
    """

    verdict: VerifyVerdict
    reasons: list[str] = Field(default_factory=list[str])  # the first few of them
    reasons_total: int | None = None
    rounding_floor: RoundingFloor | None = None
    tolerance: Tolerance | None = None
    requests: int | None = None
    compared: int | None = None
    not_comparable: int | None = None
    steps: int | None = None
    same_choice: int | None = None
    off: StepsOff | None = None
    typical_gap_nats: float | None = None  # of the request where it is largest
    worst_gap_nats: float | None = None
    worst_gap_position: int | None = None
    cached_tokens: int | None = None
    per_request: list[ComparedRequest] = Field(default_factory=list[ComparedRequest])
    doubts: list[str] = Field(default_factory=list[str])


class VerifyFile(Judgement, VerifySubject):
    """verify/<backend>/verify.json: log-probabilities of a backend against a reference's."""


class ServerFile(Open):
    """servers/<server_id>/server.json."""

    state: Literal["booting", "ready", "stopped", "failed"]
    error: str | None = None
    server: Server | None = None


class PromptHead(Open):
    """First line of a prompt file. ``sha256``: of the lines that follow."""

    request: PromptRequest
    sha256: str
    inputs: dict[str, str] = Field(default_factory=dict[str, str])


class PromptLine(Open):
    """Every further line of a prompt file."""

    prompt_index: int
    task: str
    context_tokens: int
    token_ids: list[int]
    sha256: str
    output_tokens: int
    answer: dict[str, Any]


FORMS: dict[str, type] = {
    "manifest": Manifest,
    "config": LivePoint,
    "event": Event,
    "request": RequestRecord,
    "output": OutputRecord,
    "gpu": GpuSample,
    "host": HostSample,
    "server_metric": ServerMetric,
    "sources": Sources,
    "server": ServerFile,
    "client_audit": ClientAudit,
    "archive": Archive,
    "verify": VerifyFile,
    "prompt_head": PromptHead,
    "prompt": PromptLine,
    "sweep": SweepConfig,
    "policy": Policy,
}
ROWS: dict[str, type[Row]] = {  # where rows lie in a run directory
    "events.jsonl": Event,
    "requests/*.jsonl": RequestRecord,
    "outputs/*.jsonl": OutputRecord,
    "telemetry/gpu.jsonl": GpuSample,
    "telemetry/host.jsonl": HostSample,
    "telemetry/server.jsonl": ServerMetric,
}


@cache
def adapter(form: type) -> TypeAdapter[Any]:
    return TypeAdapter(form)


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of one of FORMS."""
    made = adapter(FORMS[name]).json_schema()
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **made}


def json_schemas() -> Iterator[tuple[str, str]]:
    """(file name, text) of every schema."""
    for name in FORMS:
        yield f"{name}.json", json.dumps(json_schema(name), indent=1) + "\n"


@dataclass(frozen=True)
class FormFault:
    """``where``: keys and indexes down to what is wrong. ``clause`` starts with the key."""

    where: tuple[str | int, ...]
    clause: str


def form_faults(form: type, text: bytes, unknown_keys: bool = True) -> list[FormFault]:
    """What is wrong with one JSON text; empty when nothing is.

    Whole numbers are not taken from text, nor from a number with a fraction.
    """
    try:
        adapter(form).validate_json(text, strict=True)
    except ValidationError as error:
        return [_fault(form, fault) for fault in error.errors(include_url=False)]
    if not unknown_keys or not issubclass(form, Row):
        return []
    known = [column.name for column in fields(form)]  # type: ignore[arg-type]
    extra = [key for key in json.loads(text) if key not in known]
    return [FormFault((key,), f"unknown key '{key}'; {nearest(key, known)}") for key in extra]


def _fault(form: type, fault: Any) -> FormFault:
    where = tuple(fault["loc"])
    name = ".".join(str(part) for part in where)
    if fault["type"] == "json_invalid":
        what = "a JSON line" if issubclass(form, Row) else "JSON"
        return FormFault(where, f"not {what} ({fault['ctx']['error']})")
    if fault["type"] == "missing":
        return FormFault(where, f"'{name}' is missing")
    if fault["type"] == "extra_forbidden":
        return FormFault(where, f"unknown key '{name}'")
    shown = repr(fault["input"])
    shown = shown if len(shown) <= SHOWN_CHARS else shown[:SHOWN_CHARS] + "…"
    message = fault["msg"].removeprefix("Value error, ")
    return FormFault(where, f"{name or '(top)'}: {message[:1].lower()}{message[1:]}, found {shown}")


def line_faults(
    form: type, lines: Iterable[bytes], unknown_keys: bool = True
) -> Iterator[tuple[int, str]]:
    """(line number from 1, clause) of each fault; a last line without its end is torn, and passed over."""
    for number, line in enumerate(lines, start=1):
        if line.endswith(b"\n"):
            for fault in form_faults(form, line, unknown_keys):
                yield number, fault.clause


def write_schemas(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in json_schemas():
        write_atomic(folder / name, text)

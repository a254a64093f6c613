"""What was measured, as values: two points are the same measurement when these are equal, never by a label.

``Workload`` is what was asked of a server, ``Candidate`` what answered, ``Device`` where, ``Replicate`` which
of several equal starts. A cell of the tables is (candidate, workload, kind of device); its points are
replicates. Labels are derived from the values (``analysis.runs.labels``) and are for people only.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

from greenbench.contract.archive import Archive
from greenbench.contract.config import (
    NOT_MEASURED,
    LivePoint,
    LoadConfig,
    ModelConfig,
    PhaseConfig,
    ServerConfig,
    SloConfig,
)
from greenbench.contract.connection import NO_MEASUREMENT
from greenbench.contract.forms import Sources
from greenbench.contract.manifest import Manifest

Fields = tuple[tuple[str, Any], ...]  # name and value, sorted by name

# Where a server is found and how long one waits for it say nothing of what it does.
NOT_SETTINGS = NO_MEASUREMENT | NOT_MEASURED | {"base_url", "served_model"}
# Told by the manifest as they were in the running server.
AS_SERVED = frozenset({"dtype", "kv_cache_dtype", "execution", "tensor_parallel"})
SEVERAL_MODELS = "several models"
SNAPSHOT = re.compile(r"/snapshots/([0-9a-f]{40})(?:/|$)")  # a hub's cache: the revision
ANY_CAP_S = 0.0  # how long a point may be measured says nothing of what was asked


class Recorded(Protocol):
    """As much of a run as tells what it is (``Run.identity`` keeps the answer)."""

    @property
    def path(self) -> Path: ...
    @property
    def manifest(self) -> Manifest: ...
    @property
    def live(self) -> LivePoint: ...
    @property
    def sources(self) -> Sources: ...
    @property
    def archive(self) -> Archive | None: ...


@dataclass(frozen=True)
class Workload:
    """What was asked. ``phases`` is None for an imported run, whose length is no setting of anybody's.

    ``prompts``: sha256 of the prompts' file; over several models, whose tokens differ, its rank among the
    prompts that one model was given (see ``scenarios``). ``seed`` is that of the sweep that drew them;
    equal prompts are one workload whatever drew them.
    """

    task: str
    params: Fields
    output_tokens: int | None  # None: the task's own
    requests: int | None
    context_tokens: int
    load: LoadConfig
    phases: PhaseConfig | None
    slo: SloConfig
    prompts: str
    seed: int | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Candidate:
    """What is compared: a model on a backend in a server of these settings and this vLLM.

    ``model_source`` tells models of one name apart, wherever a host keeps them; ``model_path`` is where.
    """

    model: str
    model_path: str = field(compare=False)
    model_source: str
    weights: str
    backend: str
    options: Fields
    dtype: str
    kv_cache_dtype: str
    execution: str
    tensor_parallel: int
    settings: Fields  # every other field of ServerConfig, and the model's own flags
    vllm_version: str | None

    @property
    def backend_label(self) -> str:
        """``sink_window(sink=4,window=1024)``, or the plain name."""
        given = ",".join(f"{name}={value}" for name, value in self.options)
        return f"{self.backend}({given})" if given else self.backend


@dataclass(frozen=True)
class DeviceKind:
    """What must agree between points that are pooled or compared: the processors' models and the driver.

    ``gpus``: names of the cards; one where as many equal ones serve as the server's parallelism takes, which
    is the candidate's.
    """

    cpu: str
    cores: int
    gpus: tuple[str, ...]
    driver: str | None

    @property
    def words(self) -> str:
        """``NVIDIA H200 (driver 580.1)``, ``2 × NVIDIA H200 (driver 580.1)``, or the CPU."""
        if not self.gpus:
            return self.host_words
        counts = {name: self.gpus.count(name) for name in dict.fromkeys(self.gpus)}
        names = [name if n == 1 else f"{n} × {name}" for name, n in counts.items()]
        return f"{', '.join(names)} (driver {self.driver or 'unknown'})"

    @property
    def whole_words(self) -> str:
        """With the host: the same card in two hosts is two kinds."""
        return f"{self.words}, {self.host_words}" if self.gpus else self.words

    @property
    def host_words(self) -> str:
        return f"{self.cpu} ({self.cores} cores)"


@dataclass(frozen=True)
class Device:
    """The very device: host and, on a GPU, the cards' UUIDs in the driver's order.

    Values of two devices are never paired; of candidates that take several cards, the first one counts.
    """

    kind: DeviceKind
    host: str
    uuids: tuple[str, ...]


@dataclass(frozen=True)
class Replicate:
    """Which of several equal starts: the sweep's folder, its repeat and, of one candidate listed twice, the
    arm.
    """

    folder: str
    repeat: int
    arm: int


@dataclass(frozen=True, order=True)
class Block:
    """Starts that ran close together on one device, in shuffled order: their values may be paired."""

    folder: str
    repeat: int
    device: str


@dataclass(frozen=True)
class Scenario:
    """Where candidates meet: all that must agree for two of them to be compared.

    ``model`` is SEVERAL_MODELS where the model is part of what is compared; ``execution`` None where
    executions are compared too (or all are equal).
    """

    model: str
    workload: Workload
    device: DeviceKind
    execution: str | None

    @property
    def context_tokens(self) -> int:
        return self.workload.context_tokens

    @property
    def family(self) -> "Scenario":
        """The same scenario at any context: its points form a curve. Prompts of one seed are one set, since
        those of two contexts cannot be equal.
        """
        drawn = self.workload.seed
        prompts = "" if drawn is None else f"of seed {drawn}"
        return replace(self, workload=replace(self.workload, context_tokens=0, prompts=prompts))


@dataclass(frozen=True)
class Identity:
    """All of it, of one run. ``name``: what the sweep calls the candidate; no part of what it is."""

    workload: Workload
    candidate: Candidate
    device: Device
    replicate: Replicate
    name: str | None = field(default=None, compare=False)

    @property
    def block(self) -> Block:
        device = ",".join([self.device.host, *self.device.uuids[:1]])
        return Block(self.replicate.folder, self.replicate.repeat, device)

    @property
    def scenario(self) -> Scenario:
        """The narrowest scenario: one model, one execution."""
        return Scenario(
            self.candidate.model, self.workload, self.device.kind, self.candidate.execution
        )


def identity_of(run: Recorded) -> Identity:
    name = run.live.point.name
    return Identity(_workload(run), _candidate(run), _device(run), _replicate(run), name)


def _workload(run: Recorded) -> Workload:
    point = run.live.point
    imported = run.manifest.server.shown.imported_from is not None
    return Workload(
        task=point.task.name,
        params=_fields(point.task.params),
        output_tokens=point.task.output_tokens,
        requests=point.task.requests,
        context_tokens=point.context_tokens,
        load=point.load,
        phases=None if imported else point.phases.with_cap(ANY_CAP_S),
        slo=point.slo,
        prompts=_prompts(run),
        seed=None if imported else point.seed,
    )


def _prompts(run: Recorded) -> str:
    """Hash of the prompts alone where it was recorded; else that of their file, which differs by host."""
    of_lines = run.live.prompt_lines_sha256
    if of_lines is None and run.archive is not None:
        of_lines = run.archive.prompt_lines_sha256
    return of_lines or run.live.prompts_sha256


def _candidate(run: Recorded) -> Candidate:
    point, server = run.live.point, run.manifest.server
    asked: ServerConfig = point.server
    settings = {
        name: value
        for name, value in asked.model_dump().items()
        if name not in NOT_SETTINGS | AS_SERVED
    } | {"model_args": point.model.server_args}
    own = point.backend.name.endswith((".yaml", ".yml"))
    return Candidate(
        model=point.model.name,
        model_path=server.model_path,
        model_source=_model_source(point.model, server.model_path),
        weights=server.weights,
        backend=Path(point.backend.name).stem if own else point.backend.name,
        options=_fields(point.backend.options),
        dtype=server.dtype,
        kv_cache_dtype=server.kv_cache_dtype,
        execution=server.execution,
        tensor_parallel=server.tensor_parallel,
        settings=_fields(settings),
        vllm_version=server.vllm_version or run.manifest.code.packages.get("vllm"),
    )


def _model_source(model: ModelConfig, folder: str) -> str:
    """What is the same on every host that has the model: the name of a folder that was built, which holds the
    hash of all that decides its bytes, or the revision in a hub's cache. Of another folder all that is known
    is its path.
    """
    if model.build is not None:
        return Path(folder).name
    snapshot = SNAPSHOT.search(folder)
    return f"revision {snapshot[1]}" if snapshot else folder


def _device(run: Recorded) -> Device:
    host = run.manifest.host
    # cards that the recorder saw the server's processes on, else those it could use; all where it saw none
    used = run.sources.facts.own_cards or run.sources.facts.possible_cards
    cards = [card for card in host.gpus if used is None or card.uuid in used]
    names = tuple(card.name for card in cards)
    if len(names) == run.manifest.server.cards and len(set(names)) == 1:
        names = names[:1]
    kind = DeviceKind(host.cpu.strip(), host.cores, names, host.driver)
    return Device(kind, run.manifest.clock.host, tuple(card.uuid for card in cards))


def _replicate(run: Recorded) -> Replicate:
    return Replicate(str(run.path.parent), run.live.point.repeat, run.live.point.arm)


def _fields(values: Mapping[str, Any]) -> Fields:
    return tuple(sorted((name, _hashable(value)) for name, value in values.items()))


def _hashable(value: Any) -> Any:
    if isinstance(value, dict):
        return tuple(f"{key}={each}" for key, each in sorted(value.items()))
    return tuple(_hashable(each) for each in value) if isinstance(value, list) else value


def scenarios(
    identities: Mapping[str, Identity], across_executions: bool = False
) -> dict[str, Scenario]:
    """The scenario of each run (by run id) beside all others.

    Several models make the model part of what is compared: state-space against attention is a choice of
    model. Then the prompts' hash gives way to its rank among those that one model was given for the same
    task, since two models' tokens have no hash in common. ``across_executions``: eager and CUDA graphs meet.
    """
    several = len({each.candidate.model for each in identities.values()}) > 1
    one_execution = len({each.candidate.execution for each in identities.values()}) < 2
    given: dict[tuple[str, Workload], list[str]] = {}
    for each in identities.values():
        asked = given.setdefault((each.candidate.model, _without_prompts(each.workload)), [])
        if each.workload.prompts not in asked:
            asked.append(each.workload.prompts)
    out: dict[str, Scenario] = {}
    for run_id, each in identities.items():
        scenario = each.scenario
        if several:
            bare = _without_prompts(each.workload)
            rank = given[each.candidate.model, bare].index(each.workload.prompts)
            scenario = replace(
                scenario, model=SEVERAL_MODELS, workload=replace(bare, prompts=f"set {rank}")
            )
        if across_executions or one_execution:
            scenario = replace(scenario, execution=None)
        out[run_id] = scenario
    return out


def _without_prompts(workload: Workload) -> Workload:
    return replace(workload, prompts="")

"""Every YAML file of the project is read here, into frozen models that refuse unknown keys.

A wrong key or value becomes one sentence that names the file, the key and the nearest valid one.
Names of backends and tasks are checked by the stages that own those tables, not here.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self, cast

from pydantic import (
    AfterValidator,
    Field,
    SerializerFunctionWrapHandler,
    field_validator,
    model_serializer,
    model_validator,
)

from greenbench.contract import hub
from greenbench.contract.candidates import CandidateConfig, Contender, MatrixConfig, contenders
from greenbench.contract.connection import measured_part
from greenbench.contract.cpu import Dtype
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.explain import parse as parse
from greenbench.contract.installation import CONFIGS as CONFIGS
from greenbench.contract.installation import ROOT as ROOT
from greenbench.contract.installation import config_file, config_names
from greenbench.contract.limits import MOST_POINTS, MOST_PROMPT_TOKENS, beyond_limit
from greenbench.contract.model_folder import CONFIG, another_form, has_config, read_config
from greenbench.contract.newer import known_part
from greenbench.contract.server_config import SECRET as SECRET
from greenbench.contract.server_config import BackendChoice as BackendChoice
from greenbench.contract.server_config import ServerConfig as ServerConfig
from greenbench.contract.server_config import refuse_token
from greenbench.contract.strict import Options as Options
from greenbench.contract.strict import StrictModel as StrictModel
from greenbench.contract.strict import finite_numbers
from greenbench.contract.yaml_files import dump_yaml as dump_yaml
from greenbench.contract.yaml_files import load_yaml as load_yaml

NAME_CHARS = 100  # of a sweep: folders are called by it


class BuiltModel(StrictModel):
    """A model the project makes itself: a config, seeded random weights, a tokenizer it trains."""

    config: Annotated[dict[str, Any], AfterValidator(finite_numbers)]  # becomes config.json
    seed: int = 1
    vocab_size: int = Field(
        default=4096, ge=512
    )  # of the tokenizer; config.vocab_size is set to it


class ModelConfig(StrictModel):
    """configs/models/<name>.yaml. Exactly one of ``path`` (folder or hub id) and ``build``."""

    name: str
    path: str | None = None
    build: BuiltModel | None = None
    weights: Literal["random", "trained", "real"] = "real"
    family: Literal["attention", "state-space", "linear-attention", "hybrid"] = "attention"
    max_model_len: int | None = Field(default=None, gt=0)  # None: the window that vLLM derives
    dtype: Dtype = "auto"  # auto: on a CPU what it computes, on a GPU as the weights are stored
    server_args: list[str] = Field(
        default_factory=list[str]
    )  # flags this model needs on any backend
    note: str | None = None

    @field_validator("server_args")
    @classmethod
    def _no_token(cls, args: list[str]) -> list[str]:
        return refuse_token(args, "server_args")

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.build is None):
            raise ValueError("give either 'path' (a folder or hub id) or 'build', not both")
        return self


class LoadConfig(StrictModel):
    """How requests arrive. ``closed``: ``users`` loop without pause. ``open``: seeded arrivals, or
    those of a recorded trace. A closed user may hold conversations: ``turns`` requests, each a longer
    prefix of one prompt.
    """

    kind: Literal["closed", "open"] = "closed"
    users: int | None = Field(default=None, ge=1)  # closed
    turns: int = Field(default=1, ge=1)  # closed
    turn_pause_s: float = Field(default=0, ge=0)  # closed: between two turns of a conversation
    rate_per_s: float | None = Field(default=None, gt=0)  # open
    arrivals: Literal["poisson", "constant", "gamma"] = "poisson"  # open
    burstiness: float = Field(default=1.0, gt=0)  # gamma shape; 1 = poisson, < 1 burstier
    ramp_to_per_s: float | None = Field(
        default=None, gt=0
    )  # open: the rate goes straight to this …
    ramp_s: float | None = Field(default=None, gt=0)  # … in so many seconds, and stays there
    trace: str | None = None  # open: file whose arrival times and lengths are replayed
    trace_format: Literal["mooncake", "burstgpt", "azure"] = "mooncake"
    trace_speed: float = Field(default=1.0, gt=0)  # 2 = twice as fast
    trace_clip: bool = False  # cut longer prompts to the point's context instead of refusing

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.kind == "closed" and (self.users is None or self.rate_per_s is not None):
            raise ValueError("a closed load needs 'users' and has no 'rate_per_s'")
        if self.kind == "closed" and (self.trace is not None or self.ramp_s is not None):
            raise ValueError("'trace' and 'ramp_s' belong to an open load")
        if self.kind == "open" and self.users is not None:
            raise ValueError("an open load has no 'users'")
        if self.kind == "open" and (self.rate_per_s is None) == (self.trace is None):
            raise ValueError("an open load needs either 'rate_per_s' or 'trace'")
        if self.kind == "open" and self.turns != 1:
            raise ValueError("'turns' belongs to a closed load")
        if (self.ramp_s is None) != (self.ramp_to_per_s is None):
            raise ValueError("a ramp needs both 'ramp_to_per_s' and 'ramp_s'")
        if self.ramp_s is not None and self.trace is not None:
            raise ValueError("a trace has its own times: 'ramp_s' does not go with it")
        return self

    @property
    def label(self) -> str:
        if self.kind == "closed":
            return f"closed{self.users}" + (f"x{self.turns}turns" if self.turns > 1 else "")
        if self.trace is not None:
            return f"trace-{Path(self.trace).stem}"
        return f"open{self.rate_per_s:g}" + (f"to{self.ramp_to_per_s:g}" if self.ramp_s else "")


class SweepLoad(LoadConfig):
    """A load of a sweep: at all its contexts, or at some, as a full KV cache takes fewer long prompts."""

    contexts: list[Annotated[int, Field(gt=0)]] | None = Field(default=None, min_length=1)

    @classmethod
    def everywhere(cls, load: LoadConfig) -> Self:
        return cls.model_validate(load.model_dump())

    @property
    def alone(self) -> LoadConfig:
        """The load as a point has it."""
        return LoadConfig.model_validate(self.model_dump(exclude={"contexts"}))

    def at(self, context_tokens: int) -> bool:
        return self.contexts is None or context_tokens in self.contexts


# keys of phases that have no meaning there
NO_KEYS = {"fixed": frozenset({"cap_s", "percentile"}), "auto": frozenset({"measure_s"})}


class PhaseConfig(StrictModel):
    """Seconds of each phase. Requests sent in ``warmup`` are kept and never measured.

    ``measure: auto``, where no ``measure_s`` is given, measures until the report can give its figures: a
    steady window, enough requests for a percentile, and where the server uses a GPU enough for joules.
    """

    warmup_s: float = Field(default=5, ge=0)
    measure: Literal["auto", "fixed"] = "auto"
    measure_s: float | None = Field(default=None, gt=0)  # fixed
    cap_s: float = Field(default=300, gt=0)  # auto: measured no longer than this
    percentile: Literal[50, 90, 95, 99] = 90  # auto: measured until there is so high a one
    drain_s: float = Field(default=60, gt=0)  # longest wait for open requests after measure
    requests: int | None = Field(default=None, ge=1)  # stop measuring after so many sent
    request_timeout_s: float = Field(default=300, gt=0)

    @model_validator(mode="before")
    @classmethod
    def _fixed_by_its_length(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        keys = cast(dict[str, Any], given)
        return keys if keys.get("measure_s") is None else {"measure": "fixed", **keys}

    @model_validator(mode="after")
    def _keys_of_its_kind(self) -> Self:
        if self.measure == "fixed" and self.measure_s is None:
            raise ValueError("'measure: fixed' needs 'measure_s', the seconds to measure")
        if self.measure == "auto" and self.measure_s is not None:
            raise ValueError(
                "'measure_s' is the length of 'measure: fixed'; the longest of 'measure: auto' is 'cap_s'"
            )
        foreign = sorted(self.model_fields_set & NO_KEYS["fixed"])
        if self.measure == "fixed" and foreign:
            raise ValueError(
                f"'{foreign[0]}' belongs to 'measure: auto'; leave out 'measure_s' or '{foreign[0]}'"
            )
        return self

    @model_serializer(mode="wrap")
    def _of_its_kind(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A fixed one as it was before there was another."""
        unsaid = NO_KEYS[self.measure] if self.auto else NO_KEYS[self.measure] | {"measure"}
        return {key: value for key, value in dump(self).items() if key not in unsaid}

    @property
    def auto(self) -> bool:
        return self.measure == "auto"

    @property
    def longest_s(self) -> float:
        """The measured phase lasts so long, or less where requests or the rules of ``auto`` end it."""
        return self.cap_s if self.measure_s is None else self.measure_s

    def with_cap(self, cap_s: float) -> Self:
        return self.model_copy(update={"cap_s": cap_s})


class SloConfig(StrictModel):
    """A request is good when it meets every bound that is given. Seconds."""

    ttft_s: float | None = Field(default=None, gt=0)
    tpot_s: float | None = Field(default=None, gt=0)
    e2e_s: float | None = Field(default=None, gt=0)


class TaskConfig(StrictModel):
    """A task by name with its own parameters (the stage that owns the task checks them)."""

    name: str
    output_tokens: int | None = Field(default=None, ge=1)  # None: the task's own
    requests: int | None = Field(default=None, ge=1)  # None: that of the phases
    params: Options = Field(default_factory=dict)


class TelemetryConfig(StrictModel):
    period_s: float = Field(default=0.1, ge=0.02)
    scrape_s: float = Field(default=0.5, ge=0.1)
    idle_s: float = Field(
        default=0, ge=0
    )  # loaded idle recorded before and after a server's points


class SweepConfig(StrictModel):
    """configs/sweeps/<name>.yaml: one server start per model × candidate × repeat, all points inside.

    What is compared is one of: ``backends``, each with the same server; ``candidates``, each with server
    settings of its own; ``matrix``, backends crossed with server settings.
    """

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$", max_length=NAME_CHARS)
    seed: int = Field(default=7, ge=0)
    models: list[str] = Field(min_length=1)
    backends: list[str | BackendChoice] = Field(default_factory=list[str | BackendChoice])
    candidates: list[CandidateConfig] = Field(default_factory=list[CandidateConfig])
    matrix: MatrixConfig | None = None
    repeats: int = Field(default=1, ge=1)
    contexts: list[Annotated[int, Field(gt=0)]] = Field(min_length=1)  # prompt length, tokens
    tasks: list[str | TaskConfig] = Field(min_length=1)
    loads: list[SweepLoad] = Field(min_length=1)
    objective: str | None = None  # what the report's headline goes by; default: goodput, else E2E
    prompts_per_point: int = Field(default=80, ge=1)  # decide a loss of ten points (docs/method.md)
    text_file: str | None = None  # a person's own text for the documents
    server: ServerConfig = ServerConfig()
    phases: PhaseConfig = PhaseConfig()
    slo: SloConfig = SloConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @model_validator(mode="after")
    def _one_list_of_candidates(self) -> Self:
        given = [key for key in ("backends", "candidates", "matrix") if getattr(self, key)]
        if len(given) != 1:
            found = f"found {' and '.join(given)}" if given else "found none of them"
            raise ValueError(
                f"what is compared is given by 'backends', 'candidates' or 'matrix'; {found}"
            )
        return self

    @model_validator(mode="after")
    def _within_limits(self) -> Self:
        if sentence := beyond_limit(self):
            raise ValueError(sentence)
        starts = len(self.models) * len(self.contenders) * self.repeats
        points = starts * len(self.contexts) * len(self.tasks) * len(self.loads)
        if points > MOST_POINTS:
            raise ValueError(
                f"{points:,} points (models × candidates × repeats × contexts × tasks × loads); "
                f"{MOST_POINTS:,} at most"
            )
        tokens = self.prompts_per_point * max(self.contexts)
        if tokens > MOST_PROMPT_TOKENS:
            raise ValueError(
                f"'prompts_per_point' prompts of {max(self.contexts):,} tokens are {tokens:,} tokens in one "
                f"file; {MOST_PROMPT_TOKENS:,} at most"
            )
        return self

    @model_validator(mode="after")
    def _each_context_has_a_load(self) -> Self:
        for index, load in enumerate(self.loads):
            if strange := sorted(set(load.contexts or ()) - set(self.contexts)):
                raise ValueError(
                    f"loads.{index}.contexts names {strange[0]}, which is not among the sweep's 'contexts'; "
                    "add it there, or leave it out here"
                )
        for context in self.contexts:
            if not any(load.at(context) for load in self.loads):
                raise ValueError(
                    f"at context {context} no load is measured; give a load without 'contexts', or one that "
                    "names it"
                )
        return self

    @model_validator(mode="after")
    def _each_place_once(self) -> Self:
        for key, values in (
            ("contexts", self.contexts),
            ("tasks", self.task_configs),
            ("loads", self.loads),
        ):
            for index, value in enumerate(values):
                if value in values[:index]:
                    what = value if isinstance(value, int) else f"entry {index + 1}"
                    raise ValueError(
                        f"'{key}' has {what} twice, which would be one point measured two times; leave one "
                        "out, and raise 'repeats' to measure again"
                    )
        return self

    @model_validator(mode="after")
    def _one_server_is_one_candidate(self) -> Self:
        """A running server has one backend and one model, whatever it is called in the sweep."""
        at: dict[str, set[str]] = {}
        for who in self.contenders:
            if who.server.base_url is not None:
                at.setdefault(who.server.base_url, set()).add(who.label)
        key = "backends" if self.backends else "candidates"
        for base_url, labels in at.items():
            for listed, found in ((key, labels), ("models", set(self.models))):
                if len(found) > 1:
                    raise ValueError(
                        f"'{listed}' has {', '.join(sorted(found))} against one running server ({base_url}), "
                        "which would be measured under each name; list the one that it runs, and give each "
                        "server a sweep of its own"
                    )
        return self

    @property
    def contenders(self) -> list[Contender]:
        """What is compared, each with its number among equal ones: (a, a, b) → a 0, a 1, b 0."""
        listed = self.candidates or (list(self.matrix.candidates) if self.matrix else [])
        each = listed or [CandidateConfig(backend=backend) for backend in self.backends]
        return contenders(each, self.server)

    @property
    def task_configs(self) -> list[TaskConfig]:
        return [TaskConfig(name=t) if isinstance(t, str) else t for t in self.tasks]


class ServerRequest(StrictModel):
    """What ``python -m servers`` needs to plan or start one server."""

    model: ModelConfig
    backend: BackendChoice
    server: ServerConfig = ServerConfig()


class PromptRequest(StrictModel):
    """What ``python -m loadgen prompts`` needs to write one prompt file."""

    model_path: str
    task: TaskConfig
    context_tokens: int = Field(gt=0)
    count: int = Field(ge=1)
    seed: int
    text_file: str | None = None
    endpoint: Literal["completions", "chat"] = "completions"  # chat: as messages of exact length

    @model_serializer(mode="wrap")
    def _as_before(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Without what is as it always was, so that prompt files from before the key are still good."""
        whole = dump(self)
        return (
            whole
            if self.endpoint == "chat"
            else {k: v for k, v in whole.items() if k != "endpoint"}
        )


NOT_MEASURED = frozenset({"port", "boot_timeout_s"})  # of a server
NEWER = ("vllm",)  # of a server: keys that points from before them lack, which is None


def measured_point(point: dict[str, Any]) -> dict[str, Any]:
    """A point as it stands in config.yaml, without what changes no measurement: ports, time limits."""
    server = {
        key: value
        for key, value in point["server"].items()
        if key not in NOT_MEASURED and not (key in NEWER and value is None)
    }
    phases = {key: value for key, value in point["phases"].items() if key != "cap_s"}
    kept = {key: value for key, value in point.items() if key != "name"}
    return {**kept, "phases": phases, "server": measured_part(server)}


class PointConfig(StrictModel):
    """config.yaml of a run directory: all that load generator and recorder need to know."""

    sweep: str
    seed: int
    repeat: int
    arm: int = 0  # a candidate listed n times gives 0..n-1: equal candidates show the noise floor
    name: str | None = None  # what the sweep calls the candidate
    model: ModelConfig
    backend: BackendChoice
    server: ServerConfig
    task: TaskConfig
    context_tokens: int
    load: LoadConfig
    phases: PhaseConfig
    slo: SloConfig
    telemetry: TelemetryConfig
    prompts_per_point: int
    text_file: str | None = None

    def identity(self) -> dict[str, Any]:
        """What makes two points the same measurement; ports and time limits do not."""
        return measured_point(self.model_dump(mode="json"))

    @property
    def workload(self) -> str:
        return f"{self.task.name}-{self.context_tokens}-{self.load.label}"


def points_of(
    sweep: SweepConfig, model: ModelConfig, who: Contender, repeat: int = 0
) -> list[PointConfig]:
    """Every point of one server start: contexts × tasks × loads there, in this order."""
    return [
        PointConfig(
            sweep=sweep.name,
            seed=sweep.seed,
            repeat=repeat,
            arm=who.arm,
            model=model,
            backend=who.backend,
            server=who.server,
            name=who.name,
            task=task.model_copy(update={"requests": None}),
            context_tokens=context,
            load=load.alone,
            phases=sweep.phases.model_copy(
                update={"requests": task.requests or sweep.phases.requests}
            ),
            slo=sweep.slo,
            telemetry=sweep.telemetry,
            prompts_per_point=_prompts(sweep.prompts_per_point, who.server, load),
            text_file=sweep.text_file,
        )
        for context in sweep.contexts
        for task in sweep.task_configs
        for load in sweep.loads
        if load.at(context)
    ]


def _prompts(wanted: int, server: ServerConfig, load: LoadConfig) -> int:
    """Where prompts are cached, users who shared one would share its KV blocks: each has one of its own."""
    return max(wanted, load.users or 0) if server.prefix_caching else wanted


class LivePoint(StrictModel):
    """config.yaml as written: the point, and where its server and prompts are in this run."""

    point: PointConfig
    run_id: str
    base_url: str
    served_model: str
    prompts_path: str
    prompts_sha256: str
    prompt_lines_sha256: str | None = None  # of the prompts alone: the same on every host
    server_pid: int | None = None


def load_sweep(path: Path) -> SweepConfig:
    """A sweep file. A relative path in it is meant from its own folder, else from where one stands."""
    return _from_its_folder(parse(SweepConfig, load_yaml(path), str(path)), path)


def _from_its_folder(sweep: SweepConfig, source: Path) -> SweepConfig:
    def found(text: str) -> str:
        return find_beside(text, source) or text

    loads = [
        load if load.trace is None else load.model_copy(update={"trace": found(load.trace)})
        for load in sweep.loads
    ]
    return sweep.model_copy(
        update={
            "server": sweep.server.model_copy(
                update=_server_paths(sweep.server.model_dump(), source)
            ),
            "models": [_model_path(name, source) for name in sweep.models],
            "backends": [_backend_path(backend, source) for backend in sweep.backends],
            "candidates": [_candidate_paths(each, source) for each in sweep.candidates],
            "matrix": None if sweep.matrix is None else _matrix_paths(sweep.matrix, source),
            "loads": loads,
            "text_file": None if sweep.text_file is None else found(sweep.text_file),
        }
    )


SERVER_FILES = ("ca_file", "vllm")  # keys of a server that may name a file


def _server_paths(server: Mapping[str, Any], source: Path) -> dict[str, Any]:
    """Of a server's keys those that name a file which is there: their absolute paths."""
    named = {key: server[key] for key in SERVER_FILES if isinstance(server.get(key), str)}
    return {key: find_beside(text, source) or text for key, text in named.items()}


def _candidate_paths(candidate: CandidateConfig, source: Path) -> CandidateConfig:
    update: dict[str, Any] = {
        "backend": _backend_path(candidate.backend, source),
        "server": {**candidate.server, **_server_paths(candidate.server, source)},
    }
    if candidate.vllm is not None:
        update |= _server_paths({"vllm": candidate.vllm}, source)
    return candidate.model_copy(update=update)


def _matrix_paths(matrix: MatrixConfig, source: Path) -> MatrixConfig:
    server = {
        key: [_server_paths({key: value}, source).get(key, value) for value in values]
        for key, values in matrix.server.items()
    }
    backends = [_backend_path(backend, source) for backend in matrix.backends]
    return matrix.model_copy(update={"backends": backends, "server": server})


def _model_path(name: str, source: Path) -> str:
    if config_file(f"models/{name}.yaml").is_file():
        return name
    path = find_beside(name, source)
    is_model = path is not None and (_is_yaml(path) or has_config(Path(path)))
    return path if path is not None and is_model else name


def _backend_path(backend: str | BackendChoice, source: Path) -> str | BackendChoice:
    if isinstance(backend, BackendChoice):
        name = _backend_path(backend.name, source)
        return backend.model_copy(update={"name": name})
    return (find_beside(backend, source) if _is_yaml(backend) else None) or backend


def _is_yaml(name: str) -> bool:
    return Path(name).suffix in (".yaml", ".yml")


def find_beside(text: str, source: Path) -> str | None:
    """The absolute path of what a file ``source`` names ``text``: from home (``~``), from that file's folder,
    from where one stands. None where there is nothing of that name.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError as error:  # ~nobody
        raise UserError(f"{source}: {text}: no home folder of that name") from error
    for place in (source.parent, Path.cwd()):
        if (place / path).exists():
            return os.path.abspath(place / path)  # noqa: PTH100  (resolve() follows links)
    return None


def check_files(sweep: SweepConfig) -> None:
    """UserError for the first file that the sweep names and that is not there; before anything starts."""
    named = [(f"loads.{i}.trace", load.trace) for i, load in enumerate(sweep.loads)]
    for key, text in [*named, ("text_file", sweep.text_file)]:
        if text is not None and not Path(text).is_file():
            what = "is no file" if Path(text).exists() else "is not there"
            raise UserError(
                f"sweep '{sweep.name}': {key}: {text} {what}; a relative path is meant from the sweep's "
                f"folder, else from {Path.cwd()}"
            )


def load_live_point(run_path: Path, newer: bool = False) -> LivePoint:
    """``newer``: a newer minor version wrote it, and what that added is passed over."""
    path = run_path / "config.yaml"
    data = load_yaml(path)
    return parse(LivePoint, known_part(LivePoint, data) if newer else data, str(path))


def load_model(name: str) -> ModelConfig:
    """A model by name (configs/models/<name>.yaml), YAML path, folder that holds config.json, or hub id."""
    named = config_file(f"models/{name}.yaml")
    path = Path(name).expanduser()
    if named.is_file() or _is_yaml(name):
        source = named if named.is_file() else path
        return _resolve_path(parse(ModelConfig, load_yaml(source), str(source)), source)
    if has_config(path):
        path = path.resolve()
        read_config(path / CONFIG)  # a broken one ends here, in one sentence
        return ModelConfig(name=path.name, path=str(path))
    if other := another_form(path):
        raise UserError(f"Model '{name}': {other}")
    if "/" in name and hub.HUB_ID.fullmatch(name):
        hub.config(name)
        return ModelConfig(name=path.name, path=name)
    raise UserError(
        f"Unknown model '{name}': no configs/models/{name}.yaml and no folder with a config.json; "
        f"{nearest(name, config_names('models'))}"
    )


def _resolve_path(model: ModelConfig, source: Path) -> ModelConfig:
    """``path`` is a folder, from that file or from where one stands; else it is a hub id."""
    if model.path is None or Path(model.path).is_absolute():
        return model
    if local := find_beside(model.path, source):
        return model.model_copy(update={"path": local})
    if model.path.startswith("models/") or not hub.HUB_ID.fullmatch(model.path):
        raise UserError(
            f"{source}: path: no folder {model.path}, neither from {source.parent} nor from {Path.cwd()}; "
            "give a model folder or a hub id"
        )
    return model

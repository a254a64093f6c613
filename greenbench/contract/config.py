"""Every YAML file of the project is read here, into frozen models that refuse unknown keys.

A wrong key or value becomes one sentence that names the file, the key and the nearest valid one.
Names of backends and tasks are checked by the stages that own those tables, not here.
"""

from pathlib import Path
from typing import Any, Literal, Self, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from greenbench.contract import hub
from greenbench.contract.cpu import Dtype
from greenbench.contract.errors import UserError, nearest
from greenbench.contract.installation import CONFIGS as CONFIGS
from greenbench.contract.installation import ROOT as ROOT
from greenbench.contract.installation import config_file, config_names
from greenbench.contract.model_folder import CONFIG, another_form, has_config, read_config
from greenbench.contract.yaml_text import parse_yaml


class StrictModel(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BuiltModel(StrictModel):
    """A model the project makes itself: a config, seeded random weights, a tokenizer it trains."""

    config: dict[str, Any]  # becomes config.json
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

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if (self.path is None) == (self.build is None):
            raise ValueError("give either 'path' (a folder or hub id) or 'build', not both")
        return self


class BackendChoice(StrictModel):
    """A backend by its table name or one's own YAML file, with options of its own (e.g. window)."""

    name: str
    options: dict[str, int | float | str | bool] = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """e.g. ``sink_window(sink=4,window=1024)``; plain name without options, a file's is its stem."""
        own = self.name.endswith((".yaml", ".yml"))
        name = Path(self.name).stem if own else self.name
        if not self.options:
            return name
        return f"{name}({','.join(f'{k}={v}' for k, v in sorted(self.options.items()))})"


class ServerConfig(StrictModel):
    """Everything that could differ between backends is pinned here. ``base_url`` uses a running server."""

    base_url: str | None = None
    served_model: str | None = None  # with base_url: the name to ask for; default: the first listed
    execution: Literal["eager", "piecewise", "full"] = "eager"
    dtype: Dtype | None = None  # None: the model's
    kv_cache_dtype: str = "auto"
    max_model_len: int | None = Field(default=None, gt=0)  # None: the model's
    max_num_seqs: int = Field(default=64, gt=0)
    max_num_batched_tokens: int = Field(default=2048, gt=0)
    block_size: int | None = Field(default=None, gt=0)  # None: the table's value for the backend
    num_gpu_blocks: int | None = Field(default=None, gt=0)  # same KV pool for all backends
    kv_cache_gib: float | None = Field(default=None, gt=0)  # None: 1 on a CPU, a share on a GPU
    gpu_memory_utilization: float = Field(default=0.85, gt=0, le=1)
    prefix_caching: bool = False
    tensor_parallel: int = Field(default=1, ge=1)
    seed: int = 0
    iteration_log: bool = True  # --enable-logging-iteration-details
    boot_timeout_s: float = Field(default=600, gt=0)
    port: int | None = Field(default=None, ge=1, le=65535)  # None: a free one
    extra_args: list[str] = Field(default_factory=list[str])


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


class PhaseConfig(StrictModel):
    """Seconds of each phase. Requests sent in ``warmup`` are kept and never measured."""

    warmup_s: float = Field(default=5, ge=0)
    measure_s: float = Field(default=30, gt=0)
    drain_s: float = Field(default=60, gt=0)  # longest wait for open requests after measure
    requests: int | None = Field(default=None, ge=1)  # stop measuring after so many sent
    request_timeout_s: float = Field(default=300, gt=0)


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
    params: dict[str, int | float | str | bool] = Field(default_factory=dict)


class TelemetryConfig(StrictModel):
    period_s: float = Field(default=0.1, ge=0.02)
    scrape_s: float = Field(default=0.5, ge=0.1)
    idle_s: float = Field(
        default=0, ge=0
    )  # loaded idle recorded before and after a server's points


class SweepConfig(StrictModel):
    """configs/sweeps/<name>.yaml: one server start per model × backend × repeat, all points inside."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9_.-]*$")
    seed: int = 7
    models: list[str] = Field(min_length=1)
    backends: list[str | BackendChoice] = Field(min_length=1)
    repeats: int = Field(default=1, ge=1)
    contexts: list[int] = Field(min_length=1)  # prompt length, tokens
    tasks: list[str | TaskConfig] = Field(min_length=1)
    loads: list[LoadConfig] = Field(min_length=1)
    objective: str | None = None  # what the report's headline goes by; default: goodput, else E2E
    prompts_per_point: int = Field(default=80, ge=1)  # decide a loss of ten points (docs/method.md)
    text_file: str | None = None  # a person's own text for the documents
    server: ServerConfig = ServerConfig()
    phases: PhaseConfig = PhaseConfig()
    slo: SloConfig = SloConfig()
    telemetry: TelemetryConfig = TelemetryConfig()

    @property
    def candidates(self) -> list[tuple[BackendChoice, int]]:
        """Each listed backend with its index among equal ones: (a, a, b) → (a, 0), (a, 1), (b, 0)."""
        choices = [BackendChoice(name=b) if isinstance(b, str) else b for b in self.backends]
        labels = [choice.label for choice in choices]
        return [(c, labels[:i].count(c.label)) for i, c in enumerate(choices)]

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


class PointConfig(StrictModel):
    """config.yaml of a run directory: all that load generator and recorder need to know."""

    sweep: str
    seed: int
    repeat: int
    arm: int = 0  # a backend listed n times gives 0..n-1: equal candidates show the noise floor
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
        whole = self.model_dump(mode="json")
        whole["server"].pop("port")
        whole["server"].pop("boot_timeout_s")
        return whole

    @property
    def workload(self) -> str:
        return f"{self.task.name}-{self.context_tokens}-{self.load.label}"


def points_of(
    sweep: SweepConfig, model: ModelConfig, backend: BackendChoice, arm: int = 0, repeat: int = 0
) -> list[PointConfig]:
    """Every point of one server start: contexts × tasks × loads of the sweep, in this order."""
    return [
        PointConfig(
            sweep=sweep.name,
            seed=sweep.seed,
            repeat=repeat,
            arm=arm,
            model=model,
            backend=backend,
            server=sweep.server,
            task=task.model_copy(update={"requests": None}),
            context_tokens=context,
            load=load,
            phases=sweep.phases.model_copy(
                update={"requests": task.requests or sweep.phases.requests}
            ),
            slo=sweep.slo,
            telemetry=sweep.telemetry,
            prompts_per_point=sweep.prompts_per_point,
            text_file=sweep.text_file,
        )
        for context in sweep.contexts
        for task in sweep.task_configs
        for load in sweep.loads
    ]


class LivePoint(StrictModel):
    """config.yaml as written: the point, and where its server and prompts are in this run."""

    point: PointConfig
    run_id: str
    base_url: str
    served_model: str
    prompts_path: str
    prompts_sha256: str
    server_pid: int | None = None


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], data: object, source: str) -> Model:
    """Validate ``data``; the first fault becomes a UserError that names source, key and nearest key."""
    try:
        return model.model_validate(data)
    except ValidationError as error:
        raise UserError(_explain(model, error, source)) from error


UNION_TAGS = {"str", "BackendChoice", "TaskConfig"}  # pydantic names the union's branch in the path


def _explain(model: type[BaseModel], error: ValidationError, source: str) -> str:
    # an unknown key says more than the type errors a union adds beside it
    faults = sorted(error.errors(), key=lambda fault: fault["type"] != "extra_forbidden")
    fault = faults[0]
    path = [str(part) for part in fault["loc"] if part not in UNION_TAGS]
    where = ".".join(path) or "(top)"
    if fault["type"] == "extra_forbidden":
        owner = _model_at(model, fault["loc"][:-1])
        known = owner.model_fields if owner else {}
        return f"{source}: unknown key '{where}'; {nearest(path[-1], known)}"
    found = "" if fault["type"] == "missing" else f", found {fault['input']!r}"
    return f"{source}: {where}: {fault['msg'].removeprefix('Value error, ')}{found[:200]}"


def _model_at(model: type[BaseModel], loc: tuple[int | str, ...]) -> type[BaseModel] | None:
    """The model that owns the key at ``loc``, following fields through lists and unions."""
    owner: type[BaseModel] | None = model
    for part in loc:
        if owner is None:
            return None
        if isinstance(part, str) and part in owner.model_fields:
            owner = _first_model(owner.model_fields[part].annotation)
    return owner


def _first_model(annotation: object) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    models = (_first_model(arg) for arg in get_args(annotation))
    return next((model for model in models if model is not None), None)


def load_yaml(path: Path) -> object:
    try:
        return parse_yaml(path.read_text())
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); give the path of a YAML file"
        ) from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" at line {mark.line + 1}" if mark else ""
        raise UserError(
            f"{path}: not valid YAML{line} ({getattr(error, 'problem', error)})"
        ) from error


def dump_yaml(model: BaseModel) -> str:
    return yaml.safe_dump(model.model_dump(mode="json"), sort_keys=False, width=100)


def load_sweep(path: Path) -> SweepConfig:
    return parse(SweepConfig, load_yaml(path), str(path))


def load_live_point(run_path: Path) -> LivePoint:
    path = run_path / "config.yaml"
    return parse(LivePoint, load_yaml(path), str(path))


def load_model(name: str) -> ModelConfig:
    """A model by name (configs/models/<name>.yaml), YAML path, folder that holds config.json, or hub id."""
    named = config_file(f"models/{name}.yaml")
    path = Path(name)
    if named.is_file() or path.suffix in (".yaml", ".yml"):
        source = named if named.is_file() else path
        return _resolve_paths(parse(ModelConfig, load_yaml(source), str(source)), source)
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


def _resolve_paths(model: ModelConfig, source: Path) -> ModelConfig:
    """A relative ``path`` is a folder below the working folder or of the shipped models; else a hub id."""
    if model.path is None or Path(model.path).is_absolute():
        return model
    places = [Path.cwd() / model.path, ROOT / model.path]
    local = next((place for place in places if place.is_dir()), None)
    if local is not None:
        return model.model_copy(update={"path": str(local)})
    if model.path.startswith((".", "models/")):
        raise UserError(f"{source}: path: no folder {places[0]}; give a model folder or a hub id")
    return model

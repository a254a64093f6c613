"""How a server is started or reached, and with which attention backend."""

import re
from pathlib import Path
from typing import Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from greenbench.contract.access import VARIABLE
from greenbench.contract.address import address_fault
from greenbench.contract.connection import ConnectionConfig
from greenbench.contract.cpu import Dtype
from greenbench.contract.errors import UserError
from greenbench.contract.strict import Options, StrictModel


class BackendChoice(StrictModel):
    """A backend by its table name or one's own YAML file, with options of its own (e.g. window)."""

    name: str
    options: Options = Field(default_factory=dict)

    @property
    def label(self) -> str:
        """e.g. ``sink_window(sink=4,window=1024)``; plain name without options, a file's is its stem."""
        own = self.name.endswith((".yaml", ".yml"))
        name = Path(self.name).stem if own else self.name
        if not self.options:
            return name
        return f"{name}({','.join(f'{k}={v}' for k, v in sorted(self.options.items()))})"


class ServerConfig(ConnectionConfig, StrictModel):
    """Everything that could differ between backends is pinned here. ``base_url`` uses a running server."""

    base_url: str | None = None
    served_model: str | None = None  # with base_url: the name to ask for; default: the first listed
    vllm: str | None = None  # the Python of the vLLM that is started; None: VLLM_PYTHON's
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
    env: dict[str, str | None] = Field(default_factory=dict[str, str | None])  # None: our own value

    @field_validator("base_url")
    @classmethod
    def _address(cls, url: str | None) -> str | None:
        if url is not None and (fault := address_fault(url)):
            raise ValueError(fault)
        return url

    @field_validator("extra_args")
    @classmethod
    def _no_token(cls, args: list[str]) -> list[str]:
        return refuse_token(args, "server.extra_args")

    @field_validator("env", mode="before")
    @classmethod
    def _names_alone(cls, given: object) -> object:
        """A list of names passes on their values; a number of a mapping is its text."""
        if isinstance(given, list):
            names = cast("list[object]", given)
            return dict.fromkeys(map(str, names))
        if not isinstance(given, dict):
            return given
        pairs = cast("dict[object, object]", given)
        return {
            name: str(value) if type(value) in (int, float) else value
            for name, value in pairs.items()
        }

    @model_validator(mode="after")
    def _env_can_be_given(self) -> Self:
        if self.base_url is not None and (self.env or self.vllm):
            key = "env" if self.env else "vllm"
            raise ValueError(
                f"'{key}' is for a server that is started here, and 'base_url' runs already"
            )
        for name, value in self.env.items():
            if value is not None and SECRET.search(name):
                # no ValueError: its sentence would show the value
                raise UserError(
                    f"server.env: {name}: its value would be stored in each run; give the name alone "
                    "(env: [NAME]), and set it where you start greenbench"
                )
            if fault := _env_fault(name, value):
                raise ValueError(f"env: {name}: {fault}")
        return self


# What greenbench sets of a server's environment: these decide what is proven and logged.
LAUNCHERS_OWN = frozenset((
    "VLLM_PLUGINS", "VLLM_SERVER_DEV_MODE", "VLLM_NO_USAGE_STATS", "VLLM_LOGGING_PREFIX",
    "VLLM_LOGGING_COLOR", "VLLM_USE_FLASHINFER_SAMPLER", "HF_HUB_OFFLINE", "PYTHONUNBUFFERED",
))  # fmt: skip
CARDS_ENV = ("CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER")
TOKEN_FLAG = "--hf-token"
SECRET = re.compile(r"KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)


def refuse_token(args: list[str], where: str) -> list[str]:
    """A command line is stored in each run, and every user of the machine can read it."""
    names = {word.partition("=")[0].replace("_", "-") for word in args}
    if TOKEN_FLAG in names:
        # no ValueError: its sentence would show the value
        raise UserError(
            f"{where}: {TOKEN_FLAG}: its value would be stored in each run; set HF_TOKEN where you start "
            "greenbench, which the server gets"
        )
    return args


def _env_fault(name: str, value: str | None) -> str | None:
    """Why a sweep may not set that variable of its servers; None where it may."""
    if not VARIABLE.fullmatch(name):
        return "no name of a variable"
    if name in LAUNCHERS_OWN or name.startswith("GREENBENCH_"):
        return "greenbench sets it itself; take it out"
    if name in CARDS_ENV and value is not None:
        return "set it where you start greenbench, which goes by it too"
    return None

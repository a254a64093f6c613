"""What a sweep compares: a backend, and what its server has otherwise than the sweep's ``server:`` says."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field, model_validator

from greenbench.contract.errors import UserError
from greenbench.contract.explain import parse
from greenbench.contract.limits import beyond_limit
from greenbench.contract.server_config import BackendChoice, ServerConfig
from greenbench.contract.strict import StrictModel

MOST_CANDIDATES = 1_000  # of one sweep; each is a server start of minutes
NAME = r"^[^\x00-\x1f|`<>]+$"  # it stands in tables, on a terminal and in HTML


class CandidateConfig(StrictModel):
    """One entry of ``candidates``. ``server``: keys of ServerConfig; what it leaves out is the sweep's."""

    backend: str | BackendChoice
    server: dict[str, Any] = Field(default_factory=dict[str, Any])
    vllm: str | None = None  # the Python of another vLLM; short for server.vllm
    name: str | None = Field(default=None, min_length=1, max_length=40, pattern=NAME)

    @model_validator(mode="after")
    def _one_vllm(self) -> "CandidateConfig":
        if self.vllm is not None and "vllm" in self.server:
            raise ValueError("'vllm' is given twice, here and under 'server'; leave one out")
        return self

    @property
    def changes(self) -> dict[str, Any]:
        return self.server if self.vllm is None else {**self.server, "vllm": self.vllm}


class MatrixConfig(StrictModel):
    """Candidates as a cross product: each backend with each combination of the listed server settings."""

    backends: list[str | BackendChoice] = Field(min_length=1)
    server: dict[str, list[Any]] = Field(default_factory=dict[str, list[Any]])

    @model_validator(mode="after")
    def _countable(self) -> "MatrixConfig":
        if empty := [key for key, values in self.server.items() if not values]:
            raise ValueError(f"server.{empty[0]}: a list of at least one value is wanted")
        size = len(self.backends) * math.prod(map(len, self.server.values()))
        if size > MOST_CANDIDATES:
            raise ValueError(f"{size:,} candidates; {MOST_CANDIDATES:,} at most")
        return self

    @property
    def candidates(self) -> Iterator[CandidateConfig]:
        for backend in self.backends:
            for values in itertools.product(*self.server.values()):
                changes = dict(zip(self.server, values, strict=True))
                yield CandidateConfig(backend=backend, server=changes)


@dataclass(frozen=True)
class Contender:
    """A candidate as it is started. ``changes``: what its server has otherwise than the sweep's.

    ``arm``: its number among equal ones; equal candidates show the noise floor.
    """

    backend: BackendChoice
    server: ServerConfig
    changes: Mapping[str, Any]
    name: str | None = None
    arm: int = 0

    @property
    def label(self) -> str:
        """Its name, else ``flash_attn3 kv_cache_dtype=fp8``."""
        said = [f"{key}={value}" for key, value in self.changes.items()]
        return self.name or " ".join([self.backend.label, *said])

    @property
    def identity(self) -> tuple[str, str]:
        return self.backend.label, self.server.model_dump_json()


def choice_of(backend: str | BackendChoice) -> BackendChoice:
    return BackendChoice(name=backend) if isinstance(backend, str) else backend


def contenders(candidates: Sequence[CandidateConfig], server: ServerConfig) -> list[Contender]:
    """Each candidate with its whole server. One that cannot be, or two under one name: ValueError."""
    made: list[Contender] = []
    for index, each in enumerate(candidates):
        choice = choice_of(each.backend)
        own = _changed(server, each.changes, f"candidate {index + 1} ({each.name or choice.label})")
        changes = {
            key: value for key, value in each.changes.items() if getattr(server, key) != value
        }
        one = Contender(choice, own, changes, each.name)
        equal = [other for other in made if other.identity == one.identity]
        _check_name(one, made, equal)
        made.append(Contender(choice, own, changes, each.name, arm=len(equal)))
    return made


def _changed(server: ServerConfig, changes: Mapping[str, Any], who: str) -> ServerConfig:
    if not changes:
        return server
    try:
        own = parse(ServerConfig, {**server.model_dump(), **changes}, f"{who}: server")
    except UserError as error:
        raise ValueError(str(error)) from error
    if sentence := beyond_limit(own, ("server",)):
        raise ValueError(f"{who}: {sentence}")
    return own


def _check_name(one: Contender, made: Sequence[Contender], equal: Sequence[Contender]) -> None:
    if equal and equal[0].name != one.name:
        raise ValueError(
            f"candidates '{equal[0].label}' and '{one.label}' are one and the same server; give both one "
            "name to measure the noise between equals, or take one out"
        )
    for other in made:
        if other.label == one.label and other.identity != one.identity:
            raise ValueError(
                f"two different candidates are called '{one.label}'; give each a name of its own"
            )

"""world.json: figures that others publish, those that are used, and where each is from."""

from typing import Any, Literal

from analysis.bottleneck.roofline import PhaseName
from analysis.model.work import Attention
from greenbench.contract.config import StrictModel, parse
from greenbench.contract.errors import UserError
from greenbench.contract.run_dir import read_json
from scripts.results import RESULTS

PUBLISHED = RESULTS / "world.json"
Card = Literal["H200", "H100"]


class Source(StrictModel):
    """``files`` of ``repository`` at ``commit``; ``read``: which of their rows, and what became of them."""

    repository: str
    commit: str
    licence: str
    files: list[str]
    read: str


class AttentionTimes(StrictModel):
    """``us[sequences][context]``: microseconds of one layer."""

    gpu: Card
    phase: PhaseName
    heads: int
    kv_heads: int
    head_size: int
    us: dict[int, dict[int, float]]

    @property
    def shape(self) -> Attention:
        return Attention(self.heads, self.kv_heads, self.head_size)


class LinearTimes(StrictModel):
    """``us[tokens]``: microseconds of one matrix of ``outputs`` × ``inputs``."""

    outputs: int
    inputs: int
    us: dict[int, float]


class Configurator(StrictModel):
    source: Source
    vllm: str
    attention: list[AttentionTimes]
    linear: list[LinearTimes]


class Served(StrictModel):
    model: str
    task: str
    max_sequences: int
    mean_sequences: float
    mean_output_tokens: float
    j_per_token: float  # of output
    watts: float
    tokens_per_s: float


class MlEnergy(StrictModel):
    """``models``: what of their config.json tells layers and heads."""

    source: Source
    gpu: str
    vllm: str
    rows: list[Served]
    models: dict[str, dict[str, Any]]


class World(StrictModel):
    aiconfigurator: Configurator
    ml_energy: MlEnergy

    def attention(
        self, gpu: Card, phase: PhaseName, shape: Attention
    ) -> dict[int, dict[int, float]]:
        """Empty where the shape is not among them."""
        found = (
            each.us
            for each in self.aiconfigurator.attention
            if (each.gpu, each.phase, each.shape) == (gpu, phase, shape)
        )
        return next(found, {})

    def linear(self, outputs: int, inputs: int) -> dict[int, float]:
        for each in self.aiconfigurator.linear:
            if (each.outputs, each.inputs) == (outputs, inputs):
                return each.us
        raise UserError(f"world.json: no linear layer of {outputs} × {inputs}; add it")


def load_world() -> World:
    return parse(World, read_json(PUBLISHED), PUBLISHED.name)

"""What a model is, as vLLM's own Python resolves its config: stored with the server, read by analysis."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field


class ModelShape(BaseModel):
    """Of the language model, whole (before it is split over cards). None is not known.

    ``unknown`` says why nothing is known; else ``source`` names who resolved it. ``config`` is the config
    of the language model with the defaults of its class, under the usual names.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: str | None = None  # e.g. vLLM 0.32.0, transformers 5.19.0
    unknown: str | None = None  # one sentence
    model_type: str | None = None
    window_tokens: int | None = None  # the longest sequence that vLLM accepts
    head_size: int | None = None  # as attention backends see it: of MLA latent and rotary part
    kv_heads: int | None = None  # 1 of MLA
    layers: int | None = None
    mla: bool | None = None
    vocab_size: int | None = None
    config: dict[str, Any] = Field(default_factory=dict[str, Any])

    @classmethod
    def not_known(cls, why: str) -> Self:
        return cls(unknown=why)

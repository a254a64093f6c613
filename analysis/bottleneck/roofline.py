"""How near a point came to what its device can do, per phase of the engine's steps.

Steps come from vLLM's iteration log: those that computed prompt tokens are the prefill phase (they may
carry decodes), the others decode. Work is worked out from the model's shape (``model_work``), time is
that of the steps. MFU and MBU are work over time over the ceiling, by exactly these numerators.
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd

from analysis.bottleneck.peaks import Ceiling
from analysis.model.cache import ELEMENT_BYTES
from analysis.model.formats import PLAIN
from analysis.model.source import model_source
from analysis.model.work import ModelWork, Work, model_work
from analysis.point.steady_window import Window
from analysis.point.tokens import count_context
from analysis.runs.run import Run

WHOLE_BYTES = {kv_dtype: int(size) for kv_dtype, size in PLAIN.items() if size == int(size)}
PhaseName = Literal["prefill", "decode"]


@dataclass(frozen=True)
class PhaseUse:
    """One phase within the window. ``time_share``: its step time of the window's length."""

    phase: PhaseName
    steps: int
    seconds: float
    time_share: float
    prefill_tokens: int
    decode_tokens: int
    step_tokens_p50: float
    flops_per_s: float
    bytes_per_s: float
    intensity: float
    mfu: float | None
    mbu: float | None
    ceiling: str | None  # where the ceiling comes from


def model_of(run: Run) -> ModelWork | None:
    """The run's model; None where its config, architecture or cache format is not known."""
    server, point = run.manifest.server, run.point
    source = model_source(server, point.model.build)
    item = ELEMENT_BYTES.get(server.dtype, 2)
    kv_item = item if server.kv_cache_dtype == "auto" else WHOLE_BYTES.get(server.kv_cache_dtype)
    if source.config is None or kv_item is None:
        return None
    return model_work(source.config, item, kv_item, _seen(point.backend.options), source.shape)


def _seen(options: dict[str, Any]) -> int | None:
    """Tokens a query sees under an approximate backend with a window of its own."""
    return int(options["window"]) + int(options.get("sink", 0)) if "window" in options else None


def phase_uses(run: Run, window: Window, ceilings: list[Ceiling]) -> list[PhaseUse]:
    """Prefill and decode of one point; empty without a step log or a known model."""
    model = model_of(run)
    steps = run.steps
    if model is None or len(steps) == 0 or steps["unix_ns"].isna().any():
        return []
    inside = steps[steps["unix_ns"].between(window.start_unix_ns, window.end_unix_ns)]
    tokens, summed = count_context(run, window.start_unix_ns, window.end_unix_ns)
    context = summed / tokens if tokens else float(run.point.context_tokens)
    prompt = _mean_prompt(run)
    chunk = run.point.server.max_num_batched_tokens
    has_prefill = inside["prefill_tokens"] > 0
    phases: tuple[tuple[PhaseName, pd.DataFrame], ...] = (
        ("prefill", inside[has_prefill]),
        ("decode", inside[~has_prefill]),
    )
    return [
        _phase(name, rows, model, prompt, context, chunk, window, ceilings[0] if ceilings else None)
        for name, rows in phases
        if len(rows)
    ]


def _mean_prompt(run: Run) -> int:
    known = run.requests["prompt_tokens"].dropna()
    return round(float(known.mean())) if len(known) else run.point.context_tokens


def _phase(
    name: PhaseName,
    rows: pd.DataFrame,
    model: ModelWork,
    prompt: int,
    context: float,
    chunk: int,
    window: Window,
    ceiling: Ceiling | None,
) -> PhaseUse:
    seconds = float(rows["elapsed_s"].sum())
    prefilled, decoded = int(rows["prefill_tokens"].sum()), int(rows["decode_tokens"].sum())
    work = steps_work(model, rows, prompt, context, chunk)
    flops_per_s, bytes_per_s = work.flops / seconds, work.bytes / seconds
    return PhaseUse(
        phase=name,
        steps=len(rows),
        seconds=seconds,
        time_share=seconds / window.duration_s,
        prefill_tokens=prefilled,
        decode_tokens=decoded,
        step_tokens_p50=float((rows["prefill_tokens"] + rows["decode_tokens"]).median()),
        flops_per_s=flops_per_s,
        bytes_per_s=bytes_per_s,
        intensity=work.intensity,
        mfu=flops_per_s / ceiling.flops_per_s if ceiling else None,
        mbu=bytes_per_s / ceiling.bytes_per_s if ceiling else None,
        ceiling=f"{ceiling.kind}: {ceiling.source}" if ceiling else None,
    )


def steps_work(
    model: ModelWork, rows: pd.DataFrame, prompt: int, context: float, chunk: int
) -> Work:
    """Work of some steps: weights once a step, prompts pro rata of their tokens, decodes at ``context``."""
    prefilled, decoded = int(rows["prefill_tokens"].sum()), int(rows["decode_tokens"].sum())
    work = model.chunked_prefill(prompt, chunk) * (prefilled / prompt)
    work += model.decode_token(context) * decoded
    sizes, counts = np.unique(rows["prefill_tokens"] + rows["decode_tokens"], return_counts=True)
    for size, count in zip(sizes, counts, strict=True):
        work += model.step_weights(float(size)) * float(count)
    return work

"""Right answers and perplexity of one point."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from analysis.runs.run import Run
from analysis.statistics.samples import as_float, wilson


@dataclass(frozen=True)
class Answers:
    """Grades of the measured phase. Greedy answers to one prompt repeat, so prompts are counted too."""

    graded: int = 0
    prompts: int = 0
    correct: int | None = None
    correct_share: float | None = None
    low: float | None = None  # 95 % Wilson interval over distinct prompts
    high: float | None = None
    mean_score: float | None = None
    nll_per_token: float | None = None  # nats; perplexity = exp of it
    perplexity: float | None = None
    nll_tokens: int | None = None
    reason: str | None = None


def answers(run: Run) -> Answers:
    """Right answers per prompt (a prompt counts by the mean of its answers), mean score, perplexity.

    perplexity = exp(Σ nll / Σ tokens) over all scored tokens of the measured phase.
    """
    joined = graded_prompts(run)
    if len(joined) == 0:
        return Answers(reason="no graded answers were stored")
    by_prompt = joined.groupby("prompt_index")[["correct", "score"]].mean()
    graded = joined[joined["correct"].notna()]
    tokens = joined["nll_tokens"].sum()
    nll = float(joined["nll_sum"].sum() / tokens) if tokens else None
    share = float(by_prompt["correct"].mean()) if len(graded) else None
    prompts = int(by_prompt["correct"].notna().sum()) or len(by_prompt)
    low, high = wilson(share * prompts, prompts) if share is not None else (None, None)
    return Answers(
        graded=len(joined),
        prompts=prompts,
        correct=int(graded["correct"].sum()) if len(graded) else None,
        correct_share=share,
        low=low,
        high=high,
        mean_score=as_float(by_prompt["score"].mean()) if joined["score"].notna().any() else None,
        nll_per_token=nll,
        perplexity=float(np.exp(nll)) if nll is not None else None,
        nll_tokens=int(tokens) if tokens else None,
    )


def graded_prompts(run: Run) -> pd.DataFrame:
    """One row a graded answer of a successful measured request: prompt_index, correct, score, nll_*."""
    outputs = run.outputs
    requests = run.requests
    if len(outputs) == 0 or len(requests) == 0:
        return pd.DataFrame()
    measured = requests[(requests["phase"] == "measure") & requests["error_type"].isna()]
    joined = outputs[outputs["request_id"].isin(measured["request_id"])].copy()
    for column in ("correct", "score", "nll_sum", "nll_tokens"):
        joined[column] = pd.to_numeric(joined[column].map(_number), errors="coerce")
    return joined[joined[["correct", "score", "nll_tokens"]].notna().any(axis=1)]


def _number(value: Any) -> float | None:
    return None if value is None or value is pd.NA else float(value)
